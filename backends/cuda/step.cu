// Decode: one token, the state read and written once. A thread block takes 32 rows of a head's state; 16 lanes share a
// row, four neighbouring keys each, so that a warp's access covers two rows. A thread's loads of 64 keys are all under way
// before their first store, behind which the compiler cannot move them.
#include "kernels.hpp"
#include "launch.hpp"
#include "state.cuh"

namespace t2fw::cuda {
namespace {

constexpr int ROWS = 32, THREADS = 128, LANES = 16, PASSES = ROWS / (THREADS / LANES);

struct StepArgs {
  Rows v, f, q, k, g, y;
  StateOperand before, after;
  const int64_t* slot_indices;
  int64_t slots;
  int H, D, K;
  bool vector;  // four keys of a state lie on 16 bytes (8 of 16-bit states), and K is a multiple of four
};

// Four neighbouring keys; behind the last: zeros, and nothing is stored.
template <class S>
__device__ __forceinline__ float4 load_four(const S* from, int left, bool vector) {
  if (vector) return widen_four<S>(*reinterpret_cast<const Four<S>*>(from));
  const auto one = [&](int i) { return i < left ? widen(from[i]) : 0.f; };
  return {one(0), one(1), one(2), one(3)};
}
template <class S>
__device__ __forceinline__ void store_four(S* to, float4 x, int left, bool vector) {
  if (vector) {
    *reinterpret_cast<Four<S>*>(to) = narrow_four<S>(x);
    return;
  }
  if (left > 0) to[0] = narrow<S>(x.x);
  if (left > 1) to[1] = narrow<S>(x.y);
  if (left > 2) to[2] = narrow<S>(x.z);
  if (left > 3) to[3] = narrow<S>(x.w);
}

template <class T, class G, class S>
__global__ void __launch_bounds__(THREADS) step_kernel(const __grid_constant__ StepArgs p) {
  const int blocks = (p.D + ROWS - 1) / ROWS, row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int first = static_cast<int>(blockIdx.x % blocks) * ROWS, h = static_cast<int>(blockIdx.x / blocks % p.H);
  const int64_t b = blockIdx.x / blocks / p.H, slot = p.slot_indices ? p.slot_indices[b] : b;
  const bool there = !p.slot_indices || (slot >= 0 && slot < p.slots);
  const Place place{b, h, 0, 1};
  float y[PASSES] = {};
  if (there) {
    const T *const q = at<T>(p.q, place, 0, 0), *const k = at<T>(p.k, place, 0, 0);
    const G *const g = at<G>(p.g, place, 0, 0), *const f = at<G>(p.f, place, 0, 0);
    const T* const v = at<T>(p.v, place, 0, 0);
    const S* const before = static_cast<const S*>(p.before.data) + slot * p.before.strides.b + h * p.before.strides.h;
    S* const after = static_cast<S*>(const_cast<void*>(p.after.data)) + slot * p.after.strides.b + h * p.after.strides.h;
    float v_t[PASSES], f_t[PASSES];
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int d = min(first + i * (THREADS / LANES) + row, p.D - 1);
      v_t[i] = widen(v[d]);
      f_t[i] = p.f.width ? widen(f[p.f.width == 1 ? 0 : d]) : 1.f;
    }
    for (int key = lane * 4; key < p.K; key += LANES * 4) {
      float4 s[PASSES];
#pragma unroll
      for (int i = 0; i < PASSES; ++i) {
        const int d = first + i * (THREADS / LANES) + row;
        if (d < p.D) s[i] = load_four(before + d * p.before.strides.d + key, p.K - key, p.vector);
      }
      const float4 q_t = load_four(q + key, p.K - key, p.q.whole), k_t = load_four(k + key, p.K - key, p.k.whole);
      float4 g_t = {1.f, 1.f, 1.f, 1.f};
      if (p.g.width == 1) g_t.x = g_t.y = g_t.z = g_t.w = widen(*g);
      else if (p.g.width) g_t = load_four(g + key, p.K - key, p.g.whole);
#pragma unroll
      for (int i = 0; i < PASSES; ++i) {
        const int d = first + i * (THREADS / LANES) + row;
        if (d >= p.D) continue;
        s[i].x = fmaf(f_t[i] * g_t.x, s[i].x, v_t[i] * k_t.x);
        s[i].y = fmaf(f_t[i] * g_t.y, s[i].y, v_t[i] * k_t.y);
        s[i].z = fmaf(f_t[i] * g_t.z, s[i].z, v_t[i] * k_t.z);
        s[i].w = fmaf(f_t[i] * g_t.w, s[i].w, v_t[i] * k_t.w);
        y[i] = fmaf(s[i].x, q_t.x, fmaf(s[i].y, q_t.y, fmaf(s[i].z, q_t.z, fmaf(s[i].w, q_t.w, y[i]))));
        store_four(after + d * p.after.strides.d + key, s[i], p.K - key, p.vector);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < PASSES; ++i) {
    const int d = first + i * (THREADS / LANES) + row;
    for (int apart = LANES / 2; apart; apart /= 2) y[i] += __shfl_xor_sync(~0u, y[i], apart);
    if (!there) y[i] = slot == T2FW_SKIP_SLOT ? 0.f : __int_as_float(0x7fffffff);
    if (lane == 0 && d < p.D) const_cast<T*>(at<T>(p.y, place, 0, 0))[d] = narrow<T>(y[i]);
  }
}

using Kernel = void (*)(StepArgs);

template <class T, class G>
Kernel choose_state(const Problem& p) {
  return p.state_dtype == T2FW_FP32 ? step_kernel<T, G, float> : step_kernel<T, G, T>;
}
template <class T>
Kernel choose_gate(const Problem& p) {
  return p.gate_dtype == T2FW_FP32 ? choose_state<T, float>(p) : choose_state<T, T>(p);
}

bool aligned(const void* data, const t2fw_state_strides& s, int64_t bytes) {
  return s.b % 4 == 0 && s.h % 4 == 0 && s.d % 4 == 0 && reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(4 * bytes) == 0;
}

Kernel choose(const Problem& p) {
  if (p.data_dtype == T2FW_FP32) return step_kernel<float, float, float>;
  return p.data_dtype == T2FW_BF16 ? choose_gate<__nv_bfloat16>(p) : choose_gate<__half>(p);
}

}  // namespace

void prepare_step(const Problem& p) { load(reinterpret_cast<const void*>(choose(p))); }

void step(const Problem& p, const t2fw_step_args& a, cudaStream_t stream) {
  const int64_t blocks = p.B * p.H * ((p.D + ROWS - 1) / ROWS);
  if (!blocks) return;
  const auto bytes = static_cast<int64_t>(bytes_of(p.state_dtype));
  const bool wide = p.state_dtype == T2FW_FP32;
  const StepArgs args{rows(a.v, p.data_dtype, p.D, p.D, p.v_strides),
                      rows(a.f, p.gate_dtype, gate_width(p.f, p.D), p.D, p.f_strides),
                      rows(a.q, p.data_dtype, p.K, p.K, p.q_strides),
                      rows(a.k, p.data_dtype, p.K, p.K, p.k_strides),
                      rows(a.g, p.gate_dtype, gate_width(p.g, p.K), p.K, p.g_strides),
                      rows(a.y, p.data_dtype, p.D, p.D, p.y_strides),
                      {a.initial_state, p.initial_state_strides, wide},
                      {a.final_state, p.final_state_strides, wide},
                      a.slot_indices,
                      a.slots,
                      static_cast<int>(p.H),
                      static_cast<int>(p.D),
                      static_cast<int>(p.K),
                      p.K % 4 == 0 && aligned(a.initial_state, p.initial_state_strides, bytes) &&
                          aligned(a.final_state, p.final_state_strides, bytes)};
  choose(p)<<<static_cast<unsigned>(blocks), THREADS, 0, stream>>>(args);
  check(cudaGetLastError());
}

}  // namespace t2fw::cuda
