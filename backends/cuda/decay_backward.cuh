// decay backward on tensor cores, D and K up to 64: a thread block takes a head's tokens (or a segment of them) from the
// last to the first, by blocks of four chunks of 16 tokens.
//
// The two sides are the same function with their arguments swapped (recurrences.md): on the value side the sources,
// gates and sinks are v, f, d_y, on the key side k, g, q. A warp takes one side of one chunk; a lane owns two neighbouring
// columns of it. A block goes in three steps, a barrier of all warps between them:
//   1. a warp: the scores of its side's pairs, and its sinks and sources as the state meets them;
//   2. four warps take the state S through the chunks, from what forward saved; four take its gradient R the other way.
//      What a chunk meets of both is left in shared memory;
//   3. a warp: products with S and R, and then its gradients, column by column, by differentiating the sum of a row
//        out_u = E_u a_0 .. a_u + sum over s <= u of A[u][s] a_{s+1} .. a_u z_s,   A: the other side's scores,
//      in the order in which Horner's scheme adds it up. E_u is what the entering state adds; one more row is the chunk's
//      share in the leaving gradient. No gate is divided by.
#pragma once

#include "scores.cuh"
#include "state.cuh"

namespace t2fw::cuda {

inline constexpr int CHUNKS = 4, BLOCK = CHUNKS * CHUNK;  // chunks, tokens of a block
inline constexpr int BACKWARD_WARPS = 2 * CHUNKS;

struct SideArgs {
  Rows z, a, x, d_z, d_a, d_x;  // d_x: absent on the value side
  int width;                    // D or K
};

struct BackwardArgs {
  SideArgs side[2];  // value, key
  StateOperand initial_state, d_final_state, d_initial_state;
  const int64_t* cu_seqlens;
  const float* checkpoints;   // [slots][H][K][D] before every interval-th token
  float* local;               // Local of every segment but the first; NULL if a sequence is one segment
  int64_t interval, T, H, segment;  // tokens between saved states (a power of two, at least 16), and in a segment
  int segments, sequences;    // sequences: of a packed batch, else 0
};

// A side of a chunk.
template <class T, class G>
struct alignas(16) SideDesk {
  T x[CHUNK][PITCH], z[CHUNK][PITCH];  // as they came
  G a[CHUNK][SLICE];
  T sinks[CHUNK][PITCH], sources[CHUNK][PITCH];  // times the products of a up to and behind the token
  float scores[CHUNK][CHUNK];
  float met[CHUNK][PITCH];  // products with a state, on their way from matrix fragments to columns
  float all[SLICE];         // products of a over the chunk
  float through[SLICE];     // the entering state met with the leaving gradient
};

template <class T, class G>
struct BackwardMemory {
  SideDesk<T, G> desk[CHUNKS][2];
  T S[CHUNKS][SLICE][PITCH], R[CHUNKS][SLICE][PITCH];  // [value][key]: entering a chunk, and the gradient leaving it
};

// Four 8x8 matrices of a 16x16 piece of state, as a left operand (rows m, contracted over k) or a right one (columns m).
// transposed: m counts the state's columns.
template <bool transposed, class T>
__device__ __forceinline__ void load_left(uint32_t (&x)[4], const T (&state)[SLICE][PITCH], int m, int k) {
  const int lane = threadIdx.x % 32, r = m + lane / 8 % 2 * 8, c = k + lane / 16 * 8;
  if constexpr (transposed) load_matrices_transposed(x, shared_address(&state[c + lane % 8][r]));
  else load_matrices(x, shared_address(&state[r + lane % 8][c]));
}
template <bool transposed, class T>
__device__ __forceinline__ void load_right(uint32_t (&x)[4], const T (&state)[SLICE][PITCH], int m, int k) {
  const int lane = threadIdx.x % 32, r = m + lane / 16 * 8, c = k + lane / 8 % 2 * 8;
  if constexpr (transposed) load_matrices_transposed(x, shared_address(&state[c + lane % 8][r]));
  else load_matrices(x, shared_address(&state[r + lane % 8][c]));
}

// A thread block at work on its head.
template <class T, class G>
struct HeadBackward {
  using P = typename Pair<T>::type;
  using PG = typename Pair<G>::type;
  using Desk = SideDesk<T, G>;
  using State = StateRows<T, SLICE>;
  const BackwardArgs& p;
  BackwardMemory<T, G>& memory;
  int64_t n, b, h, begin, length, checkpoint;  // begin, length: the sequence's tokens in batch row b

  __device__ __forceinline__ Place place(int64_t first) const {
    const int64_t left = length - first;
    return {b, h, begin + first, static_cast<int>(left < 0 ? 0 : left < CHUNK ? left : CHUNK)};
  }

  // Which operands of a block are needed: for its gradients, for the state behind it, for the gradient before it.
  enum class Need { all, sources, sinks };

  __device__ __forceinline__ void stage_block(int64_t block, Need need, int chunk, int side) const {
    const SideArgs& s = p.side[side];
    Desk& desk = memory.desk[chunk][side];
    const Place c = place(block * BLOCK + chunk * CHUNK);
    if (need != Need::sources) stage<SLICE>(desk.x, s.x, c, 0, s.width, 0.f);
    if (need != Need::sinks) stage<SLICE>(desk.z, s.z, c, 0, s.width, 0.f);
    stage<SLICE>(desk.a, s.a, c, 0, s.width, 1.f);
    commit_copies();
  }

  // met[t][c] = sum over the other side's o of rows[t][o] state[.]
  template <bool key_side>
  __device__ __forceinline__ void meet(const T (&rows)[CHUNK][PITCH], const T (&state)[SLICE][PITCH], float (&met)[CHUNK][PITCH]) const {
    const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4 * 2;
    uint32_t left[SLICE / 16][4];
#pragma unroll
    for (int k = 0; k < SLICE / 16; ++k) load_matrices(left[k], shared_address(&rows[lane % 16][k * 16 + lane / 16 * 8]));
#pragma unroll
    for (int m = 0; m < SLICE; m += 16) {
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k) {
        uint32_t right[4];
        load_right<key_side>(right, state, m, k * 16);
        multiply_add<T>(sum[0], left[k], right[0], right[1]);
        multiply_add<T>(sum[1], left[k], right[2], right[3]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<float2*>(&met[g][m + i * 8 + j]) = {sum[i][0], sum[i][1]};
        *reinterpret_cast<float2*>(&met[g + 8][m + i * 8 + j]) = {sum[i][2], sum[i][3]};
      }
    }
  }

  // through[c] = sum over the other side's o of S all[o] R, the entering state met with the leaving gradient.
  template <bool key_side>
  __device__ __forceinline__ void diagonal(const T (&S)[SLICE][PITCH], const T (&R)[SLICE][PITCH], const float* all,
                                           float* through) const {
    const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < SLICE; m += 16) {
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < SLICE; k += 16) {
        uint32_t left[4], right[4];
        load_left<key_side>(left, S, m, k);
        load_right<key_side>(right, R, m, k);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const P gates = narrow<T>(*reinterpret_cast<const float2*>(&all[k + i / 2 * 8 + j]));
          left[i] = bits(__hmul2(*reinterpret_cast<const P*>(&left[i]), gates));
        }
        multiply_add<T>(sum[0], left, right[0], right[1]);
        multiply_add<T>(sum[1], left, right[2], right[3]);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (g == j + e) through[m + g] = sum[0][e], through[m + 8 + g] = sum[1][2 + e];
    }
  }

  // One row of the sum over the chunk's sources, and its gradient: see the top. entering: what the state adds before any
  // gate; weight(s): the row's score of source s; adjoint: the row's own gradient. Returns the row's sum.
  template <int tokens, class Weight>
  __device__ __forceinline__ static float2 row(const Weight& weight, float2 entering, float2 adjoint, const float2 (&z)[CHUNK],
                                               const float2 (&a)[CHUNK], float2 (&d_z)[CHUNK], float2 (&d_a)[CHUNK]) {
    float2 before[tokens], sum = entering;
#pragma unroll
    for (int s = 0; s < tokens; ++s) {
      before[s] = sum;
      sum = fma(sum, a[s], weight(s) * z[s]);
    }
#pragma unroll
    for (int s = tokens - 1; s >= 0; --s) {
      d_z[s] = fma(weight(s), adjoint, d_z[s]);
      d_a[s] = fma(adjoint, before[s], d_a[s]);
      adjoint = adjoint * a[s];
    }
    return sum;
  }

  __device__ __forceinline__ static void put(const Rows& x, const Place& c, int t, int column, int columns, float2 value) {
    if (!x.width || t >= c.count) return;
    T* const to = const_cast<T*>(at<T>(x, c, t, column));
    if (x.whole) {
      if (column < columns) *reinterpret_cast<P*>(to) = narrow<T>(value);
    } else {
      if (column < columns) to[0] = narrow<T>(value.x);
      if (column + 1 < columns) to[1] = narrow<T>(value.y);
    }
  }
  // A gate of one value a token takes the sum over the columns.
  __device__ __forceinline__ static void put_gate(const Rows& x, const Place& c, int t, int column, int columns, float2 value) {
    if (!x.width || t >= c.count) return;
    G* const to = const_cast<G*>(at<G>(x, c, t, column));
    if (x.width == columns) {
      if (x.whole) {
        if (column < columns) *reinterpret_cast<PG*>(to) = narrow<G>(value);
      } else {
        if (column < columns) to[0] = narrow<G>(value.x);
        if (column + 1 < columns) to[1] = narrow<G>(value.y);
      }
    } else {
      float sum = value.x + value.y;
      for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
      if (threadIdx.x % 32 == 0) *to = narrow<G>(sum);
    }
  }

  // Step 3. next: stages what comes after; called when the operands as they came are in registers.
  template <bool key_side, class Next>
  __device__ __forceinline__ void gradients(int chunk, int64_t first, const Next& next) const {
    const SideArgs& s = p.side[key_side];
    const Place c = place(first);
    const int lane = threadIdx.x % 32, column = 2 * lane;
    Desk& desk = memory.desk[chunk][key_side];
    const Desk& other = memory.desk[chunk][!key_side];
    meet<key_side>(other.sources, memory.R[chunk], desk.met);
    diagonal<key_side>(memory.S[chunk], memory.R[chunk], other.all, desk.through);
    __syncwarp();
    float2 z[CHUNK], a[CHUNK], d_z[CHUNK], d_a[CHUNK];
    P x[CHUNK];
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      x[t] = *reinterpret_cast<const P*>(&desk.x[t][column]);
      z[t] = widen(*reinterpret_cast<const P*>(&desk.z[t][column]));
      a[t] = widen(*reinterpret_cast<const PG*>(&desk.a[t][column]));
      d_z[t] = d_a[t] = {0.f, 0.f};
    }
    __syncwarp();
    next();
    const auto met = [&](int t) { return *reinterpret_cast<const float2*>(&desk.met[t][column]); };
    row<CHUNK>(met, *reinterpret_cast<const float2*>(&desk.through[column]), {1.f, 1.f}, z, a, d_z, d_a);
    __syncwarp();
    meet<key_side>(other.sinks, memory.S[chunk], desk.met);
    __syncwarp();
    rows<key_side>(std::make_integer_sequence<int, CHUNK>{}, other.scores, met, c, x, z, a, d_z, d_a);
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      put(s.d_z, c, t, column, s.width, d_z[t]);
      put_gate(s.d_a, c, t, column, s.width, d_a[t]);
    }
  }

  template <bool key_side, int... u, class Met>
  __device__ __forceinline__ void rows(std::integer_sequence<int, u...>, const float (&scores)[CHUNK][CHUNK], const Met& met,
                                       const Place& c, const P (&x)[CHUNK], const float2 (&z)[CHUNK], const float2 (&a)[CHUNK],
                                       float2 (&d_z)[CHUNK], float2 (&d_a)[CHUNK]) const {
    const auto one = [&](auto number) {
      constexpr int t = decltype(number)::value;
      float weights[CHUNK];
#pragma unroll
      for (int i = 0; i <= t; i += 4) *reinterpret_cast<float4*>(weights + i) = *reinterpret_cast<const float4*>(&scores[t][i]);
      const float2 sum = row<t + 1>([&](int i) { return weights[i]; }, met(t), widen(x[t]), z, a, d_z, d_a);
      if constexpr (key_side) put(p.side[1].d_x, c, t, 2 * (threadIdx.x % 32), p.side[1].width, sum);
    };
    (one(std::integral_constant<int, u>{}), ...);
  }

  // Step 1.
  __device__ __forceinline__ void prepare(Desk& desk, Need need) const {
    const int column = 2 * (threadIdx.x % 32);
    if (need == Need::all) {
      gated_scores<SLICE>(desk.x, desk.z, desk.a, desk.sinks, desk.sources, desk.all, desk.scores);
    } else {
      const float2 all = need == Need::sources ? scale_sources(desk.z, desk.a, true, desk.sources, column)
                                               : scale_sinks(desk.x, desk.a, desk.sinks, column);
      *reinterpret_cast<float2*>(&desk.all[column]) = all;
    }
  }

  __device__ __forceinline__ static void leave(T (&to)[SLICE][PITCH], const State& state, int first_row) {
    const int lane = threadIdx.x % 32, d = first_row + lane / 4, j = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < State::N; ++i) {
      *reinterpret_cast<P*>(&to[d][i * 8 + j]) = narrow<T>(float2{state.S[i][0], state.S[i][1]});
      *reinterpret_cast<P*>(&to[d + 8][i * 8 + j]) = narrow<T>(float2{state.S[i][2], state.S[i][3]});
    }
  }

  // Step 2 by the warps that hold S: through the chunks of a block.
  __device__ __forceinline__ void forth(State& S, int first_row, bool keep) const {
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const Desk &value = memory.desk[chunk][0], &key = memory.desk[chunk][1];
      typename State::Update update;
      update.load(value.sources, key.sources, value.all, key.all, first_row);
      if (keep) leave(memory.S[chunk], S, first_row);
      S.apply(update);
    }
  }
  // By those that hold R: backward through them.
  __device__ __forceinline__ void back(State& R, int first_row, bool keep, Local<T, SLICE>* local) const {
#pragma unroll 1
    for (int chunk = CHUNKS - 1; chunk >= 0; --chunk) {
      const Desk &value = memory.desk[chunk][0], &key = memory.desk[chunk][1];
      typename State::Update update;
      update.load(value.sinks, key.sinks, value.all, key.all, first_row);
      if (keep) leave(memory.R[chunk], R, first_row);
      R.apply(update);
      if (local) local->multiply(update);
    }
  }

  // The state before block `block`, which starts where one was saved.
  __device__ __forceinline__ void load_state(State& S, int64_t block, int first_row) const {
    const int D = p.side[0].width, K = p.side[1].width;
    S = State();
    if (block == 0) return S.load(p.initial_state, n, h, first_row, D, K);
    const float* const saved = p.checkpoints + ((checkpoint + block * BLOCK / p.interval - 1) * p.H + h) * K * D;
    S.each(first_row, D, K, [&](float& s, int d, int key) { s = saved[static_cast<int64_t>(key) * D + d]; });
  }

  // What is taken after an item: blocks from the last to the first, before each those since the last saved state.
  struct Item {
    int64_t block, goal;  // goal: the block whose gradients are next; an earlier one only takes the state there
    __device__ __forceinline__ Need need() const { return block == goal ? Need::all : Need::sources; }
  };
  __device__ __forceinline__ Item towards(int64_t goal) const {
    const int64_t apart = p.interval / BLOCK;  // blocks between saved states
    return {apart > 1 ? goal / apart * apart : goal, goal};
  }
  __device__ __forceinline__ Item after(const Item& i) const {
    return i.block == i.goal ? towards(i.goal - 1) : Item{i.block + 1, i.goal};
  }

  __device__ __forceinline__ void init() const {
    const int warp = threadIdx.x / 32;
    Desk& desk = memory.desk[warp / 2][warp % 2];
    fill<PITCH>(desk.x, 0.f), fill<PITCH>(desk.z, 0.f), fill<SLICE>(desk.a, 1.f);
    __syncwarp();
  }

  // Blocks first .. last - 1. state: of the warps that hold R, it enters as the gradient of the state behind them and
  // leaves as that before them; of those that hold S, anything.
  __device__ __forceinline__ void run(State& state, int64_t first, int64_t last) const {
    const int warp = threadIdx.x / 32, chunk = warp / 2, side = warp % 2, first_row = warp % STATE_WARPS * 16;
    init();
    Item item = towards(last - 1);
    stage_block(item.block, item.need(), chunk, side);
    while (item.goal >= first) {
      const Item next = after(item);
      const auto stage_next = [&] {
        if (next.goal >= first) stage_block(next.block, next.need(), chunk, side);
      };
      if (warp < STATE_WARPS && item.block == towards(item.goal).block) load_state(state, item.block, first_row);
      wait_all_copies();
      __syncthreads();  // the other side's warp has read this side's rows
      prepare(memory.desk[chunk][side], item.need());
      __syncthreads();
      if (warp < STATE_WARPS) forth(state, first_row, item.need() == Need::all);
      else if (item.need() == Need::all) back(state, first_row, true, nullptr);
      __syncthreads();
      const int64_t at = item.block * BLOCK + chunk * CHUNK;
      if (item.need() != Need::all) stage_next();
      else if (side) gradients<true>(chunk, at, stage_next);
      else gradients<false>(chunk, at, stage_next);
      item = next;
    }
  }

  // R from zero, with the products of all gates.
  __device__ __forceinline__ void run_local(State& R, Local<T, SLICE>& local, int64_t first, int64_t last) const {
    const int warp = threadIdx.x / 32, chunk = warp / 2, side = warp % 2, first_row = warp % STATE_WARPS * 16;
    init();
    for (int64_t block = last - 1; block >= first; --block) {
      stage_block(block, Need::sinks, chunk, side);
      wait_all_copies();
      prepare(memory.desk[chunk][side], Need::sinks);
      __syncthreads();
      if (warp >= STATE_WARPS) back(R, first_row, false, &local);
      __syncthreads();
    }
  }
};

template <class T, class G, bool outputs>
__global__ void __launch_bounds__(32 * BACKWARD_WARPS, 1) decay_backward_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  const int64_t segment = blockIdx.x % p.segments, h = blockIdx.x / p.segments % p.H, n = blockIdx.x / p.segments / p.H;
  int64_t begin = 0, length = p.T, checkpoint = p.T ? n * ((p.T - 1) / p.interval) : 0;
  if (p.sequences) {
    const auto clamp = [&](int64_t x) { return x < 0 ? 0 : x > p.T ? p.T : x; };
    begin = clamp(p.cu_seqlens[n]);
    const int64_t end = clamp(p.cu_seqlens[n + 1]);
    length = end > begin ? end - begin : 0;
    checkpoint = begin / p.interval + n;
  }
  const HeadBackward<T, G> kernel{p, *reinterpret_cast<BackwardMemory<T, G>*>(memory), n, p.sequences ? 0 : n, h, begin,
                                   length, checkpoint};
  const int warp = threadIdx.x / 32, thread = threadIdx.x - 32 * STATE_WARPS, first_row = warp % STATE_WARPS * 16;
  const int64_t blocks = (length + BLOCK - 1) / BLOCK, each = p.segment / BLOCK, first = segment * each;
  const int64_t last = segment + 1 < p.segments && blocks > first + each ? first + each : blocks;
  const auto local_of = [&](int64_t s) { return p.local + (blockIdx.x - segment + s) * Local<T, SLICE>::FLOATS; };
  StateRows<T, SLICE> state;  // S of the first warps, R of the others
  if constexpr (outputs) {
    if (warp >= STATE_WARPS) {
      state.load(p.d_final_state, n, h, first_row, p.side[0].width, p.side[1].width);
      for (int64_t s = p.segments - 1; s > segment; --s) Local<T, SLICE>::pass(local_of(s), thread, state);
    }
    if (last > first) kernel.run(state, first, last);
    if (warp >= STATE_WARPS && segment == 0)
      state.store(p.d_initial_state, n, h, first_row, p.side[0].width, p.side[1].width);
  } else if (segment > 0) {
    Local<T, SLICE> local;
    if (last > first) kernel.run_local(state, local, first, last);
    if (warp >= STATE_WARPS) local.put(local_of(segment), thread, state);
  }
}

}  // namespace t2fw::cuda
