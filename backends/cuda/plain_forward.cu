#include "plain_forward.cuh"

#include "kernels.hpp"

namespace t2fw::cuda {
namespace {

template <int KP>
ForwardKernels kernels() {
  using Work = plain::Forward<KP>;
  static_assert(sizeof(typename Work::Memory) <= plain_shared_memory);
  return {plain::forward_kernel<KP, true>, plain::forward_kernel<KP, false>, plain::FORWARD_THREADS,
          sizeof(typename Work::Memory), Work::LOCAL_FLOATS, Work::VALUES};
}

}  // namespace

ForwardKernels plain_forward(int64_t K) {
  static_assert(largest_plain_key == 256);
  return K <= 64 ? kernels<64>() : K <= 128 ? kernels<128>() : kernels<256>();
}

}  // namespace t2fw::cuda
