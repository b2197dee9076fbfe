// t2fw_plan_create: descriptor checked, backends asked in order, the first that accepts is bound.
#include "api/plan.hpp"

#include "api/checks.hpp"
#include "api/descriptor.hpp"
#include "api/error.hpp"

namespace t2fw {
namespace {

void check_values(const t2fw_descriptor& d) {
  check_struct_size("descriptor.struct_size", d.struct_size, sizeof d);
  if (d.version / 1000000 != T2FW_VERSION_MAJOR || d.version < 0)
    fail(T2FW_VERSION_MISMATCH, "descriptor.version is " + std::to_string(d.version) + "; expected major version " +
                                    std::to_string(T2FW_VERSION_MAJOR) + ", as in " + std::to_string(T2FW_VERSION));
  const char* gates = "T2FW_GATE_NONE=0, T2FW_GATE_HEAD=1 or T2FW_GATE_FULL=2";
  check_enum("rule", value_of(d.rule), T2FW_DECAY, T2FW_DELTA, "T2FW_DECAY=1 or T2FW_DELTA=2");
  check_enum("data_dtype", value_of(d.data_dtype), T2FW_FP64, T2FW_BF16, dtype_values);
  check_enum("gate_dtype", value_of(d.gate_dtype), T2FW_FP64, T2FW_BF16, dtype_values);
  check_enum("state_dtype", value_of(d.state_dtype), T2FW_FP64, T2FW_BF16, dtype_values);
  check_enum("f", value_of(d.f), T2FW_GATE_NONE, T2FW_GATE_FULL, gates);
  check_enum("g", value_of(d.g), T2FW_GATE_NONE, T2FW_GATE_FULL, gates);
  if (d.flags & ~uint32_t{T2FW_BATCH_INVARIANT | T2FW_GATE_LOGITS})
    fail(T2FW_INVALID_ARGUMENT, "flags is " + std::to_string(d.flags) +
                                    "; expected T2FW_BATCH_INVARIANT=1 and T2FW_GATE_LOGITS=2, or'ed, or 0");
  if (d.rule == T2FW_DELTA && has_logits(d))
    fail(T2FW_INVALID_ARGUMENT, "flags is " + std::to_string(d.flags) + ", which has T2FW_GATE_LOGITS=2, with the delta "
                                    "rule; expected none, because that rule has no gates");
  check_enum("device", value_of(d.device), T2FW_CPU, T2FW_HIP, "T2FW_CPU=1, T2FW_CUDA=2 or T2FW_HIP=3");
  check_sizes(d.B, d.T, d.H, d.D, d.K, d.sequences);
  if (d.device_index < 0 || (d.device == T2FW_CPU && d.device_index != 0))
    fail(T2FW_INVALID_ARGUMENT, "device_index is " + std::to_string(d.device_index) + "; expected " +
                                    (d.device == T2FW_CPU ? "0 for the cpu" : "0 or more"));
}

void check_layouts(const Problem& p) {
  Operands all(p);
  const auto in = Access::in, out = Access::out;
  all.tokens("v", nullptr, Kind::value, p.v_strides, in);
  all.tokens("f", nullptr, Kind::f, p.f_strides, in);
  all.tokens("q", nullptr, Kind::key, p.q_strides, in);
  all.tokens("k", nullptr, Kind::key, p.k_strides, in);
  all.tokens("g", nullptr, Kind::g, p.g_strides, in);
  all.tokens("y", nullptr, Kind::value, p.y_strides, out);
  all.tokens("d_y", nullptr, Kind::value, p.d_y_strides, in);
  all.tokens("d_v", nullptr, Kind::value, p.d_v_strides, out);
  all.tokens("d_f", nullptr, Kind::f, p.d_f_strides, out);
  all.tokens("d_q", nullptr, Kind::key, p.d_q_strides, out);
  all.tokens("d_k", nullptr, Kind::key, p.d_k_strides, out);
  all.tokens("d_g", nullptr, Kind::g, p.d_g_strides, out);
  all.state("initial_state", nullptr, p.initial_state_strides, in, Need::optional);
  all.state("final_state", nullptr, p.final_state_strides, out, Need::optional);
  all.state("d_initial_state", nullptr, p.d_initial_state_strides, out, Need::optional);
  all.state("d_final_state", nullptr, p.d_final_state_strides, in, Need::optional);
  all.check_layouts();
}

// What no backend of this library can do.
void check_supported(const Problem& p) {
  const struct { const char* name; t2fw_gate gate; } gates[] = {{"f", p.f}, {"g", p.g}};
  for (const auto& [name, gate] : gates)
    if (p.rule == T2FW_DELTA && gate != T2FW_GATE_NONE)
      fail(T2FW_UNSUPPORTED, std::string(name) + " is " + (gate == T2FW_GATE_HEAD ? "T2FW_GATE_HEAD" : "T2FW_GATE_FULL") +
                                 " with the delta rule; expected T2FW_GATE_NONE, because the gated delta rule is not "
                                 "available yet");
  const struct { const char* name; t2fw_dtype dtype; } others[] = {{"gate_dtype", p.gate_dtype},
                                                                   {"state_dtype", p.state_dtype}};
  for (const auto& other : others)
    if (other.dtype != p.data_dtype && !(other.dtype == T2FW_FP32 && bytes_of(p.data_dtype) == 2))
      fail(T2FW_UNSUPPORTED, std::string(other.name) + " is " + text_of(other.dtype) + " beside " +
                                 text_of(p.data_dtype) + " data; expected " + text_of(p.data_dtype) +
                                 (bytes_of(p.data_dtype) == 2 ? " or fp32" : ""));
}

void check_backend_name(const char* name) {
  if (!name) return;
  for (const Backend* backend : backends())
    if (std::string(name) == backend->name()) return;
  fail(T2FW_INVALID_ARGUMENT, "backend is \"" + std::string(name) + "\"; expected NULL or one of this build, which has " +
                                  t2fw_backends() + " (cmake --preset cuda and --preset hip build the gpu backends)");
}

std::string other_device(const Backend& backend, const Problem& p) {
  std::string reason = std::string("runs on ") + text_of(backend.device()) + " only; descriptor.device is " + text_of(p.device);
  for (const Backend* other : backends())
    if (other->device() == p.device) return reason;
  return reason + ", for which this build has no backend: set descriptor.device to " + text_of(backend.device()) +
         ", or build with cmake --preset " + text_of(p.device);
}

// Asks those of the problem's device first. Fills plan.backend and plan.explanation.
void choose(t2fw_plan& plan) {
  const Problem& p = plan.problem;
  for (const bool same_device : {true, false})
    for (const Backend* backend : backends()) {
      if ((backend->device() == p.device) != same_device || (p.backend && plan.backend_name != backend->name())) continue;
      const std::string reason = same_device ? backend->decline(p) : other_device(*backend, p);
      plan.explanation += (plan.explanation.empty() ? "" : "\n") + std::string(backend->name()) + "(" +
                          text_of(backend->device()) + "): " + (reason.empty() ? "accepted" : reason);
      if (!reason.empty()) continue;
      plan.backend = backend;
      return;
    }
  fail(T2FW_UNSUPPORTED, "every backend asked declined:\n" + plan.explanation);
}

std::unique_ptr<t2fw_plan> make_plan(const t2fw_descriptor& descriptor) {
  check_values(descriptor);
  check_layouts(descriptor);
  check_supported(descriptor);
  check_backend_name(descriptor.backend);
  auto plan = std::make_unique<t2fw_plan>();
  plan->problem = descriptor;
  if (descriptor.backend) {
    plan->backend_name = descriptor.backend;
    plan->problem.backend = plan->backend_name.c_str();
  }
  choose(*plan);
  plan->executor = plan->backend->bind(plan->problem);
  plan->forward_scratch = plan->executor->scratch_size(T2FW_FORWARD);
  plan->backward_scratch = plan->executor->scratch_size(T2FW_BACKWARD);
  if (plan->problem.T == 1 && !plan->problem.sequences) plan->step_scratch = plan->executor->scratch_size(T2FW_STEP);
  plan->saved = plan->executor->saved_size();
  return plan;
}

}  // namespace
}  // namespace t2fw

extern "C" {

t2fw_status t2fw_plan_create(const t2fw_descriptor* descriptor, t2fw_plan** plan) {
  using namespace t2fw;
  if (plan) *plan = nullptr;
  return guard("t2fw_plan_create", [&] {
    if (!plan) fail(T2FW_INVALID_ARGUMENT, "plan is NULL; expected a pointer to a t2fw_plan*");
    if (!descriptor) fail(T2FW_INVALID_ARGUMENT, "descriptor is NULL; expected a pointer to a t2fw_descriptor");
    *plan = make_plan(*descriptor).release();
  });
}

void t2fw_plan_destroy(t2fw_plan* plan) { delete plan; }

const char* t2fw_plan_backend(const t2fw_plan* plan) { return plan ? plan->backend->name() : nullptr; }

const char* t2fw_plan_explain(const t2fw_plan* plan) { return plan ? plan->explanation.c_str() : nullptr; }

size_t t2fw_plan_scratch_size(const t2fw_plan* plan, t2fw_operation operation) {
  if (!plan) return 0;
  switch (t2fw::value_of(operation)) {
    case T2FW_FORWARD: return plan->forward_scratch;
    case T2FW_BACKWARD: return plan->backward_scratch;
    case T2FW_STEP: return plan->step_scratch;
  }
  return 0;
}

size_t t2fw_plan_saved_size(const t2fw_plan* plan) { return plan ? plan->saved : 0; }

}  // extern "C"
