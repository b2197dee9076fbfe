#include "plain_backward.cuh"

#include "kernels.hpp"

namespace t2fw::cuda {

BackwardKernels plain_backward() {
  static_assert(sizeof(plain::BackwardMemory) <= plain_shared_memory);
  return {plain::backward_kernel<true>, plain::backward_kernel<false>, sum_parts<float, float>, plain::BACKWARD_THREADS,
          sizeof(plain::BackwardMemory), plain::Backward::LOCAL_FLOATS, plain::BACK_RUN, false};
}

}  // namespace t2fw::cuda
