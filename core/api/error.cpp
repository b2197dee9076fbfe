#include "api/error.hpp"

#include <cstdio>

#include "api/descriptor.hpp"
#include "backend.hpp"

namespace t2fw {
namespace {

// Fixed size, so that even the report of exhausted memory needs none.
thread_local char message[4096] = "";
thread_local const char* current_call = "";

std::string list_backends() {
  std::string list;
  for (const Backend* backend : backends())
    list += (list.empty() ? "" : ",") + std::string(backend->name()) + "(" + text_of(backend->device()) + ")";
  return list;
}

}  // namespace

void enter(const char* call) { current_call = call; }

t2fw_status record(t2fw_status status, const char* text) noexcept {
  std::snprintf(message, sizeof message, "%s: %s", current_call, text);
  return status;
}

void fail(t2fw_status status, const std::string& text) { throw Failure{record(status, text.c_str())}; }

const char* text_of(t2fw_device device) {
  switch (device) {
    case T2FW_CPU: return "cpu";
    case T2FW_CUDA: return "cuda";
    case T2FW_HIP: return "hip";
  }
  return "unknown device";
}

const char* text_of(t2fw_dtype dtype) {
  switch (dtype) {
    case T2FW_FP64: return "fp64";
    case T2FW_FP32: return "fp32";
    case T2FW_FP16: return "fp16";
    case T2FW_BF16: return "bf16";
  }
  return "unknown dtype";
}

}  // namespace t2fw

extern "C" {

int32_t t2fw_version(void) { return T2FW_VERSION; }

const char* t2fw_status_text(t2fw_status status) {
  switch (t2fw::value_of(status)) {
    case T2FW_SUCCESS: return "success";
    case T2FW_INVALID_ARGUMENT: return "invalid argument";
    case T2FW_UNSUPPORTED: return "unsupported";
    case T2FW_VERSION_MISMATCH: return "version mismatch";
    case T2FW_OUT_OF_MEMORY: return "out of memory";
    case T2FW_DEVICE_ERROR: return "device error";
    case T2FW_INTERNAL_ERROR: return "internal error";
  }
  return "unknown status";
}

const char* t2fw_last_error(void) { return t2fw::message; }

const char* t2fw_backends(void) {
  try {
    static const std::string list = t2fw::list_backends();
    return list.c_str();
  } catch (...) {
    return "";
  }
}

}  // extern "C"
