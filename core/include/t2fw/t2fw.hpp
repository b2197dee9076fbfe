// C++ handles over t2fw.h: ownership and exceptions, nothing of their own. t2fw.h is the manual.
//
//   t2fw::Plan plan(t2fw::describe(T2FW_DECAY, T2FW_FP32, B, T, H, D, K));
//   t2fw_forward_args a = {sizeof a};
//   ...
//   plan.forward(a);
#pragma once

#include <memory>
#include <stdexcept>

#include "t2fw/t2fw.h"

namespace t2fw {

// what() is the message of t2fw_last_error().
class Error : public std::runtime_error {
 public:
  explicit Error(t2fw_status status) : std::runtime_error(t2fw_last_error()), status_(status) {}
  t2fw_status status() const noexcept { return status_; }

 private:
  t2fw_status status_;
};

inline void check(t2fw_status status) {
  if (status != T2FW_SUCCESS) throw Error(status);
}

// t2fw_descriptor_init.
inline t2fw_descriptor describe(t2fw_rule rule, t2fw_dtype data_dtype, int64_t B, int64_t T, int64_t H, int64_t D,
                                int64_t K) {
  t2fw_descriptor descriptor;
  check(t2fw_descriptor_init(&descriptor, sizeof descriptor, rule, data_dtype, B, T, H, D, K));
  return descriptor;
}

// Owns a t2fw_plan. Movable; executing it is const, so several threads may share one.
class Plan {
 public:
  explicit Plan(const t2fw_descriptor& descriptor) {
    t2fw_plan* plan = nullptr;
    check(t2fw_plan_create(&descriptor, &plan));
    plan_.reset(plan);
  }

  const t2fw_plan* get() const noexcept { return plan_.get(); }
  const char* backend() const noexcept { return t2fw_plan_backend(get()); }
  const char* explain() const noexcept { return t2fw_plan_explain(get()); }
  size_t scratch_size(t2fw_operation operation) const noexcept { return t2fw_plan_scratch_size(get(), operation); }
  size_t saved_size() const noexcept { return t2fw_plan_saved_size(get()); }

  void forward(const t2fw_forward_args& args, void* stream = nullptr) const { check(t2fw_forward(get(), &args, stream)); }
  void backward(const t2fw_backward_args& args, void* stream = nullptr) const { check(t2fw_backward(get(), &args, stream)); }
  void step(const t2fw_step_args& args, void* stream = nullptr) const { check(t2fw_step(get(), &args, stream)); }

 private:
  struct Destroy {
    void operator()(t2fw_plan* plan) const noexcept { t2fw_plan_destroy(plan); }
  };
  std::unique_ptr<t2fw_plan, Destroy> plan_;
};

}  // namespace t2fw
