// Decode: one token, the state read and written once.
#include "kernels.hpp"

// The host's compiler may add up in vector order; HIP's clang would call OpenMP's device runtime for the same pragma.
#if defined(KOKKOS_ENABLE_HIP)
#define T2FW_SIMD(clause)
#else
#define T2FW_PRAGMA(text) _Pragma(#text)
#define T2FW_SIMD(clause) T2FW_PRAGMA(omp simd clause)
#endif

namespace t2fw {
namespace {

template <class Space, class Real>
struct Step {
  Problem p;
  Operand v, f, q, k, g, y, before, after;
  const int64_t* slot_indices;
  int64_t slots;
  int D, K;

  struct Tiles {
    Real *v, *f, *y, *q, *k, *g;
  };

  KOKKOS_FUNCTION static Tiles place(Arena<Real>& a, int D, int K) {
    return {a.take(D), a.take(D), a.take(D), a.take(K), a.take(K), a.take(K)};
  }

  // Row d of the state; returns y_d.
  template <t2fw_dtype dtype>
  KOKKOS_FUNCTION Real row(const Tiles& w, int d, const char* from, char* to) const {
    Real y_d = 0, s_k = 0;
    if (p.rule == T2FW_DECAY) {
      const Real v_d = w.v[d], f_d = w.f[d];
      T2FW_SIMD(reduction(+ : y_d))
      for (int j = 0; j < K; ++j) {
        const Real s = f_d * w.g[j] * load_element<Real>(from, dtype, j) + v_d * w.k[j];
        store_element(s, to, dtype, j);
        y_d += s * w.q[j];
      }
    } else {
      T2FW_SIMD(reduction(+ : y_d) reduction(+ : s_k))
      for (int j = 0; j < K; ++j) {
        const Real s = load_element<Real>(from, dtype, j);
        y_d += s * w.q[j];
        s_k += s * w.k[j];
      }
      const Real u_d = w.v[d] - s_k;
      T2FW_SIMD()
      for (int j = 0; j < K; ++j)
        store_element(load_element<Real>(from, dtype, j) + u_d * w.k[j], to, dtype, j);
    }
    return y_d;
  }

  template <class Team>
  KOKKOS_FUNCTION void operator()(const Team& team, int64_t item, int, char* workspace) const {
    const int64_t b = item / p.H, h = item % p.H;
    const int64_t slot = slot_indices ? slot_indices[b] : b;
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, D, K);
    const Window value{b, h, 0, 1, 0, D}, key{b, h, 0, 1, 0, K};
    if (slot_indices && (slot < 0 || slot >= slots)) {
      const Real fill = slot == T2FW_SKIP_SLOT ? Real(0) : Kokkos::Experimental::quiet_NaN_v<Real>;
      team.for_each(D, [&](int d) { w.y[d] = fill; });
    } else {
      load_tile(team, w.v, 1, D, v, value, Real(0), Real(0));
      load_tile(team, w.f, 1, D, f, value, Real(1), Real(1));
      load_tile(team, w.q, 1, K, q, key, Real(0), Real(0));
      load_tile(team, w.k, 1, K, k, key, Real(0), Real(0));
      load_tile(team, w.g, 1, K, g, key, Real(1), Real(1));
      team.barrier();
      team.for_each(D, [&](int d) {
        const char* const from = before.at(slot, d, h);
        char* const to = after.at(slot, d, h);
        switch (before.dtype) {
          case T2FW_FP64: w.y[d] = row<T2FW_FP64>(w, d, from, to); break;
          case T2FW_FP32: w.y[d] = row<T2FW_FP32>(w, d, from, to); break;
          case T2FW_FP16: w.y[d] = row<T2FW_FP16>(w, d, from, to); break;
          default: w.y[d] = row<T2FW_BF16>(w, d, from, to); break;
        }
      });
    }
    team.barrier();
    store_tile(team, w.y, D, y, value);
  }
};

template <class Space, class Real>
Spread step_spread(const Problem& p) {
  Arena<Real> arena;
  Step<Space, Real>::place(arena, static_cast<int>(p.D), static_cast<int>(p.K));
  return spread<Space>(p.B * p.H, arena.bytes());
}

}  // namespace

template <class Space, class Real>
Sizes step_sizes(const Problem& p) {
  return {step_spread<Space, Real>(p).scratch(), 0};
}

template <class Space, class Real>
void step(const Space& space, const Problem& p, const t2fw_step_args& a) {
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K);
  const Step<Space, Real> kernel{p,
                                 Operand(a.v, p.data_dtype, D, p.v_strides),
                                 gate_operand(p, a.f, p.f, D, p.f_strides),
                                 Operand(a.q, p.data_dtype, K, p.q_strides),
                                 Operand(a.k, p.data_dtype, K, p.k_strides),
                                 gate_operand(p, a.g, p.g, K, p.g_strides),
                                 Operand(a.y, p.data_dtype, D, p.y_strides),
                                 Operand(a.initial_state, p.state_dtype, K, p.initial_state_strides),
                                 Operand(a.final_state, p.state_dtype, K, p.final_state_strides),
                                 a.slot_indices,
                                 a.slots,
                                 D,
                                 K};
  run("t2fw::step", space, step_spread<Space, Real>(p), a.scratch, kernel);
}

#define INSTANTIATE(Space, Real)                          \
  template Sizes step_sizes<Space, Real>(const Problem&); \
  template void step<Space, Real>(const Space&, const Problem&, const t2fw_step_args&);
T2FW_FOR_EACH_SPACE(INSTANTIATE)

}  // namespace t2fw
