// Numbers that were chosen by measurement.
#pragma once

#include <cstdint>

namespace t2fw::cuda {

// Tokens that a segment but the last has at least. A segment costs a second pass over its operands for the local state, and
// a start in which the warps that take chunks fill their slots.
inline constexpr int64_t SEGMENT = 256;

// What the pass for the local states makes of the time, measured on an H200 with heads of 64x64: at 1,65536,16 forward takes
// 1.4 (bf16 gates) to 1.5 times its part of 8,4096,16, backward 1.13 to 1.16, in bf16 and in fp32 alike; at 8,2048,12 1.5, and
// 1.28 when backward's pass was slower.
inline constexpr double FORWARD_LOCAL_PASS = 1.5, BACKWARD_LOCAL_PASS = 1.2;
// More segments must be sooner done by this: each is one more that others pass (33 instead of 8 took a forward from 548 to
// 777 us), and starts with empty hands.
inline constexpr double WORTH = 0.85;

// Packed sequences of which an average one need not be cut: tokens up to which none is. It saves them the launch that finds
// none to cut. By count, not measured: of 64x64 they take a forward 80 us.
inline constexpr int64_t LONG_SEQUENCE = 2048;

}  // namespace t2fw::cuda
