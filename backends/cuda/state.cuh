// 16 rows of a state, or of its gradient, in a warp's registers, in the layout of a matrix product's result: a lane holds
// rows d and d + 8, columns 8 n + j and the next.
#pragma once

#include <cfloat>

#include "chunk.cuh"

namespace t2fw::cuda {

// A state operand: [.., H, D, K] with strides in elements; NULL if absent.
struct StateOperand {
  const void* data;
  t2fw_state_strides strides;
  bool wide;  // fp32, else as the data

  template <class T>
  __device__ __forceinline__ float get(int64_t at) const {
    return wide ? static_cast<const float*>(data)[at] : widen(static_cast<const T*>(data)[at]);
  }
  template <class T>
  __device__ __forceinline__ void put(int64_t at, float s) const {
    void* const to = const_cast<void*>(data);
    if (wide) static_cast<float*>(to)[at] = s;
    else static_cast<T*>(to)[at] = narrow<T>(s);
  }
};

// A row of a state that forward saves for tensor cores: its keys by groups of 32, zeros behind the last, and those of a group
// in the order in which the lanes of StateRows hold them, so that each writes 16 bytes: keys 8 n + 2 j and the next,
// n = 0 .. 3, are piece j.
struct SavedRow {
  static constexpr int GROUP = 32, PIECE = 8;
  __host__ __device__ static constexpr int64_t width(int64_t K) { return (K + GROUP - 1) / GROUP * GROUP; }
  __device__ static constexpr int place(int key) {
    return key / GROUP * GROUP + key % 8 / 2 * PIECE + key % GROUP / 8 * 2 + key % 2;
  }
};

template <class T, int KP>
struct StateRows {
  static constexpr int N = KP / 8;
  float S[N][4] = {};

  // body(element, d, key) for every element; first, first_key: d and key of the warp's first row and column.
  template <class Body>
  __device__ __forceinline__ void each(int first, int first_key, const Body& body) {
    const int lane = threadIdx.x % 32, d = first + lane / 4, j = first_key + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) body(S[n][e], d + e / 2 * 8, n * 8 + j + e % 2);
  }
  // For those inside [D][K].
  template <class Body>
  __device__ __forceinline__ void each(int first, int first_key, int D, int K, const Body& body) {
    each(first, first_key, [&](float& s, int d, int key) {
      if (d < D && key < K) body(s, d, key);
    });
  }
  // Elements outside [D][K] stay.
  __device__ __forceinline__ void load(const StateOperand& x, int64_t b, int64_t h, int first, int first_key, int D, int K) {
    if (!x.data) return;
    const int64_t base = b * x.strides.b + h * x.strides.h;
    each(first, first_key, D, K, [&](float& s, int d, int key) { s = x.get<T>(base + d * x.strides.d + key); });
  }
  __device__ __forceinline__ void store(const StateOperand& x, int64_t b, int64_t h, int first, int first_key, int D,
                                        int K) {
    if (!x.data) return;
    const int64_t base = b * x.strides.b + h * x.strides.h;
    each(first, first_key, D, K, [&](float& s, int d, int key) { x.put<T>(base + d * x.strides.d + key, s); });
  }

  // body(piece, row, at) for every piece of a row as SavedRow has it, seen from the lane's first: row lane / 4, piece lane % 4.
  template <class Body>
  __device__ __forceinline__ void pieces(const Body& body) const {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const auto two = [&](int n) {
        const float* const s = S[i / 2 * 4 + n] + i % 2 * 2;
        return bits(narrow<T>(float2{s[0], s[1]}));
      };
      body(uint4{two(0), two(1), two(2), two(3)}, i % 2 * 8, i / 2 * SavedRow::GROUP);
    }
  }
  // From rows of such pieces.
  template <int P>
  __device__ __forceinline__ void take(const T (&rows)[SLICE][P], int first, int first_key) {
    const int lane = threadIdx.x % 32, d = first + lane / 4, at = first_key + lane % 4 * SavedRow::PIECE;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) {
      const auto piece = *reinterpret_cast<const uint4*>(&rows[d + i % 2 * 8][at + i / 2 * SavedRow::GROUP]);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 two = widen(reinterpret_cast<const Two<T>*>(&piece)[n]);
        S[i / 2 * 4 + n][i % 2 * 2] = two.x, S[i / 2 * 4 + n][i % 2 * 2 + 1] = two.y;
      }
    }
  }

  // What a chunk does to 16 rows of the state and to its keys, in registers: the shared memory is free as soon as they are
  // loaded. values, keys: rows of the chunk's tokens; first: the state's first row or key, a column of them.
  struct Values {
    uint32_t left[4];  // [16 values][16 tokens]
    float f[2];

    template <int P>
    __device__ __forceinline__ void load(const T (&values)[CHUNK][P], const float* all_f, int first) {
      const int lane = threadIdx.x % 32;
      load_matrices_transposed(left, shared_address(&values[lane % 8 + lane / 16 * 8][first + lane / 8 % 2 * 8]));
      f[0] = all_f[first + lane / 4], f[1] = all_f[first + lane / 4 + 8];
    }
  };
  struct Keys {
    uint32_t right[KP / 16][4];  // [16 tokens][16 keys]
    float2 g[N];

    template <int P>
    __device__ __forceinline__ void load(const T (&keys)[CHUNK][P], const float* all_g, int first) {
      const int lane = threadIdx.x % 32;
      const uint32_t row = shared_address(&keys[lane % 16][first + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < KP / 16; ++i) load_matrices_transposed(right[i], row + i * 16 * sizeof(T));
#pragma unroll
      for (int n = 0; n < N; ++n) g[n] = *reinterpret_cast<const float2*>(&all_g[first + n * 8 + lane % 4 * 2]);
    }
  };

  // x = (f (x) g) o x
  __device__ __forceinline__ static void multiply(float (&x)[N][4], const Values& values, const Keys& keys) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      x[n][0] *= values.f[0] * keys.g[n].x;
      x[n][1] *= values.f[0] * keys.g[n].y;
      x[n][2] *= values.f[1] * keys.g[n].x;
      x[n][3] *= values.f[1] * keys.g[n].y;
    }
  }
  using Slabs = float[N][4];
  // S += gates o values^T keys. guarded: gates may have overflowed where there is nothing to add.
  template <bool guarded>
  __device__ __forceinline__ void add(const Slabs& gates, const Values& values, const Keys& keys) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float own[4] = {};
      multiply_add<T>(own, values.left, keys.right[n / 2][n % 2 * 2], keys.right[n / 2][n % 2 * 2 + 1]);
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (!guarded || own[e] != 0.f) S[n][e] = fmaf(gates[n][e], own[e], S[n][e]);
    }
  }
  // S = (f (x) g) o S + values^T keys
  __device__ __forceinline__ void apply(const Values& values, const Keys& keys) {
    multiply(S, values, keys);
#pragma unroll
    for (int n = 0; n < N; ++n)
      multiply_add<T>(S[n], values.left, keys.right[n / 2][n % 2 * 2], keys.right[n / 2][n % 2 * 2 + 1]);
  }
};

// Words in which the warps that hold the state behind a first segment tell that they have handed it over, at most.
inline constexpr int HANDED = 8;

// What the threads of a block leave of a segment in scratch: their elements [X][4] of the state from zero and, element by
// element, its products of both gates (apart they may leave fp32's range where together they do not), or of those up to where
// none is a normal number any more. Of a head that is cut in two it is the state behind the first segment.
template <int X, int threads>
struct Local {
  static constexpr int COUNT = X * 4, FLOATS = 2 * COUNT * threads;

  // Whether all of a thread's products are smaller than a normal number. What is no number is not.
  __device__ __forceinline__ static bool have_faded(const float (&gates)[X][4]) {
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) most = max(most, __float_as_uint(fabsf(gates[i / 4][i % 4])));
    return most < __float_as_uint(FLT_MIN);
  }
  // thread: of those.
  __device__ __forceinline__ static void put(float* block, int thread, const float (&S)[X][4], const float (&gates)[X][4]) {
    put_state(block, thread, S), put_state(block + COUNT * threads, thread, gates);
  }
  // A state, or a thread's [Y][4] elements of it, of [X][4] from `first` on; here and below.
  template <int Y>
  __device__ __forceinline__ static void put_state(float* block, int thread, const float (&S)[Y][4], int first = 0) {
    auto* const to = reinterpret_cast<float4*>(block) + first * threads + thread;
#pragma unroll
    for (int i = 0; i < Y; ++i) to[i * threads] = {S[i][0], S[i][1], S[i][2], S[i][3]};
  }
  // Behind wait_for.
  template <int Y>
  __device__ __forceinline__ static void get_state(const float* block, int thread, float (&S)[Y][4], int first = 0) {
    const auto* const from = reinterpret_cast<const float4*>(block) + first * threads + thread;
#pragma unroll
    for (int i = 0; i < Y; ++i) {
      const float4 own = load_line(from + i * threads);
      S[i][0] = own.x, S[i][1] = own.y, S[i][2] = own.z, S[i][3] = own.w;
    }
  }
  // Takes the state through the segment. A zero stays one, however far the gates overflow. Everything is asked for at once: a
  // load that waits for what another one brings is a way to the L2 cache and back more.
  template <int Y>
  __device__ __forceinline__ static void pass(const float* block, int thread, float (&S)[Y][4], int first = 0) {
    const auto* const from = reinterpret_cast<const float4*>(block) + first * threads + thread;
    float4 own[Y], all[Y];
#pragma unroll
    for (int i = 0; i < Y; ++i) own[i] = load_line(from + i * threads), all[i] = load_line(from + (X + i) * threads);
    const auto through = [](float& s, float gate, float own) { s = s == 0.f ? own : fmaf(gate, s, own); };
#pragma unroll
    for (int i = 0; i < Y; ++i) {
      through(S[i][0], all[i].x, own[i].x), through(S[i][1], all[i].y, own[i].y);
      through(S[i][2], all[i].z, own[i].z), through(S[i][3], all[i].w, own[i].w);
    }
  }
};

}  // namespace t2fw::cuda
