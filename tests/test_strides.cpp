// Strides change nothing: broadcast, reversed, arbitrary where the dimension is 1, and beyond 2^31 elements.
#include <sys/mman.h>

#include "harness.hpp"

namespace test {
namespace {

class Strides : public testing::TestWithParam<Parameter> {
 protected:
  void check(Session& run, const Backend& backend, const Case& c, Tensors& x) {
    oracle_forward(c, x);
    oracle_backward(c, x);
    T2FW_NEED_PLAN(run);
    run.forward();
    run.backward();
    if (HasFatalFailure()) return;
    const double data = 2 * tolerance(backend, c, c.data);
    expect_close("y", run.y.read(), x.y, c.D, data / 2);
    expect_close("final_state", run.final_state.read(), x.final_state, c.K, tolerance(backend, c, c.state));
    expect_close("d_v", run.d_v.read(), x.d_v, c.D, data);
    expect_close("d_q", run.d_q.read(), x.d_q, c.K, data);
    expect_close("d_k", run.d_k.read(), x.d_k, c.K, data);
    expect_close("d_initial_state", run.d_initial_state.read(), x.d_initial_state, c.K, 2 * tolerance(backend, c, c.state));
  }
};

// The first of `count` slices in place of all of them, in each of so many groups that the operand consists of.
void repeat(Values& x, int64_t groups, int64_t count) {
  const int64_t each = static_cast<int64_t>(x.size()) / (groups * count);
  for (int64_t i = 0; i < groups * count; i++)
    if (i % count) std::copy_n(x.begin() + i / count * count * each, each, x.begin() + i * each);
}

TEST_P(Strides, BroadcastInputs) {
  const auto& [backend, c] = GetParam();
  Tensors x = make_inputs(c);
  for (Values* one : {&x.q, &x.k, &x.f, &x.initial_state}) repeat(*one, 1, c.B);
  t2fw_descriptor d = describe(backend, c);
  d.q_strides.b = d.k_strides.b = d.f_strides.b = d.initial_state_strides.b = 0;
  Session run(backend, c, x, d);
  check(run, backend, c, x);
}

TEST_P(Strides, BroadcastOverTokensAndHeads) {
  const auto& [backend, c] = GetParam();
  Tensors x = make_inputs(c);
  repeat(x.q, c.B, c.T), repeat(x.f, c.B * c.T, c.H), repeat(x.g, c.B * c.T, c.H);
  t2fw_descriptor d = describe(backend, c);
  d.q_strides.t = d.f_strides.h = d.g_strides.h = 0;
  Session run(backend, c, x, d);
  check(run, backend, c, x);
}

TEST_P(Strides, ReversedInputs) {
  const auto& [backend, c] = GetParam();
  Tensors x = make_inputs(c);
  t2fw_descriptor d = describe(backend, c);
  for (auto* s : {&d.v_strides, &d.q_strides, &d.g_strides, &d.d_y_strides}) s->t = -s->t;
  Session run(backend, c, x, d);
  check(run, backend, c, x);
}

TEST_P(Strides, OfSizeOneAreIgnored) {
  const auto& [backend, c0] = GetParam();
  Case c = c0;
  c.B = c.H = 1, c.layout = Layout::Bthx;
  Tensors x = make_inputs(c);
  t2fw_descriptor d = describe(backend, c);
  Session run(backend, c, x, d);
  d.v_strides.b = d.y_strides.h = d.q_strides.h = d.d_k_strides.b = INT64_MAX;
  d.final_state_strides.b = d.initial_state_strides.h = INT64_MIN;
  t2fw_plan* made = nullptr;
  if (!run.plan) T2FW_NEED_PLAN(run);
  ASSERT_EQ(t2fw_plan_create(&d, &made), T2FW_SUCCESS) << t2fw_last_error();
  run.plan.reset(made);
  check(run, backend, c, x);
}

std::vector<Case> some() {
  std::vector<Case> kept;
  for (const Case& c : all_cases())
    if (c.T >= 15 && c.T <= 65 && c.B >= 2 && c.D <= 64) kept.push_back(c);
  return kept;
}
INSTANTIATE_TEST_SUITE_P(All, Strides, testing::ValuesIn(parameters(some())), parameter_name);

// Two batch rows more than 2^31 elements apart, in address space that is reserved but not used.
TEST(FarStrides, OnTheCpu) {
  constexpr int64_t far = (int64_t{1} << 31) + 64, T = 17, D = 16;
  const size_t bytes = (static_cast<size_t>(far) + T * D) * sizeof(float);
  const auto reserve = [&] {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<float*>(p);
  };
  Case c{T2FW_DECAY, T2FW_FP32, T2FW_FP32, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 2, T, 1, D, D};
  Tensors x = make_inputs(c);
  oracle_forward(c, x);
  for (const Backend& backend : backends()) {
    if (backend.device != T2FW_CPU) continue;
    Session run(backend, c, x);
    ASSERT_TRUE(run.ready());
    run.d.v_strides.b = run.d.y_strides.b = far;
    t2fw_plan* made = nullptr;
    ASSERT_EQ(t2fw_plan_create(&run.d, &made), T2FW_SUCCESS) << t2fw_last_error();
    run.plan.reset(made);
    float *v = reserve(), *y = reserve();
    if (!v || !y) GTEST_SKIP() << "no address space";
    for (int64_t i = 0; i < 2 * T * D; i++) v[i / (T * D) * far + i % (T * D)] = static_cast<float>(x.v[static_cast<size_t>(i)]);
    Block scratch(run.memory, t2fw_plan_scratch_size(made, T2FW_FORWARD));
    t2fw_forward_args a{};
    a.struct_size = sizeof a;
    a.v = v, a.f = run.f.data(), a.q = run.q.data(), a.k = run.k.data(), a.g = run.g.data(), a.y = y;
    a.initial_state = run.initial_state.data();
    a.scratch = scratch.data(), a.scratch_size = scratch.size();
    EXPECT_EQ(t2fw_forward(made, &a, nullptr), T2FW_SUCCESS) << t2fw_last_error();
    Values got;
    for (int64_t i = 0; i < 2 * T * D; i++) got.push_back(static_cast<double>(y[i / (T * D) * far + i % (T * D)]));
    munmap(v, bytes);
    munmap(y, bytes);
    expect_close("y", got, x.y, D, tolerance(T2FW_FP32));
  }
}

}  // namespace
}  // namespace test
