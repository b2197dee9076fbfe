// Every wrong call gives its status and a message that names the argument, and writes nothing.
#include <cstring>
#include <functional>

#include "harness.hpp"

namespace test {
namespace {

enum class Call { Plan, Forward, Backward, Step };

// A right call of each kind, to be spoilt. Step has T = 1; packed has two sequences in six tokens.
struct Right {
  t2fw_descriptor d;
  Session* run = nullptr;
  t2fw_forward_args forward{};
  t2fw_backward_args backward{};
  t2fw_step_args step{};
  void* stream = nullptr;
  int64_t cu[3] = {0, 2, 6}, slots[2] = {3, 1};
  unsigned char* past(const void* p, size_t bytes) { return static_cast<unsigned char*>(const_cast<void*>(p)) + bytes; }
};

struct Wrong {
  const char* name;
  Call call;
  t2fw_status status;
  const char* text;
  std::function<void(Right&)> spoil;
  bool packed = false;
};
std::ostream& operator<<(std::ostream& out, const Wrong& w) { return out << w.name; }

constexpr auto BAD = T2FW_INVALID_ARGUMENT, NO = T2FW_UNSUPPORTED, OLD = T2FW_VERSION_MISMATCH;
constexpr auto P = Call::Plan, F = Call::Forward, B = Call::Backward, S = Call::Step;

template <class Enum>
Enum unknown() { return static_cast<Enum>(7); }

const std::vector<Wrong>& table() {
  static const std::vector<Wrong> rows = {
      {"NegativeB", P, BAD, "B", [](Right& s) { s.d.B = -1; }},
      {"NegativeT", P, BAD, "T", [](Right& s) { s.d.T = -1; }},
      {"NegativeH", P, BAD, "H", [](Right& s) { s.d.H = -2; }},
      {"ZeroD", P, BAD, "D", [](Right& s) { s.d.D = 0; }},
      {"ZeroK", P, BAD, "K", [](Right& s) { s.d.K = 0; }},
      {"HugeT", P, BAD, "T", [](Right& s) { s.d.T = INT64_MAX; }},
      {"UnknownRule", P, BAD, "rule", [](Right& s) { s.d.rule = unknown<t2fw_rule>(); }},
      {"UnknownDataDtype", P, BAD, "data_dtype", [](Right& s) { s.d.data_dtype = unknown<t2fw_dtype>(); }},
      {"UnknownGateDtype", P, BAD, "gate_dtype", [](Right& s) { s.d.gate_dtype = unknown<t2fw_dtype>(); }},
      {"UnknownStateDtype", P, BAD, "state_dtype", [](Right& s) { s.d.state_dtype = unknown<t2fw_dtype>(); }},
      {"UnknownF", P, BAD, "f", [](Right& s) { s.d.f = unknown<t2fw_gate>(); }},
      {"UnknownG", P, BAD, "g", [](Right& s) { s.d.g = unknown<t2fw_gate>(); }},
      {"UnknownDevice", P, BAD, "device", [](Right& s) { s.d.device = unknown<t2fw_device>(); }},
      {"DeviceIndexOnCpu", P, BAD, "device_index", [](Right& s) { s.d.device_index = 1; }},
      {"UnknownBackend", P, BAD, "nonesuch", [](Right& s) { s.d.backend = "nonesuch"; }},
      {"GateDtypeMixed", P, NO, "gate_dtype", [](Right& s) { s.d.gate_dtype = T2FW_FP64; }},
      {"StateDtypeMixed", P, NO, "state_dtype", [](Right& s) { s.d.state_dtype = T2FW_BF16; }},
      {"DeltaWithF", P, NO, "f", [](Right& s) { s.d.rule = T2FW_DELTA, s.d.g = T2FW_GATE_NONE; }},
      {"DeltaWithG", P, NO, "g", [](Right& s) { s.d.rule = T2FW_DELTA, s.d.f = T2FW_GATE_NONE; }},
      {"DescriptorSize", P, OLD, "struct_size", [](Right& s) { s.d.struct_size = 8; }},
      {"Version", P, OLD, "version", [](Right& s) { s.d.version = T2FW_VERSION + 1000000; }},
      {"NegativeSequences", P, BAD, "sequences", [](Right& s) { s.d.sequences = -1; }},
      {"PackedBatch", P, BAD, "B", [](Right& s) { s.d.sequences = 2; }},
      {"OutputBroadcast", P, BAD, "y_strides", [](Right& s) { s.d.y_strides.t = 0; }},
      {"OutputNegative", P, BAD, "d_k_strides", [](Right& s) { s.d.d_k_strides.t = -s.d.d_k_strides.t; }},
      {"OutputRowsOverlap", P, BAD, "d_v_strides", [](Right& s) { s.d.d_v_strides.h = 1; }},
      {"StateOverlaps", P, BAD, "final_state_strides", [](Right& s) { s.d.final_state_strides.d = 1; }},
      {"StrideOverflow", P, BAD, "v", [](Right& s) { s.d.v_strides.b = INT64_MAX; }},

      {"ForwardSize", F, OLD, "struct_size", [](Right& s) { s.forward.struct_size = 4; }},
      {"ForwardNoV", F, BAD, "v is NULL", [](Right& s) { s.forward.v = nullptr; }},
      {"ForwardNoF", F, BAD, "f is NULL", [](Right& s) { s.forward.f = nullptr; }},
      {"ForwardNoQ", F, BAD, "q is NULL", [](Right& s) { s.forward.q = nullptr; }},
      {"ForwardNoK", F, BAD, "k is NULL", [](Right& s) { s.forward.k = nullptr; }},
      {"ForwardNoY", F, BAD, "y is NULL", [](Right& s) { s.forward.y = nullptr; }},
      {"ForwardGGiven", F, BAD, "g", [](Right& s) { s.forward.g = s.forward.f; }},
      {"ForwardVMisaligned", F, BAD, "v", [](Right& s) { s.forward.v = s.past(s.forward.v, 1); }},
      {"ForwardStateMisaligned", F, BAD, "initial_state", [](Right& s) { s.forward.initial_state = s.past(s.forward.initial_state, 2); }},
      {"ForwardYOverV", F, BAD, "y", [](Right& s) { s.forward.y = const_cast<void*>(s.forward.v); }},
      {"ForwardYOverEndOfQ", F, BAD, "y", [](Right& s) { s.forward.y = s.past(s.forward.q, 4); }},
      {"ForwardStatesShifted", F, BAD, "final_state", [](Right& s) { s.forward.final_state = s.past(s.forward.initial_state, 4); }},
      {"ForwardSavedSmall", F, BAD, "saved", [](Right& s) { s.forward.saved_size--; }},
      {"ForwardSavedMisaligned", F, BAD, "saved", [](Right& s) { s.forward.saved = s.past(s.forward.saved, 8); }},
      {"ForwardScratchSmall", F, BAD, "scratch", [](Right& s) { s.forward.scratch_size--; }},
      {"ForwardScratchNull", F, BAD, "scratch", [](Right& s) { s.forward.scratch = nullptr; }},
      {"ForwardScratchMisaligned", F, BAD, "scratch", [](Right& s) { s.forward.scratch = s.past(s.forward.scratch, 8); }},
      {"ForwardStream", F, BAD, "stream", [](Right& s) { s.stream = &s; }},
      {"ForwardCuGiven", F, BAD, "cu_seqlens", [](Right& s) { s.forward.cu_seqlens = s.cu; }},
      {"CuMissing", F, BAD, "cu_seqlens", [](Right& s) { s.forward.cu_seqlens = nullptr; }, true},
      {"CuStart", F, BAD, "cu_seqlens[0]", [](Right& s) { s.cu[0] = 1; }, true},
      {"CuEnd", F, BAD, "cu_seqlens[2]", [](Right& s) { s.cu[2] = 5; }, true},
      {"CuFalls", F, BAD, "cu_seqlens", [](Right& s) { s.cu[1] = 7; }, true},

      {"BackwardSize", B, OLD, "struct_size", [](Right& s) { s.backward.struct_size++; }},
      {"BackwardNoDY", B, BAD, "d_y is NULL", [](Right& s) { s.backward.d_y = nullptr; }},
      {"BackwardNoDV", B, BAD, "d_v is NULL", [](Right& s) { s.backward.d_v = nullptr; }},
      {"BackwardNoDF", B, BAD, "d_f is NULL", [](Right& s) { s.backward.d_f = nullptr; }},
      {"BackwardDGGiven", B, BAD, "d_g", [](Right& s) { s.backward.d_g = s.backward.d_f; }},
      {"BackwardDQOverDK", B, BAD, "d_q", [](Right& s) { s.backward.d_q = s.backward.d_k; }},
      {"BackwardSavedNull", B, BAD, "saved", [](Right& s) { s.backward.saved = nullptr; }},
      {"BackwardScratchSmall", B, BAD, "scratch", [](Right& s) { s.backward.scratch_size = 0; }},

      {"StepSize", S, OLD, "struct_size", [](Right& s) { s.step.struct_size = 0; }},
      {"StepNoInitial", S, BAD, "initial_state is NULL", [](Right& s) { s.step.initial_state = nullptr; }},
      {"StepNoFinal", S, BAD, "final_state is NULL", [](Right& s) { s.step.final_state = nullptr; }},
      {"StepSlotHigh", S, BAD, "slot_indices[0]", [](Right& s) { s.step.slot_indices = s.slots, s.step.slots = 2, s.slots[0] = 2; }},
      {"StepSlotLow", S, BAD, "slot_indices[1]", [](Right& s) { s.step.slot_indices = s.slots, s.step.slots = 2, s.slots[0] = 0, s.slots[1] = -2; }},
      {"StepSlotTwice", S, BAD, "slot_indices[1]", [](Right& s) { s.step.slot_indices = s.slots, s.step.slots = 2, s.slots[0] = s.slots[1] = 1; }},
      {"StepSlotsWithoutIndices", S, BAD, "slots", [](Right& s) { s.step.slots = 4; }},
      {"StepIndicesWithoutSlots", S, BAD, "slots", [](Right& s) { s.step.slot_indices = s.slots; }},
      {"StepStream", S, BAD, "stream", [](Right& s) { s.stream = &s; }},
  };
  return rows;
}

class Errors : public testing::TestWithParam<Wrong> {};

TEST_P(Errors, IsDeclinedAndWritesNothing) {
  const Wrong& w = GetParam();
  Case c{T2FW_DECAY, T2FW_FP32, T2FW_FP32, T2FW_FP32, T2FW_GATE_FULL, w.call == P ? T2FW_GATE_FULL : T2FW_GATE_NONE,
         2, w.call == S ? 1 : 6, 2, 4, 3};
  if (w.packed) c.B = 1;
  Right s;
  s.d = describe({"", T2FW_CPU}, c);
  if (w.call == P) {
    w.spoil(s);
    t2fw_plan* plan = reinterpret_cast<t2fw_plan*>(&s);
    EXPECT_EQ(t2fw_plan_create(&s.d, &plan), w.status) << t2fw_last_error();
    EXPECT_EQ(plan, nullptr);
    EXPECT_NE(std::strstr(t2fw_last_error(), w.text), nullptr) << t2fw_last_error();
    return;
  }
  // The same on the reference, whichever backend comes first: the checks stand before all of them.
  t2fw_descriptor d = describe({"reference", T2FW_CPU}, c);
  Case states = c;
  if (w.packed) d.sequences = states.B = 2;
  Tensors x = make_inputs(c);
  x.initial_state = x.d_final_state = make_inputs(states).initial_state;
  Session run({"reference", T2FW_CPU}, c, x, d, w.packed ? std::vector<int64_t>{0, 2, 6} : std::vector<int64_t>{});
  ASSERT_TRUE(run.ready());
  if (w.call == B) {
    run.forward();
    run.y.poison();
    run.final_state.poison();
  }
  run.scratch = Block(run.memory, t2fw_plan_scratch_size(run.plan.get(), w.call == F ? T2FW_FORWARD : w.call == B ? T2FW_BACKWARD : T2FW_STEP));
  const auto common = [&](auto& a) {
    a.struct_size = sizeof a;
    a.v = run.v.data(), a.f = run.f.data(), a.q = run.q.data(), a.k = run.k.data();
    a.initial_state = run.initial_state.data();
    a.scratch = run.scratch.data(), a.scratch_size = run.scratch.size();
  };
  common(s.forward), common(s.backward), common(s.step);
  s.forward.y = s.step.y = run.y.data();
  s.forward.final_state = s.step.final_state = run.final_state.data();
  s.forward.cu_seqlens = s.backward.cu_seqlens = w.packed ? s.cu : nullptr;
  s.forward.saved = run.saved.data(), s.forward.saved_size = run.saved.size();
  s.backward.saved = run.saved.data(), s.backward.saved_size = run.saved.size();
  s.backward.d_y = run.d_y.data();
  s.backward.d_v = run.d_v.data(), s.backward.d_f = run.d_f.data(), s.backward.d_q = run.d_q.data(), s.backward.d_k = run.d_k.data();
  w.spoil(s);
  const bool of_scratch = std::strcmp(w.text, "scratch") == 0, of_saved = std::strcmp(w.text, "saved") == 0;
  if ((of_scratch && run.scratch.size() == 0) || (of_saved && run.saved.size() == 0))
    GTEST_SKIP() << "the reference needs none";
  std::vector<std::vector<unsigned char>> before, after;
  const auto snapshot = [&](auto& into) {
    for (const Operand* o : {&run.v, &run.f, &run.q, &run.k, &run.initial_state, &run.y, &run.final_state, &run.d_v, &run.d_f, &run.d_q, &run.d_k})
      into.push_back(o->bits());
    into.push_back(run.saved.download());
  };
  snapshot(before);
  const t2fw_status status = w.call == F   ? t2fw_forward(run.plan.get(), &s.forward, s.stream)
                             : w.call == B ? t2fw_backward(run.plan.get(), &s.backward, s.stream)
                                           : t2fw_step(run.plan.get(), &s.step, s.stream);
  EXPECT_EQ(status, w.status) << t2fw_last_error();
  EXPECT_NE(std::strstr(t2fw_last_error(), w.text), nullptr) << t2fw_last_error();
  snapshot(after);
  EXPECT_TRUE(before == after) << "a declined call wrote something";
  run.expect_guards();
}

INSTANTIATE_TEST_SUITE_P(All, Errors, testing::ValuesIn(table()), [](const auto& info) { return std::string(info.param.name); });

TEST(ErrorsOfNull, AreNamed) {
  t2fw_descriptor d;
  t2fw_plan* plan = nullptr;
  const auto named = [](t2fw_status status, t2fw_status want, const char* text) {
    EXPECT_EQ(status, want) << text;
    EXPECT_NE(std::strstr(t2fw_last_error(), text), nullptr) << t2fw_last_error();
  };
  named(t2fw_descriptor_init(nullptr, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 1, 1, 1, 1), BAD, "descriptor");
  named(t2fw_descriptor_init(&d, 3, T2FW_DECAY, T2FW_FP32, 1, 1, 1, 1, 1), OLD, "struct_size");
  named(t2fw_descriptor_init(&d, sizeof d, unknown<t2fw_rule>(), T2FW_FP32, 1, 1, 1, 1, 1), BAD, "rule");
  named(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 1, 1, 0, 1), BAD, "D");
  ASSERT_EQ(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 2, 1, 1, 1), T2FW_SUCCESS);
  named(t2fw_plan_create(nullptr, &plan), BAD, "descriptor");
  named(t2fw_plan_create(&d, nullptr), BAD, "plan");
  t2fw_forward_args forward{};
  forward.struct_size = sizeof forward;
  named(t2fw_forward(nullptr, &forward, nullptr), BAD, "plan");
  ASSERT_EQ(t2fw_plan_create(&d, &plan), T2FW_SUCCESS) << t2fw_last_error();
  Plan owner(plan);
  named(t2fw_forward(plan, nullptr, nullptr), BAD, "args");
  named(t2fw_backward(plan, nullptr, nullptr), BAD, "args");
  named(t2fw_step(plan, nullptr, nullptr), BAD, "args");
  t2fw_step_args step{};
  step.struct_size = sizeof step;
  named(t2fw_step(plan, &step, nullptr), BAD, "T");
}

TEST(ErrorsOfDevice, WithoutItsBackendNamesThePreset) {
  bool cuda = false;
  for (const Backend& b : backends()) cuda = cuda || b.device == T2FW_CUDA;
  if (cuda) GTEST_SKIP() << "this build has CUDA";
  t2fw_descriptor d;
  ASSERT_EQ(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 2, 1, 1, 1), T2FW_SUCCESS);
  d.device = T2FW_CUDA;
  t2fw_plan* plan = nullptr;
  EXPECT_EQ(t2fw_plan_create(&d, &plan), NO);
  EXPECT_NE(std::strstr(t2fw_last_error(), "preset"), nullptr) << t2fw_last_error();
}

}  // namespace
}  // namespace test
