// The portable backend, once for the host and once for the build's GPU.
#pragma once

#include "backend.hpp"

namespace t2fw {

const Backend& kokkos_host_backend();
// Only in a build with Kokkos' CUDA or HIP.
const Backend& kokkos_device_backend();

}  // namespace t2fw
