// decay forward on tensor cores: a head's tokens by chunks of 16, its values by 64 a thread block, which holds their states of
// up to 128 keys.
//
// Warps of two kinds work in a thread block. `Inside` warps take the chunks in turn; what a chunk needs of itself does not
// depend on the state, so as many chunks are under way at once. A lane owns two neighbouring columns of all 16 tokens, so that
// products of gates never leave its registers. Pairs of tokens are split at their power-of-two boundary (recurrences.md): on
// the key side quarters go by hand and a level above them is a matrix product (scores.cuh), on the value side all are sums in
// fp32. The four `state` warps take the chunks in order: each holds 16 rows of the state in registers in the layout of a matrix
// product's result, which is at once the layout in which the next product reads it. The two kinds meet at a desk in shared
// memory, one for each inside warp: operands one way, what the entering state adds to y the other.
#pragma once

#include <algorithm>

#include "box.cuh"
#include "cluster.cuh"
#include "decay_local.cuh"
#include "forward.cuh"
#include "kernels.hpp"
#include "scores.cuh"

namespace t2fw::cuda {

// A block's keys: up to 64, or up to 128, whose scores it computes by itself or with another block of the head, each those of
// 64 keys for both (a pair: cluster.cuh).
enum class KeyPlan { FEW, MANY, PAIR };
template <KeyPlan kind>
inline constexpr int parts_of = kind == KeyPlan::FEW ? 1 : 2;  // of 64 keys

// Of a chunk and 64 keys: sinks and sources, q and k times the products of g up to and behind the token, as the state meets
// them, and their part of the scores.
template <class T>
struct alignas(16) ScoredKeys {
  T sinks[CHUNK][PITCH], sources[CHUNK][PITCH];
  float all_g[SLICE];  // products over the chunk
  float scores[CHUNK][CHUNK];
};

// What a chunk is worked on in: its operands as they came, in the order of the tokens, and what its warp, that of the other
// block of a pair, and the state warps hand each other.
template <class T, class G, KeyPlan kind>
struct alignas(128) Desk {
  T q[CHUNK][SLICE], k[CHUNK][SLICE];
  G g[CHUNK][SLICE];
  union {
    struct {
      T v[CHUNK][SLICE];
      G f[CHUNK][SLICE];
    };
    float y[CHUNK][PITCH];  // what the entering state adds, before the products of f
  };
  ScoredKeys<T> keys[parts_of<kind>];  // of the first 64 keys and of the others
  T values[CHUNK][PITCH];              // v times the products of f behind the token
  float all_f[SLICE];                  // products over the chunk
  Gate keys_here, values_here;         // q, k and g have come; v and f
  Gate full, done;                     // the chunk is ready for the state; the state has passed through
  Gate scores_here, sent;  // of a pair: the other block's part of the scores has come; it needs nothing it was sent any more
};

// The operands from a segment's first token on, so that a chunk's place is {0, 0, token, count}.
struct SegmentRows {
  Rows v, f, q, k, g, y;
  uint32_t key_bytes, value_bytes;  // of a whole chunk, that come in boxes
  bool keys_boxed, values_boxed;    // nothing of it comes otherwise

  // By one thread.
  template <class T, class G>
  __device__ __forceinline__ void place(const ForwardArgs& p, const Task& task) {
    const Place start = task.place(0, CHUNK);
    v = rows_from<T>(p.v, start), q = rows_from<T>(p.q, start), k = rows_from<T>(p.k, start), y = rows_from<T>(p.y, start);
    f = rows_from<G>(p.f, start), g = rows_from<G>(p.g, start);
    constexpr uint32_t data = CHUNK * SLICE * sizeof(T), gate = CHUNK * SLICE * sizeof(G);
    key_bytes = (q.boxed + k.boxed) * data + g.boxed * gate, value_bytes = v.boxed * data + f.boxed * gate;
    keys_boxed = q.boxed && k.boxed && (g.boxed || !g.width), values_boxed = v.boxed && (f.boxed || !f.width);
  }
};

// Chunks under way at once: two warps a scheduler beside its state warp, with up to 168 registers a thread, if an SM's
// memory has room for their desks. Three had the room for 16-bit gates, but with 128 registers they were slower: warps of a
// scheduler that are at different places of so long a loop wait for each other's instructions (bench/RESULTS.md).
template <class T, class G, KeyPlan kind>
inline constexpr int inside_warps =
    std::min<int>(8, (shared_memory - sizeof(SegmentRows) - sizeof(Task)) / sizeof(Desk<T, G, kind>));

// An inside warp. logits: the gates are given by them.
template <class T, class G, KeyPlan kind, bool logits>
struct Inside {
  const ForwardArgs& p;
  const Task& task;
  const SegmentRows& rows;
  using OwnDesk = Desk<T, G, kind>;
  OwnDesk& desk;

  // The part of the keys that this block scores, or scores first, and the other (of one part, the same).
  __device__ __forceinline__ int part() const { return kind == KeyPlan::PAIR ? pair_rank() : 0; }
  __device__ __forceinline__ ScoredKeys<T>& own() const { return desk.keys[part()]; }
  __device__ __forceinline__ ScoredKeys<T>& other() const { return desk.keys[parts_of<kind> - 1 - part()]; }
  __device__ __forceinline__ Place place(int first) const { return {0, 0, first, min(task.length - first, CHUNK)}; }

  // An operand's place on the desk, its rows and boxes, and what stands behind its last token.
  template <class E>
  struct Operand {
    E (&to)[CHUNK][SLICE];
    const Rows& rows;
    bool boxed;  // as in the rows, but known without a way to shared memory
    const Box& box;
    float absent;
  };
  // Starts to bring operands of a side, of a chunk of which nothing on the desk is needed any more. bytes, boxed: SegmentRows.
  template <class... E>
  __device__ __forceinline__ void stage(int first, int column, int columns, Gate& here, uint32_t bytes, bool boxed,
                                        const Operand<E>&... operands) const {
    if (first >= task.length) return;
    const bool whole = task.length - first >= CHUNK;
    if (!whole || !boxed) {
      const auto bring = [&](const auto& x) {
        if (!whole || !x.boxed)
          stage_elements<SLICE, true>(x.to, x.rows, place(first), column, columns, x.absent);
      };
      (bring(operands), ...);
      fence_boxes();
      __syncwarp();
    }
    if (whole && threadIdx.x % 32 == 0) {
      const BoxPlace from{column, task.begin + first, static_cast<int>(task.h), static_cast<int>(task.sequence.b)};
      const auto bring = [&](const auto& x) {
        if (x.boxed) bring_box(x.to, x.box, from, here);
      };
      here.expect(bytes);
      (bring(operands), ...);
    }
    here.arrive();
  }
  __device__ __forceinline__ void stage_keys(int first, int part) const {
    stage(first, part * SLICE, p.K, desk.keys_here, rows.key_bytes, rows.keys_boxed,
          Operand<T>{desk.q, rows.q, p.q.boxed, p.boxes.q, 0.f}, Operand<T>{desk.k, rows.k, p.k.boxed, p.boxes.k, 0.f},
          Operand<G>{desk.g, rows.g, p.g.boxed, p.boxes.g, absent_gate(p.g)});
  }
  __device__ __forceinline__ void stage_values(int first) const {
    stage(first, task.column, p.D, desk.values_here, rows.value_bytes, rows.values_boxed,
          Operand<T>{desk.v, rows.v, p.v.boxed, p.boxes.v, 0.f},
          Operand<G>{desk.f, rows.f, p.f.boxed, p.boxes.f, absent_gate(p.f)});
  }

  // y from inside the chunk; before: the products of f up to each token. v times the products behind onto the desk.
  __device__ __forceinline__ void values(float2 (&y)[CHUNK], float2 (&before)[CHUNK]) const {
    const int lane = fresh(threadIdx.x % 32);
    const auto& scores = other().scores;
    float2 z[CHUNK];
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      z[t] = widen(*reinterpret_cast<const Two<T>*>(&desk.v[t][2 * lane]));
      before[t] = rows.f.width ? gate<logits>(widen(*reinterpret_cast<const Two<G>*>(&desk.f[t][2 * lane])))
                               : float2{1.f, 1.f};
      y[t] = scores[t][t] * z[t];
    }
    spread<1>(scores, z, before, y);
    spread<2>(scores, z, before, y);
    spread<4>(scores, z, before, y);
    spread<8>(scores, z, before, y);
    put_values(z, before[CHUNK - 1]);
  }

  // Level l: the lower half of each group of 2l tokens adds to the upper half's y.
  template <int l>
  __device__ __forceinline__ static void spread(const float (&scores)[CHUNK][CHUNK], float2 (&z)[CHUNK],
                                                float2 (&before)[CHUNK], float2 (&y)[CHUNK]) {
#pragma unroll
    for (int first = 0; first < CHUNK; first += 2 * l) {
#pragma unroll
      for (int t = first + l; t < first + 2 * l; ++t) {
        float a[l];
        load_row<l>(&scores[t][first], a);
        float2 sum = a[0] * z[first];
#pragma unroll
        for (int s = 1; s < l; ++s) sum = fma(a[s], z[first + s], sum);
        y[t] = fma(before[t], sum, y[t]);
      }
      const float2 lower = before[first + l - 1], upper = before[first + 2 * l - 1];
#pragma unroll
      for (int t = first; t < first + l; ++t) {
        z[t] = z[t] * upper;
        before[t + l] = before[t + l] * lower;
      }
    }
  }

  template <int n>
  __device__ __forceinline__ static void load_row(const float* from, float (&a)[n]) {
    if constexpr (n == 1) a[0] = *from;
    else if constexpr (n == 2) *reinterpret_cast<float2*>(a) = *reinterpret_cast<const float2*>(from);
    else
#pragma unroll
      for (int s = 0; s < n; s += 4) *reinterpret_cast<float4*>(a + s) = *reinterpret_cast<const float4*>(from + s);
  }

  __device__ __forceinline__ void put_values(const float2 (&z)[CHUNK], float2 all) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) *reinterpret_cast<Two<T>*>(&desk.values[row_of(t)][2 * lane]) = narrow<T>(z[t]);
    *reinterpret_cast<float2*>(&desk.all_f[2 * lane]) = all;
  }

  // Whether the next chunk's keys are asked for as soon as q, k and g have been read, or when the state has been told of this
  // chunk: by measurement.
  static constexpr bool keys_early = kind != KeyPlan::PAIR && sizeof(G) == 2 && !logits;

  __device__ __forceinline__ void score(ScoredKeys<T>& to, uint32_t round) const {
    desk.keys_here.wait(round % 2);
    gated_scores<logits>(desk.q, desk.k, desk.g, to.sinks, to.sources, to.all_g, to.scores);
  }
  // The chunk's scores, where `other` is. next: the chunk whose keys are asked for then; there: the other block's desk.
  __device__ __forceinline__ void scores(int first, int next, uint32_t round, uint32_t there) const {
    if constexpr (kind == KeyPlan::MANY) {
#pragma unroll 1
      for (int i = 0; i < 2; ++i) {
        score(desk.keys[i], i);
        if (keys_early || i == 0) stage_keys(i ? next : first, !i);
      }
    } else {
      score(own(), round);
      if (keys_early) stage_keys(next, part());
      if (kind == KeyPlan::PAIR) exchange(round, there);
    }
    if constexpr (kind != KeyPlan::FEW) add_scores();
  }
  // Sends what this block has scored to the other, and waits for the scores that come from there; the state waits for the rest.
  __device__ __forceinline__ void exchange(uint32_t round, uint32_t there) const {
    constexpr uint32_t operands = offsetof(ScoredKeys<T>, scores), rest = sizeof(ScoredKeys<T>) - operands;
    const uint32_t to = there + offsetof(OwnDesk, keys) + part() * sizeof own();
    fence_boxes();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      copy_to_other(to + operands, own().scores, rest, there + offsetof(OwnDesk, scores_here));
      copy_to_other(to, &own(), operands, there + offsetof(OwnDesk, full));
      desk.scores_here.expect(rest);
      desk.full.expect(operands);
    }
    desk.scores_here.arrive();
    desk.scores_here.wait(round % 2);
  }
  // Of both parts. A sum of two has the same bits whichever block adds.
  __device__ __forceinline__ void add_scores() const {
    const int t = threadIdx.x % 32 / 2, s = threadIdx.x % 2 * 8;
    auto* const sum = reinterpret_cast<float4*>(&other().scores[t][s]);
    const auto* const part = reinterpret_cast<const float4*>(&own().scores[t][s]);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 x = sum[i], z = part[i];
      sum[i] = {x.x + z.x, x.y + z.y, x.z + z.z, x.w + z.w};
    }
    __syncwarp();
  }

  __device__ __forceinline__ void store_output(int first, const float2 (&y)[CHUNK], const float2 (&before)[CHUNK]) const {
    const int lane = threadIdx.x % 32, c = task.column + 2 * lane;
    const Place chunk = place(first);
    const int64_t next = rows.y.t;
    T* to = const_cast<T*>(at<T>(rows.y, chunk, 0, c));
    const auto sum = [&](int t) { return fma(before[t], *reinterpret_cast<const float2*>(&desk.y[t][2 * lane]), y[t]); };
    if (copied(rows.y, chunk)) {
      if (c >= p.D) return;
#pragma unroll
      for (int t = 0; t < CHUNK; ++t, to += next) store_pair(to, bits(narrow<T>(sum(t))));
    } else {
#pragma unroll
      for (int t = 0; t < CHUNK; ++t, to += next) {
        if (t >= chunk.count) return;
        if (c < p.D) to[0] = narrow<T>(sum(t).x);
        if (c + 1 < p.D) to[1] = narrow<T>(sum(t).y);
      }
    }
  }

  __device__ __forceinline__ void run(int warp) const {
    constexpr int stride = inside_warps<T, G, kind> * CHUNK;
    if (!rows.g.width) fill<SLICE>(desk.g, absent_gate(rows.g));  // nothing is brought there
    fence_boxes();  // the barriers, too, are ready for boxes
    __syncwarp();
    stage_keys(warp * CHUNK, part());
    stage_values(warp * CHUNK);
    uint32_t chunks = 0;  // done by this warp
    constexpr bool paired = kind == KeyPlan::PAIR;
    const uint32_t there = paired ? other_address(&desk) : 0;
    for (int first = warp * CHUNK; first < task.length; first += stride) {
      float2 y[CHUNK], before[CHUNK];
      if (paired && chunks) wait_for_other(desk.sent, (chunks - 1) % 2);
      scores(first, first + stride, chunks, there);
      desk.values_here.wait(chunks % 2);
      values(y, before);
      desk.full.arrive();  // what follows takes time that the state needs
      if (!keys_early) stage_keys(first + stride, part());
      desk.done.wait(chunks++ % 2);
      fence_boxes();  // v and f come to where the state warps have written; here it waits for no store to global memory
      if (paired) arrive_at_other(there + offsetof(OwnDesk, sent));
      store_output(first, y, before);
      __syncwarp();
      stage_values(first + stride);
    }
  }
};

// Where a lane finds its row of a chunk's first 16 columns as a left operand.
template <class T, int P>
__device__ __forceinline__ uint32_t left_row(const T (&rows)[CHUNK][P], int lane) {
  return shared_address(&rows[row_of(lane % 16)][lane / 16 * 8]);
}

// A state warp: 16 rows.
template <class T, class G, KeyPlan kind>
struct State {
  using Desk = cuda::Desk<T, G, kind>;
  static constexpr int turns = inside_warps<T, G, kind>, parts = parts_of<kind>;
  using Rows = StateRows<T, SLICE>[parts];
  const ForwardArgs& p;
  const Task& task;
  Desk* desks;
  int warp;

  __device__ __forceinline__ int first_row() const { return task.column + warp * 16; }

  // desk.y = S q_t, without the products of f.
  __device__ __forceinline__ void output(Desk& desk, const Rows& rows) const {
    const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4 * 2, d = warp * 16;
    float y[2][2][4] = {};  // even and odd slabs apart: two chains of products
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      const uint32_t row = left_row(desk.keys[part].sinks, lane);
      const auto& S = rows[part].S;
#pragma unroll
      for (int i = 0; i < SLICE / 16; ++i) {
        uint32_t q[4];
        load_matrices(q, row + i * 16 * sizeof(T));
        const auto low = [&](int n) { return bits(narrow<T>(float2{S[n][0], S[n][1]})); };
        const auto high = [&](int n) { return bits(narrow<T>(float2{S[n][2], S[n][3]})); };
        multiply_add<T>(y[i % 2][0], q, low(2 * i), low(2 * i + 1));
        multiply_add<T>(y[i % 2][1], q, high(2 * i), high(2 * i + 1));
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const auto sum = [&](int e) { return y[0][n][e] + y[1][n][e]; };
      *reinterpret_cast<float2*>(&desk.y[g][d + n * 8 + j]) = {sum(0), sum(1)};
      *reinterpret_cast<float2*>(&desk.y[g + 8][d + n * 8 + j]) = {sum(2), sum(3)};
    }
  }

  // to: where the head's state is saved; of narrow ones this lane's first piece.
  __device__ __forceinline__ void save_narrow(Rows& rows, T* to) const {
    const int lane = threadIdx.x % 32, d = first_row() + lane / 4, key = lane % 4 * SavedRow::PIECE, width = saved_row();
#pragma unroll
    for (int part = 0; part < parts; ++part)
      rows[part].pieces([&](uint4 piece, int row, int at) {
        at += part * SLICE;
        store_line_if(d + row < p.D && key + at < width, to + row * width + at, piece);
      });
  }
  __device__ __forceinline__ void save_wide(Rows& rows, float* to) const {
#pragma unroll
    for (int part = 0; part < parts; ++part)
      rows[part].each(first_row(), part * SLICE, p.D, p.K,
                      [&](float& s, int d, int key) { to[int64_t{key} * p.D + d] = s; });
  }
  __device__ __forceinline__ int saved_row() const { return static_cast<int>(SavedRow::width(p.K)); }

  // What a segment leaves of the keys from 64 part on.
  __device__ __forceinline__ float* local(int segment, int part) const {
    return task.local(p, parts * TileLocal::FLOATS) + (int64_t{segment} * task.slices * parts + part) * TileLocal::FLOATS;
  }
  // The state before the segment.
  __device__ __forceinline__ void enter(Rows& rows) const {
    const Segment& segment = task.segment;
    const int thread = warp * 32 + threadIdx.x % 32;
    const bool handed = p.shares && segment.number;
    if (handed) wait_for(task.handed(p) + warp, 1);
    else if (segment.number) wait_for_launch();
#pragma unroll
    for (int part = 0; part < parts; ++part) {
      StateRows<T, SLICE>& state = rows[part];
      if (handed) {
        TileLocal::get_state(local(0, part), thread, state.S);
      } else {
        state.load(p.initial_state, task.sequence.n, task.h, first_row(), part * SLICE, p.D, p.K);
        for (int s = 0; s < segment.number; ++s) TileLocal::pass(local(s, part), thread, state.S);  // always in this order
      }
    }
  }
  // The state behind the first segment of a head that is cut in two, for the other.
  __device__ __forceinline__ void hand_over(Rows& rows) const {
#pragma unroll
    for (int part = 0; part < parts; ++part)
      TileLocal::put_state(local(0, part), warp * 32 + threadIdx.x % 32, rows[part].S);
    tell(task.handed(p) + warp, 1);
  }

  // Takes the state through a chunk.
  __device__ __forceinline__ void pass(Desk& desk, Rows& rows, uint32_t round) const {
    typename StateRows<T, SLICE>::Values values;
    typename StateRows<T, SLICE>::Keys keys[parts];
    desk.full.wait(round);
    values.load(desk.values, desk.all_f, warp * 16);
#pragma unroll
    for (int part = 0; part < parts; ++part) keys[part].load(desk.keys[part].sources, desk.keys[part].all_g, 0);
    output(desk, rows);
    desk.done.arrive();
#pragma unroll
    for (int part = 0; part < parts; ++part) rows[part].apply(values, keys[part]);
  }

  __device__ __forceinline__ void run() const {
    Rows rows;
    const Segment& segment = task.segment;
    enter(rows);
    const int interval = static_cast<int>(p.interval);
    const int64_t number = max(segment.start - 1, 0) / interval, slot = (task.sequence.checkpoint + number) * p.H + task.h;
    int next = p.checkpoints ? (static_cast<int>(number) + 1) * interval - segment.start : -1;
    const int lane = threadIdx.x % 32, row = p.narrow ? saved_row() : p.K;
    // where the next state is saved, if states are narrow and if they are not
    T* narrow = static_cast<T*>(p.checkpoints) + slot * p.D * row + (first_row() + lane / 4) * row + lane % 4 * SavedRow::PIECE;
    float* wide = static_cast<float*>(p.checkpoints) + slot * p.D * row;
    const int64_t apart = p.H * p.D * row;
    int turn = 0;
    uint32_t round = 0;
    for (int first = 0; first < task.length; first += CHUNK) {
      if (first == next) {
        if (p.narrow) save_narrow(rows, narrow);
        else save_wide(rows, wide);
        narrow += apart, wide += apart, next += interval;
      }
      pass(desks[turn], rows, round);
      if (++turn == turns) turn = 0, round ^= 1;
    }
    if (!segment.last()) {
      if (p.shares) hand_over(rows);
      return;
    }
#pragma unroll
    for (int part = 0; part < parts; ++part)
      rows[part].store(p.final_state, task.sequence.n, task.h, first_row(), part * SLICE, p.D, p.K);
  }
};

template <class T, class G, KeyPlan kind, bool logits>
__global__ void __launch_bounds__(32 * (inside_warps<T, G, kind> + STATE_WARPS), 1)
    decay_forward_kernel(const __grid_constant__ ForwardArgs p) {
  extern __shared__ __align__(128) char memory[];
  constexpr int inside = inside_warps<T, G, kind>;
  auto* const desks = reinterpret_cast<Desk<T, G, kind>*>(memory);
  const int warp = warp_number();
  __shared__ Task found;
  __shared__ SegmentRows rows;
  if (threadIdx.x == 32 * inside) {
    found = Task::of<false>(p, blockIdx.x, SLICE);
    rows.place<T, G>(p, found);
  }
  if (threadIdx.x < inside) {
    auto& desk = desks[threadIdx.x];
    for (Gate* gate : {&desk.keys_here, &desk.values_here, &desk.full, &desk.scores_here, &desk.sent}) gate->init(1);
    desk.done.init(STATE_WARPS);
  }
  if constexpr (kind == KeyPlan::PAIR) sync_pair();
  else __syncthreads();
  const Task task = found.of_warp();
  if (p.local && !task.segment.count) wait_for_launch();  // so that this kernel never ends before `local`
  if (!task.segment.count) return;
  const auto run_inside = [&] { Inside<T, G, kind, logits>{p, task, rows, desks[warp]}.run(warp); };
  const auto run_state = [&] { State<T, G, kind>{p, task, desks, warp - inside}.run(); };
  // Whose machine code comes first: by measurement.
  if constexpr (kind == KeyPlan::FEW) {
    if (warp >= inside) run_state();
    else run_inside();
  } else {
    if (warp < inside) run_inside();
    else run_state();
  }
  if constexpr (kind == KeyPlan::PAIR) sync_pair();  // until then the other block may send
}

template <class T, class G, int parts>
__global__ void __launch_bounds__(local_threads<parts>, 1) decay_forward_local_kernel(const __grid_constant__ ForwardArgs p) {
  extern __shared__ __align__(128) char memory[];
  using Pass = LocalPass<T, G, parts, false>;
  auto& local = *reinterpret_cast<typename Pass::Memory*>(memory);
  const Task task = Task::of<true>(p, blockIdx.x, SLICE);
  let_next_start();
  if (!task.segment.count) return;
  if (threadIdx.x == 0) {
    const Place start = task.place(0, CHUNK);
    local.side[0] = {rows_from<T>(p.v, start), rows_from<G>(p.f, start), task.column, p.D};
    for (int part = 0; part < parts; ++part)
      local.side[1 + part] = {rows_from<T>(p.k, start), rows_from<G>(p.g, start), part * SLICE, p.K};
  }
  constexpr int floats = parts * TileLocal::FLOATS;
  Pass{local, task.length}.run(task.local(p, floats) + int64_t{task.segment.number} * task.slices * floats);
}

}  // namespace t2fw::cuda
