// What forward and backward of the delta rule share: the unit lower triangular systems of a block (the UT form).
#pragma once

#include "kernels.hpp"

namespace t2fw {

// out[t][s] = x_t . z_s for s < t; the rest of out is left as it was.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void lower_scores(const Team& team, const Real* x, const Real* z, Real* out, int ld) {
  team.for_each(C * C, [&](int i) {
    const int t = i / C, s = i % C;
    if (s < t) out[i] = dot<V>(x + t * ld, z + s * ld, ld);
  });
}

// Solves (I + tril(scores, -1)) u = u in place, forward substitution, column by column.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void solve_lower(const Team& team, const Real* scores, Real* u, int ld) {
  team.for_each(ld / lane_count<V>, [&](int i) {
    Real* const column = u + i * lane_count<V>;
    for (int t = 1; t < C; ++t) {
      V x = load<V>(column + t * ld);
      for (int s = 0; s < t; ++s) x = x - V(scores[t * C + s]) * load<V>(column + s * ld);
      store(x, column + t * ld);
    }
  });
}

// Solves with the transposed matrix, backward substitution.
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void solve_upper(const Team& team, const Real* scores, Real* u, int ld) {
  team.for_each(ld / lane_count<V>, [&](int i) {
    Real* const column = u + i * lane_count<V>;
    for (int t = C - 2; t >= 0; --t) {
      V x = load<V>(column + t * ld);
      for (int s = t + 1; s < C; ++s) x = x - V(scores[s * C + t]) * load<V>(column + s * ld);
      store(x, column + t * ld);
    }
  });
}

// out[t] += factor * sum_{s<t} scores[t][s] z_s
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void add_lower(const Team& team, Real factor, const Real* scores, const Real* z, Real* out, int ld) {
  const int vectors = ld / lane_count<V>;
  team.for_each(C * vectors, [&](int i) {
    const int t = i / vectors, c = (i % vectors) * lane_count<V>;
    V sum(Real(0));
    for (int s = 0; s < t; ++s) sum = Kokkos::fma(V(scores[t * C + s]), load<V>(z + s * ld + c), sum);
    store(Kokkos::fma(V(factor), sum, load<V>(out + t * ld + c)), out + t * ld + c);
  });
}

// out[s] += factor * sum_{t>s} scores[t][s] x_t
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void add_upper(const Team& team, Real factor, const Real* scores, const Real* x, Real* out, int ld) {
  const int vectors = ld / lane_count<V>;
  team.for_each(C * vectors, [&](int i) {
    const int s = i / vectors, c = (i % vectors) * lane_count<V>;
    V sum(Real(0));
    for (int t = s + 1; t < C; ++t) sum = Kokkos::fma(V(scores[t * C + s]), load<V>(x + t * ld + c), sum);
    store(Kokkos::fma(V(factor), sum, load<V>(out + s * ld + c)), out + s * ld + c);
  });
}

// out[t] = add[t] (or 0) + factor * sum_o a[t][o] state[o]
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void read_state(const Team& team, Real factor, const Real* a, int lda, int others, const Real* state,
                                       int ld, const Real* add, Real* out) {
  product<V>(team, C, ld, others, a, lda, 1, state, ld, [&](int t, int c, const V& sum) {
    const V before = add ? load<V>(add + t * ld + c) : V(Real(0));
    store(Kokkos::fma(V(factor), sum, before), out + t * ld + c);
  });
}

// state[o] += factor * sum_t a[t][o] own[t]
template <class V, class Team, class Real>
KOKKOS_INLINE_FUNCTION void write_state(const Team& team, Real factor, Real* state, int others, int ld, const Real* a,
                                        int lda, const Real* own) {
  product<V>(team, others, ld, C, a, 1, lda, own, ld, [&](int o, int c, const V& sum) {
    store(Kokkos::fma(V(factor), sum, load<V>(state + o * ld + c)), state + o * ld + c);
  });
}

}  // namespace t2fw
