// A lane's quarter of a chunk, tokens 4 j .. 4 j + 3 with j = lane % 4, of columns g and g + 8, g = lane / 4: the layout of a
// matrix product's result whose rows are columns and whose columns are tokens in a certain order, and at once that of its left
// operand. Both columns of a token are a pair, so that one instruction computes with both of them if they are bf16.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda {

// One of two pairs, in registers.
template <class V>
__device__ __forceinline__ V choose(bool first, V x, V y) {
  if constexpr (sizeof(V) == 8) return {first ? x.x : y.x, first ? x.y : y.y};
  else return as_pair<V>(first ? bits(x) : bits(y));
}

// That of lane `from`; of the lane whose number differs by `lanes`, a power of two.
template <class V>
__device__ __forceinline__ V from_lane(V x, int from) {
  if constexpr (sizeof(V) == 8) return {__shfl_sync(~0u, x.x, from), __shfl_sync(~0u, x.y, from)};
  else return as_pair<V>(__shfl_sync(~0u, bits(x), from));
}
template <class V>
__device__ __forceinline__ V exchange(V x, int lanes) {
  if constexpr (sizeof(V) == 8) return {__shfl_xor_sync(~0u, x.x, lanes), __shfl_xor_sync(~0u, x.y, lanes)};
  else return as_pair<V>(__shfl_xor_sync(~0u, bits(x), lanes));
}

// Where lane l finds its row of the four 8x8 matrices of tokens by 16 columns from `column` on.
template <class T, int P>
__device__ __forceinline__ uint32_t quarter_rows(const T (&rows)[CHUNK][P], int column, int lane) {
  const int token = lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
  return shared_address(&rows[row_of(token)][column + lane / 8 % 2 * 8]);
}

// N: bf16, so that a pair is 32 bits, or float.
template <class N>
struct Quarter {
  Two<N> token[4];

  __device__ __forceinline__ Two<N>& operator[](int t) { return token[t]; }
  __device__ __forceinline__ const Two<N>& operator[](int t) const { return token[t]; }

  // As two matrix products leave it.
  __device__ __forceinline__ static Quarter of(const float (&x)[2][4]) {
    Quarter to;
#pragma unroll
    for (int t = 0; t < 4; ++t) to[t] = narrow<N>(float2{x[t / 2][t % 2], x[t / 2][2 + t % 2]});
    return to;
  }

  // As a left operand, and as matrices of shared memory: of tokens 2 (i / 2) and the next, column i % 2.
  template <class E>
  __device__ __forceinline__ void operand(uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Two<N> x = token[i / 2 * 2], y = token[i / 2 * 2 + 1];
      if constexpr (std::is_same_v<N, E>) to[i] = __byte_perm(bits(x), bits(y), i % 2 ? 0x7632 : 0x5410);
      else to[i] = bits(narrow<E>(i % 2 ? float2{x.y, y.y} : float2{x.x, y.x}));
    }
  }
  template <class E>
  __device__ __forceinline__ static Quarter of(const uint32_t (&x)[4]) {
    Quarter to;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const uint32_t first = x[t / 2 * 2], second = x[t / 2 * 2 + 1];
      if constexpr (std::is_same_v<N, E>) {
        to[t] = as_pair<Two<N>>(__byte_perm(first, second, t % 2 ? 0x7632 : 0x5410));
      } else {
        const float2 low = widen(as_pair<Two<E>>(first)), high = widen(as_pair<Two<E>>(second));
        to[t] = narrow<N>(t % 2 ? float2{low.y, high.y} : float2{low.x, high.x});
      }
    }
    return to;
  }

  template <class E, int P>
  __device__ __forceinline__ static Quarter load(const E (&rows)[CHUNK][P], int column, int lane) {
    if constexpr (sizeof(E) == 2) {
      uint32_t x[4];
      load_matrices_transposed(x, quarter_rows(rows, column, lane));
      return of<E>(x);
    } else {
      Quarter to;
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const E* const x = &rows[row_of(lane % 4 * 4 + t)][column + lane / 4];
        to[t] = narrow<N>(float2{x[0], x[8]});
      }
      return to;
    }
  }
  // Leaves it in its 16 columns of a desk's rows.
  template <class E, int P>
  __device__ __forceinline__ void leave(E (&rows)[CHUNK][P], int column, int lane) const {
    if constexpr (sizeof(E) == 2) {
      uint32_t x[4];
      operand<E>(x);
      store_matrices_transposed(quarter_rows(rows, column, lane), x);
    } else {
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        E* const x = &rows[row_of(lane % 4 * 4 + t)][column + lane / 4];
        const float2 two = widen(token[t]);
        x[0] = two.x, x[8] = two.y;
      }
    }
  }
};

}  // namespace t2fw::cuda
