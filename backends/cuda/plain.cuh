// The plain form for fp32 data, token by token: a thread keeps a patch of the state in registers while a run of tokens,
// whose operands were copied into shared memory, goes by. A warp's lanes lie over the state as 4 patches of values by 8 of
// keys, a patch's columns side by side, so that a lane reads operands by fours and the lanes of a column read the same.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda::plain {

// Values and keys of a lane's first four of a warp, and how many a warp has of each.
__device__ __forceinline__ int lane_value() { return threadIdx.x % 4 * 4; }
__device__ __forceinline__ int lane_key() { return threadIdx.x / 4 % 8 * 4; }
inline constexpr int WARP_VALUES = 16, WARP_KEYS = 32;

// Thread `thread` of `threads` starts to copy a run of an operand, columns column .. column + W; `absent` behind its ends.
// An absent operand stays as it is.
template <int threads, int RUN, int W>
__device__ __forceinline__ void stage(float (&to)[RUN][W], const Rows& x, const Place& c, int column, int columns,
                                      float absent, int thread) {
  if (x.whole) {
    constexpr int pieces = W / 4, rows = threads / pieces;
    const int first = thread / pieces, j = thread % pieces * 4;
    const float* from = at<float>(x, c, first, column + j);
    const int count = column + j < columns ? c.count : 0;
#pragma unroll
    for (int t = first; t < first + RUN; t += rows, from += rows * x.t) {
      if (rows > RUN && t >= RUN) return;
      if (t < count) copy_async(&to[t][j], from);
      else *reinterpret_cast<float4*>(&to[t][j]) = {absent, absent, absent, absent};
    }
  } else if (x.width) {
#pragma unroll 1
    for (int i = thread; i < RUN * W; i += threads) {
      const int t = i / W, j = i % W;
      if (t < c.count && column + j < columns) copy_word_async(&to[t][j], at<float>(x, c, t, column + j));
      else to[t][j] = absent;
    }
  }
}

template <int threads, int RUN, int W>
__device__ __forceinline__ void fill(float (&to)[RUN][W], float value) {
  for (int i = threadIdx.x; i < RUN * W; i += threads) to[i / W][i % W] = value;
}

__device__ __forceinline__ void load_four(const float* from, float (&x)[4]) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
}

// `n` groups of `each` sums, x[n][each], are added up over n lanes, whose numbers differ in the bits from `unit` on; the
// lane whose bits say i is left with the i-th group in x[0 .. each).
template <int n, int unit, int each>
__device__ __forceinline__ void sum_over_lanes(float* x) {
  if constexpr (n > 1) {
    constexpr int half = n / 2 * each, apart = n / 2 * unit;
    const bool upper = threadIdx.x & apart;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = upper ? x[i] : x[i + half];
      x[i] = (upper ? x[i + half] : x[i]) + __shfl_xor_sync(~0u, other, apart);
    }
    sum_over_lanes<n / 2, unit, each>(x);
  }
}

// Writes four neighbouring columns of a token, as far as there are any.
__device__ __forceinline__ void put_four(const Rows& x, const Place& c, int t, int column, int columns, float4 value) {
  if (t >= c.count || column >= columns) return;
  float* const to = const_cast<float*>(at<float>(x, c, t, column));
  if (x.whole) {
    *reinterpret_cast<float4*>(to) = value;
    return;
  }
  to[0] = value.x;
  if (column + 1 < columns) to[1] = value.y;
  if (column + 2 < columns) to[2] = value.z;
  if (column + 3 < columns) to[3] = value.w;
}

__device__ __forceinline__ float4 add(float4 x, float4 y) { return {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w}; }

}  // namespace t2fw::cuda::plain
