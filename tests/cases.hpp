// The table of problems that the properties are tested on.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "t2fw/t2fw.h"

namespace test {

// Mixed: sigmoid with 0, -0.5, 1e-30, 1 and 1.5 strewn in; as logits, evenly from gates of 0.01 to 0.9999, with 40, 1000
// and infinity of both signs. Opposed: f = 2 and g = 1/2, whose products leave fp32's range apart and are 1 together.
enum class Regime { Sigmoid, Slow, Mixed, Opposed };
enum class Layout { Bthx, Bhtx, Packed };    // Packed: slices of one wide projection, gaps between the tokens

struct Case {
  t2fw_rule rule;
  t2fw_dtype data, gate, state;
  t2fw_gate f, g;
  int64_t B, T, H, D, K;
  Regime regime = Regime::Mixed;
  bool initial = true;  // an initial state, and in backward a gradient of the final one
  Layout layout = Layout::Bthx;
  double key_norm = 1;  // delta only
  bool logits = false;  // T2FW_GATE_LOGITS
};

std::string name_of(const Case& c);
const std::vector<Case>& all_cases();
// Those with at most max_tokens tokens a sequence, for properties that are dear.
std::vector<Case> cases_up_to(int64_t max_tokens);

}  // namespace test
