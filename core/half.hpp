// 16-bit storage types by their bits: Kokkos' own are four bytes wide in a host-only build. Branch-free on the common
// path, so that loops over them vectorise.
#pragma once

#include <Kokkos_Core.hpp>
#include <cstdint>

namespace t2fw {

KOKKOS_INLINE_FUNCTION float bf16_to_float(uint16_t bits) {
  return Kokkos::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

KOKKOS_INLINE_FUNCTION uint16_t float_to_bf16(float value) {
  const uint32_t bits = Kokkos::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

KOKKOS_INLINE_FUNCTION float half_to_float(uint16_t half) {
  // Exponent and mantissa in place, then 2^112 rebiases normal and subnormal numbers alike.
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fffu) << 13;
  const float scaled = Kokkos::bit_cast<float>(magnitude) * Kokkos::bit_cast<float>(0x77800000u);
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  return Kokkos::bit_cast<float>(Kokkos::bit_cast<uint32_t>(scaled) | special | sign);
}

KOKKOS_INLINE_FUNCTION uint16_t float_to_half(float value) {
  const uint32_t bits = Kokkos::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  // Normal: rebias and round to nearest even. Subnormal: adding one half aligns the mantissa and lets the FPU round.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = Kokkos::bit_cast<uint32_t>(Kokkos::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(sign | (magnitude >= 0x477ff000u ? special : finite));
}

}  // namespace t2fw
