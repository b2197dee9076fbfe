// Gradients of decay (recurrences.md: decay_block_backward). The two sides are the same function with their arguments
// swapped, and each is a work item of its own: the value side gives d_v, d_f and d_initial_state, the key side d_k, d_g
// and d_q. States are recomputed, segment by segment, from what forward saved.
#include "kernels.hpp"
#include "plain.hpp"

namespace t2fw {
namespace {

// One side's operands: z source, a gate, x sink, and the gradients. On the value side v, f, d_y; on the key side k, g, q.
struct Side {
  Operand z, a, x, d_z, d_a, d_x;
  int n, tile, tiles;
};

template <class Real>
struct DecayBackward {
  Problem p;
  Side side[2];  // value, key
  Operand initial_state, d_final_state, d_initial_state;
  const int64_t* cu_seqlens;
  const Real* checkpoints;  // [slots][H][K][D]
  int64_t interval;

  KOKKOS_FUNCTION const Real* checkpoint(const Sequence& s, int64_t start, int64_t h) const {
    return checkpoints + ((s.slot + start / interval - 1) * p.H + h) * side[0].n * side[1].n;
  }
};

template <class Space, class Real>
struct BlockBackward : DecayBackward<Real> {
  using V = Lanes<Space, Real>;
  using Base = DecayBackward<Real>;
  using Base::p, Base::side, Base::interval;
  Real* entering;  // [workers][interval / C][largest state tile]: the state entering each block of a segment
  int64_t entering_size;

  struct Tiles {
    Real *state, *d_state, *z, *a, *x, *prefix, *suffix, *scaled, *spread, *from_state, *to_state, *d_z, *d_a, *d_x,
        *through, *o_z, *o_a, *o_x, *o_prefix, *o_suffix, *o_scaled, *scores;
  };

  KOKKOS_FUNCTION static Tiles place(Arena<Real>& r, int others, int ld, int ldo) {
    const int n = C * ld, m = C * ldo;
    return {r.take(others * ld), r.take(others * ld), r.take(n), r.take(n), r.take(n), r.take(n), r.take(n),
            r.take(n),           r.take(n),           r.take(n), r.take(n), r.take(n), r.take(n), r.take(n),
            r.take(ld),          r.take(m),           r.take(m), r.take(m), r.take(m), r.take(m), r.take(m),
            r.take(C * C)};
  }

  // d_a of tokens first .. first + count - 1 from the sinks b above them: r_t = b_t + a_{t+1} r_{t+1}.
  KOKKOS_FORCEINLINE_FUNCTION static void scan_sinks(const Tiles& w, int first, int count, int ld, int c, const Real* met) {
    V acc(Real(0));
    for (int t = first + count - 1; t >= first; --t) {
      const int e = t * ld + c;
      acc = Kokkos::fma(load<V>(w.x + e), load<V>(met + e), acc);
      const V before = t == first ? V(Real(1)) : load<V>(w.prefix + e - ld);
      store(Kokkos::fma(before, acc, load<V>(w.d_a + e)), w.d_a + e);
      acc = acc * load<V>(w.a + e);
    }
  }

  // The same from the sources below them: h_{t+1} = a_t h_t + b_t.
  KOKKOS_FORCEINLINE_FUNCTION static void scan_sources(const Tiles& w, int first, int count, int ld, int c,
                                                       const Real* met, V acc) {
    for (int t = first; t < first + count; ++t) {
      const int e = t * ld + c;
      store(Kokkos::fma(load<V>(w.suffix + e), acc, load<V>(w.d_a + e)), w.d_a + e);
      acc = Kokkos::fma(load<V>(w.a + e), acc, load<V>(w.z + e) * load<V>(met + e));
    }
  }

  // Pairs inside the block, level by level; leaves the products over the whole block.
  template <class Team>
  KOKKOS_FUNCTION void inside(const Team& team, const Tiles& w, int ld, int ldo) const {
    start_products<V>(team, w.a, w.prefix, w.suffix, ld);
    start_products<V>(team, w.o_a, w.o_prefix, w.o_suffix, ldo);
    score_diagonal<V>(team, w.o_x, w.o_z, w.scores, ldo);
    team.barrier();
    team.for_each(C * ld / lane_count<V>, [&](int i) {
      const int e = i * lane_count<V>, t = e / ld;
      const V score(w.scores[t * C + t]);
      store(score * load<V>(w.x + e), w.d_z + e);
      store(score * load<V>(w.z + e), w.d_x + e);
      store(V(Real(0)), w.d_a + e);
    });
    for (int l = 1; l < C; l *= 2) {
      scale_level<V>(team, l, w.o_x, w.o_z, w.o_prefix, w.o_suffix, w.o_scaled, ldo);
      scale_level<V>(team, l, w.x, w.z, w.prefix, w.suffix, w.scaled, ld);
      team.barrier();
      score_level<V>(team, l, w.o_scaled, w.scores, ldo);
      team.barrier();
      spread_level<V>(team, l, true, w.scores, w.scaled, ld, [&](int t, int c, const V& sum) {
        const int e = t * ld + c;
        Real* const out = upper_half(t, l) ? w.d_x + e : w.d_z + e;
        const Real* const scale = upper_half(t, l) ? w.prefix + e : w.suffix + e;
        store(sum, w.spread + e);
        store(Kokkos::fma(load<V>(scale), sum, load<V>(out)), out);
      });
      team.barrier();
      team.for_each(ld / lane_count<V>, [&](int i) {
        const int c = i * lane_count<V>;
        for (int first = 0; first < C; first += 2 * l) {
          scan_sources(w, first, l, ld, c, w.spread, V(Real(0)));
          scan_sinks(w, first + l, l, ld, c, w.spread);
        }
      });
      team.barrier();
      raise_products<V>(team, l, w.prefix, w.suffix, ld);
      raise_products<V>(team, l, w.o_prefix, w.o_suffix, ldo);
      team.barrier();
    }
  }

  // What crosses the block's borders: the entering state meets its sinks, the leaving gradient its sources.
  template <class Team>
  KOKKOS_FUNCTION void borders(const Team& team, const Tiles& w, int others, int ld, int ldo) const {
    const Real* const o_last = w.o_prefix + (C - 1) * ldo;
    multiply<V>(team, w.o_z, w.o_suffix, w.o_scaled, ldo);
    team.for_each(ld / lane_count<V>, [&](int i) {
      const int c = i * lane_count<V>;
      V sum(Real(0));
      for (int o = 0; o < others; ++o)
        sum = Kokkos::fma(V(o_last[o]) * load<V>(w.state + o * ld + c), load<V>(w.d_state + o * ld + c), sum);
      store(sum, w.through + c);
    });
    team.barrier();
    product<V>(team, C, ld, others, w.o_scaled, ldo, 1, w.d_state, ld, [&](int t, int c, const V& sum) {
      const int e = t * ld + c;
      store(sum, w.to_state + e);
      store(Kokkos::fma(load<V>(w.suffix + e), sum, load<V>(w.d_z + e)), w.d_z + e);
    });
    team.barrier();
    multiply<V>(team, w.o_x, w.o_prefix, w.o_scaled, ldo);
    multiply<V>(team, w.x, w.prefix, w.scaled, ld);
    team.barrier();
    product<V>(team, C, ld, others, w.o_scaled, ldo, 1, w.state, ld, [&](int t, int c, const V& sum) {
      const int e = t * ld + c;
      store(sum, w.from_state + e);
      store(Kokkos::fma(load<V>(w.prefix + e), sum, load<V>(w.d_x + e)), w.d_x + e);
    });
    team.barrier();
    team.for_each(ld / lane_count<V>, [&](int i) {
      const int c = i * lane_count<V>;
      scan_sinks(w, 0, C, ld, c, w.from_state);
      scan_sources(w, 0, C, ld, c, w.to_state, load<V>(w.through + c));
    });
    advance_state<V>(team, w.d_state, others, ld, w.o_scaled, ldo, w.scaled, o_last, w.prefix + (C - 1) * ld);
  }

  // The state entering each block of the segment that starts at token `start`.
  template <class Team>
  KOKKOS_FUNCTION void recompute(const Team& team, const Tiles& w, const Sequence& s, int64_t n, int64_t h, int which,
                                 int64_t start, int column, int columns, int ld, int ldo, Real* states) const {
    const Side &own = side[which], &other = side[1 - which];
    const int others = other.n, D = side[0].n;
    if (start == 0) {
      load_state(team, w.state, others, ld, this->initial_state, n, h, column, columns, which == 0);
    } else {
      const Real* const saved = this->checkpoint(s, start, h);
      team.for_each_of(others, ld, [&](int o, int c) {
        const int64_t at = which == 0 ? static_cast<int64_t>(o) * D + column + c : static_cast<int64_t>(column + c) * D + o;
        w.state[o * ld + c] = c < columns ? saved[at] : Real(0);
      });
    }
    team.barrier();
    for (int64_t first = start; first < s.length && first < start + interval; first += C) {
      Real* const copy = states + (first - start) / C * others * ld;
      team.for_each(others * ld / lane_count<V>, [&](int i) {
        store(load<V>(w.state + i * lane_count<V>), copy + i * lane_count<V>);
      });
      if (first + C >= s.length || first + C >= start + interval) break;
      const Window mine = block_window(s, h, first, column, columns), theirs = block_window(s, h, first, 0, others);
      load_tile(team, w.z, C, ld, own.z, mine, Real(0), Real(0));
      load_tile(team, w.a, C, ld, own.a, mine, Real(1), Real(1));
      load_tile(team, w.o_z, C, ldo, other.z, theirs, Real(0), Real(0));
      load_tile(team, w.o_a, C, ldo, other.a, theirs, Real(1), Real(1));
      team.barrier();
      block_products<V>(team, w.a, w.prefix, w.suffix, ld);
      block_products<V>(team, w.o_a, w.o_prefix, w.o_suffix, ldo);
      team.barrier();
      multiply<V>(team, w.z, w.suffix, w.scaled, ld);
      multiply<V>(team, w.o_z, w.o_suffix, w.o_scaled, ldo);
      team.barrier();
      advance_state<V>(team, w.state, others, ld, w.o_scaled, ldo, w.scaled, w.o_prefix + (C - 1) * ldo,
                       w.prefix + (C - 1) * ld);
      team.barrier();
    }
    team.barrier();
  }

  template <class Team>
  KOKKOS_FUNCTION void block(const Team& team, Tiles w, const Window& mine, const Window& theirs, int which, int ld,
                             int ldo, Real* state) const {
    const Side &own = side[which], &other = side[1 - which];
    w.state = state;
    load_tile(team, w.z, C, ld, own.z, mine, Real(0), Real(0));
    load_tile(team, w.a, C, ld, own.a, mine, Real(1), Real(1));
    load_tile(team, w.x, C, ld, own.x, mine, Real(0), Real(0));
    load_tile(team, w.o_z, C, ldo, other.z, theirs, Real(0), Real(0));
    load_tile(team, w.o_a, C, ldo, other.a, theirs, Real(1), Real(1));
    load_tile(team, w.o_x, C, ldo, other.x, theirs, Real(0), Real(0));
    team.barrier();
    inside(team, w, ld, ldo);
    borders(team, w, other.n, ld, ldo);
    team.barrier();
    if (own.d_a.logits) {
      through_logistic(team, w.d_a, w.a, C * ld);
      team.barrier();
    }
    store_tile(team, w.d_z, ld, own.d_z, mine);
    store_tile(team, w.d_a, ld, own.d_a, mine);
    store_tile(team, w.d_x, ld, own.d_x, mine);
    team.barrier();
  }

  template <class Team>
  KOKKOS_FUNCTION void operator()(const Team& team, int64_t item, int worker, char* workspace) const {
    const int each = side[0].tiles + side[1].tiles, index = static_cast<int>(item % each);
    const int which = index < side[0].tiles ? 0 : 1;
    const Side& own = side[which];
    const int others = side[1 - which].n, column = (which ? index - side[0].tiles : index) * own.tile;
    const int columns = own.n - column < own.tile ? own.n - column : own.tile;
    const int ld = Shape<Space, Real>::padded(own.tile), ldo = Shape<Space, Real>::padded(others);
    const int64_t h = item / each % p.H, n = item / each / p.H;
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, others, ld, ldo);
    Real* const states = entering + worker * entering_size;
    const Sequence s = sequence_at(p, this->cu_seqlens, interval, n);
    load_state(team, w.d_state, others, ld, this->d_final_state, n, h, column, columns, which == 0);
    for (int64_t start = s.length ? (s.length - 1) / interval * interval : -1; start >= 0; start -= interval) {
      recompute(team, w, s, n, h, which, start, column, columns, ld, ldo, states);
      const int64_t end = s.length < start + interval ? s.length : start + interval;
      for (int64_t first = start + (end - start - 1) / C * C; first >= start; first -= C)
        block(team, w, block_window(s, h, first, column, columns), block_window(s, h, first, 0, others), which, ld, ldo,
              states + (first - start) / C * others * ld);
    }
    team.barrier();
    if (which == 0) store_state(team, w.d_state, others, ld, this->d_initial_state, n, h, column, columns, true);
  }
};

// A work item is a head of a sequence, both sides together. A run's states are recomputed once more in the cache, a tile
// at a time: forward through the run, leaving its trail, and back along it.
template <class Space, class Real>
struct PlainBackward : DecayBackward<Real> {
  using V = Lanes<Space, Real>;
  using Base = DecayBackward<Real>;
  using Base::p, Base::side, Base::interval;
  static constexpr int W = lane_count<V>;

  struct Tiles {
    Real *d_state, *v, *f, *d_y, *d_v, *d_f, *q, *k, *g, *d_q, *d_k, *d_g, *trail, *entering;
  };

  // entering: the state before each run of a segment.
  static Tiles place(Arena<Real>& r, int K, int ld, int ldk, int runs) {
    const int n = C * ld, m = C * ldk, tile = plain::MK * plain::NV * W;
    return {r.take(K * ld), r.take(n), r.take(n), r.take(n), r.take(n), r.take(n), r.take(m), r.take(m),
            r.take(m), r.take(m), r.take(m), r.take(m), r.take(C * tile), r.take(runs * K * ld)};
  }

  // The sources and gates of a window; `advance` needs no more.
  template <class Team>
  plain::Run<Real> load_run(const Team& team, const Tiles& w, const Window& value, const Window& key, int ld) const {
    load_tile(team, w.v, value.count, ld, side[0].z, value, Real(0), Real(0));
    load_tile(team, w.f, value.count, ld, side[0].a, value, Real(1), Real(1));
    load_tile(team, w.k, key.count, side[1].n, side[1].z, key, Real(0), Real(0));
    load_tile(team, w.g, key.count, side[1].n, side[1].a, key, Real(1), Real(1));
    return {w.v, w.f, w.q, w.k, w.g, w.d_y, value.count, ld, side[1].n};
  }

  template <class Team>
  void recompute(const Team& team, const Tiles& w, const Sequence& s, int64_t n, int64_t h, int64_t start, int64_t end,
                 int ld) const {
    const int D = side[0].n, K = side[1].n;
    if (start == 0) load_state(team, w.entering, K, ld, this->initial_state, n, h, 0, D, true);
    else
      for (int j = 0; j < K; ++j) {
        Real* const row = w.entering + j * ld;
        std::copy_n(this->checkpoint(s, start, h) + static_cast<int64_t>(j) * D, D, row);
        std::fill(row + D, row + ld, Real(0));
      }
    Real* state = w.entering;
    for (int64_t first = start; first + C < end; first += C) {
      const auto run = load_run(team, w, block_window(s, h, first, 0, D), block_window(s, h, first, 0, K), ld);
      Real* const before = state;
      state += K * ld;
      plain::advance_all<plain::Keep::state, V>(run, K, before, state, {}, [] {});
    }
  }

  // Back through the run that starts at token `first`. Meanwhile it fetches what the runs to come read, and the lines that
  // this one's gradients go to. A segment's sources and gates are first read by recompute, so those a segment ahead.
  void back(const plain::Run<Real>& run, const Tiles& w, const Real* state, const Sequence& s, int64_t h,
            int64_t first) const {
    const auto rows_at = [&](int64_t token) {
      Window rows = block_window(s, h, token, 0, 0);
      if (token < 0) rows.count = 0;
      return rows;
    };
    const auto& [value, key] = side;
    const Window here = rows_at(first), next = rows_at(first - C), segment = rows_at(first - interval);
    Ahead ahead[] = {{value.d_z, here},  {value.d_a, here},  {key.d_z, here},  {key.d_a, here},
                     {key.d_x, here},    {value.x, next},    {key.x, next},    {value.z, segment},
                     {value.a, segment}, {key.z, segment},   {key.a, segment}};
    const plain::Results<Real> out{nullptr, w.d_v, w.d_f, w.d_q, w.d_k, w.d_g, w.trail};
    plain::for_each_tile<V>(key.n, run.ld, [&](auto keys, auto vectors, int d, int j) {
      for (Ahead& rows : ahead) rows.fetch();
      plain::advance<plain::Keep::trail, keys(), vectors(), V>(run, d, j, state, static_cast<Real*>(nullptr), out);
      plain::retreat<keys(), vectors(), V>(run, out, d, j, w.d_state);
    });
  }

  template <class Team>
  void operator()(const Team& team, int64_t item, int, char* workspace) const {
    const Side &values = side[0], &keys = side[1];
    const int D = values.n, K = keys.n, ld = Shape<Space, Real>::padded(D);
    Arena<Real> arena(workspace);
    const Tiles w = place(arena, K, ld, K, 0);
    const int64_t h = item % p.H, n = item / p.H;
    const Sequence s = sequence_at(p, this->cu_seqlens, interval, n);
    load_state(team, w.d_state, K, ld, this->d_final_state, n, h, 0, D, true);
    for (int64_t start = s.length ? (s.length - 1) / interval * interval : -1; start >= 0; start -= interval) {
      const int64_t end = std::min(s.length, start + interval);
      recompute(team, w, s, n, h, start, end, ld);
      for (int64_t first = start + (end - start - 1) / C * C; first >= start; first -= C) {
        const Window value = block_window(s, h, first, 0, D), key = block_window(s, h, first, 0, K);
        const auto run = load_run(team, w, value, key, ld);
        load_tile(team, w.d_y, value.count, ld, values.x, value, Real(0), Real(0));
        load_tile(team, w.q, key.count, K, keys.x, key, Real(0), Real(0));
        Real *const value_sums[] = {w.d_v, w.d_f}, *const key_sums[] = {w.d_q, w.d_k, w.d_g};
        for (Real* const sum : value_sums) std::fill_n(sum, value.count * ld, Real(0));
        for (Real* const sum : key_sums) std::fill_n(sum, key.count * K, Real(0));
        back(run, w, w.entering + (first - start) / C * K * ld, s, h, first);
        if (values.d_a.logits) through_logistic(team, w.d_f, w.f, value.count * ld);
        if (keys.d_a.logits) through_logistic(team, w.d_g, w.g, key.count * K);
        store_tile(team, w.d_v, ld, values.d_z, value);
        store_tile(team, w.d_f, ld, values.d_a, value);
        store_tile(team, w.d_k, K, keys.d_z, key);
        store_tile(team, w.d_g, K, keys.d_a, key);
        store_tile(team, w.d_q, K, keys.d_x, key);
      }
    }
    store_state(team, w.d_state, K, ld, this->d_initial_state, n, h, 0, D, true);
  }
};

template <class Space>
int side_tile(int n, t2fw_gate gate) {
  return own_tile<Space>(n, gate == T2FW_GATE_HEAD);
}

template <class Space, class Real>
struct BackwardSpread {
  Spread team;
  size_t entering;  // elements a worker, beside its workspace
};

template <class Space, class Real>
BackwardSpread<Space, Real> decay_backward_spread(const Problem& p) {
  using S = Shape<Space, Real>;
  const int n[2] = {static_cast<int>(p.D), static_cast<int>(p.K)};
  const int runs = static_cast<int>(std::min(checkpoint_interval(p), (p.T + C - 1) / C * C) / C);
  if constexpr (!block_form<Space>) {
    Arena<Real> arena;
    PlainBackward<Space, Real>::place(arena, n[1], S::padded(n[0]), n[1], runs);
    return {spread<Space>(sequence_count(p) * p.H, arena.bytes()), 0};
  }
  const int tile[2] = {side_tile<Space>(n[0], p.f), side_tile<Space>(n[1], p.g)};
  size_t workspace = 0, state = 0;
  for (int i = 0; i < 2; ++i) {
    Arena<Real> arena;
    BlockBackward<Space, Real>::place(arena, n[1 - i], S::padded(tile[i]), S::padded(n[1 - i]));
    workspace = std::max(workspace, arena.bytes());
    state = std::max(state, static_cast<size_t>(n[1 - i]) * S::padded(tile[i]));
  }
  const int64_t each = S::tiles(n[0], tile[0]) + S::tiles(n[1], tile[1]);
  return {spread<Space>(sequence_count(p) * p.H * each, workspace), state * static_cast<size_t>(runs)};
}

}  // namespace

template <class Space, class Real>
Sizes decay_backward_sizes(const Problem& p) {
  const auto s = decay_backward_spread<Space, Real>(p);
  return {s.team.scratch() + align_up(s.entering * sizeof(Real) * static_cast<size_t>(s.team.workers)), 0};
}

template <class Space, class Real>
void decay_backward(const Space& space, const Problem& p, const t2fw_backward_args& a) {
  const int D = static_cast<int>(p.D), K = static_cast<int>(p.K);
  const int v_tile = side_tile<Space>(D, p.f), k_tile = side_tile<Space>(K, p.g);
  const auto s = decay_backward_spread<Space, Real>(p);
  const auto data = p.data_dtype;
  const DecayBackward<Real> operands{
      p,
      {{Operand(a.v, data, D, p.v_strides), gate_operand(p, a.f, p.f, D, p.f_strides), Operand(a.d_y, data, D, p.d_y_strides),
        Operand(a.d_v, data, D, p.d_v_strides), gate_operand(p, a.d_f, p.f, D, p.d_f_strides), Operand(), D, v_tile,
        Shape<Space, Real>::tiles(D, v_tile)},
       {Operand(a.k, data, K, p.k_strides), gate_operand(p, a.g, p.g, K, p.g_strides), Operand(a.q, data, K, p.q_strides),
        Operand(a.d_k, data, K, p.d_k_strides), gate_operand(p, a.d_g, p.g, K, p.d_g_strides),
        Operand(a.d_q, data, K, p.d_q_strides), K, k_tile, Shape<Space, Real>::tiles(K, k_tile)}},
      Operand(a.initial_state, p.state_dtype, K, p.initial_state_strides),
      Operand(a.d_final_state, p.state_dtype, K, p.d_final_state_strides),
      Operand(a.d_initial_state, p.state_dtype, K, p.d_initial_state_strides),
      a.cu_seqlens, static_cast<const Real*>(a.saved), checkpoint_interval(p)};
  if constexpr (block_form<Space>) {
    Real* const entering = reinterpret_cast<Real*>(static_cast<char*>(a.scratch) + s.team.scratch());
    run("t2fw::decay_backward", space, s.team, a.scratch,
        BlockBackward<Space, Real>{operands, entering, static_cast<int64_t>(s.entering)});
  } else {
    run("t2fw::decay_backward", space, s.team, a.scratch, PlainBackward<Space, Real>{operands});
  }
}

#define INSTANTIATE(Space, Real)                                    \
  template Sizes decay_backward_sizes<Space, Real>(const Problem&); \
  template void decay_backward<Space, Real>(const Space&, const Problem&, const t2fw_backward_args&);
T2FW_FOR_EACH_SPACE(INSTANTIATE)

}  // namespace t2fw
