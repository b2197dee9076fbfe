// Decode: one token, the state read and written once. A thread block takes 32 rows of a head's state; 16 lanes share a
// row, four neighbouring keys each, so that a warp's access covers two rows. A thread's loads of 64 keys are all under way
// before the first is converted, and before their first store, behind which the compiler cannot move them.
#include <algorithm>
#include <initializer_list>

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
};

// Four neighbouring keys of E as they are loaded. vector: at once; else one by one, as far as there are `left`, then zeros,
// and nothing is stored.
template <class E, bool vector>
struct Keys {
  std::conditional_t<vector, Four<E>, float4> x = {};

  __device__ __forceinline__ void load(const E* from, int left) {
    const auto one = [&](int i) { return i < left ? widen(from[i]) : 0.f; };
    if constexpr (vector) x = *reinterpret_cast<const Four<E>*>(from);
    else x = {one(0), one(1), one(2), one(3)};
  }
  __device__ __forceinline__ float4 wide() const {
    if constexpr (vector) return widen_four<E>(x);
    else return x;
  }
  __device__ __forceinline__ static void store(E* to, float4 x, int left) {
    if constexpr (vector) {
      const Four<E> four = narrow_four<E>(x);
      if constexpr (sizeof(E) == 4) store_line(to, *reinterpret_cast<const uint4*>(&four));
      else store_pairs(to, four);
    } else {
      if (left > 0) to[0] = narrow<E>(x.x);
      if (left > 1) to[1] = narrow<E>(x.y);
      if (left > 2) to[2] = narrow<E>(x.z);
      if (left > 3) to[3] = narrow<E>(x.w);
    }
  }
};

// What a thread block has of a state: rows row(0) .. of this thread, before and after the token.
template <class T, class G, class S, bool vector>
struct StepTile {
  const StepArgs& p;
  const S* before;
  S* after;
  int first;

  __device__ __forceinline__ int row(int i) const { return first + i * (THREADS / LANES) + threadIdx.x / LANES; }

  // y += S q
  __device__ __forceinline__ void run(const Place& place, float (&y)[PASSES]) const {
    const T *const q = at<T>(p.q, place, 0, 0), *const k = at<T>(p.k, place, 0, 0), *const v = at<T>(p.v, place, 0, 0);
    const G *const g = at<G>(p.g, place, 0, 0), *const f = at<G>(p.f, place, 0, 0);
    T v_t[PASSES];
    G f_t[PASSES], g_head{};
#pragma unroll
    for (int i = 0; i < PASSES; ++i) {
      const int d = min(row(i), p.D - 1);
      v_t[i] = v[d];
      f_t[i] = p.f.width ? f[p.f.width == 1 ? 0 : d] : narrow<G>(absent_gate(p.f));
    }
    if (p.g.width == 1) g_head = *g;
    for (int key = threadIdx.x % LANES * 4; key < p.K; key += LANES * 4) {
      Keys<S, vector> s[PASSES];
      Keys<T, vector> q_t, k_t;
      Keys<G, vector> g_t;
      const int left = p.K - key;
#pragma unroll
      for (int i = 0; i < PASSES; ++i) s[i].load(before + min(row(i), p.D - 1) * p.before.strides.d + key, left);
      q_t.load(q + key, left), k_t.load(k + key, left);
      if (p.g.width > 1) g_t.load(g + key, left);
      const float4 q4 = q_t.wide(), k4 = k_t.wide();
      const float head = p.g.width ? widen(g_head) : absent_gate(p.g);
      float4 g4 = p.g.width > 1 ? g_t.wide() : float4{head, head, head, head};
      if (p.g.logits) g4 = logistic(g4);
#pragma unroll
      for (int i = 0; i < PASSES; ++i) {
        const float v_d = widen(v_t[i]), own = widen(f_t[i]), f_d = p.f.logits ? logistic(own) : own;
        float4 x = s[i].wide();
        x.x = fmaf(f_d * g4.x, x.x, v_d * k4.x);
        x.y = fmaf(f_d * g4.y, x.y, v_d * k4.y);
        x.z = fmaf(f_d * g4.z, x.z, v_d * k4.z);
        x.w = fmaf(f_d * g4.w, x.w, v_d * k4.w);
        y[i] = fmaf(x.x, q4.x, fmaf(x.y, q4.y, fmaf(x.z, q4.z, fmaf(x.w, q4.w, y[i]))));
        if (row(i) < p.D) Keys<S, vector>::store(after + row(i) * p.after.strides.d + key, x, left);
      }
    }
  }
};

template <class T, class G, class S, bool vector>
__global__ void __launch_bounds__(THREADS) step_kernel(const __grid_constant__ StepArgs p) {
  const int blocks = (p.D + ROWS - 1) / ROWS, h = static_cast<int>(blockIdx.x / blocks % p.H);
  const int64_t b = blockIdx.x / blocks / p.H, slot = p.slot_indices ? p.slot_indices[b] : b;
  const bool there = !p.slot_indices || (slot >= 0 && slot < p.slots);
  const Place place{b, h, 0, 1};
  const StepTile<T, G, S, vector> tile{
      p, static_cast<const S*>(p.before.data) + slot * p.before.strides.b + h * p.before.strides.h,
      static_cast<S*>(const_cast<void*>(p.after.data)) + slot * p.after.strides.b + h * p.after.strides.h,
      static_cast<int>(blockIdx.x % blocks) * ROWS};
  float y[PASSES] = {};
  if (there) tile.run(place, y);
#pragma unroll
  for (int i = 0; i < PASSES; ++i) {
    const int d = tile.row(i);
    for (int apart = LANES / 2; apart; apart /= 2) y[i] += __shfl_xor_sync(~0u, y[i], apart);
    if (!there) y[i] = slot == T2FW_SKIP_SLOT ? 0.f : __int_as_float(0x7fffffff);
    if (threadIdx.x % LANES == 0 && d < p.D) const_cast<T*>(at<T>(p.y, place, 0, 0))[d] = narrow<T>(y[i]);
  }
}

// vector: four neighbouring keys of states, queries, keys and gates can be loaded at once.
template <class T, class G, class S>
Kernel<StepArgs> choose_access(bool vector) {
  return {vector ? step_kernel<T, G, S, true> : step_kernel<T, G, S, false>, THREADS, 0};
}

// Whether every row of an operand starts on four elements. strides: of the dimensions larger than one.
bool on_four(const void* data, t2fw_dtype dtype, std::initializer_list<int64_t> strides) {
  const auto whole = [](int64_t stride) { return stride % 4 == 0; };
  return reinterpret_cast<uintptr_t>(data) % (4 * bytes_of(dtype)) == 0 && std::all_of(strides.begin(), strides.end(), whole);
}

bool vector_access(const Problem& p, const t2fw_step_args& a) {
  const auto larger = [](int64_t size, int64_t stride) { return size > 1 ? stride : 0; };
  const auto token = [&](const void* data, t2fw_dtype dtype, const t2fw_token_strides& s) {
    return on_four(data, dtype, {larger(p.B, s.b), larger(p.H, s.h)});
  };
  const auto state = [&](const void* data, const t2fw_state_strides& s) {
    return on_four(data, p.state_dtype, {larger(a.slot_indices ? a.slots : p.B, s.b), larger(p.H, s.h), larger(p.D, s.d)});
  };
  return p.K % 4 == 0 && token(a.q, p.data_dtype, p.q_strides) && token(a.k, p.data_dtype, p.k_strides) &&
         (gate_width(p.g, p.K) <= 1 || token(a.g, p.gate_dtype, p.g_strides)) &&
         state(a.initial_state, p.initial_state_strides) && state(a.final_state, p.final_state_strides);
}

Kernel<StepArgs> choose(const Problem& p, bool vector) {
  return by_types(p, [&]<class T, class G>() {
    return p.state_dtype == T2FW_FP32 ? choose_access<T, G, float>(vector) : choose_access<T, G, T>(vector);
  });
}

}  // namespace

void prepare_step(const Problem& p) {
  for (const bool vector : {false, true}) load(reinterpret_cast<const void*>(choose(p, vector).function));
}

void step(const Problem& p, const t2fw_step_args& a, cudaStream_t stream) {
  const int64_t blocks = p.B * p.H * ((p.D + ROWS - 1) / ROWS);
  if (!blocks) return;
  const bool wide = p.state_dtype == T2FW_FP32;
  const StepArgs args{rows(a.v, p.data_dtype, p.D, p.D, p.v_strides),
                      gate_rows(p, a.f, p.f, p.D, p.f_strides),
                      rows(a.q, p.data_dtype, p.K, p.K, p.q_strides),
                      rows(a.k, p.data_dtype, p.K, p.K, p.k_strides),
                      gate_rows(p, a.g, p.g, p.K, p.g_strides),
                      rows(a.y, p.data_dtype, p.D, p.D, p.y_strides),
                      {a.initial_state, p.initial_state_strides, wide},
                      {a.final_state, p.final_state_strides, wide},
                      a.slot_indices,
                      a.slots,
                      static_cast<int>(p.H),
                      static_cast<int>(p.D),
                      static_cast<int>(p.K)};
  launch(choose(p, vector_access(p, a)), blocks, stream, args);
}

}  // namespace t2fw::cuda
