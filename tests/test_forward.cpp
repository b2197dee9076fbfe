// Forward equals the oracle, writes every element and nothing else, gives the same bits twice, and hides no NaN.
#include <cmath>
#include <limits>

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

// One in a query reaches its token's outputs, one in a key also those of all later tokens.
class NotANumber : public testing::TestWithParam<Backend> {};

TEST_P(NotANumber, ReachesTheOutputsThatItBelongsTo) {
  const Backend& backend = GetParam();
  if (!memory_of(backend.device).present()) GTEST_SKIP() << "no device is present for " << backend.name;
  for (const t2fw_dtype dtype : {T2FW_FP32, T2FW_BF16, T2FW_FP16})
    for (const bool in_key : {false, true}) {
      const Case c{T2FW_DECAY, dtype, dtype, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 1, 40, 1, 64, 64, Regime::Sigmoid, false};
      SCOPED_TRACE(name_of(c));
      Tensors x = make_inputs(c);
      const int64_t token = 21, last = in_key ? c.T - 1 : token;
      (in_key ? x.k : x.q)[static_cast<size_t>(token * c.K + 5)] = std::numeric_limits<double>::quiet_NaN();
      Session run(backend, c, x);
      T2FW_NEED_PLAN(run);
      run.forward();
      if (HasFatalFailure()) return;
      const Values y = run.y.read();
      for (int64_t i = token * c.D; i < (last + 1) * c.D; ++i)
        EXPECT_TRUE(std::isnan(y[static_cast<size_t>(i)])) << (in_key ? "key" : "query") << ", token " << i / c.D;
    }
}

INSTANTIATE_TEST_SUITE_P(All, NotANumber, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace test
