#pragma once

#include "backend.hpp"

namespace t2fw {

// The definitions, token by token in double, on one CPU thread.
const Backend& reference_backend();

}  // namespace t2fw
