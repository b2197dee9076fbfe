#include "decay_forward.cuh"

#include "kernels.hpp"
#include "launch.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G, bool logits, KeyPlan kind>
ForwardKernels kernels() {
  constexpr int warps = inside_warps<T, G, kind>, parts = parts_of<kind>;
  constexpr unsigned cluster = kind == KeyPlan::PAIR ? 2 : 1;  // of `local` too, so that it leaves room for whole ones
  return {{decay_forward_kernel<T, G, kind, logits>, 32 * (warps + STATE_WARPS), warps * sizeof(Desk<T, G, kind>), cluster},
          {decay_forward_local_kernel<T, G, parts>, local_threads<parts>, sizeof(LocalMemory<T, G, parts>), cluster},
          parts * TileLocal::FLOATS,
          SLICE};
}

template <class T, class G, bool logits>
ForwardKernels by_keys(const Problem& p) {
  if (p.K <= SLICE) return kernels<T, G, logits, KeyPlan::FEW>();
  const bool even = (p.D + SLICE - 1) / SLICE % 2 == 0;  // every block has another beside it
  return even ? kernels<T, G, logits, KeyPlan::PAIR>() : kernels<T, G, logits, KeyPlan::MANY>();
}

// K of the forward on tensor cores, at most.
constexpr int64_t largest_tensor_key = 2 * SLICE;

ForwardKernels choose(const Problem& p, bool plain) {
  if (plain) return plain_forward(p);
  return by_types(p, [&]<class T, class G>() {
    if constexpr (sizeof(T) != 2) return plain_forward(p);
    else return has_logits(p) ? by_keys<T, G, true>(p) : by_keys<T, G, false>(p);
  });
}

}  // namespace

DecayForward::DecayForward(const Problem& p)
    : p_(p), saved_(saved_states(p)), plain_(!tensor_cores(p) || p.K > largest_tensor_key) {
  const ForwardKernels use = choose(p, plain_);
  for (const auto& kernel : {use.forward, use.local})
    raise_shared_memory(reinterpret_cast<const void*>(kernel.function), kernel.memory);
  const int64_t slices = (p.D + use.values - 1) / use.values;
  const int64_t bytes = slices * static_cast<int64_t>(use.local_floats * sizeof(float));
  cuts_ = cut(p, slices, multiprocessors(p), plain_ ? PLAIN_FORWARD : FORWARD, CHUNK, bytes);
  firsts_ = sequence_count(p) * p.H * slices, laters_ = later_segments(p, cuts_) * slices;
  local_floats_ = laters_ * static_cast<int64_t>(use.local_floats);
  handed_ = cuts_.shares ? laters_ * HANDED : 0;
  scratch_ = static_cast<size_t>(local_floats_ + handed_) * sizeof(float);
}

void DecayForward::operator()(const t2fw_forward_args& a, cudaStream_t stream) const {
  const Problem& p = p_;
  if (!firsts_) return;
  const ForwardKernels use = choose(p, plain_);
  ForwardArgs args{rows(a.v, p.data_dtype, p.D, p.D, p.v_strides),
                   gate_rows(p, a.f, p.f, p.D, p.f_strides),
                   rows(a.q, p.data_dtype, p.K, p.K, p.q_strides),
                   rows(a.k, p.data_dtype, p.K, p.K, p.k_strides),
                   gate_rows(p, a.g, p.g, p.K, p.g_strides),
                   rows(a.y, p.data_dtype, p.D, p.D, p.y_strides),
                   {},
                   {a.initial_state, p.initial_state_strides, p.state_dtype == T2FW_FP32},
                   {a.final_state, p.final_state_strides, p.state_dtype == T2FW_FP32},
                   a.cu_seqlens,
                   a.saved,
                   saved_.narrow,
                   laters_ ? static_cast<float*>(a.scratch) : nullptr,
                   static_cast<uint32_t*>(a.scratch) + local_floats_,
                   saved_.interval,
                   p.T,
                   p.H,
                   cuts_.tokens,
                   firsts_,
                   cuts_.from,
                   static_cast<int>(p.D),
                   static_cast<int>(p.K),
                   static_cast<int>(cuts_.later),
                   static_cast<int>(cuts_.lead),
                   static_cast<int>(cuts_.shares),
                   static_cast<int>(p.sequences)};
  if (!plain_) {
    const auto box = [&](Rows& x, Box& to, t2fw_dtype dtype) { x.boxed = encode(to, p, x, dtype); };
    box(args.v, args.boxes.v, p.data_dtype), box(args.f, args.boxes.f, p.gate_dtype);
    box(args.q, args.boxes.q, p.data_dtype), box(args.k, args.boxes.k, p.data_dtype);
    box(args.g, args.boxes.g, p.gate_dtype);
  }
  const bool local = laters_ && !cuts_.shares;
  if (local) launch(use.local, laters_, stream, args);
  if (handed_) check(cudaMemsetAsync(args.handed, 0, static_cast<size_t>(handed_) * sizeof *args.handed, stream));
  launch(use.forward, firsts_ + laters_, stream, args, local && !plain_);
}

}  // namespace t2fw::cuda
