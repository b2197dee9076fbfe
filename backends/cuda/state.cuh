// 16 rows of a state, or of its gradient, in a warp's registers, in the layout of a matrix product's result: a lane holds
// rows d and d + 8, columns 8 n + j and the next.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda {

// A state operand: [.., H, D, K] with strides in elements; NULL if absent.
struct StateOperand {
  const void* data;
  t2fw_state_strides strides;
  bool wide;  // fp32, else as the data
};

template <class T, int KP>
struct StateRows {
  static constexpr int N = KP / 8;
  float S[N][4] = {};

  // body(element, d, key) for the elements inside [D][K]; first, first_key: those of the warp's first row and column.
  template <class Body>
  __device__ __forceinline__ void each(int first, int first_key, int D, int K, const Body& body) {
    const int lane = threadIdx.x % 32, d = first + lane / 4, j = first_key + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = d + e / 2 * 8, key = n * 8 + j + e % 2;
        if (row < D && key < K) body(S[n][e], row, key);
      }
  }
  // Elements outside [D][K] stay.
  __device__ __forceinline__ void load(const StateOperand& x, int64_t b, int64_t h, int first, int first_key, int D, int K) {
    if (!x.data) return;
    const int64_t base = b * x.strides.b + h * x.strides.h;
    each(first, first_key, D, K, [&](float& s, int d, int key) {
      const int64_t at = base + d * x.strides.d + key;
      s = x.wide ? static_cast<const float*>(x.data)[at] : widen(static_cast<const T*>(x.data)[at]);
    });
  }
  __device__ __forceinline__ void store(const StateOperand& x, int64_t b, int64_t h, int first, int first_key, int D,
                                        int K) {
    if (!x.data) return;
    void* const to = const_cast<void*>(x.data);
    const int64_t base = b * x.strides.b + h * x.strides.h;
    each(first, first_key, D, K, [&](float& s, int d, int key) {
      const int64_t at = base + d * x.strides.d + key;
      if (x.wide) static_cast<float*>(to)[at] = s;
      else static_cast<T*>(to)[at] = narrow<T>(s);
    });
  }

  // What a chunk does to the state, in registers: the shared memory is free as soon as they are loaded.
  struct Update {
    uint32_t left[4], right[KP / 16][4];  // [16 values][16 tokens], [16 tokens][16 keys]
    float f[2];
    float2 g[N];

    // values, keys: rows of the chunk's tokens; first: the warp's first row of the state, a column of `values`.
    template <int P, int PK>
    __device__ __forceinline__ void load(const T (&values)[CHUNK][P], const T (&keys)[CHUNK][PK], const float* all_f,
                                         const float* all_g, int first) {
      const int lane = threadIdx.x % 32;
      const uint32_t row = shared_address(&keys[lane % 16][lane / 16 * 8]);
      load_matrices_transposed(left, shared_address(&values[lane % 8 + lane / 16 * 8][first + lane / 8 % 2 * 8]));
#pragma unroll
      for (int i = 0; i < KP / 16; ++i) load_matrices_transposed(right[i], row + i * 16 * sizeof(T));
      f[0] = all_f[first + lane / 4], f[1] = all_f[first + lane / 4 + 8];
#pragma unroll
      for (int n = 0; n < N; ++n) g[n] = *reinterpret_cast<const float2*>(&all_g[n * 8 + lane % 4 * 2]);
    }
  };

  // S = (f (x) g) o S + values^T keys
  __device__ __forceinline__ void apply(const Update& u) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      S[n][0] *= u.f[0] * u.g[n].x;
      S[n][1] *= u.f[0] * u.g[n].y;
      S[n][2] *= u.f[1] * u.g[n].x;
      S[n][3] *= u.f[1] * u.g[n].y;
      multiply_add<T>(S[n], u.left, u.right[n / 2][n % 2 * 2], u.right[n / 2][n % 2 * 2 + 1]);
    }
  }
};

// A segment's state from zero and its products of gates, where segments meet: floats of a block of STATE_WARPS warps,
// element by element over the threads.
inline constexpr int STATE_WARPS = SLICE / 16;

template <class T, int KP>
struct Local {
  static constexpr int N = KP / 8, FLOATS = (N * 4 + 2 + N * 2) * 32 * STATE_WARPS;
  float f[2] = {1.f, 1.f};
  float2 g[N];

  __device__ __forceinline__ Local() {
#pragma unroll
    for (int n = 0; n < N; ++n) g[n] = {1.f, 1.f};
  }
  __device__ __forceinline__ void multiply(const typename StateRows<T, KP>::Update& u) {
    f[0] *= u.f[0], f[1] *= u.f[1];
#pragma unroll
    for (int n = 0; n < N; ++n) g[n] = g[n] * u.g[n];
  }
  // thread: of the block's state warps.
  __device__ __forceinline__ void put(float* block, int thread, const StateRows<T, KP>& rows) const {
    constexpr int next = 32 * STATE_WARPS;
    float* const to = block + thread;
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) to[(n * 4 + e) * next] = rows.S[n][e];
      to[(N * 4 + 2 + n * 2) * next] = g[n].x;
      to[(N * 4 + 3 + n * 2) * next] = g[n].y;
    }
    to[N * 4 * next] = f[0], to[(N * 4 + 1) * next] = f[1];
  }
  // Takes the state through the segment.
  __device__ __forceinline__ static void pass(const float* block, int thread, StateRows<T, KP>& rows) {
    constexpr int next = 32 * STATE_WARPS;
    const float* const from = block + thread;
    const float f[2] = {from[N * 4 * next], from[(N * 4 + 1) * next]};
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        rows.S[n][e] = fmaf(f[e / 2] * from[(N * 4 + 2 + n * 2 + e % 2) * next], rows.S[n][e], from[(n * 4 + e) * next]);
  }
};

}  // namespace t2fw::cuda
