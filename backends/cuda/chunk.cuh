// A chunk: 16 tokens of a head as a warp brings them into shared memory.
#pragma once

#include "core/problem.hpp"
#include "tile.cuh"

namespace t2fw::cuda {

inline constexpr int CHUNK = 16;
inline constexpr int SLICE = 64;         // columns of a side that a thread block takes of the state
inline constexpr int PITCH = SLICE + 8;  // of a row of 64 columns in shared memory: eight rows meet no bank twice

// The row of a chunk's token in shared memory, but for boxes (box.cuh): eight consecutive tokens, and two of each quarter of
// the chunk, lie on different banks.
__device__ constexpr int row_of(int token) { return token < CHUNK / 2 ? token : token ^ 2; }

// An operand over tokens, strides in elements. width 0: absent; 1 beside a wider side: one value for all columns.
struct alignas(16) Rows {
  const void* data;
  int64_t t, b, h;
  int width;
  bool whole;   // full width, every row on 16 bytes and a multiple of them: copied without passing registers
  bool boxed;   // what takes boxes brings it by them (box.cuh)
  bool logits;  // of a gate: T2FW_GATE_LOGITS, even if it is absent
};

// What stands for a gate where there is none: 1, or its logit.
__device__ __forceinline__ float absent_gate(const Rows& a) { return a.logits ? __int_as_float(0x7f800000) : 1.f; }

// Where in the operands a chunk's tokens lie.
struct Place {
  int64_t b, h;
  int first, count;  // token of the batch row; at most CHUNK, less than 1 if there are none
};

template <class E>
__device__ __forceinline__ const E* at(const Rows& x, const Place& c, int t, int column) {
  return static_cast<const E*>(x.data) + c.b * x.b + c.h * x.h + static_cast<uint32_t>(c.first + t) * x.t +
         (x.width == 1 ? 0 : column);
}

// The same of an operand that is `whole`.
template <class E>
__device__ __forceinline__ const E* whole_at(const Rows& x, const Place& c, int t, int column) {
  return static_cast<const E*>(x.data) + c.b * x.b + c.h * x.h + static_cast<uint32_t>(c.first + t) * x.t + column;
}

// The operand from a place's first token on: there that is {0, 0, 0}.
template <class E>
__device__ __forceinline__ Rows rows_from(Rows x, const Place& start) {
  x.data = at<E>(x, start, 0, 0);
  return x;
}

// Whether the chunk of an operand can be brought by stage_rows.
__device__ __forceinline__ bool copied(const Rows& x, const Place& c) { return x.whole && c.count == CHUNK; }

// How a warp copies a chunk's rows of W columns, 16 bytes a lane at a time: this lane begins at token t, column j.
template <int W, class E>
struct Copies {
  static constexpr int each = 16 / sizeof(E), pieces = W / each, rows = 32 / pieces;
  static_assert(rows == 2 || rows == 4);
  const int t = threadIdx.x % 32 / pieces, j = threadIdx.x % 32 % pieces * each;

  // from: what lies there; step: bytes from a token to the next.
  template <int P>
  __device__ __forceinline__ void start(E (&to)[CHUNK][P], const E* from, int64_t step) const {
    copy(to, from, step, [](E* row, const char* there) { copy_async(row, there); });
  }
  template <int P>
  __device__ __forceinline__ void start_if(bool wanted, E (&to)[CHUNK][P], const E* from, int64_t step) const {
    copy(to, from, step, [wanted](E* row, const char* there) { copy_async_if(wanted, row, there); });
  }
  template <int P, class One>
  __device__ __forceinline__ void copy(E (&to)[CHUNK][P], const E* from, int64_t step, const One& one) const {
    step *= rows;  // read once: behind a copy the compiler would read it again
    auto* next = reinterpret_cast<const char*>(from);
    E *const row = &to[t][j], *const swapped = rows == 4 ? &to[t ^ 2][j] : row;
#pragma unroll
    for (int i = 0; i < CHUNK; i += rows, next += step)
      one(i < CHUNK / 2 ? row + i * P : swapped + (rows == 4 ? i : i ^ 2) * P, next);  // row_of(t + i)
  }
};

// A warp starts to copy a chunk's rows, columns column .. of `columns` as far as W reaches. What lies behind stays.
template <int W, class E, int P>
__device__ __forceinline__ void stage_rows(E (&to)[CHUNK][P], const Rows& x, const Place& c, int column, int columns) {
  const Copies<W, E> copies;
  if (column + copies.j < columns)
    copies.start(to, whole_at<E>(x, c, copies.t, column + copies.j), x.t * static_cast<int>(sizeof(E)));
}

// A tile's part of an operand whose rows lie on 16 bytes, less than 2^32 bytes apart.
struct alignas(16) TileRows {
  const void* data;  // the tile's first column of a head's first token
  uint32_t step;     // bytes from a token to the next
  uint32_t columns;  // as far as there are any, 64 at most; 0: the operand's rows lie otherwise

  // x: from the head's first token on; column, columns: the tile's first, and of the head.
  template <class E>
  __device__ __forceinline__ static TileRows of(const Rows& x, int column, int columns) {
    constexpr int each = sizeof(E);
    const bool usual = x.whole && x.t >= 0 && x.t < (int64_t{1} << 32) / each;
    const uint32_t there = static_cast<uint32_t>(min(columns - column, SLICE));
    return {static_cast<const E*>(x.data) + column, static_cast<uint32_t>(x.t) * each, usual ? there : 0};
  }
  template <class E>
  __device__ __forceinline__ const E* at(uint32_t token, uint32_t column) const {
    return reinterpret_cast<const E*>(static_cast<const char*>(data) + column * sizeof(E) + uint64_t{token} * step);
  }
  // A warp starts to copy its rows of a chunk. What lies behind its columns stays.
  template <class E, int P>
  __device__ __forceinline__ void stage(E (&to)[CHUNK][P], uint32_t first) const {
    const Copies<SLICE, E> copies;
    copies.start_if(static_cast<uint32_t>(copies.j) < columns, to, at<E>(first + copies.t, copies.j), step);
  }
};

// The same element by element, for what cannot be copied; `absent` behind the last token. boxed: in the order of the tokens, as
// in boxes.
template <int W, bool boxed = false, class E, int P>
__device__ __forceinline__ void stage_elements(E (&to)[CHUNK][P], const Rows& x, const Place& c, int column,
                                               int columns, float absent) {
  if (!x.width) return;
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < CHUNK * W; i += 32) {
    const int t = i / W, j = i % W;
    const bool there = t < c.count && column + j < columns;
    const E* const from = at<E>(x, c, t, column + j);
    to[boxed ? t : row_of(t)][j] = there ? *from : narrow<E>(absent);
  }
}

template <int W, class E, int P>
__device__ __forceinline__ void stage(E (&to)[CHUNK][P], const Rows& x, const Place& c, int column, int columns,
                                      float absent) {
  if (copied(x, c)) stage_rows<W>(to, x, c, column, columns);
  else stage_elements<W>(to, x, c, column, columns, absent);
}

// What a warp's rows hold before anything is staged; staging leaves columns behind the data alone.
template <int W, class E, int P>
__device__ __forceinline__ void fill(E (&to)[CHUNK][P], float value) {
#pragma unroll 1
  for (int i = threadIdx.x % 32; i < CHUNK * W; i += 32) to[i / W][i % W] = narrow<E>(value);
}

}  // namespace t2fw::cuda
