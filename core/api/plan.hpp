#pragma once

#include <memory>
#include <string>

#include "backend.hpp"

struct t2fw_plan {
  t2fw::Problem problem;  // its backend points into backend_name, or is NULL
  std::string backend_name, explanation;
  const t2fw::Backend* backend = nullptr;
  std::unique_ptr<t2fw::Executor> executor;
  size_t forward_scratch = 0, backward_scratch = 0, step_scratch = 0, saved = 0;
};
