// Numbers that were chosen by measurement.
#pragma once

#include <cstdint>

namespace t2fw::cuda {

// Tokens that a segment but the last has at least. A segment costs a second pass over its operands for the local state, and a start
// in which the warps that take chunks fill their slots.
inline constexpr int64_t SEGMENT = 256;

}  // namespace t2fw::cuda
