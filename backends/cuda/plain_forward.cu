#include "plain_forward.cuh"

#include "kernels.hpp"
#include "launch.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G, int KP>
ForwardKernels kernels() {
  using Work = plain::Forward<T, G, KP>;
  static_assert(sizeof(typename Work::Memory) <= plain_shared_memory);
  const auto kernel = [](auto function) {
    return Kernel<ForwardArgs>{function, plain::FORWARD_THREADS, sizeof(typename Work::Memory)};
  };
  return {kernel(plain::forward_kernel<T, G, KP, true>), kernel(plain::forward_kernel<T, G, KP, false>), Work::Local::FLOATS,
          Work::VALUES};
}

}  // namespace

ForwardKernels plain_forward(const Problem& p) {
  static_assert(largest_key == 256);
  return by_types(p, [&]<class T, class G>() {
    return p.K <= 64 ? kernels<T, G, 64>() : p.K <= 128 ? kernels<T, G, 128>() : kernels<T, G, 256>();
  });
}

}  // namespace t2fw::cuda
