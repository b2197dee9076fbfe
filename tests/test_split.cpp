// Cutting a sequence, packing sequences, and the rest of the batch change nothing.
#include <algorithm>
#include <functional>
#include <string>

#include "harness.hpp"

namespace test {
namespace {

class Split : public testing::TestWithParam<Parameter> {};

TEST_P(Split, StateCarriesOver) {
  const auto& [backend, c] = GetParam();
  Tensors x = make_inputs(c);
  oracle_forward(c, x);
  const double slack = bytes_of(c.state) == 2 ? 4 : 1;
  Values state = x.initial_state;
  for (int64_t first = 0, count; first < c.T; first += count) {
    count = std::min<int64_t>(c.T - first, first ? 33 : 7);
    Case piece = c;
    piece.T = count, piece.initial = true;
    Tensors now = tokens(c, x, first, count);
    now.initial_state = state;
    Session run(backend, piece, now);
    T2FW_NEED_PLAN(run);
    run.forward();
    if (HasFatalFailure()) return;
    expect_close("y", run.y.read(), now.y, c.D, slack * std::max(tolerance(backend, c, c.data), tolerance(backend, c, c.state)), c.T == 1);
    state = run.final_state.read();
  }
  expect_close("final_state", state, x.final_state, c.K, slack * tolerance(backend, c, c.state), c.T == 0);
}

void expect_row_alone_has_the_same_bits(const Backend& backend, const Case& c) {
  const Tensors x = make_inputs(c);
  t2fw_descriptor d = describe(backend, c);
  d.flags |= T2FW_BATCH_INVARIANT;
  Session all(backend, c, x, d);
  T2FW_NEED_PLAN(all);
  all.forward();
  all.backward();
  if (testing::Test::HasFatalFailure()) return;
  for (int64_t b = 0; b < c.B; b++) {
    Case one = c;
    one.B = 1;
    d = describe(backend, one);
    d.flags |= T2FW_BATCH_INVARIANT;
    Session alone(backend, one, batch_row(c, x, b), d);
    T2FW_NEED_PLAN(alone);
    alone.forward();
    alone.backward();
    if (testing::Test::HasFatalFailure()) return;
    for (auto member : {&Session::y, &Session::final_state, &Session::d_v, &Session::d_f, &Session::d_q, &Session::d_k, &Session::d_g})
      if (all.*member) {
        EXPECT_EQ((alone.*member).read(), part((all.*member).read(), c.B, b, 1)) << "row " << b;
      }
  }
}

TEST_P(Split, BatchRowAloneHasTheSameBits) {
  const auto& [backend, c] = GetParam();
  if (c.B < 2 || c.T == 0) GTEST_SKIP() << "one row";
  expect_row_alone_has_the_same_bits(backend, c);
}

// What a session has of one sequence, against the oracle of it alone. tokens_of, state_of: its part of an operand.
void expect_equals_oracle(const Backend& backend, const Case& one, Tensors now, const Session& all,
                          const std::function<Values(const Operand&)>& tokens_of,
                          const std::function<Values(const Operand&)>& state_of) {
  oracle_forward(one, now);
  oracle_backward(one, now);
  const bool few = one.T <= 1;
  const double data = tolerance(backend, one, one.data), gate = tolerance(backend, one, one.gate), state = tolerance(backend, one, one.state);
  expect_close("y", tokens_of(all.y), now.y, one.D, data, few);
  expect_close("d_v", tokens_of(all.d_v), now.d_v, one.D, 2 * data, few);
  expect_close("d_q", tokens_of(all.d_q), now.d_q, one.K, 2 * data, few);
  expect_close("d_k", tokens_of(all.d_k), now.d_k, one.K, 2 * data, few);
  if (all.d_f) expect_close("d_f", tokens_of(all.d_f), now.d_f, gate_width(one.f, one.D), 2 * gate, few);
  if (all.d_g) expect_close("d_g", tokens_of(all.d_g), now.d_g, gate_width(one.g, one.K), 2 * gate, few);
  expect_close("final_state", state_of(all.final_state), now.final_state, one.K, state, few);
  expect_close("d_initial_state", state_of(all.d_initial_state), now.d_initial_state, one.K, 2 * state, few);
}

// One row packed with sequences that begin and end at `cu`; each is compared with the oracle of it alone.
void expect_packed_equals_separate(const Backend& backend, const Case& c, const std::vector<int64_t>& cu) {
  const int64_t N = static_cast<int64_t>(cu.size()) - 1;
  Case many = c;
  many.B = N;
  Tensors x = make_inputs(c), states = make_inputs(many);
  x.initial_state = states.initial_state, x.d_final_state = states.d_final_state;
  t2fw_descriptor d = describe(backend, c);
  d.sequences = N;
  Session packed(backend, c, x, d, cu);
  T2FW_NEED_PLAN(packed);
  packed.forward();
  packed.backward();
  if (testing::Test::HasFatalFailure()) return;
  ASSERT_EQ(packed.final_state.read().size(), static_cast<size_t>(N * c.H * c.D * c.K));
  for (int64_t n = 0; n < N; n++) {
    Case one = c;
    const int64_t first = cu[static_cast<size_t>(n)];
    one.T = cu[static_cast<size_t>(n) + 1] - first;
    Tensors now = tokens(c, x, first, one.T);
    now.initial_state = part(x.initial_state, N, n, 1), now.d_final_state = part(x.d_final_state, N, n, 1);
    const int64_t total = c.T;  // clang 15 captures no structured binding
    expect_equals_oracle(
        backend, one, now, packed, [&](const Operand& o) { return tokens(o.read(), 1, total, first, one.T); },
        [&](const Operand& o) { return part(o.read(), N, n, 1); });
  }
}

TEST_P(Split, PackedEqualsSeparate) {
  const auto& [backend, c] = GetParam();
  if (c.B != 1 || c.T == 0) GTEST_SKIP() << "packing needs one row";
  expect_packed_equals_separate(backend, c, {0, c.T / 3, c.T / 3, c.T});  // with an empty sequence in the middle
}

TEST_P(Split, PackingSavesNoMore) {
  const auto& [backend, c] = GetParam();
  if (c.B != 1) GTEST_SKIP() << "packing needs one row";
  const Session one(backend, c, make_inputs(c));
  T2FW_NEED_PLAN(one);
  t2fw_descriptor d = describe(backend, c);
  d.sequences = c.T + 3;  // a sequence for each token, and empty ones
  t2fw_plan* made = nullptr;
  ASSERT_EQ(t2fw_plan_create(&d, &made), T2FW_SUCCESS) << t2fw_last_error();
  const Plan many(made);
  EXPECT_LE(t2fw_plan_saved_size(many.get()), t2fw_plan_saved_size(one.plan.get()));
}

std::vector<Case> short_or_batched() {
  std::vector<Case> kept;
  for (const Case& c : all_cases())
    if (c.T <= 65 || c.B > 1) kept.push_back(c);
  return kept;
}
INSTANTIATE_TEST_SUITE_P(All, Split, testing::ValuesIn(parameters(short_or_batched())), parameter_name);

// Lengths beside those after which a state is saved, which must not meet in `saved`.
class ManyPacked : public testing::TestWithParam<Parameter> {};

TEST_P(ManyPacked, EqualSeparate) {
  const auto& [backend, c] = GetParam();
  std::vector<int64_t> cu{0};
  for (const int64_t length : {1, 0, 16, 17, 1, 1, 64, 65, 0, 0, 15, 33, 129, 1, 128, 0}) cu.push_back(cu.back() + length);
  ASSERT_EQ(cu.back(), c.T);
  expect_packed_equals_separate(backend, c, cu);
}

std::vector<Case> of_one_row() {
  std::vector<Case> kept;
  for (const Case& c : all_cases()) {
    Case one = c;
    one.B = 1, one.T = 471;
    const bool few = c.f == T2FW_GATE_HEAD || c.g == T2FW_GATE_HEAD;  // a sequence's gradient of one sum that may cancel
    if (c.T >= 65 && c.T < 1000 && c.initial && !few) kept.push_back(one);
  }
  return kept;
}
INSTANTIATE_TEST_SUITE_P(All, ManyPacked, testing::ValuesIn(parameters(of_one_row())), parameter_name);

// Some so long, beside the others, that a backend may cut them and not the others: all long, or one among many short ones.
class LongPacked : public testing::TestWithParam<Parameter> {};

TEST_P(LongPacked, EqualSeparate) {
  const auto& [backend, c] = GetParam();
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{0, 2000, 3, 1409, 700, 0, 260}, {9, 2, 0, 2609, 1, 65, 16, 80, 7}}) {
    Case all = c;
    std::vector<int64_t> cu{0};
    for (const int64_t length : lengths) cu.push_back(all.T = cu.back() + length);
    expect_packed_equals_separate(backend, all, cu);
  }
}

TEST_P(LongPacked, AloneHasTheSameBits) {
  const auto& [backend, c] = GetParam();
  const std::vector<int64_t> cu{0, 40, 1640, 1640, 1647};
  Case all = c, one = c;
  all.T = cu.back(), one.T = cu[2] - cu[1];
  const Tensors x = make_inputs(all);
  Case many = all;
  many.B = 4;
  const Tensors states = make_inputs(many);
  Tensors of_all = x, of_one = tokens(all, x, cu[1], one.T);
  of_all.initial_state = states.initial_state, of_all.d_final_state = states.d_final_state;
  of_one.initial_state = part(states.initial_state, 4, 1, 1), of_one.d_final_state = part(states.d_final_state, 4, 1, 1);
  t2fw_descriptor d = describe(backend, all), e = describe(backend, one);
  d.flags |= T2FW_BATCH_INVARIANT, e.flags |= T2FW_BATCH_INVARIANT;
  d.sequences = 4, e.sequences = 1;
  Session packed(backend, all, of_all, d, cu), alone(backend, one, of_one, e, {0, one.T});
  T2FW_NEED_PLAN(packed);
  for (Session* run : {&packed, &alone}) {
    run->forward();
    run->backward();
  }
  if (HasFatalFailure()) return;
  EXPECT_EQ(alone.final_state.read(), part(packed.final_state.read(), 4, 1, 1));
  EXPECT_EQ(alone.d_initial_state.read(), part(packed.d_initial_state.read(), 4, 1, 1));
  for (auto member : {&Session::y, &Session::d_v, &Session::d_f, &Session::d_q, &Session::d_k, &Session::d_g})
    if (packed.*member) {
      EXPECT_EQ((alone.*member).read(), tokens((packed.*member).read(), 1, all.T, cu[1], one.T));
    }
}

std::vector<Parameter> of_long_rows() {
  std::vector<Case> kept;
  for (const Case& c : all_cases())
    if (c.B == 1 && c.T >= 777 && c.initial && c.f != T2FW_GATE_HEAD && c.g != T2FW_GATE_HEAD) kept.push_back(c);
  std::vector<Parameter> all = parameters(kept);
  std::erase_if(all, [](const Parameter& p) { return p.backend.name == "reference"; });  // it takes long, and cuts nothing
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, LongPacked, testing::ValuesIn(of_long_rows()), parameter_name);

// So many segments that rounding leaves the first one no tokens, where a native kernel is on a GPU of 132 multiprocessors.
class ManySegments : public testing::TestWithParam<Parameter> {};

TEST_P(ManySegments, EqualSeparate) {
  const auto& [backend, c] = GetParam();
  expect_packed_equals_separate(backend, c, {0, c.T - 62, c.T});
}

const Case many_segments{T2FW_DECAY, T2FW_FP32, T2FW_FP32, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 1, 17994, 1, 4, 100,
                         Regime::Sigmoid, true};
INSTANTIATE_TEST_SUITE_P(All, ManySegments, testing::ValuesIn(parameters({many_segments})), parameter_name);

// More heads than a GPU has room for at once, of which a backend may cut some and not the others.
class ManyHeads : public testing::TestWithParam<Parameter> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ManyHeads);  // without a GPU

TEST_P(ManyHeads, EachEqualsOracle) {
  const auto& [backend, c] = GetParam();
  const Tensors x = make_inputs(c);
  Session all(backend, c, x);
  T2FW_NEED_PLAN(all);
  all.forward();
  all.backward();
  if (HasFatalFailure()) return;
  const int64_t rows = c.B;  // clang 15 captures no structured binding
  for (int64_t b = 0; b < rows; b += b + 11 < rows ? 11 : std::max<int64_t>(1, rows - 1 - b)) {
    SCOPED_TRACE("row " + std::to_string(b));
    Case one = c;
    one.B = 1;
    const auto own = [&](const Operand& o) { return part(o.read(), rows, b, 1); };
    expect_equals_oracle(backend, one, batch_row(c, x, b), all, own, own);
  }
}

// Alone a row has so many heads that none is cut.
TEST_P(ManyHeads, RowAloneHasTheSameBits) {
  const auto& [backend, c] = GetParam();
  if (c.D > 64 || c.K > 64) GTEST_SKIP() << "heads of several blocks are cut alone";
  Case two = c;
  two.B = 2, two.H = 100;
  expect_row_alone_has_the_same_bits(backend, two);
}

std::vector<Parameter> of_many_heads() {
  const auto of = [](t2fw_dtype data, t2fw_dtype gate, t2fw_gate g, int64_t B, int64_t T, int64_t D, int64_t K) {
    return Case{T2FW_DECAY, data, gate, T2FW_FP32, T2FW_GATE_FULL, g, B, T, 1, D, K, Regime::Slow};
  };
  std::vector<Parameter> all = parameters({of(T2FW_BF16, T2FW_BF16, T2FW_GATE_FULL, 150, 531, 64, 64),
                                           of(T2FW_FP16, T2FW_FP32, T2FW_GATE_NONE, 140, 1023, 64, 72),
                                           of(T2FW_BF16, T2FW_BF16, T2FW_GATE_FULL, 70, 1161, 128, 100)});
  std::erase_if(all, [](const Parameter& p) { return p.backend.device == T2FW_CPU; });
  return all;
}
INSTANTIATE_TEST_SUITE_P(All, ManyHeads, testing::ValuesIn(of_many_heads()), parameter_name);

}  // namespace
}  // namespace test
