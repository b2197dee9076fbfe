// delta: y_t = S_{t-1} q_t, S_t = S_{t-1} + (v_t - S_{t-1} k_t) (x) k_t, block by block (recurrences.md: delta_block).
#include "delta.hpp"

namespace t2fw {
namespace {

template <class Space, class Real>
struct DeltaForward {
  using V = Lanes<Space, Real>;
  Problem p;
  Operand v, q, k, y, initial_state, final_state;
  const int64_t* cu_seqlens;
  int D, K, tile, tiles;

  struct Tiles {
    Real *state, *u, *y, *q, *k, *kk, *qk;
  };

  KOKKOS_FUNCTION static Tiles place(Arena<Real>& a, int K, int ld, int ldk) {
    return {a.take(K * ld),  a.take(C * ld), a.take(C * ld), a.take(C * ldk),
            a.take(C * ldk), a.take(C * C),  a.take(C * C)};
  }

  template <class Team>
  KOKKOS_FUNCTION void operator()(const Team& team, int64_t item, int, char* workspace) const {
    const int ld = Shape<Space, Real>::padded(tile), ldk = Shape<Space, Real>::padded(K);
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, K, ld, ldk);
    const int column = static_cast<int>(item % tiles) * tile, columns = D - column < tile ? D - column : tile;
    const int64_t h = item / tiles % p.H, n = item / tiles / p.H;
    const Sequence s = sequence_at(p, cu_seqlens, C, n);
    load_state(team, w.state, K, ld, initial_state, n, h, column, columns, true);
    team.barrier();
    for (int64_t first = 0; first < s.length; first += C) {
      const Window own = block_window(s, h, first, column, columns), other = block_window(s, h, first, 0, K);
      load_tile(team, w.u, C, ld, v, own, Real(0), Real(0));
      load_tile(team, w.q, C, ldk, q, other, Real(0), Real(0));
      load_tile(team, w.k, C, ldk, k, other, Real(0), Real(0));
      team.barrier();
      lower_scores<V>(team, w.k, w.k, w.kk, ldk);
      lower_scores<V>(team, w.q, w.k, w.qk, ldk);
      read_state<V>(team, Real(-1), w.k, ldk, K, w.state, ld, w.u, w.u);
      read_state<V, Team, Real>(team, Real(1), w.q, ldk, K, w.state, ld, nullptr, w.y);
      team.barrier();
      solve_lower<V>(team, w.kk, w.u, ld);
      team.barrier();
      add_lower<V>(team, Real(1), w.qk, w.u, w.y, ld);
      write_state<V>(team, Real(1), w.state, K, ld, w.k, ldk, w.u);
      team.barrier();
      store_tile(team, w.y, ld, y, own);
      team.barrier();
    }
    store_state(team, w.state, K, ld, final_state, n, h, column, columns, true);
  }
};

template <class Space, class Real>
Spread delta_forward_spread(const Problem& p) {
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K), tile = own_tile<Space>(D, false);
  Arena<Real> arena;
  DeltaForward<Space, Real>::place(arena, K, Shape<Space, Real>::padded(tile), Shape<Space, Real>::padded(K));
  return spread<Space>(sequence_count(p) * p.H * Shape<Space, Real>::tiles(D, tile), arena.bytes());
}

}  // namespace

template <class Space, class Real>
Sizes delta_forward_sizes(const Problem& p) {
  return {delta_forward_spread<Space, Real>(p).scratch(), 0};
}

template <class Space, class Real>
void delta_forward(const Space& space, const Problem& p, const t2fw_forward_args& a) {
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K), tile = own_tile<Space>(D, false);
  const DeltaForward<Space, Real> kernel{p,
                                         Operand(a.v, p.data_dtype, D, p.v_strides),
                                         Operand(a.q, p.data_dtype, K, p.q_strides),
                                         Operand(a.k, p.data_dtype, K, p.k_strides),
                                         Operand(a.y, p.data_dtype, D, p.y_strides),
                                         Operand(a.initial_state, p.state_dtype, K, p.initial_state_strides),
                                         Operand(a.final_state, p.state_dtype, K, p.final_state_strides),
                                         a.cu_seqlens,
                                         D,
                                         K,
                                         tile,
                                         Shape<Space, Real>::tiles(D, tile)};
  run("t2fw::delta_forward", space, delta_forward_spread<Space, Real>(p), a.scratch, kernel);
}

#define INSTANTIATE(Space, Real)                                   \
  template Sizes delta_forward_sizes<Space, Real>(const Problem&); \
  template void delta_forward<Space, Real>(const Space&, const Problem&, const t2fw_forward_args&);
T2FW_FOR_EACH_SPACE(INSTANTIATE)

}  // namespace t2fw
