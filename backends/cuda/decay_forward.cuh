// decay forward on tensor cores: a head's state by tiles of 64 values by 64 keys, its tokens by chunks of 16. A tile's outputs
// are a sum over its keys; where there are more keys, a tile adds to what the one before left.
//
// Warps of two kinds work on a thread block's tile. `Inside` warps take the chunks in turn; what a chunk needs of
// itself does not depend on the state, so as many chunks are under way at once. A lane owns two neighbouring columns of
// all 16 tokens, so that products of gates never leave its registers. Pairs of tokens are split at their power-of-two
// boundary (recurrences.md): on the key side quarters go by hand and a level above them is a matrix product (scores.cuh), on
// the value side all are sums in fp32. The four `state` warps take the chunks in order: each holds 16 rows of the state in
// registers in the layout of a matrix product's result, which is at once the layout in which the next product reads it. The
// two kinds meet at a desk in shared memory, one for each inside warp: operands one way, what the entering state adds to y the
// other.
#pragma once

#include <algorithm>

#include "box.cuh"
#include "decay_local.cuh"
#include "forward.cuh"
#include "kernels.hpp"
#include "scores.cuh"

namespace t2fw::cuda {

// What a chunk is worked on in: its operands as they came, in the order of the tokens, and what its warp and the state warps
// hand each other.
template <class T, class G>
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
  T sinks[CHUNK][PITCH], sources[CHUNK][PITCH];  // q, k times the products of g up to and behind the token
  union {
    T values[CHUNK][PITCH];  // v times the products of f behind the token
    float scores[CHUNK][CHUNK];
  };
  T earlier[CHUNK][SLICE];  // y as the tile of the keys before left it
  float all_f[SLICE], all_g[SLICE];  // products over the chunk
  Gate keys_here, values_here;  // q, k and g have come; v and f
  Gate full, done;              // the chunk is ready for the state; the state has passed through
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
template <class T, class G>
inline constexpr int inside_warps = std::min<int>(8, (shared_memory - sizeof(SegmentRows)) / sizeof(Desk<T, G>));

// An inside warp. tiles: the head has others, of other keys, that have parts in y. logits: the gates are given by them.
template <class T, class G, bool tiles, bool logits>
struct Inside {
  const ForwardArgs& p;
  const Task& task;
  const SegmentRows& rows;
  Desk<T, G>& desk;

  __device__ __forceinline__ int key() const { return tiles ? task.key : 0; }
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
          stage_elements<SLICE, false, true>(x.to, x.rows, place(first), column, columns, x.absent);
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
  __device__ __forceinline__ void stage_keys(int first) const {
    stage(first, key(), p.K, desk.keys_here, rows.key_bytes, rows.keys_boxed,
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
    float2 z[CHUNK];
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      z[t] = widen(*reinterpret_cast<const Two<T>*>(&desk.v[t][2 * lane]));
      before[t] = rows.f.width ? gate<logits>(widen(*reinterpret_cast<const Two<G>*>(&desk.f[t][2 * lane])))
                               : float2{1.f, 1.f};
      y[t] = desk.scores[t][t] * z[t];
    }
    spread<1>(z, before, y);
    spread<2>(z, before, y);
    spread<4>(z, before, y);
    spread<8>(z, before, y);
    __syncwarp();
    put_values(z, before[CHUNK - 1]);
  }

  // Level l: the lower half of each group of 2l tokens adds to the upper half's y.
  template <int l>
  __device__ __forceinline__ void spread(float2 (&z)[CHUNK], float2 (&before)[CHUNK], float2 (&y)[CHUNK]) const {
#pragma unroll
    for (int first = 0; first < CHUNK; first += 2 * l) {
#pragma unroll
      for (int t = first + l; t < first + 2 * l; ++t) {
        float a[l];
        load_row<l>(&desk.scores[t][first], a);
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

  // Starts to bring the outputs that the tile of the keys before has left. chunks: how many, with this one, its warp has done.
  __device__ __forceinline__ void stage_earlier(int first, uint32_t chunks) const {
    const int slices = (p.D + SLICE - 1) / SLICE;
    wait_for(told(slices * p.segments), chunks);
    cuda::stage<SLICE, true>(desk.earlier, rows.y, place(first), task.column, p.D, 0.f);
    commit_copies();
  }
  // Where this warp of the thread block `back` before this one tells how many chunks it has done.
  __device__ __forceinline__ uint32_t* told(int back) const {
    return p.written + (int64_t{task.block} - back) * inside_warps<T, G> + threadIdx.x / 32;
  }

  // That this warp has stored the outputs of so many chunks, if a tile of later keys adds to them. Waits until they have
  // arrived.
  __device__ __forceinline__ void tell_done(uint32_t chunks) const {
    if (key() + SLICE < p.K) tell(told(0), chunks);
  }

  __device__ __forceinline__ void store_output(int first, const float2 (&y)[CHUNK], const float2 (&before)[CHUNK]) const {
    const int lane = threadIdx.x % 32, c = task.column + 2 * lane;
    const Place chunk = place(first);
    const int64_t next = rows.y.t;
    T* to = const_cast<T*>(at<T>(rows.y, chunk, 0, c));
    const bool adds = tiles && key();
    const auto sum = [&](int t) {
      const float2 own = fma(before[t], *reinterpret_cast<const float2*>(&desk.y[t][2 * lane]), y[t]);
      return adds ? own + widen(*reinterpret_cast<const Two<T>*>(&desk.earlier[row_of(t)][2 * lane])) : own;
    };
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
    constexpr int stride = inside_warps<T, G> * CHUNK;
    if (!rows.g.width) fill<SLICE>(desk.g, absent_gate(rows.g));  // nothing is brought there
    fence_boxes();  // the barriers, too, are ready for boxes
    __syncwarp();
    stage_keys(warp * CHUNK);
    stage_values(warp * CHUNK);
    uint32_t chunks = 0;  // done by this warp
    for (int first = warp * CHUNK; first < task.length; first += stride) {
      float2 y[CHUNK], before[CHUNK];
      desk.keys_here.wait(chunks % 2);
      gated_scores<logits>(desk.q, desk.k, desk.g, desk.sinks, desk.sources, desk.all_g, desk.scores);
      __syncwarp();
      desk.values_here.wait(chunks % 2);
      values(y, before);
      desk.full.arrive();  // what follows takes time that the state needs
      if (tiles && chunks) tell_done(chunks);  // of the chunk before: its stores have had time to arrive
      if (tiles && key()) stage_earlier(first, chunks + 1);
      stage_keys(first + stride);
      desk.done.wait(chunks++ % 2);
      fence_boxes();  // v and f come to where the state warps have written; here it waits for no store to global memory
      if (tiles) wait_copies<0>();
      store_output(first, y, before);
      __syncwarp();
      stage_values(first + stride);
    }
    if (tiles && chunks) tell_done(chunks);
  }
};

// Where a lane finds its row of a chunk's first 16 columns as a left operand.
template <class T, int P>
__device__ __forceinline__ uint32_t left_row(const T (&rows)[CHUNK][P], int lane) {
  return shared_address(&rows[row_of(lane % 16)][lane / 16 * 8]);
}

// A state warp. tiles: as above.
template <class T, class G, bool tiles>
struct State {
  using Desk = cuda::Desk<T, G>;
  using Rows = StateRows<T, SLICE>;
  static constexpr int turns = inside_warps<T, G>;
  const ForwardArgs& p;
  const Task& task;
  Desk* desks;
  int warp;

  __device__ __forceinline__ int key() const { return tiles ? task.key : 0; }
  __device__ __forceinline__ float* local(int segment) const { return task.local(p, TileLocal::FLOATS, segment); }

  // desk.y = S q_t, without the products of f.
  __device__ __forceinline__ void output(Desk& desk, const Rows& rows) const {
    const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4 * 2, d = warp * 16;
    const uint32_t row = left_row(desk.sinks, lane);
    const auto& S = rows.S;
    float y[2][2][4] = {};  // even and odd slabs apart: two chains of products
#pragma unroll
    for (int i = 0; i < SLICE / 16; ++i) {
      uint32_t q[4];
      load_matrices(q, row + i * 16 * sizeof(T));
      const auto low = [&](int n) { return bits(narrow<T>(float2{S[n][0], S[n][1]})); };
      const auto high = [&](int n) { return bits(narrow<T>(float2{S[n][2], S[n][3]})); };
      multiply_add<T>(y[i % 2][0], q, low(2 * i), low(2 * i + 1));
      multiply_add<T>(y[i % 2][1], q, high(2 * i), high(2 * i + 1));
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const auto sum = [&](int e) { return y[0][n][e] + y[1][n][e]; };
      *reinterpret_cast<float2*>(&desk.y[g][d + n * 8 + j]) = {sum(0), sum(1)};
      *reinterpret_cast<float2*>(&desk.y[g + 8][d + n * 8 + j]) = {sum(2), sum(3)};
    }
  }

  __device__ __forceinline__ void save(Rows& rows, int64_t number) const {
    const int first_row = task.column + warp * 16, width = static_cast<int>(SavedRow::width(p.K));
    if (p.narrow) {
      T* const saved = static_cast<T*>(p.checkpoints) + number * p.D * width;
      rows.pieces(first_row, key(), [&](uint4 piece, int d, int at) {
        if (d < p.D && at < width) *reinterpret_cast<uint4*>(&saved[d * width + at]) = piece;
      });
    } else {
      float* const saved = static_cast<float*>(p.checkpoints) + number * p.D * p.K;
      rows.each(first_row, key(), p.D, p.K, [&](float& s, int d, int key) { saved[int64_t{key} * p.D + d] = s; });
    }
  }

  __device__ __forceinline__ void run() const {
    const int first_row = task.column + warp * 16, thread = warp * 32 + threadIdx.x % 32;
    Rows rows;
    const Segment& segment = task.segment;
    if (p.local) wait_for_launch();
    if (segment.count > 1) TileLocal::get(local(segment.count - 1), thread, rows.S);
    else rows.load(p.initial_state, task.sequence.n, task.h, first_row, key(), p.D, p.K);
    for (int s = 0; s < segment.number; ++s) TileLocal::pass(local(s), thread, rows.S);  // always in this order
    const int interval = static_cast<int>(p.interval);
    int64_t number = max(segment.start - 1, 0) / interval;
    int next = p.checkpoints ? (static_cast<int>(number) + 1) * interval - segment.start : -1;
    int turn = 0;
    uint32_t round = 0;
    for (int first = 0; first < task.length; first += CHUNK) {
      if (first == next) {
        save(rows, (task.sequence.checkpoint + number++) * p.H + task.h);
        next += interval;
      }
      Desk& desk = desks[turn];
      typename Rows::Values values;
      typename Rows::Keys keys;
      desk.full.wait(round);
      values.load(desk.values, desk.all_f, warp * 16), keys.load(desk.sources, desk.all_g, 0);
      output(desk, rows);
      desk.done.arrive();
      rows.apply(values, keys);
      if (++turn == turns) turn = 0, round ^= 1;
    }
    if (segment.last()) rows.store(p.final_state, task.sequence.n, task.h, first_row, key(), p.D, p.K);
  }
};

template <class T, class G, bool tiles, bool logits>
__global__ void __launch_bounds__(32 * (inside_warps<T, G> + STATE_WARPS), 1)
    decay_forward_kernel(const __grid_constant__ ForwardArgs p) {
  extern __shared__ __align__(128) char memory[];
  constexpr int inside = inside_warps<T, G>;
  auto* const desks = reinterpret_cast<Desk<T, G>*>(memory);
  __shared__ int number;
  if (tiles && threadIdx.x == 0) number = started(p.started);
  if (tiles) __syncthreads();
  const Task task = Task::of<true>(p, tiles ? number : blockIdx.x, SLICE, SLICE);
  const int warp = warp_number();
  if (p.local && !task.segment.count) wait_for_launch();  // so that this kernel never ends before `local`
  if (!task.segment.count) return;
  __shared__ SegmentRows rows;
  if (threadIdx.x == 32 * inside) rows.place<T, G>(p, task);
  if (threadIdx.x < inside) {
    desks[threadIdx.x].full.init(1);
    desks[threadIdx.x].done.init(STATE_WARPS);
    desks[threadIdx.x].keys_here.init(1);
    desks[threadIdx.x].values_here.init(1);
  }
  __syncthreads();
  if (warp < inside) {
    Inside<T, G, tiles, logits>{p, task, rows, desks[warp]}.run(warp);
  } else {
    State<T, G, tiles>{p, task, desks, warp - inside}.run();
  }
}

template <class T, class G>
__global__ void __launch_bounds__(LOCAL_THREADS, 1) decay_forward_local_kernel(const __grid_constant__ ForwardArgs p) {
  extern __shared__ __align__(128) char memory[];
  auto& local = *reinterpret_cast<LocalMemory<T, G>*>(memory);
  const Task task = Task::of<false>(p, blockIdx.x, SLICE, SLICE);
  let_next_start();
  if (!task.segment.count) return;
  float* const to = task.local(p, TileLocal::FLOATS, task.segment.number);
  // Nobody continues from the last one: in its place the initial state is kept, which final_state may overwrite.
  if (task.segment.last()) {
    const int warp = threadIdx.x / 32;
    StateRows<T, SLICE> state;
    if (warp >= STATE_WARPS) return;
    state.load(p.initial_state, task.sequence.n, task.h, task.column + warp * 16, task.key, p.D, p.K);
    TileLocal().put(to, threadIdx.x, state.S);
    return;
  }
  if (threadIdx.x == 0) {
    const Place start = task.place(0, CHUNK);
    local.side[0] = {rows_from<T>(p.v, start), rows_from<G>(p.f, start), task.column, p.D};
    local.side[1] = {rows_from<T>(p.k, start), rows_from<G>(p.g, start), task.key, p.K};
  }
  LocalPass<T, G, false>{local, task.length}.run(to);
}

}  // namespace t2fw::cuda
