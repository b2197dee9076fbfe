// Every wrong call gives its status and a message that says which argument, what came and what was expected, and writes
// nothing.
#include <cstring>
#include <functional>
#include <string_view>

#include "harness.hpp"

namespace test {
namespace {

enum class Call { Plan, Forward, Backward, Step };

// A right call of each kind, to be spoilt. Step has T = 1; packed has two sequences in forty tokens.
struct Right {
  t2fw_descriptor d;
  Session* run = nullptr;
  t2fw_forward_args forward{};
  t2fw_backward_args backward{};
  t2fw_step_args step{};
  void* stream = nullptr;
  int64_t cu[3] = {0, 2, 40}, slots[2] = {3, 1};
  unsigned char* past(const void* p, size_t bytes) { return static_cast<unsigned char*>(const_cast<void*>(p)) + bytes; }
};

struct Wrong {
  const char* name;
  Call call;
  t2fw_status status;
  const char* message;  // after the call's name; ... is any text, <size> what saved or scratch needs, <less> one less
  std::function<void(Right&)> spoil;
  bool packed = false;
};

std::string with(std::string text, std::string_view mark, size_t number) {
  const size_t at = text.find(mark);
  return at == text.npos ? text : text.replace(at, mark.size(), std::to_string(number));
}

bool matches(std::string_view text, std::string_view pattern) {
  for (bool anywhere = false;; anywhere = true) {
    const size_t dots = pattern.find("...");
    const std::string_view piece = pattern.substr(0, dots);
    if (dots == pattern.npos) return anywhere ? text.ends_with(piece) : text == piece;
    const size_t at = text.find(piece);
    if (at == text.npos || (!anywhere && at != 0)) return false;
    text.remove_prefix(at + piece.size());
    pattern.remove_prefix(dots + 3);
  }
}

void expect_error(t2fw_status status, t2fw_status want, const std::string& message) {
  EXPECT_EQ(status, want) << t2fw_last_error();
  EXPECT_TRUE(matches(t2fw_last_error(), message)) << "came:     " << t2fw_last_error() << "\nexpected: " << message;
}

std::ostream& operator<<(std::ostream& out, const Wrong& w) { return out << w.name; }

constexpr auto BAD = T2FW_INVALID_ARGUMENT, NO = T2FW_UNSUPPORTED, OLD = T2FW_VERSION_MISMATCH;
constexpr auto P = Call::Plan, F = Call::Forward, B = Call::Backward, S = Call::Step;

template <class Enum>
Enum unknown() { return static_cast<Enum>(7); }

const std::vector<Wrong>& table() {
  static const std::vector<Wrong> rows = {
      {"NegativeB", P, BAD, "B is -1; expected at least 0", [](Right& s) { s.d.B = -1; }},
      {"NegativeT", P, BAD, "T is -1; expected at least 0", [](Right& s) { s.d.T = -1; }},
      {"NegativeH", P, BAD, "H is -2; expected at least 0", [](Right& s) { s.d.H = -2; }},
      {"ZeroD", P, BAD, "D is 0; expected at least 1", [](Right& s) { s.d.D = 0; }},
      {"ZeroK", P, BAD, "K is 0; expected at least 1", [](Right& s) { s.d.K = 0; }},
      {"HugeT", P, BAD,
       "B*T*H*D is 2*9223372036854775807*2*4; expected at most 1152921504606846975 elements",
       [](Right& s) { s.d.T = INT64_MAX; }},
      {"UnknownRule", P, BAD,
       "rule is 7; expected T2FW_DECAY=1 or T2FW_DELTA=2", [](Right& s) { s.d.rule = unknown<t2fw_rule>(); }},
      {"UnknownDataDtype", P, BAD,
       "data_dtype is 7; expected T2FW_FP64=1, T2FW_FP32=2, T2FW_FP16=3 or T2FW_BF16=4",
       [](Right& s) { s.d.data_dtype = unknown<t2fw_dtype>(); }},
      {"UnknownGateDtype", P, BAD,
       "gate_dtype is 7; expected T2FW_FP64=1, T2FW_FP32=2, T2FW_FP16=3 or T2FW_BF16=4",
       [](Right& s) { s.d.gate_dtype = unknown<t2fw_dtype>(); }},
      {"UnknownStateDtype", P, BAD,
       "state_dtype is 7; expected T2FW_FP64=1, T2FW_FP32=2, T2FW_FP16=3 or T2FW_BF16=4",
       [](Right& s) { s.d.state_dtype = unknown<t2fw_dtype>(); }},
      {"UnknownF", P, BAD,
       "f is 7; expected T2FW_GATE_NONE=0, T2FW_GATE_HEAD=1 or T2FW_GATE_FULL=2",
       [](Right& s) { s.d.f = unknown<t2fw_gate>(); }},
      {"UnknownG", P, BAD,
       "g is 7; expected T2FW_GATE_NONE=0, T2FW_GATE_HEAD=1 or T2FW_GATE_FULL=2",
       [](Right& s) { s.d.g = unknown<t2fw_gate>(); }},
      {"UnknownFlags", P, BAD, "flags is 6; expected T2FW_BATCH_INVARIANT=1 and T2FW_GATE_LOGITS=2, or'ed, or 0",
       [](Right& s) { s.d.flags = 6; }},
      {"DeltaWithLogits", P, BAD,
       "flags is 3, which has T2FW_GATE_LOGITS=2, with the delta rule; expected none, because that rule has no gates",
       [](Right& s) {
         s.d.rule = T2FW_DELTA, s.d.f = s.d.g = T2FW_GATE_NONE, s.d.flags = T2FW_BATCH_INVARIANT | T2FW_GATE_LOGITS;
       }},
      {"UnknownDevice", P, BAD,
       "device is 7; expected T2FW_CPU=1, T2FW_CUDA=2 or T2FW_HIP=3",
       [](Right& s) { s.d.device = unknown<t2fw_device>(); }},
      {"DeviceIndexOnCpu", P, BAD, "device_index is 1; expected 0 for the cpu", [](Right& s) { s.d.device_index = 1; }},
      {"UnknownBackend", P, BAD,
       "backend is \"nonesuch\"; expected NULL or one of this build, which has kokkos(cpu)...reference(cpu) (cmake --preset ...)",
       [](Right& s) { s.d.backend = "nonesuch"; }},
      {"GateDtypeMixed", P, NO,
       "gate_dtype is fp64 beside fp32 data; expected fp32", [](Right& s) { s.d.gate_dtype = T2FW_FP64; }},
      {"StateDtypeMixed", P, NO,
       "state_dtype is bf16 beside fp32 data; expected fp32", [](Right& s) { s.d.state_dtype = T2FW_BF16; }},
      {"DeltaWithF", P, NO,
       "f is T2FW_GATE_FULL with the delta rule; expected T2FW_GATE_NONE, because the gated delta rule is not available yet",
       [](Right& s) { s.d.rule = T2FW_DELTA, s.d.g = T2FW_GATE_NONE; }},
      {"DeltaWithG", P, NO,
       "g is T2FW_GATE_FULL with the delta rule; expected T2FW_GATE_NONE, because the gated delta rule is not available yet",
       [](Right& s) { s.d.rule = T2FW_DELTA, s.d.f = T2FW_GATE_NONE; }},
      {"DescriptorSize", P, OLD,
       "descriptor.struct_size is 8; expected ..., the size in version ...", [](Right& s) { s.d.struct_size = 8; }},
      {"Version", P, OLD,
       "descriptor.version is ...; expected major version 0, as in ...",
       [](Right& s) { s.d.version = T2FW_VERSION + 1000000; }},
      {"NegativeSequences", P, BAD, "sequences is -1; expected at least 0", [](Right& s) { s.d.sequences = -1; }},
      {"PackedBatch", P, BAD, "B is 2 with packed sequences; expected 1", [](Right& s) { s.d.sequences = 2; }},
      {"OutputBroadcast", P, BAD,
       "y_strides are 320,0,4 for fp32 [B=2,T=40,H=2,D=4]: the stride of T is 0; expected at least 4, because ...",
       [](Right& s) { s.d.y_strides.t = 0; }},
      {"OutputNegative", P, BAD,
       "d_k_strides are 240,-6,3 for fp32 [B=2,T=40,H=2,K=3]: the stride of T is -6; expected at least 3, because ...",
       [](Right& s) { s.d.d_k_strides.t = -s.d.d_k_strides.t; }},
      {"OutputRowsOverlap", P, BAD,
       "d_v_strides are 320,8,1 for fp32 [B=2,T=40,H=2,D=4]: the stride of H is 1; expected at least 4, because ...",
       [](Right& s) { s.d.d_v_strides.h = 1; }},
      {"StateOverlaps", P, BAD,
       "final_state_strides are 24,12,1 for fp32 [B=2,H=2,D=4,K=3]: the stride of D is 1; expected at least 3, because ...",
       [](Right& s) { s.d.final_state_strides.d = 1; }},
      {"StrideOverflow", P, BAD,
       "v of fp32 [B=2,T=40,H=2,D=4] with strides 9223372036854775807,8,4 does not fit into the address space; expected at most 2^61 bytes",
       [](Right& s) { s.d.v_strides.b = INT64_MAX; }},

      {"ForwardSize", F, OLD,
       "args.struct_size is 4; expected ..., the size in version ...", [](Right& s) { s.forward.struct_size = 4; }},
      {"ForwardNoV", F, BAD,
       "v is NULL; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu", [](Right& s) { s.forward.v = nullptr; }},
      {"ForwardNoF", F, BAD,
       "f is NULL; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu", [](Right& s) { s.forward.f = nullptr; }},
      {"ForwardNoQ", F, BAD,
       "q is NULL; expected a pointer to fp32 [B=2,T=40,H=2,K=3] on the cpu", [](Right& s) { s.forward.q = nullptr; }},
      {"ForwardNoK", F, BAD,
       "k is NULL; expected a pointer to fp32 [B=2,T=40,H=2,K=3] on the cpu", [](Right& s) { s.forward.k = nullptr; }},
      {"ForwardNoY", F, BAD,
       "y is NULL; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu", [](Right& s) { s.forward.y = nullptr; }},
      {"ForwardGGiven", F, BAD,
       "g is not NULL; expected NULL, because the plan has none", [](Right& s) { s.forward.g = s.forward.f; }},
      {"ForwardVMisaligned", F, BAD,
       "v is 1 bytes past a multiple of 4; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu, aligned to 4 bytes",
       [](Right& s) { s.forward.v = s.past(s.forward.v, 1); }},
      {"ForwardStateMisaligned", F, BAD,
       "initial_state is 2 bytes past a multiple of 4; expected a pointer to fp32 [B=2,H=2,D=4,K=3] on the cpu, aligned to 4 bytes",
       [](Right& s) { s.forward.initial_state = s.past(s.forward.initial_state, 2); }},
      {"ForwardYOverV", F, BAD,
       "y overlaps v: fp32 [B=2,T=40,H=2,D=4] and fp32 [B=2,T=40,H=2,D=4] lie 0 bytes apart; expected memory of "
       "its own for every output",
       [](Right& s) { s.forward.y = const_cast<void*>(s.forward.v); }},
      {"ForwardYOverEndOfQ", F, BAD,
       "y may overlap q: ... lie -4 bytes apart; expected memory of its own for every output",
       [](Right& s) { s.forward.y = s.past(s.forward.q, 4); }},
      {"ForwardStatesShifted", F, BAD,
       "final_state overlaps initial_state: ... lie -4 bytes apart; expected memory of its own for every output",
       [](Right& s) { s.forward.final_state = s.past(s.forward.initial_state, 4); }},
      {"ForwardSavedSmall", F, BAD,
       "saved_size is <less>; expected <size> bytes aligned to 64", [](Right& s) { s.forward.saved_size--; }},
      {"ForwardSavedMisaligned", F, BAD,
       "saved is 8 bytes past a multiple of 64; expected <size> bytes aligned to 64",
       [](Right& s) { s.forward.saved = s.past(s.forward.saved, 8); }},
      {"ForwardScratchSmall", F, BAD,
       "scratch_size is <less>; expected <size> bytes aligned to 64", [](Right& s) { s.forward.scratch_size--; }},
      {"ForwardScratchNull", F, BAD,
       "scratch is NULL; expected <size> bytes aligned to 64", [](Right& s) { s.forward.scratch = nullptr; }},
      {"ForwardScratchMisaligned", F, BAD,
       "scratch is 8 bytes past a multiple of 64; expected <size> bytes aligned to 64",
       [](Right& s) { s.forward.scratch = s.past(s.forward.scratch, 8); }},
      {"ForwardStream", F, BAD,
       "stream is not NULL; expected NULL, because the plan's device is the cpu", [](Right& s) { s.stream = &s; }},
      {"ForwardCuGiven", F, BAD,
       "cu_seqlens is not NULL; expected NULL, because the plan has none",
       [](Right& s) { s.forward.cu_seqlens = s.cu; }},
      {"CuMissing", F, BAD,
       "cu_seqlens is NULL; expected a pointer to int64 [3] on the cpu",
       [](Right& s) { s.forward.cu_seqlens = nullptr; }, true},
      {"CuStart", F, BAD, "cu_seqlens[0] is 1; expected 0", [](Right& s) { s.cu[0] = 1; }, true},
      {"CuEnd", F, BAD, "cu_seqlens[2] is 5; expected T=40", [](Right& s) { s.cu[2] = 5; }, true},
      {"CuFalls", F, BAD,
       "cu_seqlens[2] is 40; expected at least 41, the value before it", [](Right& s) { s.cu[1] = 41; }, true},

      {"BackwardSize", B, OLD,
       "args.struct_size is 161; expected ..., the size in version ...", [](Right& s) { s.backward.struct_size++; }},
      {"BackwardNoDY", B, BAD,
       "d_y is NULL; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu",
       [](Right& s) { s.backward.d_y = nullptr; }},
      {"BackwardNoDV", B, BAD,
       "d_v is NULL; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu",
       [](Right& s) { s.backward.d_v = nullptr; }},
      {"BackwardNoDF", B, BAD,
       "d_f is NULL; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu",
       [](Right& s) { s.backward.d_f = nullptr; }},
      {"BackwardNoDQ", B, BAD,
       "d_q is NULL; expected a pointer to fp32 [B=2,T=40,H=2,K=3] on the cpu",
       [](Right& s) { s.backward.d_q = nullptr; }},
      {"BackwardNoDK", B, BAD,
       "d_k is NULL; expected a pointer to fp32 [B=2,T=40,H=2,K=3] on the cpu",
       [](Right& s) { s.backward.d_k = nullptr; }},
      {"BackwardDYMisaligned", B, BAD,
       "d_y is 3 bytes past a multiple of 4; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the cpu, aligned to 4 bytes",
       [](Right& s) { s.backward.d_y = s.past(s.backward.d_y, 3); }},
      {"BackwardDGGiven", B, BAD,
       "d_g is not NULL; expected NULL, because the plan has none", [](Right& s) { s.backward.d_g = s.backward.d_f; }},
      {"BackwardDQOverDK", B, BAD,
       "d_q overlaps d_k: ... lie 0 bytes apart; expected memory of its own for every output",
       [](Right& s) { s.backward.d_q = s.backward.d_k; }},
      {"BackwardDStateOverState", B, BAD,
       "d_initial_state overlaps initial_state: ... lie 0 bytes apart; expected memory of its own for every output",
       [](Right& s) { s.backward.d_initial_state = const_cast<void*>(s.backward.initial_state); }},
      {"BackwardSavedNull", B, BAD,
       "saved is NULL; expected <size> bytes aligned to 64", [](Right& s) { s.backward.saved = nullptr; }},
      {"BackwardSavedSmall", B, BAD,
       "saved_size is <less>; expected <size> bytes aligned to 64", [](Right& s) { s.backward.saved_size--; }},
      {"BackwardSavedMisaligned", B, BAD,
       "saved is 8 bytes past a multiple of 64; expected <size> bytes aligned to 64",
       [](Right& s) { s.backward.saved = s.past(s.backward.saved, 8); }},
      {"BackwardScratchSmall", B, BAD,
       "scratch_size is 0; expected <size> bytes aligned to 64", [](Right& s) { s.backward.scratch_size = 0; }},

      {"BackwardStream", B, BAD,
       "stream is not NULL; expected NULL, because the plan's device is the cpu", [](Right& s) { s.stream = &s; }},
      {"BackwardCuMissing", B, BAD,
       "cu_seqlens is NULL; expected a pointer to int64 [3] on the cpu",
       [](Right& s) { s.backward.cu_seqlens = nullptr; }, true},
      {"BackwardCuEnd", B, BAD, "cu_seqlens[2] is 5; expected T=40", [](Right& s) { s.cu[2] = 5; }, true},

      {"StepSize", S, OLD,
       "args.struct_size is 0; expected ..., the size in version ...", [](Right& s) { s.step.struct_size = 0; }},
      {"StepNoInitial", S, BAD,
       "initial_state is NULL; expected a pointer to fp32 [B=2,H=2,D=4,K=3] on the cpu",
       [](Right& s) { s.step.initial_state = nullptr; }},
      {"StepNoFinal", S, BAD,
       "final_state is NULL; expected a pointer to fp32 [B=2,H=2,D=4,K=3] on the cpu",
       [](Right& s) { s.step.final_state = nullptr; }},
      {"StepNoV", S, BAD,
       "v is NULL; expected a pointer to fp32 [B=2,T=1,H=2,D=4] on the cpu", [](Right& s) { s.step.v = nullptr; }},
      {"StepNoY", S, BAD,
       "y is NULL; expected a pointer to fp32 [B=2,T=1,H=2,D=4] on the cpu", [](Right& s) { s.step.y = nullptr; }},
      {"StepYOverState", S, BAD,
       "final_state may overlap y: ... lie 0 bytes apart; expected memory of its own for every output",
       [](Right& s) { s.step.y = s.step.final_state; }},
      {"StepStatesShifted", S, BAD,
       "final_state overlaps initial_state: ... lie -4 bytes apart; expected memory of its own for every output",
       [](Right& s) { s.step.final_state = s.past(s.step.initial_state, 4); }},
      {"StepSlotHigh", S, BAD,
       "slot_indices[0] is 2; expected 0 .. slots-1=1, or T2FW_SKIP_SLOT=-1",
       [](Right& s) { s.step.slot_indices = s.slots, s.step.slots = 2, s.slots[0] = 2; }},
      {"StepSlotLow", S, BAD,
       "slot_indices[1] is -2; expected 0 .. slots-1=1, or T2FW_SKIP_SLOT=-1",
       [](Right& s) { s.step.slot_indices = s.slots, s.step.slots = 2, s.slots[0] = 0, s.slots[1] = -2; }},
      {"StepSlotTwice", S, BAD,
       "slot_indices[1] is 1; expected no slot twice",
       [](Right& s) { s.step.slot_indices = s.slots, s.step.slots = 2, s.slots[0] = s.slots[1] = 1; }},
      {"StepSlotsWithoutIndices", S, BAD,
       "slots is 4; expected 0, because slot_indices is NULL", [](Right& s) { s.step.slots = 4; }},
      {"StepIndicesWithoutSlots", S, BAD,
       "slots is 0; expected at least 1 with slot_indices", [](Right& s) { s.step.slot_indices = s.slots; }},
      {"StepStream", S, BAD,
       "stream is not NULL; expected NULL, because the plan's device is the cpu", [](Right& s) { s.stream = &s; }},
  };
  return rows;
}

class Errors : public testing::TestWithParam<Wrong> {};

TEST_P(Errors, IsDeclinedAndWritesNothing) {
  const Wrong& w = GetParam();
  Case c{T2FW_DECAY, T2FW_FP32, T2FW_FP32, T2FW_FP32, T2FW_GATE_FULL, w.call == P ? T2FW_GATE_FULL : T2FW_GATE_NONE,
         2, w.call == S ? 1 : 40, 2, 4, 3};
  if (w.packed) c.B = 1;
  Right s;
  if (w.call == P) {
    s.d = describe({"", T2FW_CPU}, c);
    w.spoil(s);
    t2fw_plan* plan = reinterpret_cast<t2fw_plan*>(&s);
    expect_error(t2fw_plan_create(&s.d, &plan), w.status, std::string("t2fw_plan_create: ") + w.message);
    EXPECT_EQ(plan, nullptr);
    return;
  }
  // The checks stand before every backend; this one wants scratch, and forty tokens are enough for it to save states.
  const Backend backend{"kokkos", T2FW_CPU};
  t2fw_descriptor d = describe(backend, c);
  Case states = c;
  if (w.packed) d.sequences = states.B = 2;
  Tensors x = make_inputs(c);
  x.initial_state = x.d_final_state = make_inputs(states).initial_state;
  Session run(backend, c, x, d, w.packed ? std::vector<int64_t>{0, 2, 40} : std::vector<int64_t>{});
  ASSERT_TRUE(run.ready());
  if (w.call == B) {
    run.forward();
    run.y.poison();
    run.final_state.poison();
  }
  run.scratch = Block(run.memory, t2fw_plan_scratch_size(run.plan.get(), w.call == F ? T2FW_FORWARD : w.call == B ? T2FW_BACKWARD : T2FW_STEP));
  if (w.call != S) {
    ASSERT_GT(run.scratch.size(), 0u);
    ASSERT_GT(run.saved.size(), 0u);
  }
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
  s.backward.d_y = run.d_y.data(), s.backward.d_final_state = run.d_final_state.data();
  s.backward.d_v = run.d_v.data(), s.backward.d_f = run.d_f.data(), s.backward.d_q = run.d_q.data(), s.backward.d_k = run.d_k.data();
  s.backward.d_initial_state = run.d_initial_state.data();
  const auto call = [&] {
    return w.call == F   ? t2fw_forward(run.plan.get(), &s.forward, s.stream)
           : w.call == B ? t2fw_backward(run.plan.get(), &s.backward, s.stream)
                         : t2fw_step(run.plan.get(), &s.step, s.stream);
  };
  w.spoil(s);
  // Inputs hold values and outputs poison.
  const auto snapshot = [&] {
    std::vector<std::vector<unsigned char>> bytes{run.saved.download(), run.scratch.download()};
    for (const Operand* o : {&run.v, &run.f, &run.q, &run.k, &run.initial_state, &run.y, &run.final_state, &run.d_v, &run.d_f, &run.d_q,
                             &run.d_k, &run.d_y, &run.d_initial_state, &run.d_final_state})
      bytes.push_back(o->bits());
    return bytes;
  };
  const auto before = snapshot();
  const char* const name = w.call == F ? "t2fw_forward: " : w.call == B ? "t2fw_backward: " : "t2fw_step: ";
  const std::string message = std::string(name) + w.message;
  const size_t size = message.find(": saved") != message.npos ? run.saved.size() : run.scratch.size();
  expect_error(call(), w.status, with(with(message, "<less>", size - 1), "<size>", size));
  EXPECT_TRUE(before == snapshot()) << "a declined call wrote something";
  run.expect_guards();
}

INSTANTIATE_TEST_SUITE_P(All, Errors, testing::ValuesIn(table()), [](const auto& info) { return std::string(info.param.name); });

TEST(ErrorsOfNull, AreNamed) {
  t2fw_descriptor d, untouched;
  std::memset(&d, 0xFE, sizeof d);
  untouched = d;
  t2fw_plan* plan = nullptr;
  expect_error(t2fw_descriptor_init(nullptr, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 1, 1, 1, 1), BAD,
               "t2fw_descriptor_init: descriptor is NULL; expected a pointer to a t2fw_descriptor");
  expect_error(t2fw_descriptor_init(&d, 3, T2FW_DECAY, T2FW_FP32, 1, 1, 1, 1, 1), OLD,
               "t2fw_descriptor_init: struct_size is 3; expected ..., the size in version ...");
  expect_error(t2fw_descriptor_init(&d, sizeof d, unknown<t2fw_rule>(), T2FW_FP32, 1, 1, 1, 1, 1), BAD,
               "t2fw_descriptor_init: rule is 7; expected T2FW_DECAY=1 or T2FW_DELTA=2");
  expect_error(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 1, 1, 0, 1), BAD,
               "t2fw_descriptor_init: D is 0; expected at least 1");
  EXPECT_EQ(std::memcmp(&d, &untouched, sizeof d), 0) << "a declined t2fw_descriptor_init wrote something";
  ASSERT_EQ(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 2, 1, 1, 1), T2FW_SUCCESS);
  expect_error(t2fw_plan_create(nullptr, &plan), BAD,
               "t2fw_plan_create: descriptor is NULL; expected a pointer to a t2fw_descriptor");
  expect_error(t2fw_plan_create(&d, nullptr), BAD,
               "t2fw_plan_create: plan is NULL; expected a pointer to a t2fw_plan*");
  t2fw_forward_args forward{};
  forward.struct_size = sizeof forward;
  expect_error(t2fw_forward(nullptr, &forward, nullptr), BAD,
               "t2fw_forward: plan is NULL; expected a plan from t2fw_plan_create");
  ASSERT_EQ(t2fw_plan_create(&d, &plan), T2FW_SUCCESS) << t2fw_last_error();
  Plan owner(plan);
  expect_error(t2fw_forward(plan, nullptr, nullptr), BAD,
               "t2fw_forward: args is NULL; expected a pointer to the arguments");
  expect_error(t2fw_backward(plan, nullptr, nullptr), BAD,
               "t2fw_backward: args is NULL; expected a pointer to the arguments");
  expect_error(t2fw_step(plan, nullptr, nullptr), BAD, "t2fw_step: args is NULL; expected a pointer to the arguments");
  t2fw_step_args step{};
  step.struct_size = sizeof step;
  expect_error(t2fw_step(plan, &step, nullptr), BAD, "t2fw_step: the plan's T is 2; expected 1");
}

class ErrorsOfMemory : public testing::TestWithParam<Backend> {};

TEST_P(ErrorsOfMemory, HostMemoryIsDeclinedAndManagedTaken) {
  const Backend& backend = GetParam();
  if (backend.device == T2FW_CPU) GTEST_SKIP() << "its memory is the host's";
  const Case c{T2FW_DECAY, T2FW_FP32, T2FW_FP32, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 2, 40, 2, 4, 3};
  Tensors x = make_inputs(c);
  oracle_forward(c, x);
  Session run(backend, c, x);
  T2FW_NEED_PLAN(run);
  const auto value = [&](const Memory& memory, const Values& values = {}) {
    const auto& s = run.d.v_strides;
    return Operand(memory, T2FW_FP32, {c.B, c.T, c.H, c.D}, {s.b, s.t, s.h}, values);
  };
  const Operand v = std::move(run.v), y = std::move(run.y);
  const Memory &plain = memory_of(T2FW_CPU), &pinned = memory_of(backend.device, MemoryKind::Pinned);
  const Memory& managed = memory_of(backend.device, MemoryKind::Managed);
  for (const Memory* host : {&plain, &pinned})
    for (const bool input : {true, false}) {
      run.v = input ? value(*host, x.v) : v;
      run.y = input ? y : value(*host);
      run.scratch = Block(run.memory, t2fw_plan_scratch_size(run.plan.get(), T2FW_FORWARD));
      t2fw_forward_args a{};
      a.struct_size = sizeof a;
      a.v = run.v.data(), a.f = run.f.data(), a.q = run.q.data(), a.k = run.k.data(), a.g = run.g.data();
      a.y = run.y.data(), a.scratch = run.scratch.data(), a.scratch_size = run.scratch.size();
      const auto before = run.y.bits();
      const char* device = backend.device == T2FW_CUDA ? "cuda" : "hip";
      expect_error(t2fw_forward(run.plan.get(), &a, nullptr), BAD,
                   std::string("t2fw_forward: ") + (input ? "v" : "y") +
                       " points to host memory; expected a pointer to fp32 [B=2,T=40,H=2,D=4] on the " + device);
      EXPECT_EQ(run.y.bits(), before) << "a declined call wrote something";
    }
  run.v = value(managed, x.v), run.y = value(managed), run.saved = Block(managed, run.saved.size());
  run.forward();
  if (HasFatalFailure()) return;
  expect_close("y", run.y.read(), x.y, c.D, tolerance(c.data));
}

INSTANTIATE_TEST_SUITE_P(All, ErrorsOfMemory, testing::ValuesIn(backends()), backend_name);

TEST(ErrorsOfDevice, WithoutItsBackendNamesThePreset) {
  bool cuda = false;
  for (const Backend& b : backends()) cuda = cuda || b.device == T2FW_CUDA;
  if (cuda) GTEST_SKIP() << "this build has CUDA";
  t2fw_descriptor d;
  ASSERT_EQ(t2fw_descriptor_init(&d, sizeof d, T2FW_DECAY, T2FW_FP32, 1, 2, 1, 1, 1), T2FW_SUCCESS);
  d.device = T2FW_CUDA;
  t2fw_plan* plan = nullptr;
  expect_error(t2fw_plan_create(&d, &plan), NO,
               "t2fw_plan_create: every backend asked declined:\nkokkos(cpu): runs on cpu only; descriptor.device is cuda, for "
               "which this build has no backend: set descriptor.device to cpu, or build with cmake --preset cuda...");
  EXPECT_EQ(plan, nullptr);
}

class ErrorsOfSize : public testing::TestWithParam<Backend> {};

TEST_P(ErrorsOfSize, MoreThreadBlocksThanALaunchHasAreDeclined) {
  const Backend& backend = GetParam();
  if (backend.name != "cuda") GTEST_SKIP() << "it takes every size";
  if (!memory_of(backend.device).present()) GTEST_SKIP() << "no device is present for " << backend.name;
  const Case c{T2FW_DECAY, T2FW_BF16, T2FW_FP32, T2FW_FP32, T2FW_GATE_FULL, T2FW_GATE_FULL, 1 << 20, 1, 1 << 9, 64, 64};
  const t2fw_descriptor d = describe(backend, c);
  t2fw_plan* plan = nullptr;
  expect_error(t2fw_plan_create(&d, &plan), NO,
               "...there must be at most 2147483647 thread blocks, for the tiles and segments of all heads; there may be "
               "2147483648: split the batch...");
  EXPECT_EQ(plan, nullptr);
}

INSTANTIATE_TEST_SUITE_P(All, ErrorsOfSize, testing::ValuesIn(backends()), backend_name);

}  // namespace
}  // namespace test
