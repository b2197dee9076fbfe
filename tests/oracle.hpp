// The two recurrences token by token in double: what every backend, "reference" included, is compared with.
#pragma once

#include <cstdint>
#include <vector>

#include "cases.hpp"

namespace test {

using Values = std::vector<double>;

// All contiguous, [B,T,H,X] and [B,H,D,K]; a gate is empty if absent, else as wide as the case says.
struct Tensors {
  Values v, f, q, k, g, initial_state, y, final_state;
  Values d_v, d_f, d_q, d_k, d_g, d_initial_state, d_y, d_final_state;
};

// Random inputs, incoming gradients included, each rounded to its dtype. Without c.initial the states are zeros.
Tensors make_inputs(const Case& c);
// Fills y and final_state.
void oracle_forward(const Case& c, Tensors& x);
// Fills every gradient but the incoming two.
void oracle_backward(const Case& c, Tensors& x);

int64_t gate_width(t2fw_gate gate, int64_t dimension);

}  // namespace test
