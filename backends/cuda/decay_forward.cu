#include "decay_forward.cuh"

#include "kernels.hpp"
#include "launch.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G, bool logits>
ForwardKernels kernels(bool tiles) {
  constexpr int warps = inside_warps<T, G>;
  return {{tiles ? decay_forward_kernel<T, G, true, logits> : decay_forward_kernel<T, G, false, logits>,
           32 * (warps + STATE_WARPS), warps * sizeof(Desk<T, G>)},
          {decay_forward_local_kernel<T, G>, LOCAL_THREADS, sizeof(LocalMemory<T, G>)},
          TileLocal::FLOATS,
          SLICE,
          SLICE,
          warps};
}

// K of the forward on tensor cores, at most: the outputs' parts of four tiles, each added in 16 bits, would leave an error of
// 4.1e-3 in bf16 where gates are near 1; of two tiles it stays below 4e-3.
constexpr int64_t largest_tensor_key = 2 * SLICE;

ForwardKernels choose(const Problem& p, bool plain) {
  if (plain) return plain_forward(p);
  return by_types(p, [&]<class T, class G>() {
    if constexpr (sizeof(T) != 2) return plain_forward(p);
    else return has_logits(p) ? kernels<T, G, true>(p.K > SLICE) : kernels<T, G, false>(p.K > SLICE);
  });
}

}  // namespace

DecayForward::DecayForward(const Problem& p)
    : p_(p), saved_(saved_states(p)), plain_(!tensor_cores(p) || p.K > largest_tensor_key) {
  const ForwardKernels use = choose(p, plain_);
  for (const auto& kernel : {use.forward, use.local})
    raise_shared_memory(reinterpret_cast<const void*>(kernel.function), kernel.memory);
  const int64_t slices = (p.D + use.values - 1) / use.values, keys = (p.K + use.keys - 1) / use.keys;
  const int64_t bytes = slices * keys * static_cast<int64_t>(use.local_floats * sizeof(float));  // of a segment
  cuts_ = cut(p, slices * keys, multiprocessors(p), FORWARD_LOCAL_PASS, CHUNK, bytes);
  blocks_ = p.B * p.H * slices * keys * cuts_.count, local_blocks_ = p.B * p.H * slices * keys * cuts_.local;
  local_floats_ = local_blocks_ * static_cast<int64_t>(use.local_floats);
  told_ = blocks_ && keys > 1 ? 1 + blocks_ * use.waiting : 0;
  scratch_ = static_cast<size_t>(local_floats_ + told_) * sizeof(float);
}

void DecayForward::operator()(const t2fw_forward_args& a, cudaStream_t stream) const {
  const Problem& p = p_;
  if (!blocks_) return;
  uint32_t* const told = static_cast<uint32_t*>(a.scratch) + local_floats_;
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
                   local_floats_ ? static_cast<float*>(a.scratch) : nullptr,
                   told_ ? told : nullptr,
                   told_ ? told + 1 : nullptr,
                   saved_.interval,
                   p.T,
                   p.H,
                   cuts_.tokens,
                   static_cast<int>(p.D),
                   static_cast<int>(p.K),
                   static_cast<int>(cuts_.count),
                   static_cast<int>(cuts_.local),
                   static_cast<int>(p.sequences)};
  if (!plain_) {
    const auto box = [&](Rows& x, Box& to, t2fw_dtype dtype) { x.boxed = encode(to, p, x, dtype); };
    box(args.v, args.boxes.v, p.data_dtype), box(args.f, args.boxes.f, p.gate_dtype);
    box(args.q, args.boxes.q, p.data_dtype), box(args.k, args.boxes.k, p.data_dtype);
    box(args.g, args.boxes.g, p.gate_dtype);
  }
  const ForwardKernels use = choose(p, plain_);
  const auto how = [&](const Kernel<ForwardArgs>& kernel, int64_t blocks) {
    return config(static_cast<unsigned>(blocks), kernel.threads, kernel.memory, stream);
  };
  if (told_) check(cudaMemsetAsync(told, 0, static_cast<size_t>(told_) * sizeof *told, stream));
  if (local_blocks_) launch(how(use.local, local_blocks_), use.local.function, args);
  if (local_blocks_ && !plain_) launch_early(how(use.forward, blocks_), use.forward.function, args);
  else launch(how(use.forward, blocks_), use.forward.function, args);
}

}  // namespace t2fw::cuda
