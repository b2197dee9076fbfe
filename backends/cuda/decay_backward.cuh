// decay backward on tensor cores: a thread block takes a head's tokens (or a segment of them) from the last to the first,
// by blocks of four chunks of 16 tokens. Its state is one tile of 64 values by 64 keys; every gradient of a side is a sum
// over the other side's tiles, whose thread blocks add their parts one after the other where it lies.
//
// The two sides are the same function with their arguments swapped (recurrences.md): on the value side the sources,
// gates and sinks are v, f, d_y, on the key side k, g, q. A block goes in three steps, a barrier of all warps between them:
//   1. two warps for each side of each chunk: the scores of its pairs, and its sinks and sources as the state meets them;
//   2. eight warps take the state S through the chunks, from what forward saved before the block; eight take its gradient R
//      the other way. What a chunk meets of both is left in shared memory;
//   3. two warps for each side of each chunk, for half of its columns each: chunk_gradients.cuh. From here to the next block's
//      first step of this thread block a chunk's warps wait for each other alone: some chunks compute while others wait.
#pragma once

#include "chunk_gradients.cuh"

namespace t2fw::cuda {

// A thread block at work on its head.
template <class T, class G, bool logits>
struct HeadBackward : ChunkGradients<T, G, logits> {
  using Base = ChunkGradients<T, G, logits>;
  using typename Base::Desk;
  using Base::memory;
  using State = StateRows<T, HALF_SLICE>;
  using Local = cuda::Local<State::N, 32 * SWEEP_WARPS>;
  const BackwardArgs& p;

  __device__ __forceinline__ Place place(int block, int number) const {
    const int first = block * BLOCK + number / 2 * CHUNK;
    return {0, 0, first, max(min(memory.task.sequence.length - first, CHUNK), 0)};
  }
  // By two threads: memory.side, and what else of memory is no operand.
  __device__ __forceinline__ void place_side(int number) const {
    SideArgs& s = memory.side[number];
    const TileTask& task = memory.task;
    s = p.side[number];
    const Place start{task.sequence.b, task.h, task.sequence.begin, 0};
    for (Rows* x : {&s.z, &s.x, &s.d_z, &s.d_x}) x->data = at<T>(*x, start, 0, 0);
    for (Rows* x : {&s.a, &s.d_a}) x->data = at<G>(*x, start, 0, 0);
    if (number) return;
    memory.written = p.written + int64_t{task.block} * BACKWARD_WARPS;
    memory.apart = p.segments * BACKWARD_WARPS;
    memory.states = static_cast<const T*>(p.checkpoints) + (task.sequence.checkpoint * p.H + task.h) * p.saved_state +
                    task.value * p.saved_row + task.key;
  }

  // By both warps of a desk, when neither needs what is there. sources: whether they are wanted too.
  __device__ __forceinline__ void stage_desk(int block, bool sources, int number, bool second) const {
    const SideArgs& s = memory.side[number % 2];
    Desk& desk = memory.desk[number];
    const Place c = place(block, number);
    const int column = this->first_column(number % 2), columns = s.width;
    const auto bring = [&](auto& to, Rows x, float absent) { stage<SLICE>(to, x, c, column, columns, absent); };
    if (second) {
      if (sources) bring(desk.z, s.z, 0.f);
    } else {
      bring(desk.x, s.x, 0.f), bring(desk.a, s.a, absent_gate(s.a));
      if (logits && !s.a.width) fill<SLICE>(desk.a, absent_gate(s.a));  // step 3 leaves something else
    }
    commit_copies();
  }

  // Asks for a block's operands of a desk, so that they are in the L2 cache when they are staged.
  __device__ __forceinline__ void fetch(int block, int number, bool second) const {
    const SideArgs& s = memory.side[number % 2];
    const Place c = place(block, number);
    const int lane = threadIdx.x % 32, t = lane % CHUNK, half = lane / CHUNK, column = this->first_column(number % 2);
    if (t >= c.count) return;
    if (second) {
      if (s.a.whole && half < static_cast<int>(sizeof(G) / 2) && column + half * (SLICE / 2) < s.width)
        fetch_line(at<G>(s.a, c, t, column + half * (SLICE / 2)));
    } else if (const Rows& x = half ? s.x : s.z; x.whole) {
      fetch_line(at<T>(x, c, t, column));
    }
  }

  // Step 1.
  __device__ __forceinline__ void prepare(int number, bool second) const {
    HalfChunk<T>{second}.template run<logits>(memory.desk[number], [&] { this->pair_barrier(number); });
  }

  // Where the state of a warp lies in its tile: of those that carry S or those that carry R.
  __device__ __forceinline__ static int row_of_warp(int warp) { return warp % 4 * 16; }
  __device__ __forceinline__ static int key_of_warp(int warp) { return warp / 4 % 2 * HALF_SLICE; }

  __device__ __forceinline__ static void leave(T (&to)[SLICE][PITCH], const State& state, int warp) {
    const int lane = std::is_same_v<T, __half> ? fresh(threadIdx.x % 32) : threadIdx.x % 32;  // kept or not: so nothing spills
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
  __device__ __forceinline__ void forth(int warp) const {
    State S;
    S.take(memory.saved, row_of_warp(warp), key_of_warp(warp));
    leave(memory.S[0], S, warp);
#pragma unroll
    for (int chunk = 1; chunk < CHUNKS; ++chunk) {
      const Desk &value = memory.desk[2 * chunk - 2], &key = memory.desk[2 * chunk - 1];
      typename State::Update update;
      update.load(value.sources, key.sources, value.all, key.all, row_of_warp(warp), key_of_warp(warp));
      S.apply(update);
      leave(memory.S[chunk], S, warp);
    }
  }
  // By those that hold R: backward through them.
  __device__ __forceinline__ void back(State& R, int warp, bool keep, Local* local) const {
#pragma unroll
    for (int chunk = CHUNKS - 1; chunk >= 0; --chunk) {
      const Desk &value = memory.desk[2 * chunk], &key = memory.desk[2 * chunk + 1];
      typename State::Update update;
      update.load(value.sinks, key.sinks, value.all, key.all, row_of_warp(warp), key_of_warp(warp));
      if (keep) leave(memory.R[chunk], R, warp);
      R.apply(update);
      if (local) update.multiply(local->gates);
    }
  }

  // Every warp brings its part of the state before block `block`.
  __device__ __forceinline__ void stage_state(int block, int warp) const {
    if (block == 0) return stage_initial(warp);
    constexpr int pieces = SLICE / SavedRow::PIECE, rows = 32 / pieces;
    const int lane = threadIdx.x % 32, d = warp * rows + lane / pieces, at = lane % pieces * SavedRow::PIECE;
    if (d < p.side[0].width - memory.task.value && at < p.saved_row - memory.task.key)
      copy_async(&memory.saved[d][at], memory.states + (block - 1) * p.H * p.saved_state + d * p.saved_row + at);
  }
  __device__ __forceinline__ void stage_initial(int warp) const {
    if (warp >= SWEEP_WARPS) return;
    State S;
    load_state(S, p.initial_state, warp);
    S.pieces(row_of_warp(warp), key_of_warp(warp), [&](uint4 piece, int d, int at) {
      *reinterpret_cast<uint4*>(&memory.saved[d][at]) = piece;
    });
  }
  // A warp's part of a state operand.
  __device__ __forceinline__ void load_state(State& S, const StateOperand& x, int warp) const {
    const TileTask& t = memory.task;
    S.load(x, t.sequence.n, t.h, t.value + row_of_warp(warp), t.key + key_of_warp(warp), p.side[0].width, p.side[1].width);
  }

  // A warp's part of a block's operands and of the state before it.
  __device__ __forceinline__ void stage_block(int block, int warp) const {
    stage_state(block, warp);
    stage_desk(block, true, warp / 2, warp % 2);
  }

  __device__ __forceinline__ void init() const {
    const int warp = threadIdx.x / 32;
    if (threadIdx.x >= 32 * DESKS && threadIdx.x < 32 * DESKS + 2) place_side(threadIdx.x % 32);
    if (warp >= DESKS) return;
    Desk& desk = memory.desk[warp];
    fill<PITCH>(desk.x, 0.f), fill<PITCH>(desk.z, 0.f), fill<SLICE>(desk.a, absent_gate(p.side[warp % 2].a));
    for (int i = threadIdx.x; i < SLICE * PITCH; i += 32 * DESKS) (&memory.saved[0][0])[i] = narrow<T>(0.f);
    __syncwarp();
  }

  // Step 2.
  __device__ __forceinline__ void sweep(int warp) const {
    if (warp < SWEEP_WARPS) return forth(warp);
    State R = parked(warp);
    back(R, warp, true, nullptr);
    park(R, warp);
  }

  // Blocks first .. last - 1. What R's warps have parked is the gradient of the state behind them, and then before them.
  __device__ __forceinline__ void run(int first, int last) const {
    const int warp = threadIdx.x / 32, number = warp / 2;
    init();
    __syncthreads();
    stage_block(last - 1, warp);
    for (int block = last - 1; block >= first; --block) {
      wait_all_copies();
      chunk_barrier(number);
      prepare(number, warp % 2);
      if (block + 1 < last) this->tell_written(last - 1 - block);  // of the block before: they have had time to arrive
      __syncthreads();
      sweep(warp);
      __syncthreads();
      if (block > first) fetch(block - 1, number, warp % 2);
      this->gradients(number, warp % 2);
      this->meet_warp(number);
      this->write_desk(number, warp % 2, place(block, number), last - block);
      this->pair_barrier(number);
      if (block > first) stage_block(block - 1, warp);
    }
    this->tell_written(last - first);
  }

  // Of the warps of both sides of a chunk: what they brought is there, and none needs the last block's sinks and sources.
  __device__ __forceinline__ static void chunk_barrier(int number) {
    asm volatile("bar.sync %0, 128;" ::"r"(DESKS + 1 + number / 2) : "memory");
  }

  // R from zero, with the products of all gates.
  __device__ __forceinline__ void run_local(State& R, Local& local, int first, int last) const {
    const int warp = threadIdx.x / 32;
    init();
    __syncthreads();
    stage_desk(last - 1, false, warp / 2, warp % 2);
    for (int block = last - 1; block >= first; --block) {
      wait_all_copies();
      __syncthreads();
      if (warp < DESKS) {
        Desk& desk = memory.desk[warp];
        const int column = 2 * (threadIdx.x % 32);
        *reinterpret_cast<float2*>(&desk.all[column]) = scale_sinks(desk.x, desk.a, memory.side[warp % 2].a.logits, desk.sinks, column);
      }
      __syncthreads();
      if (block > first) stage_desk(block - 1, false, warp / 2, warp % 2);
      if (warp >= SWEEP_WARPS) back(R, warp, false, &local);
    }
  }
};

template <class T, class G, bool outputs, bool logits>
__global__ void __launch_bounds__(32 * BACKWARD_WARPS, 1) decay_backward_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  using Kernel = HeadBackward<T, G, logits>;
  const Kernel kernel{{*reinterpret_cast<BackwardMemory<T, G>*>(memory)}, p};
  const TileTask& task = kernel.memory.task;
  if (threadIdx.x == 0) {
    const int block = outputs && p.started ? started(p.started) : blockIdx.x, segments = outputs ? p.segments : p.local_segments;
    kernel.memory.task = TileTask::of<outputs>(p, block / segments, block % segments);
  }
  __syncthreads();
  if (outputs && p.local && !task.segment.count) wait_for_launch();  // so that this kernel never ends before `local`
  if (!task.segment.count) return;
  const int warp = threadIdx.x / 32, thread = threadIdx.x - 32 * SWEEP_WARPS, segment = task.segment.number;
  const int first = task.segment.start / BLOCK, last = (task.segment.end + BLOCK - 1) / BLOCK;
  const auto local_of = [&](int s) { return task.local(p, Kernel::Local::FLOATS, s); };
  const bool holds_R = warp >= SWEEP_WARPS;
  typename Kernel::State R;
  if constexpr (outputs) {
    if (holds_R) {
      if (p.local) wait_for_launch();
      kernel.load_state(R, p.d_final_state, warp);
      for (int s = task.segment.count - 1; s > segment; --s) Kernel::Local::pass(local_of(s), thread, R.S);
      kernel.park(R, warp);
    }
    if (last > first) kernel.run(first, last);
    if (holds_R && segment == 0) {
      R = kernel.parked(warp);
      R.store(p.d_initial_state, task.sequence.n, task.h, task.value + Kernel::row_of_warp(warp), task.key + Kernel::key_of_warp(warp),
              p.side[0].width, p.side[1].width);
    }
  } else if (let_next_start(); segment > 0) {
    typename Kernel::Local local;
    if (last > first) kernel.run_local(R, local, first, last);
    if (holds_R) local.put(local_of(segment), thread, R.S);
  }
}

}  // namespace t2fw::cuda
