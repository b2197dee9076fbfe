// What the plain form asks of a host beside Kokkos' SIMD types: loops unrolled over registers, sums over lanes.
#pragma once

#include <cstring>
#include <utility>

#include "team.hpp"

#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)

// Lanes are scalars in such a build, and nvcc knows neither the host's pragma nor its shuffles.
#define T2FW_UNROLL

namespace t2fw::plain {

template <int rows, class V, class Real>
inline void sum_rows(const V (&x)[rows], Real* sum) {
  for (int r = 0; r < rows; ++r) store(x[r], sum + r);
}

}  // namespace t2fw::plain

#else

#if defined(__clang__)
#define T2FW_UNROLL _Pragma("unroll")
#else
#define T2FW_UNROLL _Pragma("GCC unroll 8")
#endif

namespace t2fw::plain {

// Lane i of the even or the odd units of (x, y), each vector taken apart span by span: x's units fill the first half of
// a span, y's the second.
template <int unit, int span, int W, bool odd>
constexpr int unit_of_pair(int i) {
  constexpr int units = span / unit;
  const int u = i / unit % units, from = u < units / 2 ? 0 : W;
  return from + i - u * unit + (2 * (u % (units / 2)) + odd) * unit;
}

template <int unit, int span, class X, size_t... i>
inline X add_pairs(X x, X y, std::index_sequence<i...>) {
  constexpr int W = sizeof...(i);
  return __builtin_shufflevector(x, y, unit_of_pair<unit, span, W, false>(i)...) +
         __builtin_shufflevector(x, y, unit_of_pair<unit, span, W, true>(i)...);
}

// Adds up the `parts` units of each row's spans, two rows into one each time.
template <int unit, int span, int parts, int W, int rows, class X>
inline void add_units(X* x) {
  if constexpr (parts > 1) {
    T2FW_UNROLL for (int r = 0; r < rows; r += 2)
      x[r / 2] = add_pairs<unit, span>(x[r], x[r + 1 < rows ? r + 1 : r], std::make_index_sequence<W>());
    add_units<unit, span, parts / 2, W, (rows + 1) / 2>(x);
  }
}

// sum[r] of row r's lanes; writes whole vectors, up to W - 1 elements too many. All rows together, so that every addition
// fills a vector; first inside 16 bytes, then among them, which is how x86 can shuffle without a table.
template <int rows, class V, class Real>
inline void sum_rows(const V (&x)[rows], Real* sum) {
  constexpr int W = lane_count<V>, some = 16 / int{sizeof(Real)}, block = W < some ? W : some;
  typedef Real X __attribute__((vector_size(sizeof(V))));
  X part[rows];
  T2FW_UNROLL for (int r = 0; r < rows; ++r) store(x[r], reinterpret_cast<Real*>(&part[r]));
  add_units<1, block, block, W, rows>(part);
  add_units<block, W, W / block, W, (rows + block - 1) / block>(part);
  T2FW_UNROLL for (int r = 0; r < rows; r += W) std::memcpy(sum + r, &part[r / W], sizeof(X));
}

}  // namespace t2fw::plain

#endif
