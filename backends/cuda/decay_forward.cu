#include "decay_forward.cuh"

#include "kernels.hpp"
#include "launch.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G, int KP>
ForwardKernels kernels() {
  constexpr int warps = inside_warps<T, G, KP>;
  return {decay_forward_kernel<T, G, KP, true>, decay_forward_kernel<T, G, KP, false>, 32 * (warps + STATE_WARPS),
          warps * sizeof(Desk<T, G, KP>), State<T, G, KP>::Local::FLOATS, SLICE};
}

template <class T, class G>
ForwardKernels choose_keys(int64_t K) {
  return K <= 64 ? kernels<T, G, 64>() : kernels<T, G, 128>();
}

template <class T>
ForwardKernels choose_gate(const Problem& p) {
  return p.gate_dtype == T2FW_FP32 ? choose_keys<T, float>(p.K) : choose_keys<T, T>(p.K);
}

ForwardKernels choose(const Problem& p, bool plain) {
  if (plain) return plain_forward(p);
  return p.data_dtype == T2FW_BF16 ? choose_gate<__nv_bfloat16>(p) : choose_gate<__half>(p);
}

}  // namespace

DecayForward::DecayForward(const Problem& p)
    : p_(p), saved_(saved_states(p)), plain_(!tensor_cores(p) || p.K > largest_key) {
  const ForwardKernels use = choose(p, plain_);
  for (const auto kernel : {use.forward, use.local}) raise_shared_memory(reinterpret_cast<const void*>(kernel), use.memory);
  const int64_t slices = (p.D + use.slice - 1) / use.slice;
  const Segments cuts = cut(p, slices, multiprocessors(p), CHUNK, SEGMENT);
  segments_ = cuts.count, segment_ = cuts.tokens;
  blocks_ = sequence_count(p) * p.H * slices * segments_;
  scratch_ = segments_ > 1 ? static_cast<size_t>(blocks_) * use.local_floats * sizeof(float) : 0;
}

void DecayForward::operator()(const t2fw_forward_args& a, cudaStream_t stream) const {
  const Problem& p = p_;
  if (!blocks_) return;
  const ForwardArgs args{rows(a.v, p.data_dtype, p.D, p.D, p.v_strides),
                         rows(a.f, p.gate_dtype, gate_width(p.f, p.D), p.D, p.f_strides),
                         rows(a.q, p.data_dtype, p.K, p.K, p.q_strides),
                         rows(a.k, p.data_dtype, p.K, p.K, p.k_strides),
                         rows(a.g, p.gate_dtype, gate_width(p.g, p.K), p.K, p.g_strides),
                         rows(a.y, p.data_dtype, p.D, p.D, p.y_strides),
                         {a.initial_state, p.initial_state_strides, p.state_dtype == T2FW_FP32},
                         {a.final_state, p.final_state_strides, p.state_dtype == T2FW_FP32},
                         a.cu_seqlens,
                         a.saved,
                         saved_.narrow,
                         segments_ > 1 ? static_cast<float*>(a.scratch) : nullptr,
                         saved_.interval,
                         p.T,
                         p.H,
                         segment_,
                         static_cast<int>(p.D),
                         static_cast<int>(p.K),
                         static_cast<int>(segments_),
                         static_cast<int>(p.sequences)};
  const ForwardKernels use = choose(p, plain_);
  const auto how = config(static_cast<unsigned>(blocks_), use.threads, use.memory, stream);
  if (segments_ > 1) launch(how, use.local, args);
  launch(how, use.forward, args);
}

}  // namespace t2fw::cuda
