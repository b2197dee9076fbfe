// decay: S_t = (f_t (x) g_t) o S_{t-1} + v_t (x) k_t, y_t = S_t q_t: block by block on a device (recurrences.md:
// decay_block), token by token on a host, where a tile of the state fits the registers.
#include "kernels.hpp"
#include "plain.hpp"

namespace t2fw {
namespace {

template <class Real>
struct DecayForward {
  Problem p;
  Operand v, f, q, k, g, y, initial_state, final_state;
  const int64_t* cu_seqlens;
  Real* checkpoints;  // [slots][H][K][D], or NULL
  int64_t interval;
  int D, K, tile, tiles;

  // Columns column .. column + columns - 1 of the state before token `first`, where a segment starts.
  template <class Team>
  KOKKOS_FUNCTION void checkpoint(const Team& team, const Sequence& s, int64_t first, int64_t h, const Real* state,
                                  int ld, int column, int columns) const {
    if (!checkpoints || !first || first % interval) return;
    Real* const saved = checkpoints + ((s.slot + first / interval - 1) * p.H + h) * D * K;
    team.for_each_of(K, columns, [&](int j, int c) {
      saved[static_cast<int64_t>(j) * D + column + c] = state[j * ld + c];
    });
  }
};

template <class Space, class Real>
struct BlockForward : DecayForward<Real> {
  using V = Lanes<Space, Real>;
  using Base = DecayForward<Real>;
  using Base::p, Base::v, Base::f, Base::q, Base::k, Base::g, Base::y, Base::D, Base::K, Base::tile, Base::tiles;

  struct Tiles {
    Real *state, *v, *f, *y, *f_prefix, *f_suffix, *v_scaled, *q, *k, *g, *g_prefix, *g_suffix, *qk_scaled, *scores;
  };

  KOKKOS_FUNCTION static Tiles place(Arena<Real>& a, int K, int ld, int ldk) {
    const int n = C * ld, m = C * ldk;
    return {a.take(K * ld), a.take(n), a.take(n), a.take(n), a.take(n), a.take(n), a.take(n),
            a.take(m),      a.take(m), a.take(m), a.take(m), a.take(m), a.take(m), a.take(C * C)};
  }

  // y of the block from inside the block, level by level; leaves the products over the whole block.
  template <class Team>
  KOKKOS_FUNCTION void inside(const Team& team, const Tiles& w, int ld, int ldk) const {
    start_products<V>(team, w.f, w.f_prefix, w.f_suffix, ld);
    start_products<V>(team, w.g, w.g_prefix, w.g_suffix, ldk);
    score_diagonal<V>(team, w.q, w.k, w.scores, ldk);
    team.barrier();
    team.for_each(C * ld / lane_count<V>, [&](int i) {
      const int e = i * lane_count<V>, t = e / ld;
      store(V(w.scores[t * C + t]) * load<V>(w.v + e), w.y + e);
    });
    for (int l = 1; l < C; l *= 2) {
      scale_level<V>(team, l, w.q, w.k, w.g_prefix, w.g_suffix, w.qk_scaled, ldk);
      scale_level<V>(team, l, w.v, w.v, w.f_prefix, w.f_suffix, w.v_scaled, ld);
      team.barrier();
      score_level<V>(team, l, w.qk_scaled, w.scores, ldk);
      team.barrier();
      spread_level<V>(team, l, false, w.scores, w.v_scaled, ld, [&](int t, int c, const V& sum) {
        const int e = t * ld + c;
        store(Kokkos::fma(load<V>(w.f_prefix + e), sum, load<V>(w.y + e)), w.y + e);
      });
      team.barrier();
      raise_products<V>(team, l, w.f_prefix, w.f_suffix, ld);
      raise_products<V>(team, l, w.g_prefix, w.g_suffix, ldk);
      team.barrier();
    }
  }

  template <class Team>
  KOKKOS_FUNCTION void block(const Team& team, const Tiles& w, int ld, int ldk) const {
    inside(team, w, ld, ldk);
    multiply<V>(team, w.q, w.g_prefix, w.qk_scaled, ldk);
    team.barrier();
    product<V>(team, C, ld, K, w.qk_scaled, ldk, 1, w.state, ld, [&](int t, int c, const V& sum) {
      const int e = t * ld + c;
      store(Kokkos::fma(load<V>(w.f_prefix + e), sum, load<V>(w.y + e)), w.y + e);
    });
    team.barrier();
    multiply<V>(team, w.k, w.g_suffix, w.qk_scaled, ldk);
    multiply<V>(team, w.v, w.f_suffix, w.v_scaled, ld);
    team.barrier();
    advance_state<V>(team, w.state, K, ld, w.qk_scaled, ldk, w.v_scaled, w.g_prefix + (C - 1) * ldk,
                     w.f_prefix + (C - 1) * ld);
  }

  template <class Team>
  KOKKOS_FUNCTION void operator()(const Team& team, int64_t item, int, char* workspace) const {
    const int ld = Shape<Space, Real>::padded(tile), ldk = Shape<Space, Real>::padded(K);
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, K, ld, ldk);
    const int column = static_cast<int>(item % tiles) * tile, columns = D - column < tile ? D - column : tile;
    const int64_t h = item / tiles % p.H, n = item / tiles / p.H;
    const Sequence s = sequence_at(p, this->cu_seqlens, this->interval, n);
    load_state(team, w.state, K, ld, this->initial_state, n, h, column, columns, true);
    team.barrier();
    for (int64_t first = 0; first < s.length; first += C) {
      this->checkpoint(team, s, first, h, w.state, ld, column, columns);
      const Window own = block_window(s, h, first, column, columns), other = block_window(s, h, first, 0, K);
      load_tile(team, w.v, C, ld, v, own, Real(0), Real(0));
      load_tile(team, w.f, C, ld, f, own, Real(1), Real(1));
      load_tile(team, w.q, C, ldk, q, other, Real(0), Real(0));
      load_tile(team, w.k, C, ldk, k, other, Real(0), Real(0));
      load_tile(team, w.g, C, ldk, g, other, Real(1), Real(1));
      team.barrier();
      block(team, w, ld, ldk);
      store_tile(team, w.y, ld, y, own);
      team.barrier();
    }
    store_state(team, w.state, K, ld, this->final_state, n, h, column, columns, true);
  }
};

// A work item is a head of a sequence.
template <class Space, class Real>
struct PlainForward : DecayForward<Real> {
  using V = Lanes<Space, Real>;
  using Base = DecayForward<Real>;
  using Base::p, Base::v, Base::f, Base::q, Base::k, Base::g, Base::y, Base::D, Base::K;

  struct Tiles {
    Real *state, *v, *f, *y, *q, *k, *g;
  };

  static Tiles place(Arena<Real>& a, int K, int ld, int ldk) {
    const int n = C * ld, m = C * ldk;
    return {a.take(K * ld), a.take(n), a.take(n), a.take(n), a.take(m), a.take(m), a.take(m)};
  }

  template <class Team>
  void operator()(const Team& team, int64_t item, int, char* workspace) const {
    const int ld = Shape<Space, Real>::padded(D);
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, K, ld, K);
    const int64_t h = item % p.H, n = item / p.H;
    const Sequence s = sequence_at(p, this->cu_seqlens, this->interval, n);
    load_state(team, w.state, K, ld, this->initial_state, n, h, 0, D, true);
    for (int64_t first = 0; first < s.length; first += C) {
      this->checkpoint(team, s, first, h, w.state, ld, 0, D);
      const Window value = block_window(s, h, first, 0, D), key = block_window(s, h, first, 0, K);
      load_tile(team, w.v, value.count, ld, v, value, Real(0), Real(0));
      load_tile(team, w.f, value.count, ld, f, value, Real(1), Real(1));
      load_tile(team, w.q, key.count, K, q, key, Real(0), Real(0));
      load_tile(team, w.k, key.count, K, k, key, Real(0), Real(0));
      load_tile(team, w.g, key.count, K, g, key, Real(1), Real(1));
      std::fill_n(w.y, value.count * ld, Real(0));
      const plain::Run<Real> run{w.v, w.f, w.q, w.k, w.g, nullptr, value.count, ld, K};
      const Window next = block_window(s, h, first + C, 0, 0);
      Ahead ahead[] = {{v, next}, {f, next}, {y, next}, {q, next}, {k, next}, {g, next}};
      plain::advance_all<plain::Keep::output, V>(run, K, w.state, w.state, {w.y}, [&] {
        for (Ahead& rows : ahead) rows.fetch();
      });
      store_tile(team, w.y, ld, y, value);
    }
    store_state(team, w.state, K, ld, this->final_state, n, h, 0, D, true);
  }
};

template <class Space, class Real>
using ForwardKernel = std::conditional_t<block_form<Space>, BlockForward<Space, Real>, PlainForward<Space, Real>>;

template <class Space, class Real>
Spread decay_forward_spread(const Problem& p) {
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K), tile = own_tile<Space>(D, false);
  Arena<Real> arena;
  ForwardKernel<Space, Real>::place(arena, K, Shape<Space, Real>::padded(tile), Shape<Space, Real>::padded(K));
  return spread<Space>(sequence_count(p) * p.H * Shape<Space, Real>::tiles(D, tile), arena.bytes());
}

}  // namespace

template <class Space, class Real>
Sizes decay_forward_sizes(const Problem& p) {
  return {decay_forward_spread<Space, Real>(p).scratch(),
          static_cast<size_t>(checkpoint_slots(p, checkpoint_interval(p)) * p.H * p.D * p.K) * sizeof(Real)};
}

template <class Space, class Real>
void decay_forward(const Space& space, const Problem& p, const t2fw_forward_args& a) {
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K), tile = own_tile<Space>(D, false);
  const ForwardKernel<Space, Real> kernel{{
      p,
      Operand(a.v, p.data_dtype, D, p.v_strides),
      gate_operand(p, a.f, p.f, D, p.f_strides),
      Operand(a.q, p.data_dtype, K, p.q_strides),
      Operand(a.k, p.data_dtype, K, p.k_strides),
      gate_operand(p, a.g, p.g, K, p.g_strides),
      Operand(a.y, p.data_dtype, D, p.y_strides),
      Operand(a.initial_state, p.state_dtype, K, p.initial_state_strides),
      Operand(a.final_state, p.state_dtype, K, p.final_state_strides),
      a.cu_seqlens, static_cast<Real*>(a.saved), checkpoint_interval(p), D, K, tile, Shape<Space, Real>::tiles(D, tile)}};
  run("t2fw::decay_forward", space, decay_forward_spread<Space, Real>(p), a.scratch, kernel);
}

#define INSTANTIATE(Space, Real)                                 \
  template Sizes decay_forward_sizes<Space, Real>(const Problem&); \
  template void decay_forward<Space, Real>(const Space&, const Problem&, const t2fw_forward_args&);
T2FW_FOR_EACH_SPACE(INSTANTIATE)

}  // namespace t2fw
