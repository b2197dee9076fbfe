// Gates that take a state far below or above 1, over a sequence that is long enough to be cut into segments where heads are
// few.
#include <algorithm>
#include <cmath>

#include "harness.hpp"

namespace test {
namespace {

Case long_case(t2fw_dtype dtype, int64_t T, int64_t width) {
  return {T2FW_DECAY, dtype, dtype, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 1, T, 1, width, width, Regime::Sigmoid, false};
}

// By native kernels the sequence is cut, else there is nothing to see. Their forward needs scratch for nothing else.
void expect_segments(const Backend& backend, const Session& run) {
  if (backend.name != "cuda") return;
  EXPECT_GT(t2fw_plan_scratch_size(run.plan.get(), T2FW_FORWARD), 0u) << "it is not cut";
}

// One value at tokens [first, last), another elsewhere.
void fill(Values& x, int64_t tokens, int64_t first, int64_t last, double there, double elsewhere) {
  const size_t width = x.size() / static_cast<size_t>(tokens);
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i / width);
    x[i] = token >= first && token < last ? there : elsewhere;
  }
}
void fill(Values& x, double value) { x.assign(x.size(), value); }

class Range : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (!memory_of(GetParam().device).present()) GTEST_SKIP() << "no device is present for " << GetParam().name;
  }
};

// Each element, so that large ones hide nothing.
void expect_each_close(const Backend& backend, const Case& c, const char* what, const Values& got, const Values& want) {
  double smallest = 1;
  for (size_t i = 0; i < want.size(); ++i) {
    if (want[i] == 0) continue;
    smallest = std::min(smallest, std::abs(want[i]));
    ASSERT_NEAR(got[i] / want[i], 1, 10 * tolerance(backend, c, c.data)) << what << '[' << i << "], " << want[i];
  }
  EXPECT_LT(smallest, 0x1p-80) << what;
}

// What is left of a few tokens at one end, behind some whose gates take it to 2^-100, is all there is at the other end. On
// tensor cores forward starts again at token 464 (608 of the second), in fp32 at 368 (512), and backward at 384 (512): far
// enough behind for the pass that skips what is below 2^-126 to skip some of them too, if its bound were above 2^-90.
TEST_P(Range, SmallStatesAreKept) {
  const struct { int64_t width, T, first, back_first; } forms[] = {{64, 752, 260, 390}, {128, 1024, 260, 520}};
  for (const auto& form : forms)
    for (const t2fw_dtype dtype : {T2FW_FP32, T2FW_BF16}) {
      const Case c = long_case(dtype, form.T, form.width);
      SCOPED_TRACE(name_of(c));
      Tensors x = make_inputs(c);
      for (Values* ones : {&x.v, &x.q, &x.d_y}) fill(*ones, 1);
      for (Values* gates : {&x.f, &x.g}) fill(*gates, c.T, form.first, form.first + 120, 0.75, 1);
      fill(x.k, c.T, 0, 16, 1, 0);
      oracle_forward(c, x);
      Session run(GetParam(), c, x);
      T2FW_NEED_PLAN(run);
      expect_segments(GetParam(), run);
      run.forward();
      if (HasFatalFailure()) return;
      expect_each_close(GetParam(), c, "y", run.y.read(), x.y);

      fill(x.k, 1), fill(x.d_final_state, 0);
      for (Values* gates : {&x.f, &x.g}) fill(*gates, c.T, form.back_first, form.back_first + 120, 0.75, 1);
      fill(x.d_y, c.T, c.T - 16, c.T, 1, 0);
      oracle_forward(c, x);
      oracle_backward(c, x);
      Session back(GetParam(), c, x);
      ASSERT_TRUE(back.ready());
      back.forward();
      back.backward();
      if (HasFatalFailure()) return;
      expect_each_close(GetParam(), c, "d_v", back.d_v.read(), x.d_v);
      expect_each_close(GetParam(), c, "d_k", back.d_k.read(), x.d_k);
    }
}

// 2^2 a token: where nothing is written nothing is read, though products of gates are infinite.
TEST_P(Range, ZerosStayWhereGatesOverflow) {
  for (const t2fw_dtype dtype : {T2FW_FP32, T2FW_BF16}) {
    const Case c = long_case(dtype, 600, 64);
    SCOPED_TRACE(name_of(c));
    Tensors x = make_inputs(c);
    for (Values* gates : {&x.f, &x.g}) fill(*gates, 2);
    for (Values* ones : {&x.q, &x.k}) fill(*ones, 1);
    fill(x.d_final_state, 0);
    for (Values* values : {&x.v, &x.d_y})
      for (size_t i = 0; i < values->size(); ++i) (*values)[i] = i % 2;
    Session run(GetParam(), c, x);
    T2FW_NEED_PLAN(run);
    expect_segments(GetParam(), run);
    run.forward();
    run.backward();
    if (HasFatalFailure()) return;
    const Values y = run.y.read(), d_v = run.d_v.read();
    for (size_t i = 0; i < y.size(); i += 2) {
      ASSERT_EQ(y[i], 0) << "y[" << i << ']';
      ASSERT_EQ(d_v[i], 0) << "d_v[" << i << ']';
    }
    EXPECT_FALSE(std::isfinite(y.back())) << "it did not overflow";
  }
}

INSTANTIATE_TEST_SUITE_P(All, Range, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace test
