#include "decay_backward.cuh"

#include <algorithm>

#include "core/checkpoints.hpp"
#include "kernels.hpp"
#include "launch.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {
namespace {

using Kernel = void (*)(BackwardArgs);

struct Choice {
  Kernel backward, local;
  size_t memory, local_floats;
};

template <class T, class G>
Choice choice() {
  return {decay_backward_kernel<T, G, true>, decay_backward_kernel<T, G, false>, sizeof(BackwardMemory<T, G>),
          Local<T, SLICE>::FLOATS};
}

template <class T>
Choice choose_gate(const Problem& p) {
  return p.gate_dtype == T2FW_FP32 ? choice<T, float>() : choice<T, T>();
}

Choice choose(const Problem& p) {
  return p.data_dtype == T2FW_BF16 ? choose_gate<__nv_bfloat16>(p) : choose_gate<__half>(p);
}

}  // namespace

bool DecayBackward::takes(const Problem& p) { return p.D <= SLICE && p.K <= SLICE; }

DecayBackward::DecayBackward(const Problem& p) : p_(p) {
  const Choice use = choose(p);
  for (const Kernel kernel : {use.backward, use.local}) raise_shared_memory(reinterpret_cast<const void*>(kernel), use.memory);
  // A segment starts where a state was saved.
  const int64_t whole = std::max<int64_t>(BLOCK, checkpoint_interval(p));
  const Segments s = cut(p, 1, whole);
  segments_ = s.count, segment_ = s.tokens;
  blocks_ = sequence_count(p) * p.H * segments_;
  scratch_ = segments_ > 1 ? static_cast<size_t>(blocks_) * use.local_floats * sizeof(float) : 0;
}

void DecayBackward::operator()(const t2fw_backward_args& a, cudaStream_t stream) const {
  const Problem& p = p_;
  if (!blocks_) return;
  const int64_t f = gate_width(p.f, p.D), g = gate_width(p.g, p.K);
  const auto value = [&](const void* data, const t2fw_token_strides& s) { return rows(data, p.data_dtype, p.D, p.D, s); };
  const auto key = [&](const void* data, const t2fw_token_strides& s) { return rows(data, p.data_dtype, p.K, p.K, s); };
  const bool wide = p.state_dtype == T2FW_FP32;
  const BackwardArgs args{
      {{value(a.v, p.v_strides), rows(a.f, p.gate_dtype, f, p.D, p.f_strides), value(a.d_y, p.d_y_strides),
        value(a.d_v, p.d_v_strides), rows(a.d_f, p.gate_dtype, f, p.D, p.d_f_strides), {}, static_cast<int>(p.D)},
       {key(a.k, p.k_strides), rows(a.g, p.gate_dtype, g, p.K, p.g_strides), key(a.q, p.q_strides),
        key(a.d_k, p.d_k_strides), rows(a.d_g, p.gate_dtype, g, p.K, p.d_g_strides), key(a.d_q, p.d_q_strides),
        static_cast<int>(p.K)}},
      {a.initial_state, p.initial_state_strides, wide},
      {a.d_final_state, p.d_final_state_strides, wide},
      {a.d_initial_state, p.d_initial_state_strides, wide},
      a.cu_seqlens,
      static_cast<const float*>(a.saved),
      segments_ > 1 ? static_cast<float*>(a.scratch) : nullptr,
      checkpoint_interval(p),
      p.T,
      p.H,
      segment_,
      static_cast<int>(segments_),
      static_cast<int>(p.sequences)};
  const Choice use = choose(p);
  const auto grid = static_cast<unsigned>(blocks_);
  constexpr int threads = 32 * BACKWARD_WARPS;
  if (segments_ > 1) use.local<<<grid, threads, use.memory, stream>>>(args);
  use.backward<<<grid, threads, use.memory, stream>>>(args);
  check(cudaGetLastError());
}

}  // namespace t2fw::cuda
