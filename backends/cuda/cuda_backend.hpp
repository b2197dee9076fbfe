#pragma once

#include "backend.hpp"

namespace t2fw {

// NVIDIA's tensor cores through kernels of our own; what it has no kernel for in a plan it hands to the portable backend.
const Backend& cuda_backend();

}  // namespace t2fw
