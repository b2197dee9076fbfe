// Forward equals the oracle, writes every element and nothing else, and gives the same bits twice.
#include "harness.hpp"

namespace test {
namespace {

class Forward : public testing::TestWithParam<Parameter> {};

TEST_P(Forward, EqualsOracle) {
  const auto& [backend, c] = GetParam();
  Tensors x = make_inputs(c);
  oracle_forward(c, x);
  Session run(backend, c, x);
  T2FW_NEED_PLAN(run);
  run.forward();
  if (HasFatalFailure()) return;
  const Accuracy accuracy(backend, c, "forward");
  accuracy.expect("y", run.y.read(), x.y, c.D, c.data, 1, c.T <= 1 && !c.initial);
  accuracy.expect("final_state", run.final_state.read(), x.final_state, c.K, c.state, 1, c.T == 0 && !c.initial);
  const auto y = run.y.bits(), state = run.final_state.bits();
  run.poison_outputs();
  run.forward(false);
  EXPECT_EQ(run.y.bits(), y) << "other bits without saved, the second time";
  EXPECT_EQ(run.final_state.bits(), state);
}

TEST_P(Forward, InPlaceHasTheSameBits) {
  const auto& [backend, c] = GetParam();
  if (!c.initial) GTEST_SKIP() << "from zero";
  const Tensors x = make_inputs(c);
  Session run(backend, c, x), again(backend, c, x);
  T2FW_NEED_PLAN(run);
  run.forward(false);
  again.forward(false, true);
  if (HasFatalFailure()) return;
  EXPECT_EQ(again.y.bits(), run.y.bits());
  EXPECT_EQ(again.initial_state.bits(), run.final_state.bits());
}

INSTANTIATE_TEST_SUITE_P(All, Forward, testing::ValuesIn(parameters(all_cases())), parameter_name);

}  // namespace
}  // namespace test
