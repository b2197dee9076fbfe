#pragma once

#include "backend.hpp"

namespace t2fw {

// NVIDIA GPUs through kernels of our own, on tensor cores for 16-bit data; what it has no kernel for in a plan it hands to
// the portable backend.
const Backend& cuda_backend();

}  // namespace t2fw
