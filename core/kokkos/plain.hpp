// The plain form, token by token, for a host's vectors: a tile of the state (MK keys by NV vectors of values) stays in
// registers over a run of tokens whose operands were brought into the cache. Tiles are [tokens][ld] as in block.hpp; the
// working state is [K][ld], values contiguous.
#pragma once

#include "block.hpp"
#include "lanes.hpp"

namespace t2fw::plain {

inline constexpr int MK = 4, NV = 4;  // 16 of AVX-512's 32 registers hold the state

// One run of at most C tokens. d_y: on the way back only.
template <class Real>
struct Run {
  const Real *v, *f, *q, *k, *g, *d_y;
  int tokens, ld, ldk;
};

// What a run gives beside the state. y and the gradients are added to; trail: [tokens][keys][vectors], a tile's state
// before each token.
template <class Real>
struct Results {
  Real *y = nullptr, *d_v = nullptr, *d_f = nullptr, *d_q = nullptr, *d_k = nullptr, *d_g = nullptr, *trail = nullptr;
};

enum class Keep { output, state, trail };  // y and the state; the state; the trail and d_q, for the way back

// Takes the tile at value d, key j through the run, out of one state into another or the same (with a trail: into none).
template <Keep keep, int keys, int vectors, class V, class Real>
inline void advance(const Run<Real>& r, int d, int j, const Real* from, Real* to, const Results<Real>& out) {
  constexpr int W = lane_count<V>;
  V S[keys][vectors];
  T2FW_UNROLL for (int a = 0; a < keys; ++a)
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) S[a][c] = load<V>(from + (j + a) * r.ld + d + c * W);
  for (int t = 0; t < r.tokens; ++t) {
    const Real *const v_t = r.v + t * r.ld + d, *const f_t = r.f + t * r.ld + d;
    const Real *const q_t = r.q + t * r.ldk + j, *const k_t = r.k + t * r.ldk + j, *const g_t = r.g + t * r.ldk + j;
    V f[vectors], v[vectors], with[vectors], d_q[keys];  // with: y or d_y
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      f[c] = load<V>(f_t + c * W);
      v[c] = load<V>(v_t + c * W);
      if constexpr (keep == Keep::output) with[c] = load<V>(out.y + t * r.ld + d + c * W);
      if constexpr (keep == Keep::trail) with[c] = load<V>(r.d_y + t * r.ld + d + c * W);
    }
    T2FW_UNROLL for (int a = 0; a < keys; ++a) {
      const V g(g_t[a]), k(k_t[a]);
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
        if constexpr (keep == Keep::trail) store(S[a][c], out.trail + ((t * keys + a) * vectors + c) * W);
        S[a][c] = Kokkos::fma(f[c] * g, S[a][c], v[c] * k);
        if constexpr (keep == Keep::output) with[c] = Kokkos::fma(S[a][c], V(q_t[a]), with[c]);
        if constexpr (keep == Keep::trail) d_q[a] = c ? Kokkos::fma(S[a][c], with[c], d_q[a]) : S[a][c] * with[c];
      }
    }
    if constexpr (keep == Keep::output)
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) store(with[c], out.y + t * r.ld + d + c * W);
    if constexpr (keep == Keep::trail) {
      alignas(64) Real sum[keys + W];
      sum_rows(d_q, sum);
      for (int a = 0; a < keys; ++a) out.d_q[t * r.ldk + j + a] += sum[a];
    }
  }
  if constexpr (keep != Keep::trail)
    T2FW_UNROLL for (int a = 0; a < keys; ++a)
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) store(S[a][c], to + (j + a) * r.ld + d + c * W);
}

// Takes the gradient of the state at value d, key j back through the run.
template <int keys, int vectors, class V, class Real>
inline void retreat(const Run<Real>& r, const Results<Real>& out, int d, int j, Real* d_state) {
  constexpr int W = lane_count<V>;
  V dS[keys][vectors];
  T2FW_UNROLL for (int a = 0; a < keys; ++a)
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) dS[a][c] = load<V>(d_state + (j + a) * r.ld + d + c * W);
  for (int t = r.tokens - 1; t >= 0; --t) {
    const int e = t * r.ld + d;
    const Real *const q_t = r.q + t * r.ldk + j, *const k_t = r.k + t * r.ldk + j, *const g_t = r.g + t * r.ldk + j;
    const Real *const f_t = r.f + e, *const v_t = r.v + e, *const d_y_t = r.d_y + e;
    const Real* const S = out.trail + t * keys * vectors * W;
    V d_v[vectors], d_f[vectors], d_key[2 * keys];
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      d_v[c] = load<V>(out.d_v + e + c * W);
      d_f[c] = load<V>(out.d_f + e + c * W);
    }
    T2FW_UNROLL for (int a = 0; a < keys; ++a) {
      const V q(q_t[a]), k(k_t[a]), g(g_t[a]);
      V d_k(Real(0)), d_g(Real(0));
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
        const V f = load<V>(f_t + c * W);
        dS[a][c] = Kokkos::fma(load<V>(d_y_t + c * W), q, dS[a][c]);
        d_k = Kokkos::fma(dS[a][c], load<V>(v_t + c * W), d_k);
        d_v[c] = Kokkos::fma(dS[a][c], k, d_v[c]);
        const V met = dS[a][c] * load<V>(S + (a * vectors + c) * W);
        d_f[c] = Kokkos::fma(met, g, d_f[c]);
        d_g = Kokkos::fma(met, f, d_g);
        dS[a][c] = dS[a][c] * (f * g);
      }
      d_key[a] = d_k;
      d_key[keys + a] = d_g;
    }
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      store(d_v[c], out.d_v + e + c * W);
      store(d_f[c], out.d_f + e + c * W);
    }
    alignas(64) Real sum[2 * keys + W];
    sum_rows(d_key, sum);
    for (int a = 0; a < keys; ++a) {
      out.d_k[t * r.ldk + j + a] += sum[a];
      out.d_g[t * r.ldk + j + a] += sum[keys + a];
    }
  }
  T2FW_UNROLL for (int a = 0; a < keys; ++a)
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) store(dS[a][c], d_state + (j + a) * r.ld + d + c * W);
}

// body(keys, vectors, d, j), the first two as compile-time constants, for every tile of the state.
template <class V, class Body>
inline void for_each_tile(int K, int ld, const Body& body) {
  constexpr int W = lane_count<V>;
  const auto columns = [&](auto keys, int j) {
    int d = 0;
    for (; d + NV * W <= ld; d += NV * W) body(keys, std::integral_constant<int, NV>{}, d, j);
    for (; d < ld; d += W) body(keys, std::integral_constant<int, 1>{}, d, j);
  };
  int j = 0;
  for (; j + MK <= K; j += MK) columns(std::integral_constant<int, MK>{}, j);
  for (; j < K; ++j) columns(std::integral_constant<int, 1>{}, j);
}

// Takes the whole state through the run. between() is called before each tile: time to fetch what comes next.
template <Keep keep, class V, class Real, class Between>
inline void advance_all(const Run<Real>& r, int K, const Real* from, Real* to, const Results<Real>& out,
                        const Between& between) {
  for_each_tile<V>(K, r.ld, [&](auto keys, auto vectors, int d, int j) {
    between();
    advance<keep, keys(), vectors(), V>(r, d, j, from, to, out);
  });
}

}  // namespace t2fw::plain
