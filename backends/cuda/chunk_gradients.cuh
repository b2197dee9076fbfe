// Step 3 of decay backward (decay_backward.cuh): the gradients of one side of a chunk, 16 and 16 columns by a warp.
//
// A lane holds a quarter of the chunk, tokens 4 j .. 4 j + 3 with j = lane % 4, of columns g and g + 8, g = lane / 4: the
// layout of a matrix product's result whose rows are columns and whose columns are tokens in a certain order, and at once
// that of its left operand. What enters a token from before (E) and meets of what comes behind it (L) is refined from the
// whole chunk to halves, quarters, pairs and single tokens (recurrences.md: split every pair at its power-of-two boundary):
//   upper part:  E = (product of the lower part's gates) E + scores x the lower part's sources
//   lower part:  L = (product of the upper part's gates) L + scores x the upper part's sinks
//   passing by:  P of a part = (product of the other's gates) P + the other's sources x L, or sinks x E
// and at a token d_x = a E + A x z, d_z = L + A x x, d_a = x E + P. Halves and quarters lie in different lanes: matrix
// products. No gate is divided by.
#pragma once

#include "backward.cuh"
#include "scores.cuh"

namespace t2fw::cuda {

inline constexpr int CHUNKS = 4, BLOCK = CHUNKS * CHUNK;  // chunks, tokens of a block
inline constexpr int DESKS = 2 * CHUNKS, BACKWARD_WARPS = 2 * DESKS, SWEEP_WARPS = BACKWARD_WARPS / 2;
inline constexpr int CHUNK_WARPS = BACKWARD_WARPS / CHUNKS;  // of both sides
inline constexpr int HALF_SLICE = SLICE / 2;  // columns of a desk's warp, keys of a warp that carries S or R

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

template <class T, class G>
struct BackwardMemory {
  // Of a chunk; they open once a block: when its warps have done step 1, and need nothing of the block behind any more; when
  // both states have come to it, and step 2 needs nothing else of it; when its warps need its sinks, sources and S no more, nor
  // what else the other side's desk holds.
  Gate scored[CHUNKS], passed[CHUNKS], met[CHUNKS];
  TileTask task;
  const T* states;             // of the head, this tile's part of them: before its second block ..
  uint32_t* written;           // by each warp: how many blocks' gradients
  int apart;                   // from that of a tile to that of the next
  SideArgs side[2];            // from the head's first token on: a place is {0, 0, token, count}
  SideDesk<T, G> desk[DESKS];  // of a chunk's value side, its key side, the next chunk's ..
  // [value][key]: entering a chunk, and the gradient leaving it. For a while what coming_gates says has S's place.
  T S[CHUNKS][SLICE][PITCH], R[CHUNKS][SLICE][PITCH];
  T saved[SLICE][PITCH];                               // rows (SavedRow) of the state that enters the block
  float gradient[SWEEP_WARPS][SLICE / 4][32];  // R of the warps that carry it, while they do step 3

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

// A lane's quarter of the chunk's tokens, of two columns.
struct Quarter {
  float x[2][4] = {};  // as two matrix products leave them

  __device__ __forceinline__ float& operator()(int column, int token) { return x[token / 2][column * 2 + token % 2]; }
  __device__ __forceinline__ float operator()(int column, int token) const { return x[token / 2][column * 2 + token % 2]; }
  template <class T>
  __device__ __forceinline__ void operand(uint32_t (&to)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = bits(narrow<T>(float2{x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]}));
  }
  // += left x right
  template <class T>
  __device__ __forceinline__ void add(const uint32_t (&left)[4], const uint32_t (&right)[4]) {
    multiply_add<T>(x[0], left, right[0], right[1]);
    multiply_add<T>(x[1], left, right[2], right[3]);
  }
};

// Where lane l finds its row of the four 8x8 matrices of tokens by 16 columns from `column` on.
template <class T, int P>
__device__ __forceinline__ uint32_t quarter_rows(const T (&rows)[CHUNK][P], int column, int lane) {
  const int token = lane % 8 / 2 * 4 + lane % 2 + lane / 16 * 2;
  return shared_address(&rows[row_of(token)][column + lane / 8 % 2 * 8]);
}

// The other side's scores of a chunk as step 3 reads them.
template <class T>
struct Scores {
  float near[4][4];   // of the lane's quarter: [token][earlier token or the same]
  uint32_t pairs[4];  // of different quarters' tokens, symmetric, as a right operand
  bool upper, odd;    // the lane's quarter in the chunk, in its half

  template <class Desk>
  __device__ __forceinline__ Scores(const Desk& desk, int lane) {
    const int j = lane % 4;
    upper = j / 2, odd = j % 2;
#pragma unroll
    for (int t = 0; t < 4; ++t)
      *reinterpret_cast<float4*>(near[t]) = *reinterpret_cast<const float4*>(&desk.near[upper][odd * 4 + t][odd * 4]);
    load_matrices(pairs, shared_address(&desk.pairs[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8]));
  }
  // Of pairs that are split at the chunk's middle, or at a half's (`quarters`), as their later tokens meet them or their
  // earlier ones.
  __device__ __forceinline__ void split(bool quarters, bool later, int lane, uint32_t (&to)[4]) const {
    const int k = lane % 4, n = lane / 8;  // quarters of the operand's rows and columns
    const bool across = quarters ? (k ^ n) == 1 : (k ^ n) >= 2;
    const bool keep = across && (later ? n > k : n < k);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = keep ? pairs[i] : 0;
  }
};

// logits: the gates are given by them.
template <class T, class G, bool logits>
struct ChunkGradients {
  using P = typename Pair<T>::type;
  using Desk = SideDesk<T, G>;
  BackwardMemory<T, G>& memory;
  int block = 0;  // at work

  __device__ __forceinline__ int parity() const { return fresh(block) & 1; }  // kept in no register

  __device__ __forceinline__ int first_column(bool key_side) const { return key_side ? memory.task.key : memory.task.value; }

  template <class E, int W>
  __device__ __forceinline__ static void load(Quarter& to, const E (&rows)[CHUNK][W], int column, int lane) {
    if constexpr (sizeof(E) == 2) {
      uint32_t x[4];
      load_matrices_transposed(x, quarter_rows(rows, column, lane));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 two = widen(*reinterpret_cast<const typename Pair<E>::type*>(&x[i]));
        to.x[i / 2][i % 2 * 2] = two.x, to.x[i / 2][i % 2 * 2 + 1] = two.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) to(i / 4, i % 4) = rows[row_of(lane % 4 * 4 + i % 4)][column + i / 4 * 8 + lane / 4];
    }
  }

  // For 32 columns of desk `number`, 16 and 16: what its sinks meet of S, its sources of R, and S of R behind the chunk's
  // gates.
  template <bool key_side>
  __device__ __forceinline__ void meet(int number, int column, int lane, Quarter (&E)[2], Quarter (&L)[2],
                                       float (&passing)[2][2]) const {
    Desk& other = memory.desk[number ^ 1];
    const uint32_t sinks = quarter_rows(other.sinks(parity()), 0, lane);
    const uint32_t sources = quarter_rows(other.sources(parity()), 0, lane);
    P gates[4];
    float low[2][4] = {}, high[2][4] = {};
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
        E[n].template add<T>(s, sink);
        L[n].template add<T>(r, source);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const P piece = *reinterpret_cast<const P*>(&s[i]);
          if constexpr (std::is_same_v<T, __half>)  // gates may be wider
            s[i] = bits(narrow<T>(widen(piece) *
                                  *reinterpret_cast<const float2*>(&other.all[k * 16 + i / 2 * 8 + lane % 4 * 2])));
          else s[i] = bits(__hmul2(piece, gates[k % 2 * 2 + i / 2]));
        }
        // R's halves are right operands as they lie
        multiply_add<T>(low[n], s[0], s[1], r[0]), multiply_add<T>(low[n], s[2], s[3], r[2]);
        multiply_add<T>(high[n], s[0], s[1], r[1]), multiply_add<T>(high[n], s[2], s[3], r[3]);
      }
    }
    const int g = lane / 4, holder = g * 4 + g / 2;  // of the diagonal
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      passing[n][0] = __shfl_sync(~0u, g % 2 ? low[n][1] : low[n][0], holder);
      passing[n][1] = __shfl_sync(~0u, g % 2 ? high[n][3] : high[n][2], holder);
    }
  }

  // Into the lane's quarter: E, L, passing of the chunk become the quarter's.
  __device__ __forceinline__ static void to_quarters(const Scores<T>& A, int lane, const Quarter& x, const Quarter& z,
                                                     const Quarter& a, Quarter& E, Quarter& L, float (&passing)[2]) {
    Quarter sinks, sources;  // from the quarter's start, to its end
    float next[2], across[2];  // products of the quarter beside, of the other half
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float low = a(c, 0) * a(c, 1), high = a(c, 2) * a(c, 3), own = low * high;
      next[c] = __shfl_xor_sync(~0u, own, 1);
      across[c] = __shfl_xor_sync(~0u, own * next[c], 2);
      sinks(c, 0) = a(c, 0) * x(c, 0), sinks(c, 1) = low * x(c, 1);
      sinks(c, 2) = low * (a(c, 2) * x(c, 2)), sinks(c, 3) = own * x(c, 3);
      sources(c, 3) = z(c, 3), sources(c, 2) = a(c, 3) * z(c, 2);
      sources(c, 1) = high * z(c, 1), sources(c, 0) = high * (a(c, 1) * z(c, 0));
    }
    const auto level = [&](bool quarters, const float (&product)[2], const auto& reach) {
      const bool upper = quarters ? A.odd : A.upper;
      Quarter own;
      uint32_t left[4], right[4];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float met = 0;
#pragma unroll
        for (int t = 0; t < 4; ++t) {
          own(c, t) = reach(upper ? sinks(c, t) : sources(c, t), c);
          met = fmaf(own(c, t), upper ? E(c, t) : L(c, t), met);
        }
        if (!quarters) met += __shfl_xor_sync(~0u, met, 1);
        passing[c] = fmaf(product[c], passing[c], __shfl_xor_sync(~0u, met, quarters ? 1 : 2));
#pragma unroll
        for (int t = 0; t < 4; ++t) E(c, t) *= upper ? product[c] : 1.f, L(c, t) *= upper ? 1.f : product[c];
      }
      own.operand<T>(left);
      A.split(quarters, true, lane, right);
      E.add<T>(left, right);
      A.split(quarters, false, lane, right);
      L.add<T>(left, right);
    };
    level(false, across, [&](float y, int c) { return A.upper == A.odd ? y * next[c] : y; });
    level(true, next, [&](float y, int) { return y; });
  }

  // From the quarter to its tokens: x, z, a become their gradients. One column.
  __device__ __forceinline__ static void to_tokens(const float (&A)[4][4], int c, const Quarter& E, const Quarter& L,
                                                   float passing, Quarter& x, Quarter& z, Quarter& a) {
    const float low = a(c, 0) * a(c, 1), high = a(c, 2) * a(c, 3);
    const float source = z(c, 0) * a(c, 1), sink = a(c, 2) * (a(c, 3) * x(c, 3)), near_sink = a(c, 2) * x(c, 2);
    // halves of the quarter
    const float by[2] = {fmaf(high, passing, fmaf(near_sink, E(c, 2), sink * E(c, 3))),
                         fmaf(low, passing, fmaf(source, L(c, 0), z(c, 1) * L(c, 1)))};
    float e[4] = {E(c, 0), E(c, 1)}, l[4] = {0, 0, L(c, 2), L(c, 3)};
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      e[2 + t] = fmaf(low, E(c, 2 + t), fmaf(A[2 + t][0], source, A[2 + t][1] * z(c, 1)));
      l[t] = fmaf(high, L(c, t), fmaf(A[2][t], near_sink, A[3][t] * sink));
    }
    // single tokens
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const float a0 = a(c, i), a1 = a(c, i + 1), x0 = x(c, i), x1 = x(c, i + 1), z0 = z(c, i), z1 = z(c, i + 1);
      const float own = a1 * x1, score = A[i + 1][i], by0 = fmaf(a1, by[i / 2], own * e[i + 1]);
      const float by1 = fmaf(a0, by[i / 2], z0 * l[i]), e1 = fmaf(a0, e[i + 1], score * z0), l0 = fmaf(a1, l[i], score * own);
      x(c, i) = fmaf(a0, e[i], A[i][i] * z0), x(c, i + 1) = fmaf(a1, e1, A[i + 1][i + 1] * z1);
      z(c, i) = fmaf(A[i][i], x0, l0), z(c, i + 1) = fmaf(A[i + 1][i + 1], x1, l[i + 1]);
      a(c, i) = fmaf(x0, e[i], by0), a(c, i + 1) = fmaf(x1, e1, by1);
    }
  }

  // Leaves 16 columns of a gradient in a desk's rows.
  template <class E, int W>
  __device__ __forceinline__ static void leave(const Quarter& d, E (&rows)[CHUNK][W], int first, int lane) {
    if constexpr (sizeof(E) == 2) {
      uint32_t x[4];
      d.operand<E>(x);
      store_matrices_transposed(quarter_rows(rows, first, lane), x);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) rows[row_of(lane % 4 * 4 + i % 4)][first + i / 4 * 8 + lane / 4] = d(i / 4, i % 4);
    }
  }
  // The same of a gate of one value a token, summed over as many of the columns as there are.
  __device__ __forceinline__ static void leave_sums(const Quarter& d, float (&to)[CHUNK], int columns, int lane) {
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[i % 4] += i / 4 * 8 + lane / 4 < columns ? d(i / 4, i % 4) : 0.f;
#pragma unroll
    for (int t = 0; t < 4; ++t)
      for (int i = 4; i < 32; i *= 2) sum[t] += __shfl_xor_sync(~0u, sum[t], i);
    if (lane < 4) *reinterpret_cast<float4*>(&to[lane * 4]) = {sum[0], sum[1], sum[2], sum[3]};
  }

  static constexpr float LIFT = std::is_same_v<G, __half> ? 0x1p16f : 1.f;  // a slope is 1/4 at most, and may be subnormal

  // Logits become gates, and leave in their place what takes a gate's gradient to its logit.
  __device__ __forceinline__ void to_gates(Quarter& a, Desk& desk, int first, int lane) const {
    Quarter slope;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float& gate = a(i / 4, i % 4);
      gate = logistic(gate);
      slope(i / 4, i % 4) = logistic_slope(gate) * LIFT;
    }
    leave(slope, desk.a(parity()), first, lane);
  }
  __device__ __forceinline__ void to_logits(Quarter& d_a, Desk& desk, int first, int lane) const {
    Quarter slope;
    load(slope, desk.a(parity()), first, fresh(lane));
#pragma unroll
    for (int i = 0; i < 8; ++i) d_a(i / 4, i % 4) *= slope(i / 4, i % 4) * (1 / LIFT);
  }

  // Step 3 by one of the two warps of desk `number`: leaves the tile's part of the gradients. between: what is done when this
  // warp has said that it needs the chunk's sinks, sources and S no more.
  template <class Between>
  __device__ __forceinline__ void gradients(int number, bool second, const Between& between) const {
    const int lane = fresh(threadIdx.x % 32);
    const int first = second * HALF_SLICE;
    Quarter E[2], L[2];
    float passing[2][2];
    if (number % 2) meet<true>(number, first, lane, E, L, passing);
    else meet<false>(number, first, lane, E, L, passing);
    const Scores<T> A(memory.desk[number ^ 1], lane);
    memory.met[number / 2].arrive();
    between();
#pragma unroll
    for (int n = 0; n < 2; ++n) refine(n, A, E[n], L[n], passing[n]);
  }
  // For the n-th 16 columns of the warp.
  __device__ __forceinline__ void refine(int n, const Scores<T>& A, Quarter& E, Quarter& L, float (&passing)[2]) const {
    const int warp = fresh(threadIdx.x / 32), number = warp / 2, first = warp % 2 * HALF_SLICE + n * 16;  // kept in no register
    const bool key_side = number % 2;
    const SideArgs& s = memory.side[key_side];
    const int lane = fresh(threadIdx.x % 32);
    Desk& desk = memory.desk[number];
    Quarter x, z, a;
    load(a, desk.a(parity()), first, lane);
    if constexpr (logits) to_gates(a, desk, first, lane);
    load(x, desk.x(parity()), first, lane), load(z, desk.z(parity()), first, lane);
    to_quarters(A, lane, x, z, a, E, L, passing);
#pragma unroll
    for (int i = 0; i < 2; ++i) to_tokens(A.near, i, E, L, passing[i], x, z, a);
    if constexpr (logits) to_logits(a, desk, first, lane);
    leave(x, desk.x(parity()), first, lane), leave(z, desk.z(parity()), first, lane);
    if (s.d_a.width == s.width) leave(a, desk.a(parity()), first, lane);
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
      for (int i = 0; i < count; ++i) line[i] = *reinterpret_cast<const uint4*>(&rows[row_of(t + i * together)][first + j]);
    }
    // adds: to what is there.
    __device__ __forceinline__ void write(const Rows& to, const Place& c, int column, int columns, bool adds) const {
      if (column + j >= columns) return;
      const E* at_t = whole_at<E>(to, c, t, column + j);
      const int64_t step = together * to.t;
#pragma unroll
      for (int i = 0; i < count; ++i, at_t += step)
        if (adds) add_line<E>(at_t, line[i]);
        else store_line(at_t, line[i]);
    }
  };

  // The same element by element, for what does not lie on 16 bytes.
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

  // After step 3 of a desk's warps: this warp's part of the gradients. Where tiles have parts in the same element, the first
  // stores and the next ones, in their order, add: a warp waits for the one that has its place in the tile before. `blocks`:
  // how many of them, with this one, that one must have written.
  __device__ __forceinline__ void write_desk(int number, bool second, const Place& c, uint32_t blocks) const {
    const bool key_side = number % 2;
    const SideArgs& s = memory.side[key_side];
    Desk& desk = memory.desk[number];
    const int values = memory.side[0].tiles, value = first_column(false) / SLICE, key = first_column(true) / SLICE;
    const bool adds = key_side ? value : key, full = s.d_a.width == s.width, sums = s.d_a.width && !full;
    const int tile = key * values + value, back = sums ? tile > 0 : !adds ? 0 : key_side ? 1 : values;
    const int warp = fresh(threadIdx.x / 32), first = second * HALF_SLICE, column = first_column(key_side) + first;
    if (back) wait_for(memory.written - back * memory.apart + warp, blocks);
    if (copied(s.d_z, c) && (!full || copied(s.d_a, c)) && (!key_side || copied(s.d_x, c))) {  // the usual case
      Lines<T> x, z;
      Lines<G> a;
      x.read(desk.x(parity()), first), z.read(desk.z(parity()), first), a.read(desk.a(parity()), first);
      if (key_side) x.write(s.d_x, c, column, s.width, adds);
      z.write(s.d_z, c, column, s.width, adds);
      if (full) a.write(s.d_a, c, column, s.width, adds);
    } else {
      if (key_side) write_elements(s.d_x, c, desk.x(parity()), first, column, s.width, adds);
      write_elements(s.d_z, c, desk.z(parity()), first, column, s.width, adds);
      if (full) write_elements(s.d_a, c, desk.a(parity()), first, column, s.width, adds);
    }
    if (sums && !second && threadIdx.x % 32 < c.count) {
      const int t = threadIdx.x % 32;
      G* const to = const_cast<G*>(at<G>(s.d_a, c, t, 0));
      float sum = tile ? widen(load_written(to)) : 0.f;
      for (const auto& part : desk.sums) sum += part[t];
      *to = narrow<G>(sum);
    }
  }

  // That this warp has written the gradients of so many blocks, if a later tile adds to them. Waits until they have arrived.
  __device__ __forceinline__ void tell_written(uint32_t blocks) const {
    const int warp = fresh(threadIdx.x / 32), key_side = warp / 2 % 2;
    const SideArgs &s = memory.side[key_side], &other = memory.side[!key_side];
    const bool sums = s.d_a.width && s.d_a.width != s.width;
    const int tile = first_column(true) / SLICE * memory.side[0].tiles + first_column(false) / SLICE;
    const bool last = sums ? tile + 1 == s.tiles * other.tiles : first_column(!key_side) / SLICE + 1 == other.tiles;
    if (!last) tell(memory.written + warp, blocks);
  }

  // Of the two warps at a desk.
  __device__ __forceinline__ static void pair_barrier(int number) {
    asm volatile("bar.sync %0, 64;" ::"r"(number + 1) : "memory");
  }
};

}  // namespace t2fw::cuda
