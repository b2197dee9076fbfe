#include "plain_backward.cuh"

#include "kernels.hpp"
#include "launch.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G>
BackwardKernels kernels() {
  static_assert(sizeof(plain::BackwardMemory) <= plain_shared_memory);
  const auto kernel = [](auto function) {
    return Kernel<BackwardArgs>{function, plain::BACKWARD_THREADS, sizeof(plain::BackwardMemory)};
  };
  return {kernel(plain::backward_kernel<T, G, true>), kernel(plain::backward_kernel<T, G, false>),
          plain::Backward<T, G>::Local::FLOATS, plain::BACK_RUN, 0};
}

}  // namespace

BackwardKernels plain_backward(const Problem& p) {
  return by_types(p, [&]<class T, class G>() { return kernels<T, G>(); });
}

}  // namespace t2fw::cuda
