// Every gradient equals the oracle's, is written everywhere, and has the same bits twice. An absent state changes nothing
// else. Sums that need no rounding are exact.
#include <algorithm>
#include <utility>

#include "harness.hpp"

namespace test {
namespace {

class Backward : public testing::TestWithParam<Parameter> {};

TEST_P(Backward, EqualsOracle) {
  const auto& [backend, c] = GetParam();
  Tensors x = make_inputs(c);
  oracle_backward(c, x);
  Session run(backend, c, x);
  T2FW_NEED_PLAN(run);
  run.forward();
  if (HasFatalFailure()) return;
  run.backward();
  if (HasFatalFailure()) return;
  const bool few = c.T <= 1;  // then some gradients are zero without a state
  const Accuracy accuracy(backend, c, "backward");
  accuracy.expect("d_v", run.d_v.read(), x.d_v, c.D, c.data, 2, few);
  accuracy.expect("d_q", run.d_q.read(), x.d_q, c.K, c.data, 2, few);
  accuracy.expect("d_k", run.d_k.read(), x.d_k, c.K, c.data, 2, few);
  if (run.d_f) accuracy.expect("d_f", run.d_f.read(), x.d_f, gate_width(c.f, c.D), c.gate, 2, few);
  if (run.d_g) accuracy.expect("d_g", run.d_g.read(), x.d_g, gate_width(c.g, c.K), c.gate, 2, few);
  accuracy.expect("d_initial_state", run.d_initial_state.read(), x.d_initial_state, c.K, c.state, 2, few);

  const Operand* gradients[] = {&run.d_v, &run.d_f, &run.d_q, &run.d_k, &run.d_g, &run.d_initial_state};
  std::vector<std::vector<unsigned char>> first;
  for (const Operand* o : gradients)
    if (*o) first.push_back(o->bits());
  run.poison_outputs();
  run.forward();
  run.backward();
  size_t i = 0;
  for (const Operand* o : gradients)
    if (*o) {
      EXPECT_TRUE(o->bits() == first[i++]) << "gradient " << i << " has other bits the second time";
    }
}

INSTANTIATE_TEST_SUITE_P(All, Backward, testing::ValuesIn(parameters(all_cases())), parameter_name);

class OptionalStates : public testing::TestWithParam<Parameter> {
 protected:
  // What both have is the same; what one left out is not compared.
  static void expect_same(const Session& got, const Session& want) {
    const std::pair<const char*, Operand Session::*> outputs[] = {
        {"y", &Session::y}, {"final_state", &Session::final_state}, {"d_v", &Session::d_v}, {"d_f", &Session::d_f},
        {"d_q", &Session::d_q}, {"d_k", &Session::d_k}, {"d_g", &Session::d_g},
        {"d_initial_state", &Session::d_initial_state}};
    for (const auto& [name, output] : outputs)
      if (got.*output && want.*output) {
        EXPECT_EQ((got.*output).read(), (want.*output).read()) << name;
      }
  }
};

TEST_P(OptionalStates, ThatAreNotAskedForChangeNothing) {
  const auto& [backend, c] = GetParam();
  const Tensors x = make_inputs(c);
  Session all(backend, c, x), some(backend, c, x);
  T2FW_NEED_PLAN(all);
  some.final_state = some.d_initial_state = Operand();
  for (Session* run : {&all, &some}) {
    run->forward();
    run->backward();
  }
  if (HasFatalFailure()) return;
  expect_same(some, all);
}

TEST_P(OptionalStates, ThatAreAbsentAreZeros) {
  const auto& [backend, c] = GetParam();
  if (!c.initial) GTEST_SKIP() << "from zero";
  for (const bool initial : {true, false}) {
    Tensors x = make_inputs(c);
    Values& absent = initial ? x.initial_state : x.d_final_state;
    absent.assign(absent.size(), 0);
    Session zeros(backend, c, x), without(backend, c, x);
    T2FW_NEED_PLAN(zeros);
    (initial ? without.initial_state : without.d_final_state) = Operand();
    for (Session* run : {&zeros, &without}) {
      run->forward();
      run->backward();
    }
    if (HasFatalFailure()) return;
    expect_same(without, zeros);
  }
}

class BackwardMemory : public testing::TestWithParam<Backend> {};

TEST_P(BackwardMemory, IsAQuarterOfOperandsAndResultsAtMost) {
  const Backend& backend = GetParam();
  if (backend.name != "cuda") GTEST_SKIP() << "only the native backend promises it";
  if (!memory_of(backend.device).present()) GTEST_SKIP() << "no device is present for " << backend.name;
  std::vector<std::pair<Case, int64_t>> cases;  // and packed sequences
  const int64_t lengths[][3] = {{2, 17, 0},  {2, 65, 0},   {2, 100, 0},       {2, 128, 0},      {2, 257, 0},
                                {2, 512, 0}, {2, 5000, 0}, {1, 32000, 1000}, {1, 32000, 250}, {1, 32000, 3}};
  for (const auto& [B, T, sequences] : lengths)
    for (const int64_t width : {64, 96, 128, 192, 256})
      for (const t2fw_gate f : {T2FW_GATE_FULL, T2FW_GATE_HEAD, T2FW_GATE_NONE})
        for (const t2fw_dtype data : {T2FW_FP32, T2FW_BF16}) {
          const t2fw_gate g = f == T2FW_GATE_NONE ? f : T2FW_GATE_FULL;
          const bool usual = width <= 128 && g != T2FW_GATE_NONE;  // else packed sequences and 16-bit data may want more
          if (usual || (data == T2FW_FP32 && !sequences))
            cases.push_back({{T2FW_DECAY, data, data, T2FW_FP32, f, g, B, T, 8, width, width}, sequences});
        }
  for (const auto& [c, sequences] : cases) {
    t2fw_descriptor d = describe(backend, c);
    d.sequences = sequences;
    t2fw_plan* made = nullptr;
    const t2fw_status status = t2fw_plan_create(&d, &made);
    const Plan plan(made);
    if (status == T2FW_UNSUPPORTED) GTEST_SKIP() << t2fw_last_error();
    ASSERT_EQ(status, T2FW_SUCCESS) << t2fw_last_error();
    const int64_t gates = gate_width(c.f, c.D) + gate_width(c.g, c.K);
    const int64_t token = 4 * (c.D + c.K) + 2 * gates;  // v, y, q, k, f, g, and their gradients
    const int64_t element = static_cast<int64_t>(bytes_of(c.data));
    const int64_t states = 4 * (sequences ? sequences : c.B) * c.D * c.K * static_cast<int64_t>(sizeof(float));
    const int64_t all = c.H * (c.B * c.T * token * element + states);
    const size_t scratch = std::max(t2fw_plan_scratch_size(made, T2FW_FORWARD), t2fw_plan_scratch_size(made, T2FW_BACKWARD));
    EXPECT_LE(t2fw_plan_saved_size(made) + scratch, static_cast<size_t>(all / 4)) << name_of(c) << ", packed: " << sequences;
  }
}

INSTANTIATE_TEST_SUITE_P(All, BackwardMemory, testing::ValuesIn(backends()), backend_name);

// Where a kernel of the portable backend keeps its workspace goes by D and K. Odd widths are keys, even ones values.
class Widths : public testing::TestWithParam<Backend> {};

TEST_P(Widths, EveryOneOfThemEqualsOracle) {
  const Backend& backend = GetParam();
  if (backend.name == "reference") GTEST_SKIP() << "one code for all widths";
  if (!memory_of(backend.device).present()) GTEST_SKIP() << "no device is present for " << backend.name;
  for (const t2fw_rule rule : {T2FW_DECAY, T2FW_DELTA})
    for (const t2fw_dtype dtype : {T2FW_FP32, T2FW_FP64})
      for (int64_t width = 1; width <= 260; ++width) {
        const t2fw_gate gate = rule == T2FW_DECAY ? T2FW_GATE_FULL : T2FW_GATE_NONE;
        const Case c{rule, dtype, dtype, dtype, gate, gate, 1, 3, 1, width % 2 ? 64 : width, width % 2 ? width : 128};
        Tensors x = make_inputs(c);
        oracle_backward(c, x);
        Session run(backend, c, x);
        if (!run.ready()) continue;  // a native backend takes less
        run.forward();
        run.backward();
        if (HasFatalFailure()) FAIL() << name_of(c);
        const Accuracy accuracy(backend, c, "backward");
        accuracy.expect("d_v", run.d_v.read(), x.d_v, c.D, dtype, 2);
        accuracy.expect("d_k", run.d_k.read(), x.d_k, c.K, dtype, 2);
      }
}

INSTANTIATE_TEST_SUITE_P(All, Widths, testing::ValuesIn(backends()), backend_name);

// Of ones, from a state of zeros: sums that every dtype holds exactly (but those of the gates, which fp16 does not).
class Ones : public testing::TestWithParam<Backend> {};

TEST_P(Ones, GiveExactSums) {
  const Backend& backend = GetParam();
  if (!memory_of(backend.device).present()) GTEST_SKIP() << "no device is present for " << backend.name;
  for (const t2fw_dtype dtype : {T2FW_FP32, T2FW_BF16, T2FW_FP16}) {
    const Case c{T2FW_DECAY, dtype, dtype, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 1, 120, 1, 64, 64, Regime::Sigmoid, false};
    SCOPED_TRACE(name_of(c));
    Tensors x = make_inputs(c);
    for (Values* ones : {&x.v, &x.f, &x.q, &x.k, &x.g, &x.d_y}) ones->assign(ones->size(), 1);
    oracle_forward(c, x);
    oracle_backward(c, x);
    Session run(backend, c, x);
    T2FW_NEED_PLAN(run);
    run.forward();
    run.backward();
    if (HasFatalFailure()) return;
    EXPECT_EQ(run.y.read(), x.y);
    EXPECT_EQ(run.d_v.read(), x.d_v);
    EXPECT_EQ(run.d_q.read(), x.d_q);
    EXPECT_EQ(run.d_k.read(), x.d_k);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Ones, testing::ValuesIn(backends()), backend_name);

// The reference takes long, and long sequences as it does short ones.
std::vector<Parameter> without_long_ones_of_the_reference() {
  std::vector<Parameter> kept = parameters(all_cases());
  std::erase_if(kept, [](const Parameter& p) { return p.backend.name == "reference" && p.problem.T > 530; });
  return kept;
}
INSTANTIATE_TEST_SUITE_P(All, OptionalStates, testing::ValuesIn(without_long_ones_of_the_reference()), parameter_name);

}  // namespace
}  // namespace test
