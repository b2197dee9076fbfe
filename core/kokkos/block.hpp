// The block algebra of recurrences.md as team functions, on tiles of one block of tokens. A tile is [tokens][ld], ld a
// multiple of the lane count; columns right of the data hold zeros (gates: ones). No function ends with a barrier.
#pragma once

#include "operand.hpp"

namespace t2fw {

inline constexpr int C = 16;  // tokens in a block: the state's traffic falls with C, the work inside a block grows

// out(m, n) for m < rows, n < columns (a multiple of the lane count), given sum_i a[m * a_row + i * a_inner] * b[i][n].
template <int MR, int NR, class V, class Real, class Out>
KOKKOS_FORCEINLINE_FUNCTION void product_tile(int m, int n, int inner, const Real* a, int a_row, int a_inner,
                                              const Real* b, int ldb, const Out& out) {
  constexpr int W = lane_count<V>;
  V sum[MR][NR];
  for (int j = 0; j < MR; ++j)
    for (int c = 0; c < NR; ++c) sum[j][c] = V(Real(0));
  const Real* left = a + m * a_row;
  const Real* right = b + n;
  for (int i = 0; i < inner; ++i, left += a_inner, right += ldb) {
    V x[NR];
    for (int c = 0; c < NR; ++c) x[c] = load<V>(right + c * W);
    for (int j = 0; j < MR; ++j) {
      const V l(left[j * a_row]);
      for (int c = 0; c < NR; ++c) sum[j][c] = Kokkos::fma(l, x[c], sum[j][c]);
    }
  }
  for (int j = 0; j < MR; ++j)
    for (int c = 0; c < NR; ++c) out(m + j, n + c * W, sum[j][c]);
}

template <class V, class Team, class Real, class Out>
KOKKOS_INLINE_FUNCTION void product(const Team& team, int rows, int columns, int inner, const Real* a, int a_row,
                                    int a_inner, const Real* b, int ldb, const Out& out) {
  constexpr int M = 4, N = 4, W = lane_count<V>;
  const int wide = columns / (N * W), narrow = columns / W - wide * N;
  const int strips = wide + narrow, bands = (rows + M - 1) / M;
  team.for_each(strips * bands, [&](int i) {
    const int strip = i % strips, m = i / strips * M;
    const int n = strip < wide ? strip * N * W : wide * N * W + (strip - wide) * W;
    if (strip < wide && m + M <= rows) product_tile<M, N, V>(m, n, inner, a, a_row, a_inner, b, ldb, out);
    else if (m + M <= rows) product_tile<M, 1, V>(m, n, inner, a, a_row, a_inner, b, ldb, out);
    else
      for (int r = m; r < rows; ++r)
        for (int c = 0; c < (strip < wide ? N : 1); ++c)
          product_tile<1, 1, V>(r, n + c * W, inner, a, a_row, a_inner, b, ldb, out);
  });
}

template <class V, class Real>
KOKKOS_FORCEINLINE_FUNCTION Real dot(const Real* x, const Real* y, int ld) {
  V sum(Real(0));
  for (int c = 0; c < ld; c += lane_count<V>) sum = Kokkos::fma(load<V>(x + c), load<V>(y + c), sum);
  return sum_lanes(sum);
}

KOKKOS_FORCEINLINE_FUNCTION bool upper_half(int t, int l) { return (t & l) != 0; }

// prefix[t] = a_first .. a_t and suffix[t] = a_{t+1} .. a_last inside groups of one token.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void start_products(const Team& team, const Real* a, Real* prefix, Real* suffix, int ld) {
  team.for_each(C * ld / lane_count<V>, [&](int i) {
    const int e = i * lane_count<V>;
    store(load<V>(a + e), prefix + e);
    store(V(Real(1)), suffix + e);
  });
}

// From groups of l tokens to groups of 2l: one multiplication for each.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void raise_products(const Team& team, int l, Real* prefix, Real* suffix, int ld) {
  team.for_each(ld / lane_count<V>, [&](int i) {
    Real *const p = prefix + i * lane_count<V>, *const s = suffix + i * lane_count<V>;
    for (int first = 0; first < C; first += 2 * l) {
      const V lower = load<V>(p + (first + l - 1) * ld), upper = load<V>(p + (first + 2 * l - 1) * ld);
      for (int t = first; t < first + l; ++t) store(load<V>(s + t * ld) * upper, s + t * ld);
      for (int t = first + l; t < first + 2 * l; ++t) store(load<V>(p + t * ld) * lower, p + t * ld);
    }
  });
}

// The products over the whole block at once.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void block_products(const Team& team, const Real* a, Real* prefix, Real* suffix, int ld) {
  team.for_each(ld / lane_count<V>, [&](int i) {
    const int c = i * lane_count<V>;
    V p(Real(1)), s(Real(1));
    for (int t = 0; t < C; ++t) {
      p = p * load<V>(a + t * ld + c);
      store(p, prefix + t * ld + c);
      store(s, suffix + (C - 1 - t) * ld + c);
      s = s * load<V>(a + (C - 1 - t) * ld + c);
    }
  });
}

// out = x o y
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void multiply(const Team& team, const Real* x, const Real* y, Real* out, int ld) {
  team.for_each(C * ld / lane_count<V>, [&](int i) {
    const int e = i * lane_count<V>;
    store(load<V>(x + e) * load<V>(y + e), out + e);
  });
}

// The operands of level l, each token being on one side of its boundary only: a sink scaled by its prefix in the upper
// half, a source scaled by its suffix in the lower half.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void scale_level(const Team& team, int l, const Real* x, const Real* z, const Real* prefix,
                                        const Real* suffix, Real* scaled, int ld) {
  const int vectors = ld / lane_count<V>;
  team.for_each(C * vectors, [&](int i) {
    const int t = i / vectors, e = t * ld + (i % vectors) * lane_count<V>;
    const V value = upper_half(t, l) ? load<V>(x + e) * load<V>(prefix + e) : load<V>(z + e) * load<V>(suffix + e);
    store(value, scaled + e);
  });
}

// scores[t][t] = x_t . z_t
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void score_diagonal(const Team& team, const Real* x, const Real* z, Real* scores, int ld) {
  team.for_each(C, [&](int t) { scores[t * C + t] = dot<V>(x + t * ld, z + t * ld, ld); });
}

// scores[t][s] and scores[s][t] of the pairs that level l splits.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void score_level(const Team& team, int l, const Real* scaled, Real* scores, int ld) {
  team.for_each(C / 2 * l, [&](int i) {
    const int pair = i / l, t = pair / l * 2 * l + l + pair % l, s = pair / l * 2 * l + i % l;
    scores[t * C + s] = scores[s * C + t] = dot<V>(scaled + t * ld, scaled + s * ld, ld);
  });
}

// out(t, c, sum_u scores[t][u] scaled[u]) over the other half of t's group, for the tokens of the upper half, or of both.
template <class V, class Team, class Real, class Out>
KOKKOS_INLINE_FUNCTION void spread_level(const Team& team, int l, bool both, const Real* scores, const Real* scaled,
                                         int ld, const Out& out) {
  const int vectors = ld / lane_count<V>;
  team.for_each(C * vectors, [&](int i) {
    const int t = i / vectors, c = (i % vectors) * lane_count<V>;
    if (!both && !upper_half(t, l)) return;
    const int other = ((t & ~(l - 1)) ^ l);
    V sum(Real(0));
    for (int u = other; u < other + l; ++u) sum = Kokkos::fma(V(scores[t * C + u]), load<V>(scaled + u * ld + c), sum);
    out(t, c, sum);
  });
}

// state[o][c] = other_last[o] own_last[c] state[o][c] + sum_t other[t][o] own[t][c]; the gates are absent where NULL.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void advance_state(const Team& team, Real* state, int others, int ld, const Real* other, int ldo,
                                          const Real* own, const Real* other_last, const Real* own_last) {
  product<V>(team, others, ld, C, other, 1, ldo, own, ld, [&](int o, int c, const V& sum) {
    V before = load<V>(state + o * ld + c);
    if (own_last) before = before * (V(other_last[o]) * load<V>(own_last + c));
    store(before + sum, state + o * ld + c);
  });
}

}  // namespace t2fw
