// decay backward on tensor cores, D and K up to 64: a thread block takes a head's tokens (or a segment of them) from the
// last to the first, by blocks of four chunks of 16 tokens.
//
// The two sides are the same function with their arguments swapped (recurrences.md): on the value side the sources,
// gates and sinks are v, f, d_y, on the key side k, g, q. A lane owns two neighbouring columns of a side. A block goes in
// three steps, a barrier of all warps between them:
//   1. a warp for each side of each chunk: the scores of its pairs, and its sinks and sources as the state meets them;
//   2. four warps take the state S through the chunks, from what forward saved; four take its gradient R the other way.
//      What a chunk meets of both is left in shared memory;
//   3. two warps for each side of each chunk, one for each half of its tokens: products with S and R, then the gradients,
//      column by column, by differentiating the sum of a row
//        out_u = E_u a_0 .. a_u + sum over s <= u of A[u][s] a_{s+1} .. a_u z_s,   A: the other side's scores,
//      in the order in which Horner's scheme adds it up. E_u is what enters the half, from the state and, into the upper
//      half, from the lower; one more row is what leaves it. No gate is divided by.
#pragma once

#include "scores.cuh"
#include "state.cuh"

namespace t2fw::cuda {

inline constexpr int CHUNKS = 4, BLOCK = CHUNKS * CHUNK;  // chunks, tokens of a block
inline constexpr int DESKS = 2 * CHUNKS, BACKWARD_WARPS = 2 * DESKS, HALF = CHUNK / 2;

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
  union {
    T sinks[CHUNK][PITCH];     // x times the products of a up to the token
    T entering[CHUNK][PITCH];  // what the sinks meet of S, before any gate
  };
  union {
    T sources[CHUNK][PITCH];  // z times the products of a behind the token
    T leaving[CHUNK][PITCH];  // what the sources meet of R
  };
  float scores[CHUNK][CHUNK];
  float all[SLICE];      // products of a over the chunk
  float through[SLICE];  // the entering state met with the leaving gradient
};

template <class T, class G>
struct BackwardMemory {
  SideDesk<T, G> desk[DESKS];  // of a chunk's value side, its key side, the next chunk's ..
  T S[CHUNKS][SLICE][PITCH], R[CHUNKS][SLICE][PITCH];  // [value][key]: entering a chunk, and the gradient leaving it
  float state[SLICE][SLICE + 4];                // S as it was saved, [key][value]: before the block, between steps 2
  float gradient[STATE_WARPS][SLICE / 2][32];  // R of the warps that carry it, while they do step 3
};

// A state in shared memory as an operand: rows m, contracted over k. transposed: m counts the state's columns.
template <bool transposed>
struct Pieces {
  uint32_t left, right;  // where this lane's rows of a 16x16 piece lie, as a left operand and as a right one
  static constexpr uint32_t along = 16 * 2, down = PITCH * along;  // bytes to the next piece

  template <class T>
  __device__ __forceinline__ Pieces(const T (&state)[SLICE][PITCH], int first, int lane) {
    const int row = lane % 8, i = lane / 8 % 2 * 8, j = lane / 16 * 8;
    left = shared_address(transposed ? &state[j + row][first + i] : &state[first + i + row][j]);
    right = shared_address(transposed ? &state[i + row][first + j] : &state[first + j + row][i]);
  }
  __device__ __forceinline__ static void load(uint32_t (&x)[4], uint32_t base, int m, int k) {
    if constexpr (transposed) load_matrices_transposed(x, base + m * along + k * down);
    else load_matrices(x, base + m * down + k * along);
  }
};

// A thread block at work on its head.
template <class T, class G>
struct HeadBackward {
  using P = typename Pair<T>::type;
  using PG = typename Pair<G>::type;
  using Desk = SideDesk<T, G>;
  using State = StateRows<T, SLICE>;
  const BackwardArgs& p;
  BackwardMemory<T, G>& memory;
  int n, b, h;
  int64_t begin, length, checkpoint;  // begin, length: the sequence's tokens in batch row b

  __device__ __forceinline__ Place place(int64_t first) const {
    const int64_t left = length - first;
    return {fresh(b), fresh(h), begin + first, static_cast<int>(left < 0 ? 0 : left < CHUNK ? left : CHUNK)};
  }

  // Which operands of a block are needed: for its gradients, for the state behind it, for the gradient before it.
  enum class Need { all, sources, sinks };

  __device__ __forceinline__ void stage_desk(int block, Need need, int number) const {
    const SideArgs& s = p.side[number % 2];
    Desk& desk = memory.desk[number];
    const Place c = place(int64_t{block} * BLOCK + number / 2 * CHUNK);
    if (need != Need::sources) stage<SLICE>(desk.x, s.x, c, 0, s.width, 0.f);
    if (need != Need::sinks) stage<SLICE>(desk.z, s.z, c, 0, s.width, 0.f);
    stage<SLICE>(desk.a, s.a, c, 0, s.width, 1.f);
    commit_copies();
  }

  // Sixteen tokens' rows as a left operand.
  struct Left {
    uint32_t x[SLICE / 16][4];
    __device__ __forceinline__ Left(const T (&rows)[CHUNK][PITCH], int lane) {
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k) load_matrices(x[k], shared_address(&rows[lane % 16][k * 16 + lane / 16 * 8]));
    }
  };

  // met[t][c] = sum over the other side's o of rows[t][o] state[.], for 32 columns from `first`.
  template <class State>
  __device__ __forceinline__ static void meet(const Left& rows, const State& state, int first, int lane,
                                              T (&met)[CHUNK][PITCH]) {
    const int g = lane / 4, j = lane % 4 * 2;
#pragma unroll 1
    for (int m = 0; m < SLICE / 32; ++m) {
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k) {
        uint32_t right[4];
        state.load(right, state.right, m, k);
        multiply_add<T>(sum[0], rows.x[k], right[0], right[1]);
        multiply_add<T>(sum[1], rows.x[k], right[2], right[3]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        *reinterpret_cast<P*>(&met[g][first + m * 16 + i * 8 + j]) = narrow<T>(float2{sum[i][0], sum[i][1]});
        *reinterpret_cast<P*>(&met[g + 8][first + m * 16 + i * 8 + j]) = narrow<T>(float2{sum[i][2], sum[i][3]});
      }
    }
  }

  // through[c] = sum over the other side's o of S all[o] R, for 32 columns from `first`.
  template <class State>
  __device__ __forceinline__ static void diagonal(const State& S, const State& R, int first, int lane, const float* all,
                                                  float* through) {
    const int g = lane / 4, j = lane % 4 * 2;
#pragma unroll 1
    for (int m = 0; m < SLICE / 32; ++m) {
      float sum[2][4] = {};
#pragma unroll
      for (int k = 0; k < SLICE / 16; ++k) {
        uint32_t left[4], right[4];
        S.load(left, S.left, m, k);
        R.load(right, R.right, m, k);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const P gates = narrow<T>(*reinterpret_cast<const float2*>(&all[k * 16 + i / 2 * 8 + j]));
          left[i] = bits(__hmul2(*reinterpret_cast<const P*>(&left[i]), gates));
        }
        multiply_add<T>(sum[0], left, right[0], right[1]);
        multiply_add<T>(sum[1], left, right[2], right[3]);
      }
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (g == j + e) {
          through[first + m * 16 + g] = sum[0][e];
          through[first + m * 16 + 8 + g] = sum[1][2 + e];
        }
    }
  }

  // What desk `number` meets of the states, half of its columns.
  template <bool key_side>
  __device__ __forceinline__ void meet_states(int number, bool upper, int lane) const {
    const int chunk = number / 2, first = upper * (SLICE / 2);
    Desk& desk = memory.desk[number];
    const Desk& other = memory.desk[number ^ 1];
    const Left sources(other.sources, lane), sinks(other.sinks, lane);
    const Pieces<key_side> S(memory.S[chunk], first, lane), R(memory.R[chunk], first, lane);
    chunk_barrier(chunk);
    meet(sources, R, first, lane, desk.leaving);
    meet(sinks, S, first, lane, desk.entering);
    diagonal(S, R, first, lane, other.all, desk.through);
  }

  // One row of the sum over the first `tokens` sources of a half, and its gradient: see the top. entering: what is added
  // before any gate; weight(s): the row's score of source s; adjoint: the row's own gradient. Returns the row's sum.
  template <int tokens, class Weight>
  __device__ __forceinline__ static float2 row(const Weight& weight, float2 entering, float2 adjoint, const float2 (&z)[HALF],
                                               const float2 (&a)[HALF], float2 (&d_z)[HALF], float2 (&d_a)[HALF]) {
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

  // Writes a half's rows of an output; a gate of one value a token takes the sum over the columns.
  template <class E>
  __device__ __forceinline__ static void put(const Rows& x, const Place& c, int first, int column, int columns,
                                             const float2 (&value)[HALF]) {
    using Two = typename Pair<E>::type;
    if (!x.width) return;
    E* to = const_cast<E*>(at<E>(x, c, first, column));
    if (copied(x, c)) {
      if (column >= columns) return;
#pragma unroll
      for (int t = 0; t < HALF; ++t, to += x.t) *reinterpret_cast<Two*>(to) = narrow<E>(value[t]);
    } else if (x.width == columns) {
#pragma unroll
      for (int t = 0; t < HALF; ++t, to += x.t) {
        if (first + t < c.count && column < columns) to[0] = narrow<E>(value[t].x);
        if (first + t < c.count && column + 1 < columns) to[1] = narrow<E>(value[t].y);
      }
    } else {
#pragma unroll
      for (int t = 0; t < HALF; ++t, to += x.t) {
        float sum = value[t].x + value[t].y;
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (first + t < c.count && column == 0) *to = narrow<E>(sum);
      }
    }
  }

  // A lane's two columns of a token, the first in `column`.
  __device__ __forceinline__ static float2 two(const T (&row)[PITCH], int column) {
    return widen(*reinterpret_cast<const P*>(&row[column]));
  }
  __device__ __forceinline__ static float2 two(const G (&row)[SLICE], int column) {
    return widen(*reinterpret_cast<const PG*>(&row[column]));
  }
  __device__ __forceinline__ static void load_weights(const float* from, float (&weights)[HALF]) {
#pragma unroll
    for (int i = 0; i < HALF; i += 4) *reinterpret_cast<float4*>(weights + i) = *reinterpret_cast<const float4*>(from + i);
  }

  // What leaves the lower half beside the state: for the sinks of the upper.
  __device__ __forceinline__ static void meet_upper(const Desk& desk, int column, const float (&scores)[CHUNK][CHUNK],
                                                    float2 (&leaves)[HALF], float2& through) {
    float2 product = {1.f, 1.f}, met = {0.f, 0.f}, sum[HALF] = {};
#pragma unroll
    for (int t = HALF; t < CHUNK; ++t) {
      product = product * two(desk.a[t], column);
      const float2 sink = product * two(desk.x[t], column);
      met = fma(sink, two(desk.entering[t], column), met);
      float weights[HALF];
      load_weights(scores[t], weights);
#pragma unroll
      for (int s = 0; s < HALF; ++s) sum[s] = fma(weights[s], sink, sum[s]);
    }
#pragma unroll
    for (int s = 0; s < HALF; ++s) leaves[s] = fma(product, leaves[s], sum[s]);
    through = fma(product, through, met);
  }

  // What enters the upper half: the state behind the lower half's gates, and the lower half's sources.
  __device__ __forceinline__ static void meet_lower(const Desk& desk, int column, const float (&scores)[CHUNK][CHUNK],
                                                    float2 (&enters)[HALF], float2& through) {
    float2 product = {1.f, 1.f}, met = {0.f, 0.f}, source[HALF];
#pragma unroll
    for (int s = HALF - 1; s >= 0; --s) {
      source[s] = product * two(desk.z[s], column);
      met = fma(source[s], two(desk.leaving[s], column), met);
      product = product * two(desk.a[s], column);
    }
#pragma unroll
    for (int t = 0; t < HALF; ++t) {
      float weights[HALF];
      load_weights(scores[HALF + t], weights);
      enters[t] = product * two(desk.entering[HALF + t], column);
#pragma unroll
      for (int s = 0; s < HALF; ++s) enters[t] = fma(weights[s], source[s], enters[t]);
    }
    through = fma(product, through, met);
  }

  // The rows of a half; enters becomes their sums.
  template <int... u>
  __device__ __forceinline__ static void rows(std::integer_sequence<int, u...>, const float (&scores)[CHUNK][CHUNK], int first,
                                              float2 (&enters)[HALF], const P (&x)[HALF], const float2 (&z)[HALF],
                                              const float2 (&a)[HALF], float2 (&d_z)[HALF], float2 (&d_a)[HALF]) {
    const auto one = [&](auto number) {
      constexpr int t = decltype(number)::value;
      float weights[HALF];
      load_weights(&scores[first + t][first], weights);
      enters[t] = row<t + 1>([&](int i) { return weights[i]; }, enters[t], widen(x[t]), z, a, d_z, d_a);
    };
    (one(std::integral_constant<int, u>{}), ...);
  }

  // Step 3, the upper or lower half of desk `number`. next: stages what comes after; called when the operands are not
  // needed again.
  template <class Next>
  __device__ __forceinline__ void gradients(int number, bool upper, const Place& c, const Next& next) const {
    const bool key_side = number % 2;
    const SideArgs& s = p.side[key_side];
    const int first = upper * HALF;
    const int lane = fresh(threadIdx.x % 32), column = 2 * lane;
    Desk& desk = memory.desk[number];
    const Desk& other = memory.desk[number ^ 1];
    if (key_side) meet_states<true>(number, upper, lane);
    else meet_states<false>(number, upper, lane);
    pair_barrier(number);
    float2 z[HALF], a[HALF], enters[HALF], d_z[HALF] = {}, d_a[HALF] = {};
    {
      float2 leaves[HALF], through = *reinterpret_cast<const float2*>(&desk.through[column]);
#pragma unroll
      for (int t = 0; t < HALF; ++t) {
        z[t] = two(desk.z[first + t], column);
        a[t] = two(desk.a[first + t], column);
        leaves[t] = two(desk.leaving[first + t], column);
      }
      if (upper) meet_lower(desk, column, other.scores, enters, through);
      else meet_upper(desk, column, other.scores, leaves, through);
      row<HALF>([&](int i) { return leaves[i]; }, through, {1.f, 1.f}, z, a, d_z, d_a);
    }
    P x[HALF];
#pragma unroll
    for (int t = 0; t < HALF; ++t) {
      x[t] = *reinterpret_cast<const P*>(&desk.x[first + t][column]);
      if (!upper) enters[t] = two(desk.entering[t], column);
    }
    pair_barrier(number);
    if (!upper) next();
    rows(std::make_integer_sequence<int, HALF>{}, other.scores, first, enters, x, z, a, d_z, d_a);
    put<T>(s.d_x, c, first, column, s.width, enters);
    put<T>(s.d_z, c, first, column, s.width, d_z);
    put<G>(s.d_a, c, first, column, s.width, d_a);
  }

  // Of the two warps at a desk.
  __device__ __forceinline__ static void pair_barrier(int number) {
    asm volatile("bar.sync %0, 64;" ::"r"(number + 1) : "memory");
  }
  // Of the four at a chunk.
  __device__ __forceinline__ static void chunk_barrier(int chunk) {
    asm volatile("bar.sync %0, 128;" ::"r"(DESKS + 1 + chunk) : "memory");
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

  // R of a warp that carries it.
  __device__ __forceinline__ void park(const State& R, int warp) const {
#pragma unroll
    for (int i = 0; i < State::N * 4; ++i) memory.gradient[warp][i][threadIdx.x % 32] = R.S[i / 4][i % 4];
  }
  __device__ __forceinline__ State parked(int warp) const {
    State R;
#pragma unroll
    for (int i = 0; i < State::N * 4; ++i) R.S[i / 4][i % 4] = memory.gradient[warp][i][threadIdx.x % 32];
    return R;
  }

  // Step 2 by the warps that hold S: through the chunks of a block.
  __device__ __forceinline__ void forth(State& S, int first_row, bool keep) const {
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const Desk &value = memory.desk[2 * chunk], &key = memory.desk[2 * chunk + 1];
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
      const Desk &value = memory.desk[2 * chunk], &key = memory.desk[2 * chunk + 1];
      typename State::Update update;
      update.load(value.sinks, key.sinks, value.all, key.all, first_row);
      if (keep) leave(memory.R[chunk], R, first_row);
      R.apply(update);
      if (local) local->multiply(update);
    }
  }

  // Warp `number` of DESKS brings its part of the state before block `block`, which starts where one was saved.
  __device__ __forceinline__ void stage_state(int block, int number) const {
    const int D = p.side[0].width, K = p.side[1].width, lane = threadIdx.x % 32;
    if (block == 0) {
      State S;
      if (number >= STATE_WARPS) return;
      S.load(p.initial_state, n, h, number * 16, D, K);
      S.each(number * 16, SLICE, SLICE, [&](float& s, int d, int key) { memory.state[key][d] = s; });
      return;
    }
    const float* const saved = p.checkpoints + ((checkpoint + int64_t{block} * BLOCK / p.interval - 1) * p.H + h) * K * D;
    constexpr int pieces = SLICE / 4, rows = 32 / pieces;
    const int d = lane % pieces * 4;
    for (int key = number * rows + lane / pieces; key < K; key += DESKS * rows) {
      if (D % 4 == 0) {
        if (d < D) copy_async(&memory.state[key][d], saved + key * D + d);
      } else {
        for (int i = d; i < d + 4 && i < D; ++i) memory.state[key][i] = saved[key * D + i];
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
    return {apart > 1 ? goal / apart * apart : goal, goal};
  }
  __device__ __forceinline__ Item after(const Item& i) const {
    return i.block == i.goal ? towards(i.goal - 1) : Item{i.block + 1, i.goal};
  }

  // By warp `number` of DESKS: the operands of a desk, and for a new goal its part of the state.
  __device__ __forceinline__ void stage_item(const Item& item, int number) const {
    if (item.block == towards(item.goal).block) stage_state(item.block, number);
    stage_desk(item.block, item.need(), number);
  }

  __device__ __forceinline__ void init() const {
    const int warp = threadIdx.x / 32;
    if (warp >= DESKS) return;
    Desk& desk = memory.desk[warp];
    fill<PITCH>(desk.x, 0.f), fill<PITCH>(desk.z, 0.f), fill<SLICE>(desk.a, 1.f);
    for (int i = threadIdx.x; i < SLICE * (SLICE + 4); i += 32 * DESKS) (&memory.state[0][0])[i] = 0;
    __syncwarp();
  }

  // Step 2.
  __device__ __forceinline__ void sweep(Need need, int warp, int first_row) const {
    if (warp >= 2 * STATE_WARPS || (warp >= STATE_WARPS && need == Need::sources)) return;
    State state;
    if (warp < STATE_WARPS) {
      state.each(first_row, SLICE, SLICE, [&](float& s, int d, int key) { s = memory.state[key][d]; });
      forth(state, first_row, need == Need::all);
      if (need == Need::sources)
        state.each(first_row, SLICE, SLICE, [&](float& s, int d, int key) { memory.state[key][d] = s; });
    } else {
      state = parked(warp - STATE_WARPS);
      back(state, first_row, true, nullptr);
      park(state, warp - STATE_WARPS);
    }
  }

  // Blocks first .. last - 1. What R's warps have parked is the gradient of the state behind them, and then before them.
  __device__ __forceinline__ void run(int first, int last) const {
    const int warp = threadIdx.x / 32, number = warp / 2, first_row = warp % STATE_WARPS * 16;
    init();
    __syncthreads();
    Item item = towards(last - 1);
    if (warp % 2 == 0) stage_item(item, number);
    while (item.goal >= first) {
      const Item next = after(item);
      const auto stage_next = [&] {
        if (next.goal >= first) stage_item(next, number);
      };
      wait_all_copies();
      __syncthreads();
      if (warp < DESKS) prepare(memory.desk[warp], item.need());
      __syncthreads();
      sweep(item.need(), warp, first_row);
      __syncthreads();
      if (item.need() == Need::all) gradients(number, warp % 2, place(int64_t{item.block} * BLOCK + number / 2 * CHUNK), stage_next);
      else if (warp % 2 == 0) stage_next();
      item = next;
    }
  }

  // R from zero, with the products of all gates.
  __device__ __forceinline__ void run_local(State& R, Local<T, SLICE>& local, int first, int last) const {
    const int warp = threadIdx.x / 32, first_row = warp % STATE_WARPS * 16;
    init();
    for (int block = last - 1; block >= first; --block) {
      if (warp < DESKS) {
        stage_desk(block, Need::sinks, warp);
        wait_all_copies();
        prepare(memory.desk[warp], Need::sinks);
      }
      __syncthreads();
      if (warp >= STATE_WARPS && warp < 2 * STATE_WARPS) back(R, first_row, false, &local);
      __syncthreads();
    }
  }
};

template <class T, class G, bool outputs>
__global__ void __launch_bounds__(32 * BACKWARD_WARPS, 1) decay_backward_kernel(const __grid_constant__ BackwardArgs p) {
  extern __shared__ __align__(16) char memory[];
  const int segment = static_cast<int>(blockIdx.x % p.segments), h = static_cast<int>(blockIdx.x / p.segments % p.H);
  const int n = static_cast<int>(blockIdx.x / p.segments / p.H);
  int64_t begin = 0, length = p.T, checkpoint = p.T ? int64_t{n} * ((p.T - 1) / p.interval) : 0;
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
  const int blocks = static_cast<int>((length + BLOCK - 1) / BLOCK), each = static_cast<int>(p.segment / BLOCK);
  const int first = segment * each, last = segment + 1 < p.segments && blocks > first + each ? first + each : blocks;
  const auto local_of = [&](int s) { return p.local + (int64_t{blockIdx.x} - segment + s) * Local<T, SLICE>::FLOATS; };
  const bool holds_R = warp >= STATE_WARPS && warp < 2 * STATE_WARPS;
  StateRows<T, SLICE> R;
  if constexpr (outputs) {
    if (holds_R) {
      R.load(p.d_final_state, n, h, first_row, p.side[0].width, p.side[1].width);
      for (int s = p.segments - 1; s > segment; --s) Local<T, SLICE>::pass(local_of(s), thread, R);
      kernel.park(R, warp - STATE_WARPS);
    }
    if (last > first) kernel.run(first, last);
    if (holds_R && segment == 0) {
      R = kernel.parked(warp - STATE_WARPS);
      R.store(p.d_initial_state, n, h, first_row, p.side[0].width, p.side[1].width);
    }
  } else if (segment > 0) {
    Local<T, SLICE> local;
    if (last > first) kernel.run_local(R, local, first, last);
    if (holds_R) local.put(local_of(segment), thread, R);
  }
}

}  // namespace t2fw::cuda
