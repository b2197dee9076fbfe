// What the library says about itself.
#include <cstring>
#include <set>

#include "harness.hpp"

namespace test {
namespace {

TEST(Api, Version) { EXPECT_EQ(t2fw_version(), T2FW_VERSION); }

TEST(Api, EveryStatusHasItsOwnText) {
  std::set<std::string> texts;
  for (int s = T2FW_SUCCESS; s <= T2FW_INTERNAL_ERROR; s++) texts.insert(t2fw_status_text(static_cast<t2fw_status>(s)));
  EXPECT_EQ(texts.size(), 7u);
  EXPECT_EQ(texts.count(""), 0u);
  ASSERT_NE(t2fw_status_text(static_cast<t2fw_status>(99)), nullptr);
}

TEST(Api, BackendsAreListed) {
  ASSERT_FALSE(backends().empty());
  EXPECT_NE(std::strstr(t2fw_backends(), "reference(cpu)"), nullptr) << t2fw_backends();
}

TEST(Api, NullPlan) {
  t2fw_plan_destroy(nullptr);
  EXPECT_EQ(t2fw_plan_backend(nullptr), nullptr);
  EXPECT_EQ(t2fw_plan_explain(nullptr), nullptr);
  EXPECT_EQ(t2fw_plan_scratch_size(nullptr, T2FW_FORWARD), 0u);
  EXPECT_EQ(t2fw_plan_saved_size(nullptr), 0u);
}

TEST(Api, Defaults) {
  t2fw_descriptor d;
  ASSERT_EQ(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_BF16, 2, 3, 5, 7, 11), T2FW_SUCCESS);
  EXPECT_EQ(d.struct_size, sizeof d);
  EXPECT_EQ(d.version, T2FW_VERSION);
  EXPECT_EQ(d.gate_dtype, T2FW_FP32);
  EXPECT_EQ(d.state_dtype, T2FW_FP32);
  EXPECT_EQ(d.f, T2FW_GATE_FULL);
  EXPECT_EQ(d.g, T2FW_GATE_FULL);
  EXPECT_EQ(d.device, T2FW_CPU);
  EXPECT_EQ(d.backend, nullptr);
  EXPECT_EQ(d.sequences, 0);
  EXPECT_EQ(d.v_strides.b, 3 * 5 * 7);
  EXPECT_EQ(d.v_strides.t, 5 * 7);
  EXPECT_EQ(d.v_strides.h, 7);
  EXPECT_EQ(d.d_k_strides.t, 5 * 11);
  EXPECT_EQ(d.final_state_strides.b, 5 * 7 * 11);
  EXPECT_EQ(d.final_state_strides.h, 7 * 11);
  EXPECT_EQ(d.final_state_strides.d, 11);
  ASSERT_EQ(t2fw_descriptor_init(&d, sizeof d, T2FW_DELTA, T2FW_FP64, 2, 3, 5, 7, 11), T2FW_SUCCESS);
  EXPECT_EQ(d.f, T2FW_GATE_NONE);
  EXPECT_EQ(d.g, T2FW_GATE_NONE);
  EXPECT_EQ(d.state_dtype, T2FW_FP64);
}

TEST(Api, ExplainNamesWhoWasAsked) {
  for (const Backend& b : backends()) {
    if (!memory_of(b.device).present()) continue;
    t2fw_descriptor d = describe(b, all_cases().front());
    t2fw_plan* made = nullptr;
    const t2fw_status status = t2fw_plan_create(&d, &made);
    Plan plan(made);
    if (status == T2FW_UNSUPPORTED && b.name == "cuda") continue;
    ASSERT_EQ(status, T2FW_SUCCESS) << t2fw_last_error();
    EXPECT_EQ(t2fw_plan_backend(made), b.name);
    EXPECT_NE(std::strstr(t2fw_plan_explain(made), b.name.c_str()), nullptr) << t2fw_plan_explain(made);
    EXPECT_NE(std::strstr(t2fw_plan_explain(made), "accepted"), nullptr) << t2fw_plan_explain(made);
  }
}

}  // namespace
}  // namespace test
