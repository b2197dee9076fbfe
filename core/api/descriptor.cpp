// t2fw_descriptor_init: the defaults.
#include "api/descriptor.hpp"

#include "api/error.hpp"
#include "problem.hpp"

namespace t2fw {
namespace {

void check_product(const char* name, std::initializer_list<int64_t> sizes) {
  constexpr int64_t width = 8;  // bytes of the widest dtype
  int64_t bytes = width;
  bool fits = true;
  std::string came;
  for (const int64_t size : sizes) {
    fits = fits && !(size && __builtin_mul_overflow(bytes, size, &bytes));
    came += (came.empty() ? "" : "*") + std::to_string(size);
  }
  if (!fits)
    fail(T2FW_INVALID_ARGUMENT,
         std::string(name) + " is " + came + "; expected at most " + std::to_string(INT64_MAX / width) + " elements");
}

}  // namespace

void check_enum(const char* name, int value, int first, int last, const char* expected) {
  if (value < first || value > last)
    fail(T2FW_INVALID_ARGUMENT,
         std::string(name) + " is " + std::to_string(value) + "; expected " + expected);
}

void check_sizes(int64_t B, int64_t T, int64_t H, int64_t D, int64_t K, int64_t sequences) {
  const struct { const char* name; int64_t value, least; } sizes[] = {
      {"B", B, 0}, {"T", T, 0}, {"H", H, 0}, {"D", D, 1}, {"K", K, 1}, {"sequences", sequences, 0}};
  for (const auto& size : sizes)
    if (size.value < size.least)
      fail(T2FW_INVALID_ARGUMENT, std::string(size.name) + " is " + std::to_string(size.value) + "; expected at least " +
                                      std::to_string(size.least));
  if (sequences && B != 1)
    fail(T2FW_INVALID_ARGUMENT, "B is " + std::to_string(B) + " with packed sequences; expected 1");
  check_product("B*T*H*D", {B, T, H, D});
  check_product("B*T*H*K", {B, T, H, K});
  check_product(sequences ? "sequences*H*D*K" : "B*H*D*K", {sequences ? sequences : B, H, D, K});
}

}  // namespace t2fw

extern "C" t2fw_status t2fw_descriptor_init(t2fw_descriptor* descriptor, size_t struct_size, t2fw_rule rule,
                                            t2fw_dtype data_dtype, int64_t B, int64_t T, int64_t H, int64_t D, int64_t K) {
  using namespace t2fw;
  return guard("t2fw_descriptor_init", [&] {
    if (!descriptor) fail(T2FW_INVALID_ARGUMENT, "descriptor is NULL; expected a pointer to a t2fw_descriptor");
    check_struct_size("struct_size", struct_size, sizeof(t2fw_descriptor));
    check_enum("rule", value_of(rule), T2FW_DECAY, T2FW_DELTA, "T2FW_DECAY=1 or T2FW_DELTA=2");
    check_enum("data_dtype", value_of(data_dtype), T2FW_FP64, T2FW_BF16, dtype_values);
    check_sizes(B, T, H, D, K, 0);

    t2fw_descriptor d{};
    d.struct_size = sizeof d;
    d.version = T2FW_VERSION;
    d.rule = rule;
    d.data_dtype = data_dtype;
    d.gate_dtype = d.state_dtype = bytes_of(data_dtype) == 2 ? T2FW_FP32 : data_dtype;
    d.f = d.g = rule == T2FW_DECAY ? T2FW_GATE_FULL : T2FW_GATE_NONE;
    d.device = T2FW_CPU;
    d.B = B, d.T = T, d.H = H, d.D = D, d.K = K;
    // Wrapping products: strides of dimensions that the check above let through as empty are never used.
    const auto times = [](int64_t a, int64_t b) { return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b)); };
    const t2fw_token_strides value = {times(times(T, H), D), times(H, D), D}, key = {times(times(T, H), K), times(H, K), K};
    const t2fw_state_strides state = {times(times(H, D), K), times(D, K), K};
    d.v_strides = d.f_strides = d.y_strides = d.d_v_strides = d.d_f_strides = d.d_y_strides = value;
    d.q_strides = d.k_strides = d.g_strides = d.d_q_strides = d.d_k_strides = d.d_g_strides = key;
    d.initial_state_strides = d.final_state_strides = d.d_initial_state_strides = d.d_final_state_strides = state;
    *descriptor = d;
  });
}
