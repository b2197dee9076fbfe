// Numbers that were chosen by measurement.
#pragma once

#include <cstdint>

namespace t2fw::cuda {

// Tokens that a sequence has to each of its later segments, at least. One costs a second pass over its operands for the local
// state, and a start in which the warps that take chunks fill their slots.
inline constexpr int64_t SEGMENT = 256;

// How long segments take (sequence.cuh).
struct Pace {
  double local_pass;  // a later one with its local state, over its time alone
  int lead;           // tokens of a first one, done while others' local states are, to one of those, in 1 / LEAD_UNIT
  bool shares;        // whether more heads than there is room for are shared out
};
inline constexpr int LEAD_UNIT = 32;  // 2^26 chunks of so many fit 32 bits
// Measured on an H200 with heads of 64x64: at 1,65536,16 forward takes 1.4 (bf16 gates) to 1.5 times its part of 8,4096,16,
// backward 1.13 to 1.16, in bf16 and in fp32 alike; at 8,2048,12 1.5, and 1.28 when backward's pass was slower. The pass for
// local states takes all of the memory's bandwidth there, so that a first segment beside it gains little; of heads of 128 keys
// (4,4096,8 of 128x128) it does not.
inline constexpr Pace FORWARD{1.5, 8, true}, FORWARD_WIDE{1.5, 16, true}, BACKWARD{1.2, 6, true};
inline constexpr Pace PLAIN_FORWARD{1.5, 0, false}, PLAIN_BACKWARD{1.2, 0, false};

// More segments must be sooner done by this: each is one more that others pass (33 instead of 8 took a forward from 548 to
// 777 us), and starts with empty hands.
inline constexpr double WORTH = 0.85;
// Heads that are cut in two must be sooner done by this than whole ones by rounds: each of the two starts anew.
inline constexpr double WORTH_SHARING = 0.95;

// Packed sequences of which an average one need not be cut: tokens up to which none is. It saves them the launch that finds
// none to cut. By count, not measured: of 64x64 they take a forward 80 us.
inline constexpr int64_t LONG_SEQUENCE = 2048;

}  // namespace t2fw::cuda
