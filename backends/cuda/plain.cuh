// The plain form, token by token and in fp32 throughout: a thread keeps a patch of the state in registers while a run of
// tokens, whose operands were brought into shared memory, goes by. A warp's lanes lie over the state as 4 patches of values
// by 8 of keys, a patch's columns side by side, so that a lane reads operands by fours and the lanes of a column read the
// same.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda::plain {

// Values and keys of a lane's first four of a warp, and how many a warp has of each.
__device__ __forceinline__ int lane_value() { return threadIdx.x % 4 * 4; }
__device__ __forceinline__ int lane_key() { return threadIdx.x / 4 % 8 * 4; }
inline constexpr int WARP_VALUES = 16, WARP_KEYS = 32;

// A run of an operand on its way into shared memory, brought by `threads` threads. fp32 elements are copied; 16-bit ones
// pass through registers, where they are awaited between `start` and `finish` while the run before goes by. An absent
// operand's memory stays as it is.
template <class E, int threads, int RUN, int W>
struct Staging {
  static constexpr bool copies = sizeof(E) == 4;
  static constexpr int PIECES = W / 4, ROWS = threads / PIECES;  // of four elements; brought at once
  uint2 four[copies ? 1 : (RUN + ROWS - 1) / ROWS];

  // Columns column .. column + W; `absent` behind the operand's ends.
  __device__ __forceinline__ void start(float (&to)[RUN][W], const Rows& x, const Place& c, int column, int columns,
                                        float absent, int thread) {
    if (x.whole) {
      const int first = thread / PIECES, j = thread % PIECES * 4;
      const E* from = at<E>(x, c, first, column + j);
      const int count = column + j < columns ? c.count : 0;
#pragma unroll
      for (int t = first, i = 0; t < first + RUN; t += ROWS, ++i, from += ROWS * x.t) {
        if (ROWS > RUN && t >= RUN) return;
        if constexpr (copies) {
          if (t < count) copy_async(&to[t][j], from);
          else *reinterpret_cast<float4*>(&to[t][j]) = {absent, absent, absent, absent};
        } else {
          four[i] = t < count ? *reinterpret_cast<const uint2*>(from) : narrow_four<E>({absent, absent, absent, absent});
        }
      }
    } else if (x.width) {
#pragma unroll 1
      for (int i = thread; i < RUN * W; i += threads) {
        const int t = i / W, j = i % W;
        if (t < c.count && column + j < columns) {
          const E* const from = at<E>(x, c, t, column + j);
          if constexpr (copies) copy_word_async(&to[t][j], from);
          else to[t][j] = widen(*from);
        } else {
          to[t][j] = absent;
        }
      }
    }
  }
  __device__ __forceinline__ void finish(float (&to)[RUN][W], const Rows& x, int thread) const {
    if constexpr (!copies) {
      if (!x.whole) return;
      const int first = thread / PIECES, j = thread % PIECES * 4;
#pragma unroll
      for (int t = first, i = 0; t < first + RUN; t += ROWS, ++i) {
        if (ROWS > RUN && t >= RUN) return;
        *reinterpret_cast<float4*>(&to[t][j]) = widen_four<E>(four[i]);
      }
    }
  }
  // After `finish`: a thread makes gates of the logits that it brought.
  __device__ __forceinline__ void finish_gates(float (&to)[RUN][W], const Rows& x, int thread) const {
    finish(to, x, thread);
    if (!x.logits || !x.width) return;
    wait_copies<0>();
    const int each = x.whole ? 4 : 1;
#pragma unroll 1
    for (int i = thread * each; i < RUN * W; i += threads * each)
      for (int j = 0; j < each; ++j) (&to[0][0])[i + j] = logistic((&to[0][0])[i + j]);
  }
};

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

// Four neighbouring columns of a token, zeros where there are none.
template <class E>
__device__ __forceinline__ float4 get_four(const Rows& x, const Place& c, int t, int column, int columns) {
  if (t >= c.count || column >= columns) return {};
  const E* const from = at<E>(x, c, t, column);
  if (x.whole) return widen_four<E>(*reinterpret_cast<const Four<E>*>(from));
  const auto get = [&](int i) { return column + i < columns ? widen(from[i]) : 0.f; };
  return {get(0), get(1), get(2), get(3)};
}
// Writes them, as far as there are any.
template <class E>
__device__ __forceinline__ void put_four(const Rows& x, const Place& c, int t, int column, int columns, float4 value) {
  if (t >= c.count || column >= columns) return;
  E* const to = const_cast<E*>(at<E>(x, c, t, column));
  if (x.whole) {
    *reinterpret_cast<Four<E>*>(to) = narrow_four<E>(value);
    return;
  }
  to[0] = narrow<E>(value.x);
  if (column + 1 < columns) to[1] = narrow<E>(value.y);
  if (column + 2 < columns) to[2] = narrow<E>(value.z);
  if (column + 3 < columns) to[3] = narrow<E>(value.w);
}

// S += gates x: where nothing is written gates may have overflowed.
__device__ __forceinline__ void add_to(float& S, float gates, float x) {
  if (x != 0.f) S = fmaf(gates, x, S);
}

__device__ __forceinline__ float4 add(float4 x, float4 y) { return {x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w}; }

}  // namespace t2fw::cuda::plain
