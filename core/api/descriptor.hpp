// Checks of single values that several calls share. Each fails with a message of its own.
#pragma once

#include <cstring>

#include "api/error.hpp"

namespace t2fw {

constexpr const char* dtype_values = "T2FW_FP64=1, T2FW_FP32=2, T2FW_FP16=3 or T2FW_BF16=4";

// An enum as the caller's bytes say; loading a value outside the enum would be undefined in C++.
template <class Enum>
int value_of(const Enum& e) {
  int value;
  static_assert(sizeof value == sizeof e);
  std::memcpy(&value, &e, sizeof value);
  return value;
}

void check_enum(const char* name, int value, int first, int last, const char* expected);
void check_sizes(int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, int64_t sequences);

inline void check_struct_size(const char* name, size_t came, size_t expected) {
  if (came != expected)
    fail(T2FW_VERSION_MISMATCH, std::string(name) + " is " + std::to_string(came) + "; expected " +
                                    std::to_string(expected) + ", the size in version " + std::to_string(T2FW_VERSION));
}

}  // namespace t2fw
