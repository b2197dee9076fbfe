// Every gradient equals the oracle's, is written everywhere, and has the same bits twice.
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

}  // namespace
}  // namespace test
