// decay backward on tensor cores: a thread block takes a head's tokens (or a segment of them) from the last to the first,
// by blocks of four chunks of 16 tokens. Its state is one tile of 64 values by 64 keys; every gradient of a side is a sum
// over the other side's tiles, so the blocks of a head's tiles are a cluster and read each other's part of it.
//
// The two sides are the same function with their arguments swapped (recurrences.md): on the value side the sources,
// gates and sinks are v, f, d_y, on the key side k, g, q. A block goes in three steps, a barrier of all warps between them:
//   1. a warp for each side of each chunk: the scores of its pairs, and its sinks and sources as the state meets them;
//   2. eight warps take the state S through the chunks, from what forward saved; eight take its gradient R the other way.
//      What a chunk meets of both is left in shared memory;
//   3. two warps for each side of each chunk, for half of its columns each: chunk_gradients.cuh.
#pragma once

#include "chunk_gradients.cuh"

namespace t2fw::cuda {

// A thread block at work on its head.
template <class T, class G>
struct HeadBackward : ChunkGradients<T, G> {
  using Base = ChunkGradients<T, G>;
  using typename Base::Desk;
  using Base::memory, Base::first_value, Base::first_key;
  using State = StateRows<T, HALF_SLICE>;
  using Local = cuda::Local<State::N, 32 * SWEEP_WARPS>;
  const BackwardArgs& p;
  int n, h;
  Sequence sequence;

  __device__ __forceinline__ Place place(int64_t first) const {
    const int64_t left = sequence.length - first;
    return {0, 0, first, static_cast<int>(left < 0 ? 0 : left < CHUNK ? left : CHUNK)};
  }
  // By two threads: memory.side.
  __device__ __forceinline__ void place_side(int number) const {
    SideArgs& s = memory.side[number];
    s = p.side[number];
    const Place start{sequence.b, h, sequence.begin, 0};
    for (Rows* x : {&s.z, &s.x, &s.d_z, &s.d_x}) x->data = at<T>(*x, start, 0, 0);
    for (Rows* x : {&s.a, &s.d_a}) x->data = at<G>(*x, start, 0, 0);
  }

  // By both warps of a desk, when neither needs what is there.
  __device__ __forceinline__ void stage_desk(int block, Need need, int number, bool second) const {
    const SideArgs& s = memory.side[number % 2];
    Desk& desk = memory.desk[number];
    const Place c = place(int64_t{block} * BLOCK + number / 2 * CHUNK);
    const int column = this->first_column(number % 2);
    if (second) {
      if (need != Need::sinks) stage<SLICE>(desk.z, s.z, c, column, s.width, 0.f);
    } else {
      if (need != Need::sources) stage<SLICE>(desk.x, s.x, c, column, s.width, 0.f);
      stage<SLICE>(desk.a, s.a, c, column, s.width, 1.f);
    }
    commit_copies();
  }

  // Asks for an item's operands of desk `number`, so that they are in the L2 cache when they are staged.
  __device__ __forceinline__ void fetch(int block, Need need, int number) const {
    const SideArgs& s = memory.side[number % 2];
    const Place c = place(int64_t{block} * BLOCK + number / 2 * CHUNK);
    const int lane = threadIdx.x % 32, t = lane % CHUNK, column = this->first_column(number % 2);
    if (t >= c.count) return;
    if (lane < CHUNK ? s.z.whole : s.x.whole && need == Need::all) fetch_line(at<T>(lane < CHUNK ? s.z : s.x, c, t, column));
    constexpr int lines = sizeof(G) / 2;
    if (s.a.whole && lane / CHUNK < lines) fetch_line(at<G>(s.a, c, t, column + lane / CHUNK * (SLICE / 2)));
  }

  // Step 1.
  __device__ __forceinline__ void prepare(Desk& desk, Need need) const {
    const int column = 2 * (threadIdx.x % 32);
    if (need == Need::all) {
      gated_scores<SLICE>(desk.x, desk.z, desk.a, desk.sinks, desk.sources, desk.all, desk.scores);
      desk.pairs[threadIdx.x % 32] = pair_up<T>(desk.scores, threadIdx.x % 32);
    } else {
      const float2 all = need == Need::sources ? scale_sources(desk.z, desk.a, true, desk.sources, column)
                                               : scale_sinks(desk.x, desk.a, desk.sinks, column);
      *reinterpret_cast<float2*>(&desk.all[column]) = all;
    }
  }

  // Where the state of a warp lies in its tile: of those that carry S or those that carry R.
  __device__ __forceinline__ static int row_of_warp(int warp) { return warp % 4 * 16; }
  __device__ __forceinline__ static int key_of_warp(int warp) { return warp / 4 % 2 * HALF_SLICE; }

  __device__ __forceinline__ static void leave(T (&to)[SLICE][PITCH], const State& state, int warp) {
    const int lane = threadIdx.x % 32;
    const uint32_t row = shared_address(&to[row_of_warp(warp) + lane % 16][key_of_warp(warp) + lane / 16 * 8]);
#pragma unroll
    for (int i = 0; i < State::N; i += 2) {
      const auto two = [&](int n, int e) { return bits(narrow<T>(float2{state.S[n][e], state.S[n][e + 1]})); };
      store_matrices(row + i * 16, {two(i, 0), two(i, 2), two(i + 1, 0), two(i + 1, 2)});
    }
  }

  // R of a warp that carries it.
  __device__ __forceinline__ void park(const State& R, int warp) const {
#pragma unroll
    for (int i = 0; i < State::N * 4; ++i) memory.gradient[warp % SWEEP_WARPS][i][threadIdx.x % 32] = R.S[i / 4][i % 4];
  }
  __device__ __forceinline__ State parked(int warp) const {
    State R;
#pragma unroll
    for (int i = 0; i < State::N * 4; ++i) R.S[i / 4][i % 4] = memory.gradient[warp % SWEEP_WARPS][i][threadIdx.x % 32];
    return R;
  }

  // Step 2 by the warps that hold S: through the chunks of a block.
  __device__ __forceinline__ void forth(State& S, int warp, bool keep) const {
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const Desk &value = memory.desk[2 * chunk], &key = memory.desk[2 * chunk + 1];
      typename State::Update update;
      update.load(value.sources, key.sources, value.all, key.all, row_of_warp(warp), key_of_warp(warp));
      if (keep) leave(memory.S[chunk], S, warp);
      S.apply(update);
    }
  }
  // By those that hold R: backward through them.
  __device__ __forceinline__ void back(State& R, int warp, bool keep, Local* local) const {
#pragma unroll 1
    for (int chunk = CHUNKS - 1; chunk >= 0; --chunk) {
      const Desk &value = memory.desk[2 * chunk], &key = memory.desk[2 * chunk + 1];
      typename State::Update update;
      update.load(value.sinks, key.sinks, value.all, key.all, row_of_warp(warp), key_of_warp(warp));
      if (keep) leave(memory.R[chunk], R, warp);
      R.apply(update);
      if (local) update.multiply(local->gates);
    }
  }

  // Every warp brings its part of the state before block `block`, which starts where one was saved.
  __device__ __forceinline__ void stage_state(int block, int warp) const {
    const int D = memory.side[0].width, K = memory.side[1].width, lane = threadIdx.x % 32;
    if (block == 0) {
      State S;
      if (warp >= SWEEP_WARPS) return;
      S.load(p.initial_state, n, h, first_value + row_of_warp(warp), first_key + key_of_warp(warp), D, K);
      S.each(row_of_warp(warp), key_of_warp(warp), [&](float& s, int d, int key) { memory.state[key][d] = s; });
      return;
    }
    const int64_t slot = sequence.checkpoint + (int64_t{block} * BLOCK >> (__ffsll(p.interval) - 1)) - 1;
    const float* const saved = p.checkpoints + (slot * p.H + h) * K * D + int64_t{first_key} * D + first_value;
    constexpr int pieces = SLICE / 4, rows = 32 / pieces;
    const int d = lane % pieces * 4, values = D - first_value;
    for (int key = warp * rows + lane / pieces; key < min(SLICE, K - first_key); key += BACKWARD_WARPS * rows) {
      if (D % 4 == 0) {
        if (d < values) copy_async(&memory.state[key][d], saved + int64_t{key} * D + d);
      } else {
        for (int i = d; i < d + 4 && i < values; ++i) memory.state[key][i] = saved[int64_t{key} * D + i];
      }
    }
  }

  // What is taken after an item: blocks from the last to the first, before each those since the last saved state.
  struct Item {
    int block, goal;  // goal: the block whose gradients are next; an earlier one only takes the state there
    __device__ __forceinline__ Need need() const { return block == goal ? Need::all : Need::sources; }
  };
  __device__ __forceinline__ Item towards(int goal) const {
    const int apart = static_cast<int>(p.interval / BLOCK);  // blocks between saved states
    return {apart > 1 ? goal & -apart : goal, goal};
  }
  __device__ __forceinline__ Item after(const Item& i) const {
    return i.block == i.goal ? towards(i.goal - 1) : Item{i.block + 1, i.goal};
  }

  // A warp's part of a desk's operands, and for a new goal of the state.
  __device__ __forceinline__ void stage_item(const Item& item, int warp) const {
    if (item.block == towards(item.goal).block) stage_state(item.block, warp);
    stage_desk(item.block, item.need(), warp / 2, warp % 2);
  }

  __device__ __forceinline__ void init() const {
    const int warp = threadIdx.x / 32;
    if (threadIdx.x >= 32 * DESKS && threadIdx.x < 32 * DESKS + 2) place_side(threadIdx.x % 32);
    if (warp >= DESKS) return;
    Desk& desk = memory.desk[warp];
    fill<PITCH>(desk.x, 0.f), fill<PITCH>(desk.z, 0.f), fill<SLICE>(desk.a, 1.f);
    for (int i = threadIdx.x; i < SLICE * (SLICE + 4); i += 32 * DESKS) (&memory.state[0][0])[i] = 0;
    __syncwarp();
  }

  // Step 2.
  __device__ __forceinline__ void sweep(Need need, int warp) const {
    State state;
    if (warp < SWEEP_WARPS) {
      const auto staged = [&](const auto& body) { state.each(row_of_warp(warp), key_of_warp(warp), body); };
      staged([&](float& s, int d, int key) { s = memory.state[key][d]; });
      forth(state, warp, need == Need::all);
      if (need == Need::sources) staged([&](float& s, int d, int key) { memory.state[key][d] = s; });
    } else if (need == Need::all) {
      state = parked(warp);
      back(state, warp, true, nullptr);
      park(state, warp);
    }
  }

  // Blocks first .. last - 1. What R's warps have parked is the gradient of the state behind them, and then before them.
  __device__ __forceinline__ void run(int first, int last) const {
    const int warp = threadIdx.x / 32, number = warp / 2;
    init();
    __syncthreads();
    Item item = towards(last - 1);
    stage_item(item, warp);
    while (item.goal >= first) {
      const Item next = after(item);
      wait_all_copies();
      __syncthreads();
      if (warp < DESKS) prepare(memory.desk[warp], item.need());
      else if (next.goal >= first) fetch(next.block, next.need(), warp - DESKS);
      __syncthreads();
      sweep(item.need(), warp);
      __syncthreads();
      if (item.need() == Need::all) {
        this->gradients(number, warp % 2);
        this->meet_tiles(number);
        this->write_desk(number, warp % 2, place(int64_t{item.block} * BLOCK + number / 2 * CHUNK));
        this->leave_tiles(number);
      }
      if (next.goal >= first) stage_item(next, warp);
      item = next;
    }
  }

  // R from zero, with the products of all gates.
  __device__ __forceinline__ void run_local(State& R, Local& local, int first, int last) const {
    const int warp = threadIdx.x / 32;
    init();
    for (int block = last - 1; block >= first; --block) {
      __syncthreads();
      stage_desk(block, Need::sinks, warp / 2, warp % 2);
      wait_all_copies();
      __syncthreads();
      if (warp < DESKS) prepare(memory.desk[warp], Need::sinks);
      __syncthreads();
      if (warp >= SWEEP_WARPS) back(R, warp, false, &local);
    }
  }
};

template <class T, class G, bool outputs>
__global__ void __launch_bounds__(32 * BACKWARD_WARPS, 1) decay_backward_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  // blockIdx.y: the tile, and the rank in the cluster
  const int64_t block = (int64_t{blockIdx.x} / p.segments * gridDim.y + blockIdx.y) * p.segments + blockIdx.x % p.segments;
  const auto [segment, value, key, n, h, sequence] = TileTask::of(p, block);
  const HeadBackward<T, G> kernel{{*reinterpret_cast<BackwardMemory<T, G>*>(memory), value, key}, p, n, h, sequence};
  using Kernel = HeadBackward<T, G>;
  const int warp = threadIdx.x / 32, thread = threadIdx.x - 32 * SWEEP_WARPS;
  const int d = value + Kernel::row_of_warp(warp), k = key + Kernel::key_of_warp(warp);
  const int blocks = static_cast<int>((sequence.length + BLOCK - 1) / BLOCK), each = static_cast<int>(p.segment / BLOCK);
  const int first = segment * each, last = segment + 1 < p.segments && blocks > first + each ? first + each : blocks;
  const auto local_of = [&](int s) { return p.local + (block - segment + s) * Kernel::Local::FLOATS; };
  const bool holds_R = warp >= SWEEP_WARPS;
  typename Kernel::State R;
  if constexpr (outputs) {
    if (holds_R) {
      R.load(p.d_final_state, n, h, d, k, p.side[0].width, p.side[1].width);
      for (int s = p.segments - 1; s > segment; --s) Kernel::Local::pass(local_of(s), thread, R.S);
      kernel.park(R, warp);
    }
    if (last > first) kernel.run(first, last);
    if (holds_R && segment == 0) {
      R = kernel.parked(warp);
      R.store(p.d_initial_state, n, h, d, k, p.side[0].width, p.side[1].width);
    }
  } else if (segment > 0) {
    typename Kernel::Local local;
    if (last > first) kernel.run_local(R, local, first, last);
    if (holds_R) local.put(local_of(segment), thread, R.S);
  }
}

}  // namespace t2fw::cuda
