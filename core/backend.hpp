// What a backend promises.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "problem.hpp"

namespace t2fw {

// A backend bound to one problem it accepted. Immutable; executed from several threads at once. The arguments were
// checked against the problem (t2fw.h) before the calls; a device failure is thrown as std::runtime_error.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual size_t scratch_size(t2fw_operation operation) const = 0;
  virtual size_t saved_size() const = 0;
  virtual void forward(const t2fw_forward_args& args, void* stream) const = 0;
  virtual void backward(const t2fw_backward_args& args, void* stream) const = 0;
  virtual void step(const t2fw_step_args& args, void* stream) const = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual t2fw_device device() const = 0;
  // Why this backend cannot do the problem, in words a user can act on; empty if it can.
  virtual std::string decline(const Problem& problem) const = 0;
  // Only for problems that decline() accepted.
  virtual std::unique_ptr<Executor> bind(const Problem& problem) const = 0;
  // Empty if the pointer is memory that the plan takes (see t2fw.h), else where it points ("host memory", "CUDA device 1").
  virtual std::string wrong_memory(const Problem& problem, const void* pointer) const = 0;
};

// The backends of this build in the order they are asked. Defined in backends/registry.cpp.
const std::vector<const Backend*>& backends();

}  // namespace t2fw
