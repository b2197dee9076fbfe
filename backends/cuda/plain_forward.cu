#include "plain_forward.cuh"

#include "kernels.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G, int KP>
ForwardKernels kernels() {
  using Work = plain::Forward<T, G, KP>;
  static_assert(sizeof(typename Work::Memory) <= plain_shared_memory);
  return {plain::forward_kernel<T, G, KP, true>, plain::forward_kernel<T, G, KP, false>, plain::FORWARD_THREADS,
          sizeof(typename Work::Memory), Work::Local::FLOATS, Work::VALUES, largest_key, 0};
}

template <class T, class G>
ForwardKernels choose_keys(int64_t K) {
  static_assert(largest_key == 256);
  return K <= 64 ? kernels<T, G, 64>() : K <= 128 ? kernels<T, G, 128>() : kernels<T, G, 256>();
}

template <class T>
ForwardKernels choose_gate(const Problem& p) {
  return p.gate_dtype == T2FW_FP32 ? choose_keys<T, float>(p.K) : choose_keys<T, T>(p.K);
}

}  // namespace

ForwardKernels plain_forward(const Problem& p) {
  if (p.data_dtype == T2FW_FP32) return choose_keys<float, float>(p.K);
  return p.data_dtype == T2FW_BF16 ? choose_gate<__nv_bfloat16>(p) : choose_gate<__half>(p);
}

}  // namespace t2fw::cuda
