#include "cases.hpp"

namespace test {
namespace {

constexpr auto F64 = T2FW_FP64, F32 = T2FW_FP32, F16 = T2FW_FP16, BF16 = T2FW_BF16;
constexpr auto NONE = T2FW_GATE_NONE, HEAD = T2FW_GATE_HEAD, FULL = T2FW_GATE_FULL;
using enum Regime;
using enum Layout;

Case decay(t2fw_dtype data, t2fw_dtype gate, t2fw_dtype state, t2fw_gate f, t2fw_gate g, int64_t B, int64_t T, int64_t H,
           int64_t D, int64_t K, Regime regime = Mixed, bool initial = true, Layout layout = Bthx) {
  return {T2FW_DECAY, data, gate, state, f, g, B, T, H, D, K, regime, initial, layout};
}
Case logits(t2fw_dtype data, t2fw_dtype gate, t2fw_dtype state, t2fw_gate f, t2fw_gate g, int64_t B, int64_t T, int64_t H,
            int64_t D, int64_t K, Regime regime = Mixed, bool initial = true, Layout layout = Bthx) {
  return {T2FW_DECAY, data, gate, state, f, g, B, T, H, D, K, regime, initial, layout, 1, true};
}
Case delta(t2fw_dtype data, t2fw_dtype state, int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, bool initial = true,
           Layout layout = Bthx, double key_norm = 1) {
  return {T2FW_DELTA, data, state, state, NONE, NONE, B, T, H, D, K, Sigmoid, initial, layout, key_norm};
}

const char* text(t2fw_dtype d) { return d == F64 ? "f64" : d == F32 ? "f32" : d == F16 ? "f16" : "bf16"; }
const char* text(t2fw_gate g) { return g == NONE ? "None" : g == HEAD ? "Head" : "Full"; }

}  // namespace

const std::vector<Case>& all_cases() {
  static const std::vector<Case> cases = {
      // every length of sequence, both sides of a block's edge
      decay(F64, F64, F64, FULL, FULL, 2, 0, 2, 3, 16),
      decay(F64, F64, F64, FULL, FULL, 2, 1, 2, 16, 3),
      decay(F64, F64, F64, FULL, FULL, 2, 2, 2, 16, 16),
      decay(F64, F64, F64, FULL, FULL, 1, 15, 2, 3, 16),
      decay(F64, F64, F64, FULL, FULL, 2, 16, 1, 16, 48),
      decay(F64, F64, F64, FULL, FULL, 1, 17, 2, 48, 16),
      decay(F64, F64, F64, FULL, FULL, 2, 63, 1, 16, 16),
      decay(F64, F64, F64, FULL, FULL, 1, 65, 2, 16, 3),
      decay(F64, F64, F64, FULL, FULL, 1, 1000, 1, 16, 16, Sigmoid),
      decay(F32, F32, F32, FULL, FULL, 1, 0, 1, 1, 1),
      decay(F32, F32, F32, FULL, FULL, 1, 1, 1, 1, 1),
      decay(F32, F32, F32, FULL, FULL, 3, 2, 2, 1, 3),
      decay(F32, F32, F32, FULL, FULL, 2, 15, 3, 3, 1),
      decay(F32, F32, F32, FULL, FULL, 2, 16, 2, 64, 64, Mixed, true, Bhtx),
      decay(F32, F32, F32, FULL, FULL, 1, 17, 2, 128, 64, Mixed, true, Packed),
      decay(F32, F32, F32, FULL, FULL, 2, 63, 1, 48, 96),
      decay(F32, F32, F32, FULL, FULL, 2, 65, 2, 64, 48, Mixed, false),
      decay(F32, F32, F32, FULL, FULL, 1, 1000, 1, 64, 64, Slow),
      decay(F32, F32, F32, FULL, FULL, 1, 1000, 2, 16, 16, Mixed, true, Packed),
      decay(F32, F32, F32, FULL, FULL, 1, 17, 1, 256, 256, Sigmoid),
      decay(F32, F32, F32, FULL, FULL, 0, 16, 2, 16, 16),
      // every kind of gate
      decay(F32, F32, F32, NONE, NONE, 1, 65, 2, 16, 48, Sigmoid),
      decay(F32, F32, F32, HEAD, NONE, 2, 65, 2, 64, 64, Mixed),
      decay(F32, F32, F32, NONE, HEAD, 2, 17, 2, 16, 64, Mixed, false, Bhtx),
      decay(F32, F32, F32, HEAD, HEAD, 1, 63, 2, 48, 16, Mixed, true, Packed),
      decay(F32, F32, F32, FULL, NONE, 1, 65, 2, 64, 16, Mixed, true, Bhtx),
      decay(F32, F32, F32, NONE, FULL, 1, 65, 2, 64, 96, Mixed, true, Packed),
      decay(F32, F32, F32, HEAD, FULL, 2, 16, 2, 3, 128, Mixed),
      decay(F64, F64, F64, FULL, HEAD, 2, 65, 1, 16, 16, Mixed),
      decay(F64, F64, F64, NONE, FULL, 1, 17, 1, 96, 3, Mixed, false),
      decay(F64, F64, F64, HEAD, NONE, 1, 65, 1, 1, 16, Slow, true, Packed),
      // 16-bit data, gates and states in both widths
      decay(F16, F32, F32, FULL, FULL, 2, 65, 2, 64, 64, Mixed),
      decay(F16, F32, F32, FULL, FULL, 1, 1000, 1, 16, 64, Slow),
      decay(F16, F16, F32, FULL, FULL, 2, 17, 2, 16, 16, Mixed, true, Packed),
      decay(F16, F32, F16, HEAD, FULL, 1, 63, 2, 48, 64, Mixed, true, Bhtx),
      decay(F16, F16, F16, NONE, FULL, 1, 15, 1, 3, 3, Sigmoid),
      decay(BF16, F32, F32, FULL, FULL, 2, 65, 2, 64, 64, Mixed, true, Packed),
      decay(BF16, F32, F32, NONE, FULL, 1, 1000, 1, 64, 16, Slow),
      decay(BF16, BF16, F32, FULL, HEAD, 1, 16, 2, 128, 16, Mixed, false),
      decay(BF16, F32, BF16, FULL, FULL, 1, 17, 2, 16, 96, Mixed),
      decay(BF16, BF16, BF16, FULL, FULL, 2, 2, 2, 16, 3, Mixed),
      decay(BF16, F32, F32, FULL, FULL, 1, 16, 1, 256, 256, Sigmoid),
      // long enough to be cut into segments where heads are few
      decay(BF16, BF16, F32, FULL, FULL, 2, 1000, 2, 64, 64, Sigmoid),
      decay(BF16, F32, F32, FULL, FULL, 1, 1027, 1, 96, 128, Slow),
      decay(BF16, F32, F32, HEAD, HEAD, 1, 65, 2, 96, 128),
      decay(BF16, F32, F32, FULL, FULL, 1, 1000, 1, 48, 40, Opposed),
      // blocks that share keys: more pairs than a GPU takes at once, several of a head; and those that have none to share with
      decay(BF16, BF16, F32, FULL, FULL, 1, 40, 80, 72, 100),
      decay(F16, F32, F32, FULL, HEAD, 1, 530, 1, 200, 100, Mixed, true, Packed),
      decay(BF16, BF16, F32, HEAD, FULL, 1, 530, 1, 130, 72, Mixed, true, Bhtx),
      // the same of two heads, cut into segments
      decay(BF16, BF16, F32, FULL, FULL, 1, 1600, 2, 72, 100, Sigmoid),
      decay(BF16, BF16, F32, FULL, FULL, 1, 2000, 2, 130, 72, Sigmoid),
      decay(F32, F32, F32, FULL, FULL, 1, 300, 1, 16, 16, Opposed, false),
      decay(F32, F32, F32, FULL, FULL, 2, 777, 1, 72, 64, Mixed),
      decay(F32, F32, F32, FULL, FULL, 1, 530, 1, 33, 130, Slow, true, Packed),
      decay(F32, F32, F32, HEAD, NONE, 1, 530, 2, 96, 40, Mixed, true, Bhtx),
      decay(F32, F32, F32, NONE, HEAD, 1, 65, 1, 20, 200),
      decay(F16, F32, F32, HEAD, FULL, 2, 777, 1, 64, 40, Mixed, true, Packed),
      // several tiles of both sides, as many and not, with a gate that sums over all of them
      decay(F32, F32, F32, FULL, FULL, 2, 65, 2, 200, 136),
      decay(F32, F32, F32, FULL, FULL, 1, 1570, 1, 136, 72, Mixed, true, Packed),
      decay(F32, F32, F32, HEAD, FULL, 1, 1290, 1, 72, 136, Slow),
      decay(F32, F32, F32, FULL, HEAD, 1, 63, 2, 130, 100, Mixed, true, Bhtx),
      decay(F16, F16, F32, FULL, HEAD, 1, 37, 2, 200, 136, Mixed, true, Packed),
      decay(BF16, BF16, F32, FULL, HEAD, 1, 530, 2, 72, 100, Mixed, true, Packed),
      decay(F16, F32, F32, HEAD, FULL, 1, 1027, 1, 69, 72, Mixed, true, Bhtx),
      // 16-bit data with more keys than the tensor cores' forward takes
      decay(F16, F16, F32, HEAD, FULL, 2, 37, 2, 40, 200, Mixed, true, Bhtx),
      decay(BF16, BF16, BF16, FULL, HEAD, 1, 530, 1, 33, 130, Mixed, true, Packed),
      decay(BF16, F32, F32, FULL, FULL, 1, 777, 1, 136, 144, Slow),
      // gates as logits
      logits(F64, F64, F64, FULL, FULL, 2, 0, 2, 3, 16),
      logits(F64, F64, F64, FULL, FULL, 2, 1, 2, 16, 3),
      logits(F64, F64, F64, FULL, HEAD, 2, 17, 2, 16, 48),
      logits(F64, F64, F64, HEAD, FULL, 1, 65, 1, 3, 16, Mixed, true, Packed),
      logits(F64, F64, F64, FULL, FULL, 1, 1000, 1, 16, 16, Sigmoid),
      logits(F32, F32, F32, FULL, FULL, 1, 1, 1, 5, 7),
      logits(F32, F32, F32, FULL, FULL, 2, 17, 2, 33, 20, Mixed, true, Bhtx),
      logits(F32, F32, F32, FULL, FULL, 2, 65, 2, 64, 64, Mixed, false),
      logits(F32, F32, F32, HEAD, NONE, 1, 65, 2, 64, 40, Mixed, true, Packed),
      logits(F32, F32, F32, NONE, HEAD, 2, 17, 2, 16, 64, Mixed, true, Bhtx),
      logits(F32, F32, F32, NONE, NONE, 1, 17, 2, 16, 16),
      logits(F32, F32, F32, FULL, HEAD, 1, 65, 2, 136, 128),
      logits(F32, F32, F32, FULL, FULL, 1, 1000, 1, 128, 72, Slow, true, Packed),
      logits(F16, F16, F32, FULL, FULL, 2, 65, 2, 64, 64),
      logits(F16, F32, F32, HEAD, FULL, 1, 17, 2, 136, 64, Mixed, true, Bhtx),
      logits(F16, F16, F16, NONE, FULL, 1, 15, 1, 3, 3),
      logits(F16, F16, F32, FULL, HEAD, 1, 1000, 1, 40, 136, Mixed, true, Packed),
      logits(BF16, BF16, BF16, FULL, FULL, 2, 1, 2, 16, 3),
      logits(BF16, BF16, F32, FULL, FULL, 2, 65, 2, 64, 64),
      logits(BF16, BF16, F32, FULL, FULL, 1, 1000, 2, 64, 64, Mixed, true, Packed),
      logits(BF16, BF16, F32, FULL, FULL, 1, 2000, 2, 64, 64, Slow),
      logits(BF16, BF16, F32, HEAD, HEAD, 1, 65, 2, 96, 128),
      logits(BF16, F32, F32, NONE, FULL, 1, 65, 2, 64, 136, Mixed, true, Bhtx),
      logits(BF16, F32, F32, FULL, FULL, 1, 1000, 1, 64, 72, Slow),
      logits(F16, F32, F32, FULL, NONE, 1, 1000, 1, 72, 64, Mixed, false),
      logits(BF16, BF16, F32, FULL, FULL, 1, 16, 1, 256, 256, Sigmoid),
      // delta
      delta(F64, F64, 2, 0, 2, 3, 16),
      delta(F64, F64, 2, 1, 2, 16, 3),
      delta(F64, F64, 2, 2, 2, 16, 16, false),
      delta(F64, F64, 1, 17, 2, 3, 16, true, Layout::Bthx, 1.3),
      delta(F64, F64, 1, 65, 2, 16, 48, true, Layout::Packed),
      delta(F64, F64, 1, 1000, 1, 16, 16),
      delta(F32, F32, 1, 1, 1, 1, 1),
      delta(F32, F32, 2, 15, 2, 1, 16),
      delta(F32, F32, 2, 16, 2, 64, 64, true, Layout::Bhtx),
      delta(F32, F32, 1, 17, 2, 128, 64, true, Layout::Packed),
      delta(F32, F32, 2, 63, 1, 48, 96, false),
      delta(F32, F32, 1, 65, 2, 64, 48),
      delta(F32, F32, 1, 1000, 1, 64, 64),
      delta(F32, F32, 1, 17, 1, 256, 256),
      delta(F16, F32, 2, 65, 2, 64, 64),
      delta(F16, F16, 1, 17, 2, 16, 48, true, Layout::Bhtx),
      delta(BF16, F32, 1, 65, 2, 64, 64, true, Layout::Packed),
      delta(BF16, F32, 1, 1000, 1, 16, 16),
      delta(BF16, BF16, 1, 16, 1, 96, 16, false),
  };
  return cases;
}

std::vector<Case> cases_up_to(int64_t max_tokens) {
  std::vector<Case> kept;
  for (const Case& c : all_cases())
    if (c.T <= max_tokens) kept.push_back(c);
  return kept;
}

std::string name_of(const Case& c) {
  const auto number = [](const char* letter, int64_t n) { return letter + std::to_string(n); };
  std::string name = c.rule == T2FW_DECAY ? "decay_" : "delta_";
  name += text(c.data);
  if (c.rule == T2FW_DECAY)
    name += std::string(c.logits ? "_logits_" : "_gate_") + text(c.gate) + "_f" + text(c.f) + "_g" + text(c.g);
  name += std::string("_state_") + text(c.state);
  name += number("_B", c.B) + number("_T", c.T) + number("_H", c.H) + number("_D", c.D) + number("_K", c.K);
  if (c.rule == T2FW_DECAY) name += c.regime == Sigmoid ? "_sigmoid" : c.regime == Slow ? "_slow" : c.regime == Mixed ? "_mixed" : "_opposed";
  if (c.key_norm != 1) name += "_longkeys";
  name += c.layout == Bthx ? "_bthx" : c.layout == Bhtx ? "_bhtx" : "_packed";
  return name + (c.initial ? "" : "_fromzero");
}

}  // namespace test
