#include "plain_backward.cuh"

#include "kernels.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G>
BackwardKernels kernels() {
  static_assert(sizeof(plain::BackwardMemory) <= plain_shared_memory);
  return {plain::backward_kernel<T, G, true>, plain::backward_kernel<T, G, false>, plain::BACKWARD_THREADS,
          sizeof(plain::BackwardMemory), plain::Backward<T, G>::Local::FLOATS, plain::BACK_RUN, 0};
}

template <class T>
BackwardKernels choose_gate(const Problem& p) {
  return p.gate_dtype == T2FW_FP32 ? kernels<T, float>() : kernels<T, T>();
}

}  // namespace

BackwardKernels plain_backward(const Problem& p) {
  if (p.data_dtype == T2FW_FP32) return kernels<float, float>();
  return p.data_dtype == T2FW_BF16 ? choose_gate<__nv_bfloat16>(p) : choose_gate<__half>(p);
}

}  // namespace t2fw::cuda
