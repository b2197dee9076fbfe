// A sequence of steps equals forward; slots address a pool of states.
#include "harness.hpp"

namespace test {
namespace {

class Step : public testing::TestWithParam<Parameter> {
 protected:
  // A state in 16 bits is rounded after each token.
  static double slack(const Case& c) { return bytes_of(c.state) == 2 ? 4 : 1; }
};

void walk(const Parameter& p, bool in_place, double slack) {
  const Case& c = p.problem;
  Tensors x = make_inputs(c);
  oracle_forward(c, x);
  Case one = c;
  one.T = 1, one.initial = true;
  Values state = x.initial_state;
  for (int64_t t = 0; t < c.T; t++) {
    Tensors now = tokens(c, x, t, 1);
    now.initial_state = state;
    Session run(p.backend, one, now);
    T2FW_NEED_PLAN(run);
    run.step(in_place);
    if (testing::Test::HasFatalFailure()) return;
    expect_close("y", run.y.read(), now.y, c.D, slack * std::max(tolerance(c.data), tolerance(c.state)), t == 0);
    state = (in_place ? run.initial_state : run.final_state).read();
    if (!in_place) {
      EXPECT_EQ(run.initial_state.read(), now.initial_state) << "a step out of place wrote initial_state";
    }
  }
  expect_close("state", state, x.final_state, c.K, slack * tolerance(c.state), c.T == 0);
}

TEST_P(Step, InPlace) { walk(GetParam(), true, slack(GetParam().problem)); }
TEST_P(Step, OutOfPlace) { walk(GetParam(), false, slack(GetParam().problem)); }

TEST_P(Step, Slots) {
  const auto& [backend, c0] = GetParam();
  if (c0.T == 0 || c0.B == 0) GTEST_SKIP() << "no token";
  Case c = c0;
  c.B = 4, c.T = 1, c.initial = true;
  const std::vector<int64_t> slots{5, T2FW_SKIP_SLOT, 0, 2};
  const int64_t pool = 6, each = c.H * c.D * c.K, wide = c.H * c.D;
  Case pool_case = c;
  pool_case.B = pool;
  const Values states = make_inputs(pool_case).initial_state;
  Tensors x = make_inputs(c);
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t i = 0; i < each; i++)
      x.initial_state[static_cast<size_t>(b * each + i)] =
          states[static_cast<size_t>(std::max<int64_t>(slots[static_cast<size_t>(b)], 0) * each + i)];
  oracle_forward(c, x);
  Values want = states;
  for (int64_t b = 0; b < c.B; b++) {
    const int64_t slot = slots[static_cast<size_t>(b)];
    if (slot == T2FW_SKIP_SLOT) std::fill_n(x.y.begin() + b * wide, wide, 0.0);
    else std::copy_n(x.final_state.begin() + b * each, each, want.begin() + slot * each);
  }
  Session run(backend, c, x);
  T2FW_NEED_PLAN(run);
  const auto& s = run.d.initial_state_strides;
  run.initial_state = Operand(run.memory, c.state, {pool, c.H, c.D, c.K}, {s.b, s.h, s.d}, states);
  run.step(true, slots, pool);
  if (HasFatalFailure()) return;
  const Accuracy accuracy(backend, c, "step");
  accuracy.expect("y", run.y.read(), x.y, c.D, c.data);
  accuracy.expect("states", run.initial_state.read(), want, c.K, c.state);
  EXPECT_EQ(part(run.y.read(), c.B, 1, 1), Values(static_cast<size_t>(wide))) << "a skipped row's y is not zeros";
  for (int64_t slot : {1, 3, 4})
    EXPECT_EQ(part(run.initial_state.read(), pool, slot, 1), part(states, pool, slot, 1)) << "slot " << slot << " changed";
}

INSTANTIATE_TEST_SUITE_P(All, Step, testing::ValuesIn(parameters(cases_up_to(17))), parameter_name);

}  // namespace
}  // namespace test
