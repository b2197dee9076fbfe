// The backends of this build, in the order they are asked.
#include "backend.hpp"
#include "backends/reference/reference.hpp"
#include "kokkos/kokkos_backend.hpp"
#if defined(T2FW_WITH_KOKKOS_CUDA)
#include "backends/cuda/cuda_backend.hpp"
#endif

namespace t2fw {

const std::vector<const Backend*>& backends() {
  static const std::vector<const Backend*> list = {
      &kokkos_host_backend(),
#if defined(T2FW_WITH_KOKKOS_CUDA)
      &cuda_backend(),
#endif
#if defined(T2FW_WITH_KOKKOS_CUDA) || defined(T2FW_WITH_KOKKOS_HIP)
      &kokkos_device_backend(),
#endif
      &reference_backend(),
  };
  return list;
}

}  // namespace t2fw
