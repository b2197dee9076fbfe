// What is to be computed: rule, shapes, dtypes, strides. No pointer to data, no backend type.
#pragma once

#include "t2fw/t2fw.h"

namespace t2fw {

// A checked t2fw_descriptor: every backend may rely on what t2fw.h demands of it.
using Problem = t2fw_descriptor;

constexpr size_t bytes_of(t2fw_dtype dtype) {
  return dtype == T2FW_FP64 ? 8 : dtype == T2FW_FP32 ? 4 : 2;
}

// Number of independent recurrences a head: packed sequences or batch rows.
constexpr int64_t sequence_count(const Problem& p) { return p.sequences ? p.sequences : p.B; }

constexpr bool has_logits(const Problem& p) { return (p.flags & T2FW_GATE_LOGITS) != 0; }

// Width of a gate's last dimension as it lies in memory, 0 if absent. dimension: D for f, K for g.
constexpr int64_t gate_width(t2fw_gate gate, int64_t dimension) {
  return gate == T2FW_GATE_NONE ? 0 : gate == T2FW_GATE_HEAD ? 1 : dimension;
}

}  // namespace t2fw
