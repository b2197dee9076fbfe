// One plan, executed by two threads at once, each with its own buffers.
#include <thread>

#include "harness.hpp"

namespace test {
namespace {

class Threads : public testing::TestWithParam<Parameter> {};

TEST_P(Threads, OnePlanTwoThreads) {
  const auto& [backend, c] = GetParam();
  const Tensors x = make_inputs(c);
  Session alone(backend, c, x), first(backend, c, x), second(backend, c, x);
  T2FW_NEED_PLAN(alone);
  alone.forward();
  alone.backward();
  Plan own_first = std::move(first.plan), own_second = std::move(second.plan);
  const auto work = [&](Session& run) {
    run.plan.reset(alone.plan.get());
    for (int i = 0; i < 3; i++) {
      run.forward();
      run.backward();
    }
    static_cast<void>(run.plan.release());
  };
  std::thread one(work, std::ref(first)), two(work, std::ref(second));
  one.join();
  two.join();
  for (Session* run : {&first, &second})
    for (auto member : {&Session::y, &Session::final_state, &Session::d_v, &Session::d_f, &Session::d_q, &Session::d_k, &Session::d_g})
      if (alone.*member) {
        EXPECT_EQ(((*run).*member).bits(), (alone.*member).bits());
      }
}

std::vector<Case> some() {
  std::vector<Case> kept;
  for (const Case& c : all_cases())
    if (c.T == 65) kept.push_back(c);
  return kept;
}
INSTANTIATE_TEST_SUITE_P(All, Threads, testing::ValuesIn(parameters(some())), parameter_name);

}  // namespace
}  // namespace test
