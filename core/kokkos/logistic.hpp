// 1 / (1 + exp(-x)): of one number on a device, of a row on a host, whose exp is a call for each number.
#pragma once

#include <Kokkos_Core.hpp>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace t2fw {

template <class Real>
KOKKOS_INLINE_FUNCTION Real logistic(Real x) {
  return 1 / (1 + Kokkos::exp(-x));
}

template <int n>
inline constexpr double factorial = n * factorial<n - 1>;
template <>
inline constexpr double factorial<0> = 1;

template <class Real, int... i>
KOKKOS_FORCEINLINE_FUNCTION Real exp_series(Real r, std::integer_sequence<int, i...>) {
  constexpr int order = sizeof...(i);
  Real sum = Real(1 / factorial<order>);
  ((sum = sum * r + Real(1 / factorial<order - 1 - i>)), ...);
  return sum;
}

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, within 1 in the last place for n from 2 - max_exponent to max_exponent, which
// gives infinity. Without a branch or a call, so that a loop over it becomes vectors.
template <class Real>
KOKKOS_FORCEINLINE_FUNCTION Real exp_of_row(Real x) {
  using Limits = std::numeric_limits<Real>;
  using Bits = std::conditional_t<sizeof(Real) == 8, uint64_t, uint32_t>;
  constexpr bool wide = sizeof(Real) == 8;
  constexpr Real log2_e = Real(0x1.71547652b82fep0);
  constexpr Real ln2_high = wide ? Real(0x1.62e42feep-1) : Real(0x1.62e4p-1);  // few bits: exact times n
  constexpr Real ln2_low = wide ? Real(0x1.a39ef35793c76p-33) : Real(0x1.7f7d1cf79abcap-20);
  constexpr Real integers = Real(1.5) / Limits::epsilon();  // a number near it has no fraction, and n as its last bits
  const Real moved = x * log2_e + integers, n = moved - integers;
  Bits power;
  std::memcpy(&power, &moved, sizeof power);
  power = (power + Bits{Limits::max_exponent - 1}) << (Limits::digits - 1);
  Real scale;
  std::memcpy(&scale, &power, sizeof scale);
  return exp_series((x - n * ln2_high) - n * ln2_low, std::make_integer_sequence<int, wide ? 13 : 7>()) * scale;
}

// Every element of a host's row; the ends of the range are 0 and 1 already. Two loops: the compiler would make the ends
// branches of one.
template <class Real>
KOKKOS_INLINE_FUNCTION void logistic_row(Real* x, int columns) {
  constexpr int top = std::numeric_limits<Real>::max_exponent;
  constexpr Real ln2 = Real(0x1.62e42fefa39efp-1), least = -top * ln2, most = (top - 2) * ln2;
  for (int c = 0; c < columns; ++c) x[c] = x[c] < least ? least : x[c] > most ? most : x[c];
  for (int c = 0; c < columns; ++c) x[c] = 1 / (1 + exp_of_row(-x[c]));
}

}  // namespace t2fw
