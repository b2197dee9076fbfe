// decay backward in the plain form: 8 warps, each with 32 keys of 16 values of a tile of 64 by 64, 16 elements a lane. The
// stretches between saved states are taken from the last to the first: forward through one, to keep the state before each
// of its runs of tokens, in shared memory or, for want of room, in scratch; then back through the runs. A run goes back by
// twos of four tokens, whose states fit into registers beside the state's gradient R. Both ways the next run's operands are
// brought during this one.
//
// An element takes three operations a token to keep the states, four and a half to have them again, and nine for R, the
// five gradients, and what they share.
#pragma once

#include "backward.cuh"
#include "plain.cuh"

namespace t2fw::cuda::plain {

// Which operands of a run are needed: for its gradients, for the state behind it, for the gradient before it.
enum class Need { all, sources, sinks };

inline constexpr int BACKWARD_THREADS = 256, TRAIL = 4, BACK_RUN = 2 * TRAIL;
inline constexpr int VALUE_WARPS = SLICE / WARP_VALUES, KEY_WARPS = SLICE / WARP_KEYS;

struct alignas(16) BackwardMemory {
  struct Side {
    float z[BACK_RUN][SLICE], a[BACK_RUN][SLICE], x[BACK_RUN][SLICE];
  };
  Side run[2][2];  // this run and the next; value side (v, f, d_y) and key side (k, g, q)
  float value[BACK_RUN][KEY_WARPS][2][SLICE];  // d_v, d_f: sums over a warp's keys
  float key[BACK_RUN][VALUE_WARPS][3][SLICE];  // d_k, d_g, d_q: over its values
};  // and behind it the states that are kept in shared memory

template <class T, class G>
struct Backward {
  static constexpr int HALF = BACKWARD_THREADS / 2, FOURS = SLICE / 4;
  using Patch = float[4][4];  // [key][value]
  using Local = cuda::Local<4, BACKWARD_THREADS>;
  using Side = BackwardMemory::Side;
  const BackwardArgs& p;
  const TileTask& task;
  BackwardMemory& memory;
  bool adds;  // to the gradients of the thread's side: SideArgs::Turn

  // Of the tile.
  __device__ __forceinline__ static int value_warp() { return threadIdx.x / 32 % VALUE_WARPS; }
  __device__ __forceinline__ static int key_warp() { return threadIdx.x / 32 / VALUE_WARPS; }
  __device__ __forceinline__ static int value() { return value_warp() * WARP_VALUES + lane_value(); }
  __device__ __forceinline__ static int key() { return key_warp() * WARP_KEYS + lane_key(); }

  // body(element, d, key) for those of the patch that are inside [D][K].
  template <class Body>
  __device__ __forceinline__ void each(Patch& S, const Body& body) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int d = task.value + value() + i % 4, j = task.key + key() + i / 4;
      if (d < p.side[0].width && j < p.side[1].width) body(S[i / 4][i % 4], d, j);
    }
  }
  __device__ __forceinline__ void load(const StateOperand& x, Patch& S) const {
    if (!x.data) return;
    const int64_t base = task.sequence.n * x.strides.b + task.h * x.strides.h;
    each(S, [&](float& s, int d, int j) { s = x.get<T>(base + d * x.strides.d + j); });
  }
  __device__ __forceinline__ void store(const StateOperand& x, Patch& S) const {
    if (!x.data) return;
    const int64_t base = task.sequence.n * x.strides.b + task.h * x.strides.h;
    each(S, [&](float& s, int d, int j) { x.put<T>(base + d * x.strides.d + j, s); });
  }
  // The state before run `run`, where one was saved.
  __device__ __forceinline__ void load_saved(int run, Patch& S) const {
    if (!run) return load(p.initial_state, S);
    const int64_t slot = task.sequence.checkpoint + int64_t{run} * BACK_RUN / p.interval - 1;
    const int64_t D = p.side[0].width, K = p.side[1].width;
    const float* const from = static_cast<const float*>(p.checkpoints) + (slot * p.H + task.h) * K * D;
    each(S, [&](float& s, int d, int j) { s = from[j * D + d]; });
  }

  // The i-th state that the block keeps; a thread reads what it wrote.
  __device__ __forceinline__ float4* kept(int i) const {
    constexpr int each = 4 * BACKWARD_THREADS;
    if (i < p.kept_shared) return reinterpret_cast<float4*>(&memory + 1) + i * each + threadIdx.x;
    return reinterpret_cast<float4*>(p.states) + (int64_t{blockIdx.x} * p.kept + i - p.kept_shared) * each + threadIdx.x;
  }
  __device__ __forceinline__ void keep(int i, const Patch& S) const {
    float4* const to = kept(i);
#pragma unroll
    for (int a = 0; a < 4; ++a) to[a * BACKWARD_THREADS] = {S[a][0], S[a][1], S[a][2], S[a][3]};
  }
  __device__ __forceinline__ void load_kept(int i, Patch& S) const {
    const float4* const from = kept(i);
#pragma unroll
    for (int a = 0; a < 4; ++a) load_four(&from[a * BACKWARD_THREADS].x, S[a]);
  }

  __device__ __forceinline__ Place place(int run) const {
    const int first = run * BACK_RUN;
    return {task.sequence.b, task.h, task.sequence.begin + first, min(task.sequence.length - first, BACK_RUN)};
  }
  // A side of a run on its way into shared memory, by half of the threads.
  struct Coming {
    Staging<T, HALF, BACK_RUN, SLICE> z{}, x{};
    Staging<G, HALF, BACK_RUN, SLICE> a{};

    __device__ __forceinline__ void start(const Backward& at, int run, Need need, int turn) {
      const int side = threadIdx.x / HALF, thread = threadIdx.x % HALF, column = side ? at.task.key : at.task.value;
      const SideArgs& s = at.p.side[side];
      Side& to = at.memory.run[turn][side];
      const Place c = at.place(run);
      if (need != Need::sinks) z.start(to.z, s.z, c, column, s.width, 0.f, thread);
      a.start(to.a, s.a, c, column, s.width, absent_gate(s.a), thread);
      if (need != Need::sources) x.start(to.x, s.x, c, column, s.width, 0.f, thread);
    }
    // What was not needed is written too: nobody reads it.
    __device__ __forceinline__ void finish(const Backward& at, int turn) const {
      const int side = threadIdx.x / HALF, thread = threadIdx.x % HALF;
      const SideArgs& s = at.p.side[side];
      Side& to = at.memory.run[turn][side];
      z.finish(to.z, s.z, thread);
      a.finish_gates(to.a, s.a, thread);
      x.finish(to.x, s.x, thread);
      wait_copies<0>();
    }
  };
  __device__ __forceinline__ void fill_absent() const {
    for (int i = 0; i < 4; ++i)
      if (!p.side[i % 2].a.width) fill<BACKWARD_THREADS>(memory.run[i / 2][i % 2].a, 1.f);
  }

  // S before token t becomes S behind it.
  __device__ __forceinline__ void advance(int turn, int t, Patch& S) const {
    const Side &values = memory.run[turn][0], &keys = memory.run[turn][1];
    float v[4], f[4], k[4], g[4];
    load_four(&values.z[t][value()], v);
    load_four(&values.a[t][value()], f);
    load_four(&keys.z[t][key()], k);
    load_four(&keys.a[t][key()], g);
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int c = 0; c < 4; ++c) S[a][c] = fmaf(f[c] * g[a], S[a][c], v[c] * k[a]);
  }

  // R behind token t becomes R before it; the token's gradients, of this warp's elements, go to shared memory.
  __device__ __forceinline__ void retreat(int turn, int t, const Patch& before, const Patch& after, Patch& R) const {
    const Side &values = memory.run[turn][0], &keys = memory.run[turn][1];
    float v[4], f[4], d_y[4], k[4], g[4], q[4];
    load_four(&values.z[t][value()], v);
    load_four(&values.a[t][value()], f);
    load_four(&values.x[t][value()], d_y);
    load_four(&keys.z[t][key()], k);
    load_four(&keys.a[t][key()], g);
    load_four(&keys.x[t][key()], q);
    float d_value[2][4] = {}, d_key[4][3] = {};  // d_v, d_f; d_k, d_g, d_q
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float& r = R[a][c];
        r = fmaf(d_y[c], q[a], r);
        const float met = r * before[a][c];
        d_value[0][c] = fmaf(r, k[a], d_value[0][c]);
        d_value[1][c] = fmaf(met, g[a], d_value[1][c]);
        d_key[a][0] = fmaf(r, v[c], d_key[a][0]);
        d_key[a][1] = fmaf(met, f[c], d_key[a][1]);
        d_key[a][2] = fmaf(after[a][c], d_y[c], d_key[a][2]);
        r *= f[c] * g[a];
      }
    sum_over_lanes<8, 4, 1>(&d_value[0][0]);
    sum_over_lanes<4, 1, 3>(&d_key[0][0]);
    const int i = threadIdx.x / 4 % 8, a = threadIdx.x % 4;
    memory.value[t][key_warp()][i / 4][value() + i % 4] = d_value[0][0];
#pragma unroll
    for (int o = 0; o < 3; ++o) memory.key[t][value_warp()][o][key() + a] = d_key[0][o];
  }

  // R through the run; entering: the state before it.
  __device__ __forceinline__ void back(int turn, const Patch& entering, Patch& R) const {
#pragma unroll 1
    for (int first = BACK_RUN - TRAIL; first >= 0; first -= TRAIL) {
      Patch trail[TRAIL + 1];
#pragma unroll
      for (int i = 0; i < 16; ++i) trail[0][i / 4][i % 4] = entering[i / 4][i % 4];
#pragma unroll 2
      for (int t = 0; t < first; ++t) advance(turn, t, trail[0]);
#pragma unroll
      for (int t = 0; t < TRAIL; ++t) {
#pragma unroll
        for (int i = 0; i < 16; ++i) trail[t + 1][i / 4][i % 4] = trail[t][i / 4][i % 4];
        advance(turn, first + t, trail[t + 1]);
      }
#pragma unroll
      for (int t = TRAIL - 1; t >= 0; --t) retreat(turn, first + t, trail[t], trail[t + 1], R);
    }
  }

  // Half of the threads write a side's gradients of a run: four columns of a token each, or the first of them its one value.
  struct Share {
    int t, column, columns;
    bool adds;
  };
  __device__ __forceinline__ Share share(int side, const Rows& x) const {
    static_assert(HALF == BACK_RUN * FOURS);
    const int t = threadIdx.x % HALF / FOURS, j = threadIdx.x % FOURS * 4, columns = p.side[side].width;
    if (x.width != columns) return {t, j, 1, p.number > 0};
    return {t, (side ? task.key : task.value) + j, columns, adds};
  }
  // What earlier launches have left there.
  template <class E>
  __device__ __forceinline__ float4 earlier(int side, const Rows& x, const Place& c) const {
    const Share own = share(side, x);
    return own.adds && x.width ? get_four<E>(x, c, own.t, own.column, own.columns) : float4{};
  }
  struct Earlier {
    float4 z, a, x;
  };
  __device__ __forceinline__ Earlier earlier(int run) const {
    const int side = threadIdx.x / HALF;
    const SideArgs& s = p.side[side];
    const Place c = place(run);
    return {earlier<T>(side, s.d_z, c), earlier<G>(side, s.d_a, c), earlier<T>(side, s.d_x, c)};
  }
  // Adds the warps' sums of the o-th output of a side to it. a: the side's gates.
  template <class E, int warps, int outputs>
  __device__ __forceinline__ void put(const float (&sums)[BACK_RUN][warps][outputs][SLICE], int o, int side, const Rows& x,
                                      const float (&a)[BACK_RUN][SLICE], const Place& c, float4 earlier) const {
    if (!x.width) return;
    const Share own = share(side, x);
    const int j = threadIdx.x % FOURS * 4;
    const auto sum_of = [&](int warp) { return *reinterpret_cast<const float4*>(&sums[own.t][warp][o][j]); };
    float4 sum = sum_of(0);
#pragma unroll
    for (int warp = 1; warp < warps; ++warp) sum = add(sum, sum_of(warp));
    if (x.logits) {
      const float4 gate = *reinterpret_cast<const float4*>(&a[own.t][j]);
      sum.x *= logistic_slope(gate.x), sum.y *= logistic_slope(gate.y);
      sum.z *= logistic_slope(gate.z), sum.w *= logistic_slope(gate.w);
    }
    if (x.width != p.side[side].width) {
      const int columns = p.side[side].width - (side ? task.key : task.value) - j;
      const auto there = [&](float y, int i) { return i < columns ? y : 0.f; };
      sum.x = there(sum.x, 0) + there(sum.y, 1) + there(sum.z, 2) + there(sum.w, 3);
      for (int apart = FOURS / 2; apart; apart /= 2) sum.x += __shfl_xor_sync(~0u, sum.x, apart);
    }
    if (own.adds) sum = add(earlier, sum);
    put_four<E>(x, c, own.t, own.column, own.columns, sum);
  }
  __device__ __forceinline__ void put_gradients(int run, int turn, const Earlier& earlier) const {
    const Place c = place(run);
    const SideArgs &value = p.side[0], &key = p.side[1];
    const auto &f = memory.run[turn][0].a, &g = memory.run[turn][1].a;
    if (threadIdx.x < HALF) {
      put<T>(memory.value, 0, 0, value.d_z, f, c, earlier.z);
      put<G>(memory.value, 1, 0, value.d_a, f, c, earlier.a);
    } else {
      put<T>(memory.key, 0, 1, key.d_z, g, c, earlier.z);
      put<G>(memory.key, 1, 1, key.d_a, g, c, earlier.a);
      put<T>(memory.key, 2, 1, key.d_x, g, c, earlier.x);
    }
  }

  // Waits for a run's operands, and starts to bring those of the one that comes next.
  __device__ __forceinline__ void begin(int next, Need need, int first, Coming& coming, int& turn) const {
    turn ^= 1;
    coming.finish(*this, turn);
    __syncthreads();
    if (next >= first) coming.start(*this, next, need, turn ^ 1);
    commit_copies();
  }

  // Runs first .. last - 1. R: the gradient of the state behind them, and then before them.
  __device__ __forceinline__ void run(int first, int last, Patch& R) const {
    const int apart = static_cast<int>(p.interval / BACK_RUN);  // runs of a stretch
    const auto start_of = [&](int run) { return run / apart * apart; };
    const auto need_at = [&](int run, int end) { return run == end ? Need::all : Need::sources; };
    fill_absent();
    int turn = 1, end = last - 1;  // end: the stretch's last run
    Coming coming;
    coming.start(*this, start_of(end), need_at(start_of(end), end), 0);
    commit_copies();
    for (int start; end >= first; end = start - 1) {
      start = start_of(end);
      Patch S = {};
      load_saved(start, S);
      for (int i = start; i < end; ++i) {
        keep(i - start, S);
        begin(i + 1, need_at(i + 1, end), first, coming, turn);
#pragma unroll 2
        for (int t = 0; t < BACK_RUN; ++t) advance(turn, t, S);
      }
      for (int i = end; i >= start; --i) {
        const int before = start_of(start - 1);
        begin(i > start ? i - 1 : start ? before : -1, i > start ? Need::all : need_at(before, start - 1), first, coming,
              turn);
        Patch next = {};
        if (i > start) load_kept(i - 1 - start, next);
        const Earlier sums = earlier(i);  // it comes while the run goes back
        back(turn, S, R);
        __syncthreads();
        put_gradients(i, turn, sums);
#pragma unroll
        for (int e = 0; e < 16; ++e) S[e / 4][e % 4] = next[e / 4][e % 4];
      }
    }
  }

  // What a segment leaves.
  __device__ __forceinline__ float* local(int segment) const {
    return task.local(p, Local::FLOATS) + int64_t{segment} * task.tiles * Local::FLOATS;
  }
  // R from zero, and the products of its gates, from the segment's first token on until they have faded (decay_local.cuh).
  __device__ __forceinline__ void run_local(int first, int last) const {
    Patch R = {}, gates = {};
    each(gates, [](float& x, int, int) { x = 1.f; });
    fill_absent();
    int turn = 0;
    Coming coming;
    if (last > first) coming.start(*this, first, Need::sinks, 0);
    commit_copies();
    for (int i = first; i < last; ++i, turn ^= 1) {
      coming.finish(*this, turn);
      if (__syncthreads_and(Local::have_faded(gates))) break;
      if (i + 1 < last) coming.start(*this, i + 1, Need::sinks, turn ^ 1);
      commit_copies();
#pragma unroll 2
      for (int t = 0; t < BACK_RUN; ++t) advance_local(turn, t, R, gates);
    }
    Local::put(local(task.segment.number), threadIdx.x, R, gates);
  }
  // Token t; gates: of those before it, and then with its own.
  __device__ __forceinline__ void advance_local(int turn, int t, Patch& R, Patch& gates) const {
    const Side &values = memory.run[turn][0], &keys = memory.run[turn][1];
    float f[4], d_y[4], g[4], q[4];
    load_four(&values.a[t][value()], f);
    load_four(&values.x[t][value()], d_y);
    load_four(&keys.a[t][key()], g);
    load_four(&keys.x[t][key()], q);
#pragma unroll
    for (int a = 0; a < 4; ++a)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        gates[a][c] *= f[c] * g[a];
        add_to(R[a][c], gates[a][c], d_y[c] * q[a]);
      }
  }
};

template <class T, class G, bool outputs>
__global__ void __launch_bounds__(BACKWARD_THREADS) backward_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  using Work = Backward<T, G>;
  TileTask task = TileTask::of<!outputs>(p, blockIdx.x, p.together);
  const auto turn = [&](int side) { return p.side[side].turn[task.tile]; };
  task.set_tile(p, turn(1).tile * p.side[0].tiles + turn(0).tile);
  const Segment& segment = task.segment;
  if (!segment.count) return;
  const Work work{p, task, *reinterpret_cast<BackwardMemory*>(memory), turn(threadIdx.x / Work::HALF).adds};
  const auto run_at = [](int token) { return (token + BACK_RUN - 1) / BACK_RUN; };
  const int first = run_at(segment.start), last = run_at(segment.end);
  if constexpr (outputs) {
    typename Work::Patch R = {};
    work.load(p.d_final_state, R);
    for (int s = 0; s < segment.number; ++s) Work::Local::pass(work.local(s), threadIdx.x, R);
    if (last > first) work.run(first, last, R);
    if (segment.last()) work.store(p.d_initial_state, R);
  } else {
    work.run_local(first, last);
  }
}

}  // namespace t2fw::cuda::plain
