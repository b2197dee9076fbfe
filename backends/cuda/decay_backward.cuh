// decay backward on tensor cores: a thread block takes a head's tokens (or a segment of them) from the last to the first,
// by blocks of four chunks of 16 tokens. Its state is one tile of 64 values by 64 keys; every gradient of a side is a sum
// over the other side's tiles, whose thread blocks add their parts one after the other where it lies.
//
// The two sides are the same function with their arguments swapped (recurrences.md): on the value side the sources,
// gates and sinks are v, f, d_y, on the key side k, g, q. A block goes in three steps; the second takes chunk after chunk as
// the first is done with them, the third takes a chunk when both states have come to it:
//   1. two warps for each side of each chunk: the scores of its pairs, and its sinks and sources as the state meets them;
//   2. four warps take the state S through the chunks, from what forward saved before the block; four take its gradient R the
//      other way. What a chunk meets of both is left in shared memory;
//   3. two warps for each side of each chunk, for half of its columns each: chunk_gradients.cuh. What the next block needs is
//      asked for as soon as there is room for it (SideDesk).
// No barrier holds all warps: from meeting the states to the next block's first step a chunk's warps wait for no other chunk's
// of this thread block, and some compute while others wait.
#pragma once

#include "chunk_gradients.cuh"
#include "decay_local.cuh"

namespace t2fw::cuda {

// A thread block at work on its head.
template <class T, class G, bool logits>
struct HeadBackward : ChunkGradients<T, G, logits> {
  using Base = ChunkGradients<T, G, logits>;
  using typename Base::Desk;
  using Base::block;
  using Base::memory;
  using Base::parity;
  using State = StateRows<T, HALF_SLICE>;
  const BackwardArgs& p;

  __device__ __forceinline__ Place place(int block, int number) const {
    const int first = block * BLOCK + number / 2 * CHUNK;
    return {0, 0, first, min(memory.task.sequence.length - first, CHUNK)};
  }
  // By two threads: memory.side, memory.tile, and what else of memory is no operand.
  __device__ __forceinline__ void place_side(int number) const {
    SideArgs& s = memory.side[number];
    const TileTask& task = memory.task;
    s = p.side[number];
    const Place start{task.sequence.b, task.h, task.sequence.begin, 0};
    for (Rows* x : {&s.z, &s.x, &s.d_z, &s.d_x}) *x = rows_from<T>(*x, start);
    for (Rows* x : {&s.a, &s.d_a}) *x = rows_from<G>(*x, start);
    auto& tile = memory.tile[number];
    const int column = number ? task.key : task.value;
    const auto rows = [&]<class E>(const Rows& x) { return TileRows::of<E>(x, column, s.width); };
    tile = {rows.template operator()<T>(s.z),   rows.template operator()<G>(s.a),   rows.template operator()<T>(s.x),
            rows.template operator()<T>(s.d_z), rows.template operator()<G>(s.d_a), rows.template operator()<T>(s.d_x), {}};
    const int values = p.side[0].tiles, value = task.value / SLICE, key = task.key / SLICE, order = key * values + value;
    Writing& how = tile.writing;
    how.full = s.d_a.width == s.width, how.sums = s.d_a.width && !how.full;
    how.adds = number ? value : key, how.sums_add = order;
    how.back = how.sums ? order > 0 : !how.adds ? 0 : number ? 1 : values;
    tile.usual = tile.z.columns && tile.x.columns && (tile.a.columns || (!s.a.width && !s.a.logits));
    how.tells = how.sums ? order + 1 < values * p.side[1].tiles : (number ? value + 1 < values : key + 1 < p.side[1].tiles);
    how.lines = tile.d_z.columns && (!how.full || tile.d_a.columns) && (!number || tile.d_x.columns);
    if (number) return;
    memory.first = task.segment.start / BLOCK, memory.end = (task.segment.end + BLOCK - 1) / BLOCK;
    memory.written = p.written + int64_t{task.block} * BACKWARD_WARPS;
    memory.states = static_cast<const T*>(p.checkpoints) + (task.sequence.checkpoint * p.H + task.h) * p.saved_state +
                    task.value * p.saved_row + task.key;
    memory.states_apart = p.H * p.saved_state * static_cast<int>(sizeof(T));
    memory.saved_rows = p.side[0].width - task.value, memory.saved_columns = p.saved_row - task.key;
  }

  // A warp's part of what a block needs, when none needs what is there any more: a desk's z, or its x and gates, and some of
  // the state. Where all lies as it usually does, with few branches: all wait for the warps of the first and the last chunk ..
  __device__ __forceinline__ void stage_usual(int block, int warp) const {
    const int number = warp / 2, sources = warp % 2, to = block & 1;
    const uint32_t first = block * BLOCK + number / 2 * CHUNK;
    const auto& tile = memory.tile[number % 2];
    Desk& desk = memory.desk[number];
    const TileRows rows = sources ? tile.z : tile.x;
    rows.stage(sources ? desk.z(to) : desk.x(to), first);
    if (!sources) {
      const TileRows gates = tile.a;
      gates.stage(memory.coming_gates(number, to), first);
    }
    if (warp < PARTS) stage_state(block, warp);
  }
  // .. and otherwise.
  __device__ __forceinline__ void stage_other(int block, int warp) const {
    const int number = warp / 2, sources = warp % 2, to = block & 1, column = this->first_column(number % 2);
    const SideArgs& s = memory.side[number % 2];
    const Place from = place(block, number);
    Desk& desk = memory.desk[number];
    stage<SLICE>(sources ? desk.z(to) : desk.x(to), sources ? s.z : s.x, from, column, s.width, 0.f);
    if (!sources) {
      auto& a = memory.coming_gates(number, to);
      stage<SLICE>(a, s.a, from, column, s.width, absent_gate(s.a));
      if (logits && Desk::GATE_PLACES == 2 && !s.a.width) fill<SLICE>(a, absent_gate(s.a));  // step 3 leaves something else
    }
    if (warp >= PARTS) return;
    if (block) stage_state(block, warp);
    else stage_initial(warp);
  }
  // last: the sequence may end in this block.
  __device__ __forceinline__ void stage_block(int block, int warp, bool last) const {
    if (!last && block && memory.tile[warp / 2 % 2].usual) stage_usual(block, warp);
    else stage_other(block, warp);
    commit_copies();
  }

  // Step 1. Gates that have one place come to it on the way.
  __device__ __forceinline__ void prepare(int number, bool second) const {
    const SideArgs& s = memory.side[number % 2];
    Desk& desk = memory.desk[number];
    const HalfRows from(memory.coming_gates(number, parity()), second), to(desk.a(parity()), second);
    const bool there = s.a.width && 2 * (threadIdx.x % 32) < s.width - this->first_column(number % 2);
    const auto absent = narrow<G>(float2{absent_gate(s.a), absent_gate(s.a)});
    const auto gates = [&](int t) {
      if constexpr (Desk::GATE_PLACES == 2) return from.get(t);
      else return widen(to.at(t) = there ? from.at(t) : absent);
    };
    HalfChunk<T>{second}.template run<logits>(desk, parity(), gates, [&] { this->pair_barrier(number); });
  }

  // Where a part of a state lies in its tile, and body(m, part) for the two parts of a warp that carries S or R.
  __device__ __forceinline__ static int row_of_part(int part) { return part % 4 * 16; }
  __device__ __forceinline__ static int key_of_part(int part) { return part / 4 * HALF_SLICE; }
  template <class Body>
  __device__ __forceinline__ static void parts(int warp, const Body& body) {
#pragma unroll
    for (int m = 0; m < 2; ++m) body(m, warp % 4 * 2 + m);
  }

  __device__ __forceinline__ static void leave(T (&to)[SLICE][PITCH], const State (&state)[2], int warp) {
    parts(warp, [&](int m, int part) {
      const int lane = fresh(threadIdx.x % 32);
      const uint32_t row = shared_address(&to[row_of_part(part) + lane % 16][key_of_part(part) + lane / 16 * 8]);
#pragma unroll
      for (int i = 0; i < State::N; i += 2) {
        const auto two = [&](int n, int e) { return bits(narrow<T>(float2{state[m].S[n][e], state[m].S[n][e + 1]})); };
        store_matrices(row + i * 16, {two(i, 0), two(i, 2), two(i + 1, 0), two(i + 1, 2)});
      }
    });
  }

  // A part of R, kept while its warp does something else.
  __device__ __forceinline__ void park(const State& R, int part) const {
#pragma unroll
    for (int n = 0; n < State::N; ++n)
      memory.gradient[part][n][threadIdx.x % 32] = {R.S[n][0], R.S[n][1], R.S[n][2], R.S[n][3]};
  }
  __device__ __forceinline__ State parked(int part) const {
    State R;
#pragma unroll
    for (int n = 0; n < State::N; ++n) {
      const float4 own = memory.gradient[part][n][threadIdx.x % 32];
      R.S[n][0] = own.x, R.S[n][1] = own.y, R.S[n][2] = own.z, R.S[n][3] = own.w;
    }
    return R;
  }

  // A chunk's gates in this block: their round, and for one of them to open.
  __device__ __forceinline__ uint32_t round() const { return (memory.end - 1 - fresh(block)) & 1; }
  __device__ __forceinline__ void wait(Gate& gate) const { gate.wait(round()); }

  // What a chunk does to the parts of a warp.
  struct Update {
    typename State::Values values[2];
    typename State::Keys keys;

    // sinks: of both sides, else sources.
    __device__ __forceinline__ void load(BackwardMemory<T, G>& memory, int chunk, bool sinks, int parity, int warp) {
      Desk &value = memory.desk[2 * chunk], &key = memory.desk[2 * chunk + 1];
      const auto& values_of = sinks ? value.sinks(parity) : value.sources(parity);
      parts(warp, [&](int m, int part) { values[m].load(values_of, value.all, row_of_part(part)); });
      keys.load(sinks ? key.sinks(parity) : key.sources(parity), key.all, key_of_part(warp % 4 * 2));
    }
    __device__ __forceinline__ void apply(State (&to)[2]) const {
      to[0].apply(values[0], keys), to[1].apply(values[1], keys);
    }
  };

  // Step 2 by the warps that hold S: through the chunks of a block. What a chunk does to it is loaded while the one before it
  // is passed.
  __device__ __forceinline__ void forth(int warp) const {
    const int parity = this->parity();
    const uint32_t round = this->round();
    State S[2];
    Update update;
    memory.scored[0].wait(round), memory.scored[1].wait(round);  // chunks whose warps bring the state
    parts(warp, [&](int m, int part) { S[m].take(memory.saved, row_of_part(part), key_of_part(part)); });
    update.load(memory, 0, false, parity, warp);
    leave(memory.S[0], S, warp);
#pragma unroll
    for (int chunk = 1; chunk < CHUNKS; ++chunk) {
      const Update now = update;
      memory.passed[chunk - 1].arrive();
      if (chunk > 1) memory.scored[chunk].wait(round);
      if (chunk + 1 < CHUNKS) update.load(memory, chunk, false, parity, warp);
      now.apply(S);
      leave(memory.S[chunk], S, warp);
    }
    memory.passed[CHUNKS - 1].arrive();
  }
  // By those that hold R: backward through them.
  __device__ __forceinline__ void back(int warp) const {
    const int parity = this->parity();
    const uint32_t round = this->round();
    State R[2];
    Update update;
    parts(warp, [&](int m, int part) { R[m] = parked(part); });
    memory.scored[CHUNKS - 1].wait(round);
    update.load(memory, CHUNKS - 1, true, parity, warp);
#pragma unroll
    for (int chunk = CHUNKS - 1; chunk >= 0; --chunk) {
      const Update now = update;
      leave(memory.R[chunk], R, warp);
      memory.passed[chunk].arrive();
      if (chunk) memory.scored[chunk - 1].wait(round), update.load(memory, chunk - 1, true, parity, warp);
      now.apply(R);
    }
    parts(warp, [&](int m, int part) { park(R[m], part); });
  }

  // body(m, part, thread, first): for a part of R, and where TileLocal has it.
  template <class Body>
  __device__ __forceinline__ static void local_parts(int warp, const Body& body) {
    parts(warp, [&](int m, int part) { body(m, part, part % 4 * 32 + threadIdx.x % 32, part / 4 * State::N); });
  }
  // By those that hold R, before all blocks: from what lies behind the segment.
  __device__ __forceinline__ void begin(int warp) const {
    const TileTask& t = memory.task;
    const int number = t.segment.number, apart = t.tiles * TileLocal::FLOATS;
    const bool handed = number && p.shares;
    const float* left = t.local(p, TileLocal::FLOATS);
    State R[2];
    if (handed) wait_for(t.handed(p) + warp % SWEEP_WARPS, 1);
    else if (number) wait_for_launch();
    local_parts(warp, [&](int m, int part, int thread, int first) {
      if (handed) TileLocal::get_state(left, thread, R[m].S, first);
      else load_state(R[m], p.d_final_state, part);
    });
    for (int s = 0; s < number && !handed; ++s, left += apart)
      local_parts(warp, [&](int m, int, int thread, int first) { TileLocal::pass(left, thread, R[m].S, first); });
    parts(warp, [&](int m, int part) { park(R[m], part); });
  }
  // After them: for the caller, or of a head that is cut in two for the other segment.
  __device__ __forceinline__ void finish(int warp) const {
    const TileTask& t = memory.task;
    if (t.segment.last()) {
      parts(warp, [&](int, int part) {
        parked(part).store(p.d_initial_state, t.sequence.n, t.h, t.value + row_of_part(part), t.key + key_of_part(part),
                           p.side[0].width, p.side[1].width);
      });
    } else if (p.shares) {
      float* const left = t.local(p, TileLocal::FLOATS);
      local_parts(warp, [&](int, int part, int thread, int first) {
        TileLocal::put_state(left, thread, parked(part).S, first);
      });
      tell(t.handed(p) + warp % SWEEP_WARPS, 1);
    }
  }

  // The warps of chunks 0 and 1, whom those that hold S wait for, bring the state before block `block`.
  __device__ __forceinline__ void stage_state(int block, int warp) const {
    constexpr int pieces = SLICE / SavedRow::PIECE, rows = 32 / pieces, own = SLICE / PARTS;
    const int lane = threadIdx.x % 32, d = warp * own + lane / pieces, at = lane % pieces * SavedRow::PIECE;
    if (at >= memory.saved_columns) return;
    const auto* const from = reinterpret_cast<const char*>(memory.states + d * p.saved_row + at) +
                             static_cast<uint32_t>(block - 1) * memory.states_apart;
#pragma unroll
    for (int i = 0; i < own; i += rows)
      if (d + i < memory.saved_rows) copy_async(&memory.saved[d + i][at], from + i * p.saved_row * static_cast<int>(sizeof(T)));
  }
  __device__ __forceinline__ void stage_initial(int part) const {
    State S;
    load_state(S, p.initial_state, part);
    const int lane = threadIdx.x % 32;
    T* const to = &memory.saved[row_of_part(part) + lane / 4][key_of_part(part) + lane % 4 * SavedRow::PIECE];
    S.pieces([&](uint4 piece, int row, int at) { *reinterpret_cast<uint4*>(to + row * PITCH + at) = piece; });
  }
  __device__ __forceinline__ void load_state(State& part, const StateOperand& x, int number) const {
    const TileTask& t = memory.task;
    part.load(x, t.sequence.n, t.h, t.value + row_of_part(number), t.key + key_of_part(number), p.side[0].width,
              p.side[1].width);
  }

  // What is where, and what staging leaves as it is: columns behind the data, absent gates, and of a state what lies behind its
  // rows and keys.
  __device__ __forceinline__ void init() const {
    const int warp = threadIdx.x / 32, thread = threadIdx.x - 32 * DESKS;
    if (warp < DESKS) {
      Desk& desk = memory.desk[warp];
      const SideArgs& s = p.side[warp % 2];
      const bool part = s.width - this->first_column(warp % 2) < SLICE;
      for (int i = 0; i < 2; ++i) {
        if (part) fill<PITCH>(desk.x(i), 0.f), fill<PITCH>(desk.z(i), 0.f);
        if (Desk::GATE_PLACES == 2 && (part || !s.a.width)) fill<SLICE>(desk.a(i), absent_gate(s.a));
      }
    } else {
      if (thread < 2) place_side(thread);
      if (thread < BACKWARD_WARPS) memory.seen[thread] = 0;
      if (thread < CHUNKS) {
        memory.scored[thread].init(CHUNK_WARPS);
        memory.passed[thread].init(2 * SWEEP_WARPS);
        memory.met[thread].init(CHUNK_WARPS);
      }
      if (p.side[0].width - memory.task.value < SLICE || p.saved_row - memory.task.key < SLICE)
        for (int i = thread; i < SLICE * PITCH; i += 32 * DESKS) (&memory.saved[0][0])[i] = narrow<T>(0.f);
    }
    __syncwarp();
  }

  // Step 2, by the warps of the first and last chunk, where both states have come only when all is done; the others go on as
  // soon as both have come to their chunk.
  __device__ __forceinline__ static bool holds_S(int warp) { return warp < SWEEP_WARPS; }
  __device__ __forceinline__ static bool holds_R(int warp) { return warp >= BACKWARD_WARPS - SWEEP_WARPS; }
  __device__ __forceinline__ void sweep(int warp) const {
    if (holds_S(warp)) forth(warp);
    if (holds_R(warp)) back(warp);
  }

  // Starts to bring the last block's operands.
  __device__ __forceinline__ void start() const {
    const int warp = threadIdx.x / 32;
    init();
    __syncthreads();
    stage_block(memory.end - 1, warp, true);
  }
  // Takes them all. What is parked is the gradient of the state behind them, and then before them.
  __device__ __forceinline__ void run() {
    const auto warp = [] { return fresh(threadIdx.x / 32); };
    for (block = memory.end - 1; block >= memory.first; --block) {
      wait_copies<0>();
      this->pair_barrier(warp() / 2);
      prepare(warp() / 2, warp() % 2);
      memory.scored[warp() / CHUNK_WARPS].arrive();
      // of the block before: they have had time to arrive
      if (p.written && block + 1 < memory.end) this->tell_written(memory.end - 1 - block);
      sweep(warp());
      if (p.written) this->look(memory.end - block);
      wait(memory.passed[warp() / CHUNK_WARPS]);
      this->gradients(warp() / 2, warp() % 2, [&] {
        if (block == memory.first) return;
        wait(memory.met[warp() / CHUNK_WARPS]);
        stage_block(block - 1, warp(), false);
      });
      if (memory.tile[warp() / 2 % 2].writing.sums) this->pair_barrier(warp() / 2);  // they are over both warps' columns
      else __syncwarp();
      this->write_desk(warp() / 2, warp() % 2, place(block, warp() / 2), memory.end - block);
    }
    if (p.written) this->tell_written(memory.end - memory.first);
  }
};

template <class T, class G, bool logits>
__global__ void __launch_bounds__(32 * BACKWARD_WARPS, 1) decay_backward_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  using Kernel = HeadBackward<T, G, logits>;
  Kernel kernel{{*reinterpret_cast<BackwardMemory<T, G>*>(memory)}, p};
  const TileTask& task = kernel.memory.task;
  if (threadIdx.x == 0) {
    TileTask& own = kernel.memory.task;
    own = TileTask::of<false>(p, p.started ? started(p.started) : blockIdx.x, p.side[0].tiles * p.side[1].tiles);
    own.set_tile(p, own.tile);
  }
  __syncthreads();
  if (p.local && !task.segment.count) wait_for_launch();  // so that this kernel never ends before `local`
  if (!task.segment.count) return;
  const int warp = threadIdx.x / 32;
  const bool holds_R = Kernel::holds_R(warp), tokens = task.segment.end > task.segment.start;
  if (tokens) kernel.start();  // reads nothing that `local` leaves
  if (holds_R) kernel.begin(warp);
  if (tokens) kernel.run();
  if (holds_R) kernel.finish(warp);
}

template <class T, class G>
__global__ void __launch_bounds__(local_threads<1>, 1) decay_backward_local_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  using Pass = LocalPass<T, G, 1, true>;
  auto& local = *reinterpret_cast<typename Pass::Memory*>(memory);
  TileTask task = TileTask::of<true>(p, blockIdx.x, p.side[0].tiles * p.side[1].tiles);
  task.set_tile(p, task.tile);
  const Segment& segment = task.segment;
  let_next_start();
  if (!segment.count) return;
  if (threadIdx.x == 0) {
    const Place start{task.sequence.b, task.h, task.sequence.begin + segment.start, 0};
    for (int i = 0; i < 2; ++i) {
      const SideArgs& s = p.side[i];
      local.side[i] = {rows_from<T>(s.x, start), rows_from<G>(s.a, start), i ? task.key : task.value, s.width};
    }
  }
  const int64_t apart = int64_t{task.tiles} * TileLocal::FLOATS;
  Pass{local, segment.end - segment.start}.run(task.local(p, TileLocal::FLOATS) + segment.number * apart);
}

}  // namespace t2fw::cuda
