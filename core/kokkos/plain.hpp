// The plain form, token by token, for a host's vectors: a tile of the state (MK keys by NV vectors of values) stays in
// registers over a run of tokens whose operands were brought into the cache. Tiles are [tokens][ld] as in block.hpp; the
// working state is [K][ld], values contiguous.
#pragma once

#include "block.hpp"

#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
#define T2FW_UNROLL  // lanes are scalars in such a build, and nvcc does not know the host's pragma
#elif defined(__clang__)
#define T2FW_UNROLL _Pragma("unroll")
#else
#define T2FW_UNROLL _Pragma("GCC unroll 8")
#endif

namespace t2fw::plain {

inline constexpr int MK = 4, NV = 4;  // 16 of AVX-512's 32 registers hold the state

// One run of at most C tokens.
template <class Real>
struct Run {
  const Real *v, *f, *q, *k, *g;
  int tokens, ld, ldk;
};

enum class Keep { output, state, trail };  // y; only the state; the state before each token and after the last

// Takes the tile at value d, key j through the run, out of one state into another or the same. output: y[t] gains
// S_t q_t. trail: [tokens + 1][keys * vectors].
template <Keep keep, int keys, int vectors, class V, class Real>
inline void advance(const Run<Real>& r, int d, int j, const Real* from, Real* to, Real* y, Real* trail) {
  constexpr int W = lane_count<V>;
  V S[keys][vectors];
  T2FW_UNROLL for (int a = 0; a < keys; ++a)
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) S[a][c] = load<V>(from + (j + a) * r.ld + d + c * W);
  for (int t = 0; t < r.tokens; ++t) {
    const Real *const v_t = r.v + t * r.ld + d, *const f_t = r.f + t * r.ld + d;
    const Real *const q_t = r.q + t * r.ldk + j, *const k_t = r.k + t * r.ldk + j, *const g_t = r.g + t * r.ldk + j;
    V f[vectors], v[vectors], sum[vectors];
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      f[c] = load<V>(f_t + c * W);
      v[c] = load<V>(v_t + c * W);
      if constexpr (keep == Keep::output) sum[c] = load<V>(y + t * r.ld + d + c * W);
    }
    T2FW_UNROLL for (int a = 0; a < keys; ++a) {
      const V g(g_t[a]), k(k_t[a]), q(q_t[a]);
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
        if constexpr (keep == Keep::trail) store(S[a][c], trail + ((t * keys + a) * vectors + c) * W);
        S[a][c] = Kokkos::fma(f[c] * g, S[a][c], v[c] * k);
        if constexpr (keep == Keep::output) sum[c] = Kokkos::fma(S[a][c], q, sum[c]);
      }
    }
    if constexpr (keep == Keep::output)
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) store(sum[c], y + t * r.ld + d + c * W);
  }
  T2FW_UNROLL for (int a = 0; a < keys; ++a)
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      if constexpr (keep == Keep::trail) store(S[a][c], trail + ((r.tokens * keys + a) * vectors + c) * W);
      store(S[a][c], to + (j + a) * r.ld + d + c * W);
    }
}

// What the backward of a run reads and adds to; `trail` is what advance left for this tile, and partial is
// [tokens][keys][3][lanes]: d_q, d_k, d_g before their lanes are added up.
template <class Real>
struct Retreat {
  const Real *d_y, *trail;
  Real *d_v, *d_f, *partial;
};

// Takes the gradient of the state at value d, key j back through the run. `first` tile of its keys: partial is set, else
// added to.
template <int keys, int vectors, class V, class Real>
inline void retreat(const Run<Real>& r, const Retreat<Real>& b, int d, int j, bool first, Real* d_state) {
  constexpr int W = lane_count<V>;
  V dS[keys][vectors];
  T2FW_UNROLL for (int a = 0; a < keys; ++a)
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) dS[a][c] = load<V>(d_state + (j + a) * r.ld + d + c * W);
  for (int t = r.tokens - 1; t >= 0; --t) {
    const int e = t * r.ld + d;
    const Real *const q_t = r.q + t * r.ldk + j, *const k_t = r.k + t * r.ldk + j, *const g_t = r.g + t * r.ldk + j;
    const Real* const before = b.trail + t * keys * vectors * W;
    const Real* const after = before + keys * vectors * W;
    V d_v[vectors], d_f[vectors];
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      d_v[c] = load<V>(b.d_v + e + c * W);
      d_f[c] = load<V>(b.d_f + e + c * W);
    }
    T2FW_UNROLL for (int a = 0; a < keys; ++a) {
      Real* const partial = b.partial + (t * keys + a) * 3 * W;
      const V q(q_t[a]), k(k_t[a]), g(g_t[a]), zero(Real(0));
      V d_q = first ? zero : load<V>(partial), d_k = first ? zero : load<V>(partial + W);
      V d_g = first ? zero : load<V>(partial + 2 * W);
      T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
        const V f = load<V>(r.f + e + c * W), v = load<V>(r.v + e + c * W), d_y = load<V>(b.d_y + e + c * W);
        dS[a][c] = Kokkos::fma(d_y, q, dS[a][c]);
        d_q = Kokkos::fma(load<V>(after + (a * vectors + c) * W), d_y, d_q);
        d_k = Kokkos::fma(dS[a][c], v, d_k);
        d_v[c] = Kokkos::fma(dS[a][c], k, d_v[c]);
        const V met = dS[a][c] * load<V>(before + (a * vectors + c) * W);
        d_f[c] = Kokkos::fma(met, g, d_f[c]);
        d_g = Kokkos::fma(met, f, d_g);
        dS[a][c] = dS[a][c] * (f * g);
      }
      store(d_q, partial);
      store(d_k, partial + W);
      store(d_g, partial + 2 * W);
    }
    T2FW_UNROLL for (int c = 0; c < vectors; ++c) {
      store(d_v[c], b.d_v + e + c * W);
      store(d_f[c], b.d_f + e + c * W);
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

// Takes the whole state through the run. between(i) is called before the i-th tile: time to fetch what comes next.
template <Keep keep, class V, class Real, class Between>
inline void advance_all(const Run<Real>& r, int K, const Real* from, Real* to, Real* y, const Between& between) {
  int i = 0;
  for_each_tile<V>(K, r.ld, [&](auto keys, auto vectors, int d, int j) {
    between(i++);
    advance<keep, keys(), vectors(), V>(r, d, j, from, to, y, static_cast<Real*>(nullptr));
  });
}

// sum[r] of row r's W lanes: all rows by halves together, so that the additions stay in vectors.
template <int rows, int W, class Real>
void sum_rows(const Real* x, Real* sum) {
  if constexpr (W <= 2) {
    for (int r = 0; r < rows; ++r) sum[r] = W == 1 ? x[r] : x[r * W] + x[r * W + W - 1];
  } else {
    alignas(64) Real half[rows * W / 2];
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < W / 2; ++i) half[r * (W / 2) + i] = x[r * W + i] + x[r * W + W / 2 + i];
    sum_rows<rows, W / 2>(half, sum);
  }
}

}  // namespace t2fw::plain
