// Numbers that were chosen by measurement.
#pragma once

#include <cstdint>

namespace t2fw::cuda {

// Tokens that a sequence has to each of its segments, at least. A later one costs a second pass over its operands for the local
// state, and a start in which the warps that take chunks fill their slots.
inline constexpr int64_t SEGMENT = 256;

// How long segments take (sequence.cuh).
struct Pace {
  double local_pass;  // a later one with its local state, over its time alone
  int64_t lead;       // tokens that a first one has more than a later one, which waits for local states
  bool shares;        // whether more heads than there is room for are shared out
};
// Measured on an H200. With gates near 1, whose pass for local states reads all, forward takes 1.6 times its part of
// 8,4096,16,64,64 at 1,65536,16, backward 1.18; with gates around 0.85, 1.02 and 1.0. A lead of 192 tokens was best for the
// forward at 1,4096,16 and 32,2048,1 and at 4,4096,8,128,128 (none took 1 to 3 us more, 512 3 to 7); the backward lost by it
// (at 32,2048,1 by 256 tokens 81 us for 71).
inline constexpr Pace FORWARD{1.5, 192, true}, BACKWARD{1.2, 0, true};
inline constexpr Pace PLAIN_FORWARD{1.5, 0, false}, PLAIN_BACKWARD{1.2, 0, false};
static_assert(FORWARD.lead < SEGMENT);  // so that the others have tokens

// More segments must be sooner done by this: each is one more that others pass (33 instead of 8 took a forward from 548 to
// 777 us), and starts with empty hands.
inline constexpr double WORTH = 0.85;
// Heads that are cut in two must be sooner done by this than whole ones by rounds: each of the two starts anew.
inline constexpr double WORTH_SHARING = 0.95;

// Packed sequences of which an average one need not be cut: tokens up to which none is. It saves them the launch that finds
// none to cut. By count, not measured: of 64x64 they take a forward 80 us.
inline constexpr int64_t LONG_SEQUENCE = 2048;

}  // namespace t2fw::cuda
