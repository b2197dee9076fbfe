// decay forward in the plain form: 4 warps, each with 64 keys of 16 values of a head, go through the tokens run by run while
// the next run is brought. Heads of up to 64 keys go by slices of 64 values; more keys are shared out over the warps,
// whose sums meet in shared memory.
//
// An element takes four operations a token: f g, v k, S and y.
#pragma once

#include "forward.cuh"
#include "plain.cuh"

namespace t2fw::cuda::plain {

inline constexpr int FORWARD_THREADS = 128, PATCH_KEYS = 8, PATCH = PATCH_KEYS * 4;

template <class T, class G, int KP>
struct Forward {
  static constexpr int RUN = KP > 128 ? 8 : 16;  // as the shared memory allows
  static constexpr int KEY_WARPS = KP / (2 * WARP_KEYS), VALUE_WARPS = FORWARD_THREADS / 32 / KEY_WARPS;
  static constexpr int VALUES = VALUE_WARPS * WARP_VALUES;  // of a thread block

  struct alignas(16) Run {
    float v[RUN][VALUES], f[RUN][VALUES], q[RUN][KP], k[RUN][KP], g[RUN][KP];
  };
  struct Memory {
    Run run[2];  // this run and the next
    float y[2][KEY_WARPS][RUN][VALUES];  // sums over a warp's keys, of this run and the last
  };
  using Patch = float[PATCH_KEYS][4];  // [key][value]
  using Local = cuda::Local<PATCH_KEYS, FORWARD_THREADS>;

  const ForwardArgs& p;
  const Task& task;
  Memory& memory;

  __device__ __forceinline__ static int key_warp() { return threadIdx.x / 32 % KEY_WARPS; }
  // In the slice, and of the head.
  __device__ __forceinline__ static int value() { return threadIdx.x / 32 / KEY_WARPS * WARP_VALUES + lane_value(); }
  __device__ __forceinline__ static int key(int i) { return (key_warp() * 2 + i / 4) * WARP_KEYS + lane_key() + i % 4; }

  // body(element, d, key) for those of the patch that are inside [D][keys].
  template <class Body>
  __device__ __forceinline__ void each(Patch& S, int64_t keys, const Body& body) const {
#pragma unroll
    for (int i = 0; i < PATCH; ++i) {
      const int d = task.column + value() + i % 4, j = key(i / 4);
      if (d < p.D && j < keys) body(S[i / 4][i % 4], d, j);
    }
  }
  __device__ __forceinline__ void load(Patch& S) const {
    if (!p.initial_state.data) return;
    const t2fw_state_strides& s = p.initial_state.strides;
    const int64_t base = task.sequence.n * s.b + task.h * s.h;
    each(S, p.K, [&](float& x, int d, int j) { x = p.initial_state.get<T>(base + d * s.d + j); });
  }
  __device__ __forceinline__ void store(Patch& S) const {
    if (!p.final_state.data) return;
    const t2fw_state_strides& s = p.final_state.strides;
    const int64_t base = task.sequence.n * s.b + task.h * s.h;
    each(S, p.K, [&](float& x, int d, int j) { p.final_state.put<T>(base + d * s.d + j, x); });
  }

  // What a segment leaves.
  __device__ __forceinline__ float* local(int segment) const {
    return task.local(p, Local::FLOATS) + int64_t{segment} * task.slices * Local::FLOATS;
  }
  // The state before the segment.
  __device__ __forceinline__ void enter(Patch& S) const {
    load(S);
    for (int s = 0; s < task.segment.number; ++s) Local::pass(local(s), threadIdx.x, S);
  }

  // A run on its way into shared memory.
  template <bool outputs>
  struct Coming {
    Staging<T, FORWARD_THREADS, RUN, VALUES> v;
    Staging<G, FORWARD_THREADS, RUN, VALUES> f;
    Staging<T, FORWARD_THREADS, RUN, KP> q, k;
    Staging<G, FORWARD_THREADS, RUN, KP> g;

    __device__ __forceinline__ void start(const Forward& at, int first, int turn) {
      if (first < at.task.length) {
        const ForwardArgs& p = at.p;
        const Place c = at.task.place(first, RUN);
        Run& to = at.memory.run[turn];
        const int column = at.task.column, thread = threadIdx.x;
        v.start(to.v, p.v, c, column, p.D, 0.f, thread);
        f.start(to.f, p.f, c, column, p.D, absent_gate(p.f), thread);
        if constexpr (outputs) q.start(to.q, p.q, c, 0, p.K, 0.f, thread);
        k.start(to.k, p.k, c, 0, p.K, 0.f, thread);
        g.start(to.g, p.g, c, 0, p.K, absent_gate(p.g), thread);
      }
      commit_copies();
    }
    __device__ __forceinline__ void finish(const Forward& at, int turn) const {
      const ForwardArgs& p = at.p;
      Run& to = at.memory.run[turn];
      const int thread = threadIdx.x;
      v.finish(to.v, p.v, thread);
      f.finish_gates(to.f, p.f, thread);
      if constexpr (outputs) q.finish(to.q, p.q, thread);
      k.finish(to.k, p.k, thread);
      g.finish_gates(to.g, p.g, thread);
      wait_copies<0>();
    }
  };

  // Takes the patch through token t, y += S q_t.
  __device__ __forceinline__ static void advance(const Run& run, int t, Patch& S, float* y) {
    float v[4], f[4];
    load_four(&run.v[t][value()], v);
    load_four(&run.f[t][value()], f);
#pragma unroll
    for (int i = 0; i < PATCH_KEYS; i += 4) {
      float q[4], k[4], g[4];
      load_four(&run.k[t][key(i)], k);
      load_four(&run.g[t][key(i)], g);
      load_four(&run.q[t][key(i)], q);
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float& s = S[i + a][c];
          s = fmaf(f[c] * g[a], s, v[c] * k[a]);
          y[c] = fmaf(s, q[a], y[c]);
        }
    }
  }

  // Two tokens at once: eight sums over the eight lanes that share their values, added up while the next two go by.
  __device__ __forceinline__ void output(Patch& S, int turn) const {
    const int lane = threadIdx.x / 4 % 8;
    float* const to = &memory.y[turn][key_warp()][lane / 4][value() + lane % 4];
    float y[8] = {};
    advance(memory.run[turn], 0, S, y);
    advance(memory.run[turn], 1, S, y + 4);
#pragma unroll 1
    for (int t = 2; t < RUN; t += 2) {
      float next[8] = {};
      sum_over_lanes<8, 4, 1>(y);
      advance(memory.run[turn], t, S, next);
      advance(memory.run[turn], t + 1, S, next + 4);
      to[(t - 2) * VALUES] = y[0];
#pragma unroll
      for (int i = 0; i < 8; ++i) y[i] = next[i];
    }
    sum_over_lanes<8, 4, 1>(y);
    to[(RUN - 2) * VALUES] = y[0];
  }
  __device__ __forceinline__ void put_output(int first, int turn) const {
    const Place c = task.place(first, RUN);
#pragma unroll
    for (int i = threadIdx.x; i < RUN * VALUES / 4; i += FORWARD_THREADS) {
      const int t = i / (VALUES / 4), d = i % (VALUES / 4) * 4;
      const auto sum_of = [&](int warp) { return *reinterpret_cast<const float4*>(&memory.y[turn][warp][t][d]); };
      float4 y = sum_of(0);
#pragma unroll
      for (int warp = 1; warp < KEY_WARPS; ++warp) y = add(y, sum_of(warp));
      put_four<T>(p.y, c, t, task.column + d, p.D, y);
    }
  }

  __device__ __forceinline__ void save(Patch& S, int64_t number) const {
    const int64_t state = (task.sequence.checkpoint + number) * p.H + task.h, width = p.narrow ? SavedRow::width(p.K) : p.K;
    each(S, width, [&](float& x, int d, int j) {
      if (p.narrow) static_cast<T*>(p.checkpoints)[(state * p.D + d) * width + SavedRow::place(j)] = narrow<T>(x);
      else static_cast<float*>(p.checkpoints)[(state * p.K + j) * p.D + d] = x;
    });
  }

  __device__ __forceinline__ void fill_absent() const {
    for (Run& r : memory.run) {
      if (!p.f.width) fill<FORWARD_THREADS>(r.f, 1.f);
      if (!p.g.width) fill<FORWARD_THREADS>(r.g, 1.f);
    }
  }
  __device__ __forceinline__ void run(Patch& S) const {
    fill_absent();
    Coming<true> coming;
    coming.start(*this, 0, 0);
    const int interval = static_cast<int>(p.interval);
    int64_t number = max(task.segment.start - 1, 0) / interval;
    int next = p.checkpoints ? (static_cast<int>(number) + 1) * interval - task.segment.start : -1;
    int turn = 0;
    for (int first = 0; first < task.length; first += RUN, turn ^= 1) {
      coming.finish(*this, turn);
      __syncthreads();
      coming.start(*this, first + RUN, turn ^ 1);
      if (first) put_output(first - RUN, turn ^ 1);
      if (first == next) save(S, number++), next += interval;
      output(S, turn);
    }
    if (!task.length) return;
    __syncthreads();
    put_output((task.length - 1) / RUN * RUN, turn ^ 1);
  }

  // What the segment makes of a state of zero, and the products of its gates, from its last token on until they have faded
  // (decay_local.cuh).
  __device__ __forceinline__ void run_local(Patch& S, Patch& gates) const {
    fill_absent();
    each(gates, p.K, [](float& x, int, int) { x = 1.f; });
    Coming<false> coming;
    int turn = 0, first = (task.length + RUN - 1) / RUN * RUN - RUN;
    if (first >= 0) coming.start(*this, first, 0);
    for (; first >= 0; first -= RUN, turn ^= 1) {
      coming.finish(*this, turn);
      if (__syncthreads_and(Local::have_faded(gates))) break;
      if (first) coming.start(*this, first - RUN, turn ^ 1);
#pragma unroll 2
      for (int t = RUN - 1; t >= 0; --t) retreat(memory.run[turn], t, S, gates);
    }
  }
  // Token t; gates: of those behind it, and then with its own.
  __device__ __forceinline__ static void retreat(const Run& run, int t, Patch& S, Patch& gates) {
    float v[4], f[4];
    load_four(&run.v[t][value()], v);
    load_four(&run.f[t][value()], f);
#pragma unroll
    for (int i = 0; i < PATCH_KEYS; i += 4) {
      float k[4], g[4];
      load_four(&run.k[t][key(i)], k);
      load_four(&run.g[t][key(i)], g);
#pragma unroll
      for (int a = 0; a < 4; ++a)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float& gate = gates[i + a][c];
          add_to(S[i + a][c], gate, v[c] * k[a]);
          gate *= f[c] * g[a];
        }
    }
  }
};

template <class T, class G, int KP, bool outputs>
__global__ void __launch_bounds__(FORWARD_THREADS, 2) forward_kernel(const __grid_constant__ ForwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  using Work = Forward<T, G, KP>;
  const Task task = Task::of<!outputs>(p, blockIdx.x, Work::VALUES);
  if (!task.segment.count) return;
  const Work work{p, task, *reinterpret_cast<typename Work::Memory*>(memory)};
  typename Work::Patch S = {};
  if constexpr (outputs) {
    work.enter(S);
    work.run(S);
    if (task.segment.last()) work.store(S);
  } else {
    typename Work::Patch gates = {};
    work.run_local(S, gates);
    Work::Local::put(work.local(task.segment.number), threadIdx.x, S, gates);
  }
}

}  // namespace t2fw::cuda::plain
