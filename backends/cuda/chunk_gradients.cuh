// Step 3 of decay backward (decay_backward.cuh): the gradients of one side of a chunk, 16 and 16 columns by a warp.
//
// What enters a token from before (E) and meets of what comes behind it (L) is refined from the whole chunk to halves,
// quarters, pairs and single tokens (recurrences.md: split every pair at its power-of-two boundary):
//   upper part:  E = (product of the lower part's gates) E + scores x the lower part's sources
//   lower part:  L = (product of the upper part's gates) L + scores x the upper part's sinks
//   passing by:  P of a part = (product of the other's gates) P + the other's sources x L, or sinks x E
// and at a token d_x = a E + A x z, d_z = L + A x x, d_a = x E + P. Quarters lie in different lanes (quarter.cuh): between them
// scores are met by matrix products. No gate is divided by.
#pragma once

#include "backward.cuh"
#include "quarter.cuh"
#include "scores.cuh"

namespace t2fw::cuda {

inline constexpr int CHUNKS = 4, BLOCK = CHUNKS * CHUNK;  // chunks, tokens of a block
inline constexpr int DESKS = 2 * CHUNKS, BACKWARD_WARPS = 2 * DESKS;
inline constexpr int CHUNK_WARPS = BACKWARD_WARPS / CHUNKS;  // of both sides
inline constexpr int HALF_SLICE = SLICE / 2;  // columns of a desk's warp, keys of a part of a state
inline constexpr int PARTS = 8, SWEEP_WARPS = PARTS / 2;  // of a state: 16 rows by 32 keys; who carry it take two each

template <class G>
inline constexpr int GATE_PITCH = sizeof(G) == 2 ? PITCH : SLICE + 4;

// A side of a chunk. The gradients of x, z and a take their places. parity: of the block's number. The next block's operands
// are brought to where this one's sinks and sources were, and its sinks and sources will lie where this one's operands
// are. 32-bit gates have no second place: the next ones are brought to where nobody needs the chunk's S any more, and are moved
// here when the block begins.
template <class T, class G>
struct alignas(16) SideDesk {
  static constexpr int GATE_PLACES = sizeof(G) == 2 ? 2 : 1;
  using Columns = T[CHUNK][PITCH];
  using GateColumns = G[CHUNK][GATE_PITCH<G>];
  struct { Columns x, z; } rows[2];
  GateColumns gate_rows[GATE_PLACES];
  float near[2][9][8];  // scores inside quarters: [half][token][earlier one or the same]; the ninth: no bank meets twice
  T pairs[CHUNK][CHUNK + 8];  // of all tokens, symmetric, but those of a quarter: both by their places
  float all[SLICE];      // products of a over the chunk
  float half[2][SLICE];  // and over its halves
  alignas(16) T gates[4][SLICE / 4];  // all, as the data: the pairs of columns that a lane of four reads
  float sums[SLICE / 16][CHUNK];  // of a gate of one value a token: its gradient from 16 columns each

  __device__ __forceinline__ Columns& x(int parity) { return rows[parity].x; }
  __device__ __forceinline__ Columns& z(int parity) { return rows[parity].z; }
  __device__ __forceinline__ GateColumns& a(int parity) { return gate_rows[GATE_PLACES == 2 ? parity : 0]; }
  // x times the products of a up to the token, z times those behind it
  __device__ __forceinline__ Columns& sinks(int parity) { return x(1 - parity); }
  __device__ __forceinline__ Columns& sources(int parity) { return z(1 - parity); }
  // Of a token in the order in which a Quarter's lanes hold them. Four places on is eight tokens later.
  __device__ __forceinline__ static int place(int token) { return token % 4 / 2 * 8 + token / 4 * 2 + token % 2; }
};

// How a tile's gradients of a side are written. Found out once, so that a warp has one thing to read (bench/RESULTS.md).
struct alignas(16) Writing {
  int back;          // how many tiles before this one the one is that adds right before it; 0: none does
  bool lines;        // whole chunks go 16 bytes at a time, but for sums
  bool adds;         // to what is there, but for sums
  bool full;         // d_a has every column
  bool sums;         // d_a has one value a token
  bool sums_add;     // to what is there
  bool tells;        // a later tile adds to this one's parts, and is told how far they are written
};

template <class T, class G>
struct BackwardMemory {
  // Of a chunk; they open once a block: when its warps have done step 1, and need nothing of the block behind any more; when
  // both states have come to it, and step 2 needs nothing else of it; when its warps need its sinks, sources and S no more, nor
  // what else the other side's desk holds.
  Gate scored[CHUNKS], passed[CHUNKS], met[CHUNKS];
  TileTask task;
  const T* states;             // of the head, this tile's part of them: before its second block ..
  int64_t states_apart;        // bytes from one to the next
  int saved_rows, saved_columns;  // of a state, from the tile's first on
  uint32_t* written;           // by each warp: how many blocks' gradients
  uint32_t seen[BACKWARD_WARPS];  // of each warp's like in the tile `back`, when it last looked
  int first, end;              // the segment's blocks: first .. end - 1
  SideArgs side[2];            // from the head's first token on: a place is {0, 0, token, count}
  struct {
    TileRows z, a, x, d_z, d_a, d_x;
    Writing writing;
    bool usual;                // z, x and a lie so; or there is no a, and nothing to put in its place for each block
  } tile[2];                   // the same of this tile
  SideDesk<T, G> desk[DESKS];  // of a chunk's value side, its key side, the next chunk's ..
  // [value][key]: entering a chunk, and the gradient leaving it. For a while what coming_gates says has S's place.
  T S[CHUNKS][SLICE][PITCH], R[CHUNKS][SLICE][PITCH];
  T saved[SLICE][PITCH];                               // rows (SavedRow) of the state that enters the block
  float4 gradient[PARTS][HALF_SLICE / 8][32];  // R, while those that carry it do something else

  // Where a desk's gates of a block of this parity are brought.
  __device__ __forceinline__ auto& coming_gates(int number, int parity) {
    using Columns = typename SideDesk<T, G>::GateColumns;
    static_assert(2 * sizeof(Columns) <= sizeof S[0]);
    if constexpr (SideDesk<T, G>::GATE_PLACES == 2) return desk[number].a(parity);
    else return reinterpret_cast<Columns*>(S[number / 2])[number % 2];
  }
};

// A state in shared memory as a left operand: 16 rows from `first` on, contracted over k. transposed: they are its columns.
template <bool transposed>
struct Piece {
  uint32_t address;

  template <class T>
  __device__ __forceinline__ Piece(const T (&state)[SLICE][PITCH], int first, int lane) {
    const int row = lane % 8, i = lane / 8 % 2 * 8, k = lane / 16 * 8;
    address = shared_address(transposed ? &state[k + row][first + i] : &state[first + i + row][k]);
  }
  __device__ __forceinline__ void load(uint32_t (&x)[4], int k) const {
    if constexpr (transposed) load_matrices_transposed(x, address + k * 16 * PITCH * 2);
    else load_matrices(x, address + k * 16 * 2);
  }
};

// The other side's scores of a chunk as step 3 reads them.
template <class T, class N>
struct Scores {
  Two<N> near[4][4];  // of the lane's quarter, for both columns: [token][earlier token or the same]
  uint32_t pairs[4];  // of different quarters' tokens, symmetric, as a right operand
  bool upper, odd;    // the lane's quarter in the chunk, in its half

  template <class Desk>
  __device__ __forceinline__ Scores(const Desk& desk, int lane) {
    const int j = lane % 4;
    upper = j / 2, odd = j % 2;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float4 row = *reinterpret_cast<const float4*>(&desk.near[upper][odd * 4 + t][odd * 4]);
      near[t][0] = narrow<N>(float2{row.x, row.x}), near[t][1] = narrow<N>(float2{row.y, row.y});
      near[t][2] = narrow<N>(float2{row.z, row.z}), near[t][3] = narrow<N>(float2{row.w, row.w});
    }
    load_matrices(pairs, shared_address(&desk.pairs[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]));
  }
  // Those of pairs that are split at the chunk's middle, or at a half's (`quarters`).
  __device__ __forceinline__ void split(bool quarters, int lane, uint32_t (&to)[4]) const {
    const int apart = lane % 4 ^ lane / 8;  // quarters of the operand's rows and columns
    const bool keep = quarters ? apart == 1 : apart >= 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = keep ? pairs[i] : 0;
  }
};

// Products of a quarter's gates, of the quarter beside and of the other half.
template <class N>
struct GateProducts {
  Two<N> low, high, own, next, across;

  __device__ __forceinline__ explicit GateProducts(const Quarter<N>& a) {
    low = a[0] * a[1], high = a[2] * a[3], own = low * high;
    next = exchange(own, 1), across = exchange(own * next, 2);
  }
};

// logits: the gates are given by them.
template <class T, class G, bool logits>
struct ChunkGradients {
  // What gradients inside a chunk are computed in: in pairs of bf16 if all operands are bf16, whose range is fp32's.
  using N = std::conditional_t<std::is_same_v<G, __nv_bfloat16> && !logits, G, float>;
  using Desk = SideDesk<T, G>;
  BackwardMemory<T, G>& memory;
  int block = 0;  // at work

  __device__ __forceinline__ int parity() const { return fresh(block) & 1; }  // kept in no register

  __device__ __forceinline__ int first_column(bool key_side) const { return key_side ? memory.task.key : memory.task.value; }

  // For 32 columns of desk `number`, 16 and 16: what its sinks meet of S, its sources of R, and S of R behind the chunk's
  // gates.
  template <bool key_side>
  __device__ __forceinline__ void meet(int number, int column, int lane, Quarter<N> (&E)[2], Quarter<N> (&L)[2],
                                       Two<N> (&passing)[2]) const {
    Desk& other = memory.desk[number ^ 1];
    const uint32_t sinks = quarter_rows(other.sinks(parity()), 0, lane);
    const uint32_t sources = quarter_rows(other.sources(parity()), 0, lane);
    Two<T> gates[4];
    float entering[2][2][4] = {}, leaving[2][2][4] = {}, low[2][4] = {}, high[2][4] = {};
#pragma unroll
    for (int k = 0; k < SLICE / 16; ++k) {
      uint32_t sink[4], source[4];
      if (k % 2 == 0) *reinterpret_cast<uint4*>(gates) = *reinterpret_cast<const uint4*>(&other.gates[lane % 4][k * 4]);
      load_matrices(sink, sinks + k * 32), load_matrices(source, sources + k * 32);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const Piece<key_side> S(memory.S[number / 2], column + n * 16, lane), R(memory.R[number / 2], column + n * 16, lane);
        uint32_t s[4], r[4];
        S.load(s, k), R.load(r, k);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_add<T>(entering[n][i], s, sink[i * 2], sink[i * 2 + 1]);
          multiply_add<T>(leaving[n][i], r, source[i * 2], source[i * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto piece = as_pair<Two<T>>(s[i]);
          if constexpr (std::is_same_v<T, __half>)  // gates may be wider
            s[i] = bits(narrow<T>(widen(piece) *
                                  *reinterpret_cast<const float2*>(&other.all[k * 16 + i / 2 * 8 + lane % 4 * 2])));
          else s[i] = bits(__hmul2(piece, gates[k % 2 * 2 + i / 2]));
        }
        // R's halves are right operands as they lie
        multiply_add<T>(low[n], s, r[0], r[2]), multiply_add<T>(high[n], s, r[1], r[3]);
      }
    }
    const int g = lane / 4, holder = g * 4 + g / 2;  // of the diagonal
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const Two<N> both = narrow<N>(g % 2 ? float2{low[n][1], high[n][3]} : float2{low[n][0], high[n][2]});
      passing[n] = from_lane(both, holder);
      E[n] = Quarter<N>::of(entering[n]), L[n] = Quarter<N>::of(leaving[n]);
    }
  }

  // Into the lane's quarter: E, L, passing of the chunk become the quarter's.
  __device__ __forceinline__ static void to_quarters(const Scores<T, N>& A, int lane, const Quarter<N>& x, const Quarter<N>& z,
                                                     const Quarter<N>& a, const GateProducts<N>& by, Quarter<N>& E,
                                                     Quarter<N>& L, Two<N>& passing) {
    // from the quarter's start, to its end
    const Quarter<N> sinks{a[0] * x[0], by.low * x[1], by.low * (a[2] * x[2]), by.own * x[3]};
    const Quarter<N> sources{by.high * (a[1] * z[0]), by.high * z[1], a[3] * z[2], z[3]};
    const auto level = [&](bool quarters, Two<N> product, const auto& reach) {
      const bool upper = quarters ? A.odd : A.upper;
      Quarter<N> own;
      Two<N> met;
      float more[2][4] = {};
      uint32_t left[4], right[4];
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        own[t] = reach(choose(upper, sinks[t], sources[t]));
        const Two<N> of = choose(upper, E[t], L[t]);
        met = t ? fma(own[t], of, met) : own[t] * of;
      }
      if (!quarters) met = met + exchange(met, 1);
      passing = fma(product, passing, exchange(met, quarters ? 1 : 2));
      own.template operand<T>(left), A.split(quarters, lane, right);
      multiply_add<T>(more[0], left, right[0], right[1]), multiply_add<T>(more[1], left, right[2], right[3]);
      const auto crossed = Quarter<N>::of(more);
#pragma unroll
      for (int t = 0; t < 4; ++t)
        if (upper) E[t] = fma(product, E[t], crossed[t]);
        else L[t] = fma(product, L[t], crossed[t]);
    };
    level(false, by.across, [&](Two<N> y) { return A.upper == A.odd ? y * by.next : y; });
    level(true, by.next, [](Two<N> y) { return y; });
  }

  // From the quarter to its tokens: x, z, a become their gradients.
  __device__ __forceinline__ static void to_tokens(const Two<N> (&A)[4][4], const GateProducts<N>& by, const Quarter<N>& E,
                                                   const Quarter<N>& L, Two<N> passing, Quarter<N>& x, Quarter<N>& z,
                                                   Quarter<N>& a) {
    const Two<N> source = z[0] * a[1], sink = a[2] * (a[3] * x[3]), near_sink = a[2] * x[2];
    // halves of the quarter
    const Two<N> pass[2] = {fma(by.high, passing, fma(near_sink, E[2], sink * E[3])),
                            fma(by.low, passing, fma(source, L[0], z[1] * L[1]))};
    Two<N> e[4] = {E[0], E[1]}, l[4] = {L[0], L[1], L[2], L[3]};
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      e[2 + t] = fma(by.low, E[2 + t], fma(A[2 + t][0], source, A[2 + t][1] * z[1]));
      l[t] = fma(by.high, L[t], fma(A[2][t], near_sink, A[3][t] * sink));
    }
    // single tokens
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const Two<N> a0 = a[i], a1 = a[i + 1], x0 = x[i], x1 = x[i + 1], z0 = z[i], z1 = z[i + 1];
      const Two<N> own = a1 * x1, score = A[i + 1][i], pass0 = fma(a1, pass[i / 2], own * e[i + 1]);
      const Two<N> pass1 = fma(a0, pass[i / 2], z0 * l[i]), e1 = fma(a0, e[i + 1], score * z0), l0 = fma(a1, l[i], score * own);
      x[i] = fma(a0, e[i], A[i][i] * z0), x[i + 1] = fma(a1, e1, A[i + 1][i + 1] * z1);
      z[i] = fma(A[i][i], x0, l0), z[i + 1] = fma(A[i + 1][i + 1], x1, l[i + 1]);
      a[i] = fma(x0, e[i], pass0), a[i + 1] = fma(x1, e1, pass1);
    }
  }

  // Leaves the gradient of a gate of one value a token, summed over as many of the columns as there are.
  __device__ __forceinline__ static void leave_sums(const Quarter<N>& d, float (&to)[CHUNK], int columns, int lane) {
    float sum[4];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 two = widen(d[t]);
      sum[t] = (lane / 4 < columns ? two.x : 0.f) + (lane / 4 + 8 < columns ? two.y : 0.f);
      for (int i = 4; i < 32; i *= 2) sum[t] += __shfl_xor_sync(~0u, sum[t], i);
    }
    if (lane < 4) *reinterpret_cast<float4*>(&to[lane * 4]) = {sum[0], sum[1], sum[2], sum[3]};
  }

  static constexpr float LIFT = std::is_same_v<G, __half> ? 0x1p16f : 1.f;  // a slope is 1/4 at most, and may be subnormal

  // Logits become gates, and leave in their place what takes a gate's gradient to its logit.
  __device__ __forceinline__ void to_gates(Quarter<float>& a, Desk& desk, int first, int lane) const {
    Quarter<float> slope;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      a[t] = logistic(a[t]);
      slope[t] = float2{logistic_slope(a[t].x) * LIFT, logistic_slope(a[t].y) * LIFT};
    }
    slope.leave(desk.a(parity()), first, lane);
  }
  __device__ __forceinline__ void to_logits(Quarter<float>& d_a, Desk& desk, int first, int lane) const {
    const auto slope = Quarter<float>::load(desk.a(parity()), first, fresh(lane));
#pragma unroll
    for (int t = 0; t < 4; ++t) d_a[t] = d_a[t] * ((1 / LIFT) * slope[t]);
  }

  // Step 3 by one of the two warps of desk `number`: leaves the tile's part of the gradients. between: what is done when this
  // warp has said that it needs the chunk's sinks, sources and S no more.
  template <class Between>
  __device__ __forceinline__ void gradients(int number, bool second, const Between& between) const {
    const int lane = fresh(threadIdx.x % 32);
    const int first = second * HALF_SLICE;
    Quarter<N> E[2], L[2];
    Two<N> passing[2];
    if (number % 2) meet<true>(number, first, lane, E, L, passing);
    else meet<false>(number, first, lane, E, L, passing);
    const Scores<T, N> A(memory.desk[number ^ 1], lane);
    memory.met[number / 2].arrive();
    between();
#pragma unroll
    for (int n = 0; n < 2; ++n) refine(n, A, E[n], L[n], passing[n]);
  }
  // For the n-th 16 columns of the warp.
  __device__ __forceinline__ void refine(int n, const Scores<T, N>& A, Quarter<N>& E, Quarter<N>& L, Two<N> passing) const {
    const int warp = fresh(threadIdx.x / 32), number = warp / 2, first = warp % 2 * HALF_SLICE + n * 16;  // kept in no register
    const bool key_side = number % 2;
    const SideArgs& s = memory.side[key_side];
    const int lane = fresh(threadIdx.x % 32);
    Desk& desk = memory.desk[number];
    auto a = Quarter<N>::load(desk.a(parity()), first, lane);
    if constexpr (logits) to_gates(a, desk, first, lane);
    auto x = Quarter<N>::load(desk.x(parity()), first, lane), z = Quarter<N>::load(desk.z(parity()), first, lane);
    const GateProducts<N> by(a);
    to_quarters(A, lane, x, z, a, by, E, L, passing);
    to_tokens(A.near, by, E, L, passing, x, z, a);
    x.leave(desk.x(parity()), first, lane), z.leave(desk.z(parity()), first, lane);
    if constexpr (logits) to_logits(a, desk, first, lane);
    if (s.d_a.width == s.width) a.leave(desk.a(parity()), first, lane);
    else if (s.d_a.width) leave_sums(a, desk.sums[first / 16], s.width - first_column(key_side) - first, lane);
  }

  // A warp's columns of a gradient, 16 bytes at a time: this lane's start at token t, column j.
  template <class E>
  struct Lines {
    static constexpr int each = 16 / sizeof(E), pieces = HALF_SLICE / each, together = 32 / pieces, count = CHUNK / together;
    uint4 line[count];
    int t, j;

    __device__ __forceinline__ Lines() {
      const int lane = threadIdx.x % 32;
      t = sizeof(E) == 2 ? lane / 4 % 2 * 4 + lane / 8 : lane / pieces, j = lane % pieces * each;
    }
    template <int W>
    __device__ __forceinline__ void read(const E (&rows)[CHUNK][W], int first) {
#pragma unroll
      for (int i = 0; i < count; ++i) {  // row_of(t + i * together)
        const E* const row = &rows[i * together < CHUNK / 2 ? t : t ^ 2][first + j];
        line[i] = *reinterpret_cast<const uint4*>(row + i * together * W);
      }
    }
    // As far as the tile has columns. token: the chunk's first; first: this warp's first column; adds: to what is there.
    template <bool adds>
    __device__ __forceinline__ void write(const TileRows& to, uint32_t token, uint32_t first) const {
      const bool there = first + j < to.columns;
      if (adds && !there) return;
      auto* at_t = reinterpret_cast<const char*>(to.template at<E>(token + t, first + j));
      const uint64_t step = uint64_t{to.step} * together;
#pragma unroll
      for (int i = 0; i < count; ++i, at_t += step)
        if constexpr (adds) add_line<E>(at_t, line[i]);
        else store_line_if(there, at_t, line[i]);
    }
  };
  // All of a warp's gradients; those that are absent, or sums, have no columns.
  template <bool adds>
  __device__ __forceinline__ void write_lines(int number, uint32_t first, uint32_t token) const {
    const TileRows d_x = memory.tile[number % 2].d_x, d_z = memory.tile[number % 2].d_z, d_a = memory.tile[number % 2].d_a;
    Desk& desk = memory.desk[number];
    Lines<T> x, z;
    Lines<G> a;
    x.read(desk.x(parity()), first), z.read(desk.z(parity()), first), a.read(desk.a(parity()), first);
    x.template write<adds>(d_x, token, first), z.template write<adds>(d_z, token, first);
    a.template write<adds>(d_a, token, first);
  }

  // The same element by element, for partial chunks and what does not lie so (TileRows).
  template <class E, int W>
  __device__ __forceinline__ static void write_elements(const Rows& to, const Place& c, const E (&rows)[CHUNK][W], int first,
                                                        int column, int columns, bool adds) {
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < CHUNK * HALF_SLICE; i += 32) {
      const int t = i / HALF_SLICE, j = i % HALF_SLICE;
      if (t >= c.count || column + j >= columns) continue;
      E* const there = const_cast<E*>(at<E>(to, c, t, column + j));
      const E own = rows[row_of(t)][first + j];
      *there = adds ? narrow<E>(widen(own) + widen(load_written(there))) : own;
    }
  }

  // Where this warp's like in the tile `back` before this one tells how many blocks' gradients it has written.
  __device__ __forceinline__ const uint32_t* told(int back) const {
    return memory.written - back * BACKWARD_WARPS + fresh(threadIdx.x / 32);
  }
  // Looks there, unless it had written `blocks` of them before: a way to the L2 cache, gone where the warp would wait anyway.
  __device__ __forceinline__ void look(uint32_t blocks) const {
    const int warp = fresh(threadIdx.x / 32), back = memory.tile[warp / 2 % 2].writing.back;
    if (!back || memory.seen[warp] >= blocks) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) memory.seen[warp] = look_at(told(back));
    __syncwarp();
  }

  // After this warp's step 3, and both warps' if there are sums: its part of the gradients. Where tiles have parts in the same
  // element, the first stores and the next ones, in their order, add: a warp waits for the one that has its place in the tile
  // before. blocks: of how many, with this one, that one must have written the gradients.
  __device__ __forceinline__ void write_desk(int number, bool second, const Place& c, uint32_t blocks) const {
    const bool key_side = number % 2;
    const int warp = fresh(threadIdx.x / 32), first = second * HALF_SLICE;
    const Writing how = memory.tile[key_side].writing;
    // by the length: of c.count == CHUNK ptxas 13.0 took the opposite here, when a count was 0 at least
    const bool lines = how.lines && memory.task.sequence.length - c.first >= CHUNK;
    if (lines && !how.adds) {
      write_lines<false>(number, first, c.first);
      if (!how.sums) return;
    }
    if (how.back && memory.seen[warp] < blocks) wait_for(told(how.back), blocks);
    if (lines && how.adds) write_lines<true>(number, first, c.first);
    if (!lines) {
      const SideArgs& s = memory.side[key_side];
      Desk& desk = memory.desk[number];
      const int column = first_column(key_side) + first;
      if (key_side) write_elements(s.d_x, c, desk.x(parity()), first, column, s.width, how.adds);
      write_elements(s.d_z, c, desk.z(parity()), first, column, s.width, how.adds);
      if (how.full) write_elements(s.d_a, c, desk.a(parity()), first, column, s.width, how.adds);
    }
    if (how.sums && !second && static_cast<int>(threadIdx.x % 32) < c.count) {
      const int t = threadIdx.x % 32;
      Desk& desk = memory.desk[number];
      G* const to = const_cast<G*>(at<G>(memory.side[key_side].d_a, c, t, 0));
      float sum = how.sums_add ? widen(load_written(to)) : 0.f;
      for (const auto& part : desk.sums) sum += part[t];
      *to = narrow<G>(sum);
    }
  }

  // That this warp has written the gradients of so many blocks, if a later tile adds to them. Waits until they have arrived.
  __device__ __forceinline__ void tell_written(uint32_t blocks) const {
    const int warp = fresh(threadIdx.x / 32);
    if (memory.tile[warp / 2 % 2].writing.tells) tell(memory.written + warp, blocks);
  }

  // Of the two warps at a desk.
  __device__ __forceinline__ static void pair_barrier(int number) {
    asm volatile("bar.sync %0, 64;" ::"r"(number + 1) : "memory");
  }
};

}  // namespace t2fw::cuda
