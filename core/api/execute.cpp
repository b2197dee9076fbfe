// t2fw_forward, t2fw_backward, t2fw_step: the arguments checked against the plan, then handed to its executor.
#include "api/checks.hpp"
#include "api/descriptor.hpp"
#include "api/error.hpp"
#include "api/plan.hpp"

namespace t2fw {
namespace {

template <class Args>
void check_call(const t2fw_plan* plan, const Args* args, const void* stream) {
  if (!plan) fail(T2FW_INVALID_ARGUMENT, "plan is NULL; expected a plan from t2fw_plan_create");
  if (!args) fail(T2FW_INVALID_ARGUMENT, "args is NULL; expected a pointer to the arguments");
  check_struct_size("args.struct_size", args->struct_size, sizeof(Args));
  if (stream && plan->problem.device == T2FW_CPU)
    fail(T2FW_INVALID_ARGUMENT, "stream is not NULL; expected NULL, because the plan's device is the cpu");
}

template <class Args>
void add_inputs(Operands& operands, const Problem& p, const Args& a) {
  operands.tokens("v", a.v, Kind::value, p.v_strides, Access::in);
  operands.tokens("f", a.f, Kind::f, p.f_strides, Access::in);
  operands.tokens("q", a.q, Kind::key, p.q_strides, Access::in);
  operands.tokens("k", a.k, Kind::key, p.k_strides, Access::in);
  operands.tokens("g", a.g, Kind::g, p.g_strides, Access::in);
}

void add_cu_seqlens(Operands& operands, const Problem& p, const int64_t* cu_seqlens) {
  operands.indices("cu_seqlens", cu_seqlens, p.sequences + 1, p.sequences ? Need::required : Need::absent);
}

void check_operands(const Operands& operands, const t2fw_plan& plan) {
  operands.check_pointers(*plan.backend);
  operands.check_overlaps();
}

void check_forward(const t2fw_plan& plan, const t2fw_forward_args& a) {
  const Problem& p = plan.problem;
  Operands operands(p);
  add_inputs(operands, p, a);
  operands.state("initial_state", a.initial_state, p.initial_state_strides, Access::in, Need::optional);
  add_cu_seqlens(operands, p, a.cu_seqlens);
  operands.tokens("y", a.y, Kind::value, p.y_strides, Access::out);
  operands.state("final_state", a.final_state, p.final_state_strides, Access::out, Need::optional);
  operands.bytes("saved", a.saved, a.saved_size, plan.saved, Access::out, Need::optional);
  operands.bytes("scratch", a.scratch, a.scratch_size, plan.forward_scratch, Access::out, Need::required);
  check_operands(operands, plan);
  if (p.sequences && p.device == T2FW_CPU) check_cu_seqlens(p, a.cu_seqlens);
}

void check_backward(const t2fw_plan& plan, const t2fw_backward_args& a) {
  const Problem& p = plan.problem;
  Operands operands(p);
  add_inputs(operands, p, a);
  operands.state("initial_state", a.initial_state, p.initial_state_strides, Access::in, Need::optional);
  add_cu_seqlens(operands, p, a.cu_seqlens);
  operands.bytes("saved", a.saved, a.saved_size, plan.saved, Access::in, Need::required);
  operands.tokens("d_y", a.d_y, Kind::value, p.d_y_strides, Access::in);
  operands.state("d_final_state", a.d_final_state, p.d_final_state_strides, Access::in, Need::optional);
  operands.tokens("d_v", a.d_v, Kind::value, p.d_v_strides, Access::out);
  operands.tokens("d_f", a.d_f, Kind::f, p.d_f_strides, Access::out);
  operands.tokens("d_q", a.d_q, Kind::key, p.d_q_strides, Access::out);
  operands.tokens("d_k", a.d_k, Kind::key, p.d_k_strides, Access::out);
  operands.tokens("d_g", a.d_g, Kind::g, p.d_g_strides, Access::out);
  operands.state("d_initial_state", a.d_initial_state, p.d_initial_state_strides, Access::out, Need::optional);
  operands.bytes("scratch", a.scratch, a.scratch_size, plan.backward_scratch, Access::out, Need::required);
  check_operands(operands, plan);
  if (p.sequences && p.device == T2FW_CPU) check_cu_seqlens(p, a.cu_seqlens);
}

void check_step_sizes(const Problem& p, const t2fw_step_args& a) {
  if (p.T != 1) fail(T2FW_INVALID_ARGUMENT, "the plan's T is " + std::to_string(p.T) + "; expected 1");
  if (p.sequences)
    fail(T2FW_INVALID_ARGUMENT, "the plan's sequences is " + std::to_string(p.sequences) + "; expected 0");
  if (a.slot_indices ? a.slots < 1 : a.slots != 0)
    fail(T2FW_INVALID_ARGUMENT, "slots is " + std::to_string(a.slots) + "; expected " +
                                    (a.slot_indices ? "at least 1 with slot_indices" : "0, because slot_indices is NULL"));
}

void check_step(const t2fw_plan& plan, const t2fw_step_args& a) {
  const Problem& p = plan.problem;
  check_step_sizes(p, a);
  const char* label = a.slot_indices ? "slots" : "B";
  const int64_t states = a.slot_indices ? a.slots : p.B;
  Operands operands(p);
  add_inputs(operands, p, a);
  operands.state("initial_state", a.initial_state, p.initial_state_strides, Access::in, Need::required, label, states);
  operands.state("final_state", a.final_state, p.final_state_strides, Access::out, Need::required, label, states);
  operands.tokens("y", a.y, Kind::value, p.y_strides, Access::out);
  operands.indices("slot_indices", a.slot_indices, p.B, Need::optional);
  operands.bytes("scratch", a.scratch, a.scratch_size, plan.step_scratch, Access::out, Need::required);
  operands.check_layouts();  // again, because the number of slots is known only now
  check_operands(operands, plan);
  if (a.slot_indices && p.device == T2FW_CPU) check_slot_indices(a.slot_indices, p.B, a.slots);
}

}  // namespace
}  // namespace t2fw

extern "C" {

t2fw_status t2fw_forward(const t2fw_plan* plan, const t2fw_forward_args* args, void* stream) {
  return t2fw::guard("t2fw_forward", [&] {
    t2fw::check_call(plan, args, stream);
    t2fw::check_forward(*plan, *args);
    plan->executor->forward(*args, stream);
  });
}

t2fw_status t2fw_backward(const t2fw_plan* plan, const t2fw_backward_args* args, void* stream) {
  return t2fw::guard("t2fw_backward", [&] {
    t2fw::check_call(plan, args, stream);
    t2fw::check_backward(*plan, *args);
    plan->executor->backward(*args, stream);
  });
}

t2fw_status t2fw_step(const t2fw_plan* plan, const t2fw_step_args* args, void* stream) {
  return t2fw::guard("t2fw_step", [&] {
    t2fw::check_call(plan, args, stream);
    t2fw::check_step(*plan, *args);
    plan->executor->step(*args, stream);
  });
}

}  // extern "C"
