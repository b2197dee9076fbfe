// The states of decay that cross from forward to backward: where the portable backend has them, and a native one whose
// backward is the portable one.
#pragma once

#include "problem.hpp"

namespace t2fw {

// Tokens between two saved states, a multiple of 16: the saved bytes stay below a quarter of the inputs'.
inline int64_t checkpoint_interval(const Problem& p) {
  const int64_t state = p.D * p.K * static_cast<int64_t>(p.data_dtype == T2FW_FP64 ? 8 : 4);
  const int64_t token = (p.D + 2 * p.K) * static_cast<int64_t>(bytes_of(p.data_dtype)) +
                        (gate_width(p.f, p.D) + gate_width(p.g, p.K)) * static_cast<int64_t>(bytes_of(p.gate_dtype));
  int64_t interval = 16;
  while (interval * token < 4 * state) interval *= 2;
  return interval;
}

// Saved states, [slots][H][K][D] in fp32 (fp64 beside fp64 data): those before every interval-th token of a sequence but its
// first, (length - 1) / interval of them, and none of an empty one. Row b of a batch has its first slot at
// b ((T - 1) / interval), the packed sequence of the tokens x <= t < z at x / interval. As a/i + b/i <= (a + b)/i in whole
// numbers, its last slot is below x/i + (z - x - 1)/i <= (z - 1)/i, which is no more than z/i, where the next sequence
// begins, nor than the (T - 1)/i slots there are.
inline int64_t checkpoint_slots(const Problem& p, int64_t interval) { return p.T ? p.B * ((p.T - 1) / interval) : 0; }

}  // namespace t2fw
