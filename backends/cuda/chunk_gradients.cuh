// Step 3 of decay backward (decay_backward.cuh): the gradients of one side of a chunk, by two warps.
#pragma once

#include "backward.cuh"
#include "scores.cuh"

namespace t2fw::cuda {

inline constexpr int CHUNKS = 4, BLOCK = CHUNKS * CHUNK;  // chunks, tokens of a block
inline constexpr int DESKS = 2 * CHUNKS, BACKWARD_WARPS = 2 * DESKS, HALF = CHUNK / 2;

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

template <class T, class G>
struct ChunkGradients {
  using P = typename Pair<T>::type;
  using PG = typename Pair<G>::type;
  using Desk = SideDesk<T, G>;
  const BackwardArgs& p;
  BackwardMemory<T, G>& memory;
  int first_value, first_key;  // of the state's tile

  __device__ __forceinline__ int first_column(bool key_side) const { return key_side ? first_key : first_value; }

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
          const float2 gates = *reinterpret_cast<const float2*>(&all[k * 16 + i / 2 * 8 + j]);
          const P piece = *reinterpret_cast<const P*>(&left[i]);
          if constexpr (std::is_same_v<T, __half>) left[i] = bits(narrow<T>(widen(piece) * gates));  // gates may be wider
          else left[i] = bits(__hmul2(piece, narrow<T>(gates)));
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
        float sum = (column < columns ? value[t].x : 0.f) + (column + 1 < columns ? value[t].y : 0.f);
        for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
        if (first + t < c.count && threadIdx.x % 32 == 0) *to = narrow<E>(sum);
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
    const int out = first_column(key_side) + column, other_tile = first_column(!key_side) / SLICE;
    if (!s.next_part) {
      put<T>(s.d_x, c, first, out, s.width, enters);
      put<T>(s.d_z, c, first, out, s.width, d_z);
      put<G>(s.d_a, c, first, out, s.width, d_a);
    } else {
      put<float>(s.part(s.d_x, other_tile), c, first, out, s.width, enters);
      put<float>(s.part(s.d_z, other_tile), c, first, out, s.width, d_z);
      put<float>(s.gate_part(first_column(key_side) / SLICE, other_tile), c, first, out, s.width, d_a);
    }
  }

  // Of the two warps at a desk.
  __device__ __forceinline__ static void pair_barrier(int number) {
    asm volatile("bar.sync %0, 64;" ::"r"(number + 1) : "memory");
  }
  // Of the four at a chunk.
  __device__ __forceinline__ static void chunk_barrier(int chunk) {
    asm volatile("bar.sync %0, 128;" ::"r"(DESKS + 1 + chunk) : "memory");
  }
};

}  // namespace t2fw::cuda
