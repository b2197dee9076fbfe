// Gradients of delta (recurrences.md: delta_block_backward), in two kernels and without any saved state.
//
// Value side, a tile of D at a time: a sweep forward solves for U, a sweep backward for d_v. Given U and d_v the state is
// a plain sum of outer products, so the key side, a tile of K at a time, needs only sums: d_q and the part of d_k that
// reads S in a sweep forward, the part that reads R in a sweep backward.
#include "delta.hpp"

namespace t2fw {
namespace {

template <class Space, class Real>
struct DeltaBackwardValues {
  using V = Lanes<Space, Real>;
  Problem p;
  Operand v, q, k, d_y, u, d_v, d_v_out, initial_state, d_final_state, d_initial_state;
  const int64_t* cu_seqlens;
  int D, K, tile, tiles;

  struct Tiles {
    Real *state, *u, *d_y, *q, *k, *kk, *qk;
  };

  KOKKOS_FUNCTION static Tiles place(Arena<Real>& a, int K, int ld, int ldk) {
    return {a.take(K * ld),  a.take(C * ld), a.take(C * ld), a.take(C * ldk),
            a.take(C * ldk), a.take(C * C),  a.take(C * C)};
  }

  template <class Team>
  KOKKOS_FUNCTION void solve_forward(const Team& team, const Tiles& w, const Window& own, const Window& other, int ld,
                                     int ldk) const {
    load_tile(team, w.u, C, ld, v, own, Real(0), Real(0));
    load_tile(team, w.k, C, ldk, k, other, Real(0), Real(0));
    team.barrier();
    lower_scores<V>(team, w.k, w.k, w.kk, ldk);
    read_state<V>(team, Real(-1), w.k, ldk, K, w.state, ld, w.u, w.u);
    team.barrier();
    solve_lower<V>(team, w.kk, w.u, ld);
    team.barrier();
    write_state<V>(team, Real(1), w.state, K, ld, w.k, ldk, w.u);
    store_tile(team, w.u, ld, u, own);
    team.barrier();
  }

  template <class Team>
  KOKKOS_FUNCTION void solve_backward(const Team& team, const Tiles& w, const Window& own, const Window& other, int ld,
                                      int ldk) const {
    load_tile(team, w.d_y, C, ld, d_y, own, Real(0), Real(0));
    load_tile(team, w.q, C, ldk, q, other, Real(0), Real(0));
    load_tile(team, w.k, C, ldk, k, other, Real(0), Real(0));
    team.barrier();
    lower_scores<V>(team, w.k, w.k, w.kk, ldk);
    lower_scores<V>(team, w.q, w.k, w.qk, ldk);
    read_state<V, Team, Real>(team, Real(1), w.k, ldk, K, w.state, ld, nullptr, w.u);
    team.barrier();
    add_upper<V>(team, Real(1), w.qk, w.d_y, w.u, ld);
    team.barrier();
    solve_upper<V>(team, w.kk, w.u, ld);
    team.barrier();
    write_state<V>(team, Real(1), w.state, K, ld, w.q, ldk, w.d_y);
    team.barrier();
    write_state<V>(team, Real(-1), w.state, K, ld, w.k, ldk, w.u);
    store_tile(team, w.u, ld, d_v, own);
    store_tile(team, w.u, ld, d_v_out, own);
    team.barrier();
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
    for (int64_t first = 0; first < s.length; first += C)
      solve_forward(team, w, block_window(s, h, first, column, columns), block_window(s, h, first, 0, K), ld, ldk);
    load_state(team, w.state, K, ld, d_final_state, n, h, column, columns, true);
    team.barrier();
    for (int64_t first = s.length ? (s.length - 1) / C * C : -1; first >= 0; first -= C)
      solve_backward(team, w, block_window(s, h, first, column, columns), block_window(s, h, first, 0, K), ld, ldk);
    store_state(team, w.state, K, ld, d_initial_state, n, h, column, columns, true);
  }
};

template <class Space, class Real>
struct DeltaBackwardKeys {
  using V = Lanes<Space, Real>;
  Problem p;
  Operand q, k, d_y, u, d_v, d_k, d_q_out, d_k_out, initial_state, d_final_state;  // d_k: what the first sweep leaves
  const int64_t* cu_seqlens;
  int D, K, tile, tiles;

  struct Tiles {
    Real *state, *q, *k, *d_q, *d_k, *u, *d_y, *d_v, *y_u, *v_u;
  };

  KOKKOS_FUNCTION static Tiles place(Arena<Real>& a, int D, int ld, int ldd) {
    return {a.take(D * ld),  a.take(C * ld),  a.take(C * ld),  a.take(C * ld), a.take(C * ld),
            a.take(C * ldd), a.take(C * ldd), a.take(C * ldd), a.take(C * C),  a.take(C * C)};
  }

  template <class Team>
  KOKKOS_FUNCTION void load_block(const Team& team, const Tiles& w, const Window& own, const Window& other, int ld,
                                  int ldd) const {
    load_tile(team, w.q, C, ld, q, own, Real(0), Real(0));
    load_tile(team, w.k, C, ld, k, own, Real(0), Real(0));
    load_tile(team, w.u, C, ldd, u, other, Real(0), Real(0));
    load_tile(team, w.d_y, C, ldd, d_y, other, Real(0), Real(0));
    load_tile(team, w.d_v, C, ldd, d_v, other, Real(0), Real(0));
    team.barrier();
    lower_scores<V>(team, w.d_y, w.u, w.y_u, ldd);
    lower_scores<V>(team, w.d_v, w.u, w.v_u, ldd);
  }

  template <class Team>
  KOKKOS_FUNCTION void sweep_forward(const Team& team, const Tiles& w, const Window& own, const Window& other, int ld,
                                     int ldd) const {
    load_block(team, w, own, other, ld, ldd);
    read_state<V, Team, Real>(team, Real(1), w.d_y, ldd, D, w.state, ld, nullptr, w.d_q);
    read_state<V, Team, Real>(team, Real(-1), w.d_v, ldd, D, w.state, ld, nullptr, w.d_k);
    team.barrier();
    add_lower<V>(team, Real(1), w.y_u, w.k, w.d_q, ld);
    add_lower<V>(team, Real(-1), w.v_u, w.k, w.d_k, ld);
    write_state<V>(team, Real(1), w.state, D, ld, w.u, ldd, w.k);
    team.barrier();
    store_tile(team, w.d_q, ld, d_q_out, own);
    store_tile(team, w.d_k, ld, d_k, own);
    team.barrier();
  }

  template <class Team>
  KOKKOS_FUNCTION void sweep_backward(const Team& team, const Tiles& w, const Window& own, const Window& other, int ld,
                                      int ldd) const {
    load_tile(team, w.d_k, C, ld, d_k, own, Real(0), Real(0));
    load_block(team, w, own, other, ld, ldd);
    read_state<V>(team, Real(1), w.u, ldd, D, w.state, ld, w.d_k, w.d_k);
    team.barrier();
    add_upper<V>(team, Real(-1), w.v_u, w.k, w.d_k, ld);
    add_upper<V>(team, Real(1), w.y_u, w.q, w.d_k, ld);
    write_state<V>(team, Real(1), w.state, D, ld, w.d_y, ldd, w.q);
    team.barrier();
    write_state<V>(team, Real(-1), w.state, D, ld, w.d_v, ldd, w.k);
    store_tile(team, w.d_k, ld, d_k_out, own);
    team.barrier();
  }

  template <class Team>
  KOKKOS_FUNCTION void operator()(const Team& team, int64_t item, int, char* workspace) const {
    const int ld = Shape<Space, Real>::padded(tile), ldd = Shape<Space, Real>::padded(D);
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, D, ld, ldd);
    const int column = static_cast<int>(item % tiles) * tile, columns = K - column < tile ? K - column : tile;
    const int64_t h = item / tiles % p.H, n = item / tiles / p.H;
    const Sequence s = sequence_at(p, cu_seqlens, C, n);
    load_state(team, w.state, D, ld, initial_state, n, h, column, columns, false);
    team.barrier();
    for (int64_t first = 0; first < s.length; first += C)
      sweep_forward(team, w, block_window(s, h, first, column, columns), block_window(s, h, first, 0, D), ld, ldd);
    load_state(team, w.state, D, ld, d_final_state, n, h, column, columns, false);
    team.barrier();
    for (int64_t first = s.length ? (s.length - 1) / C * C : -1; first >= 0; first -= C)
      sweep_backward(team, w, block_window(s, h, first, column, columns), block_window(s, h, first, 0, D), ld, ldd);
  }
};

template <class Space, class Real, template <class, class> class Kernel>
Spread side_spread(const Problem& p, int own, int other) {
  using S = Shape<Space, Real>;
  const int tile = own_tile<Space>(own, false);
  Arena<Real> arena;
  Kernel<Space, Real>::place(arena, other, S::padded(tile), S::padded(other));
  return spread<Space>(sequence_count(p) * p.H * S::tiles(own, tile), arena.bytes());
}

// Where the scratch lies: the teams' workspaces, then U, d_v and half of d_k in the working precision, as [B,T,H,X].
template <class Space, class Real>
struct Layout {
  Spread values, keys;
  size_t workspace, rows, d, k;
  explicit Layout(const Problem& p) {
    const int D = static_cast<int>(p.D), K = static_cast<int>(p.K);
    values = side_spread<Space, Real, DeltaBackwardValues>(p, D, K);
    keys = side_spread<Space, Real, DeltaBackwardKeys>(p, K, D);
    workspace = std::max(values.scratch(), keys.scratch());
    rows = static_cast<size_t>(p.B * p.T * p.H);
    d = align_up(rows * static_cast<size_t>(D) * sizeof(Real));
    k = align_up(rows * static_cast<size_t>(K) * sizeof(Real));
  }
  size_t total() const { return workspace + 2 * d + k; }
};

}  // namespace

template <class Space, class Real>
Sizes delta_backward_sizes(const Problem& p) {
  return {Layout<Space, Real>(p).total(), 0};
}

template <class Space, class Real>
void delta_backward(const Space& space, const Problem& p, const t2fw_backward_args& a) {
  const Layout<Space, Real> layout(p);
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K), tile = own_tile<Space>(D, false),
            k_tile = own_tile<Space>(K, false);
  const auto data = p.data_dtype, state = p.state_dtype, working = sizeof(Real) == 8 ? T2FW_FP64 : T2FW_FP32;
  char* const buffers = static_cast<char*>(a.scratch) + layout.workspace;
  const t2fw_token_strides wide{p.T * p.H * D, p.H * D, D}, narrow{p.T * p.H * K, p.H * K, K};
  const Operand v(a.v, data, D, p.v_strides), q(a.q, data, K, p.q_strides), k(a.k, data, K, p.k_strides),
      d_y(a.d_y, data, D, p.d_y_strides), u(buffers, working, D, wide), d_v(buffers + layout.d, working, D, wide),
      d_k(buffers + 2 * layout.d, working, K, narrow), initial(a.initial_state, state, K, p.initial_state_strides),
      d_final(a.d_final_state, state, K, p.d_final_state_strides);
  run("t2fw::delta_backward_values", space, layout.values, a.scratch,
      DeltaBackwardValues<Space, Real>{p, v, q, k, d_y, u, d_v, Operand(a.d_v, data, D, p.d_v_strides), initial, d_final,
                                       Operand(a.d_initial_state, state, K, p.d_initial_state_strides), a.cu_seqlens, D,
                                       K, tile, Shape<Space, Real>::tiles(D, tile)});
  run("t2fw::delta_backward_keys", space, layout.keys, a.scratch,
      DeltaBackwardKeys<Space, Real>{p, q, k, d_y, u, d_v, d_k, Operand(a.d_q, data, K, p.d_q_strides),
                                     Operand(a.d_k, data, K, p.d_k_strides), initial, d_final, a.cu_seqlens, D, K, k_tile,
                                     Shape<Space, Real>::tiles(K, k_tile)});
}

#define INSTANTIATE(Space, Real)                                    \
  template Sizes delta_backward_sizes<Space, Real>(const Problem&); \
  template void delta_backward<Space, Real>(const Space&, const Problem&, const t2fw_backward_args&);
T2FW_FOR_EACH_SPACE(INSTANTIATE)

}  // namespace t2fw
