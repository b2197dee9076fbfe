// Scores of the pairs of a chunk's tokens, without division (recurrences.md: gated_scores), and the chunk's sinks and
// sources as the state meets them.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda {

// The two pairs of tokens that a lane has in a quarter of the scores on the diagonal.
struct DiagonalPairs {
  int level[2];  // that splits it: the highest bit in which the token numbers differ, -1 for equal ones; -2: no pair

  __device__ __forceinline__ DiagonalPairs() {
    const int t = threadIdx.x % 32 / 4;
    for (int e = 0; e < 2; ++e) {
      const int s = threadIdx.x % 4 * 2 + e;
      level[e] = t < s ? -2 : 31 - __clz(t ^ s);
    }
  }
};

// The lower triangle of [16][16] scores as a lane holds it: two elements of each diagonal quarter, two of the quarter of
// the last level.
struct Triangle {
  float near[2][2] = {}, far[2] = {};
  DiagonalPairs pairs;

  // Adds the products of sinks with sources, rows of 64 columns in shared memory, as far as the level asks for them. Both are
  // where a lane finds its row of four matrices: of left_row and of right_row. A right operand's two registers are
  // neighbours then; taken from a left one they would have to be copied.
  template <class T>
  __device__ __forceinline__ void add_level(int level, uint32_t sinks, uint32_t sources) {
    float all[2][4] = {};
#pragma unroll
    for (int j = 0; j < SLICE / 16; ++j) {
      uint32_t x[4], z[4];
      load_matrices(x, sinks + j * 16 * sizeof(T));
      load_matrices(z, sources + j * 16 * sizeof(T));
      multiply_add<T>(all[0], x, z[0], z[1]);
      if (level < 3) multiply_add<T>(all[1], x, z[2], z[3]);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (level == 3) {
        far[e] += all[0][2 + e];
      } else if (pairs.level[e] == level) {
        near[0][e] += all[0][e];
        near[1][e] += all[1][2 + e];
      }
    }
  }

  __device__ __forceinline__ void put(float (&scores)[CHUNK][CHUNK]) const {
    const int lane = threadIdx.x % 32, i = lane / 4, j = lane % 4 * 2;
    *reinterpret_cast<float2*>(&scores[i][j]) = {near[0][0], near[0][1]};
    *reinterpret_cast<float2*>(&scores[i + 8][j]) = {far[0], far[1]};
    *reinterpret_cast<float2*>(&scores[i + 8][8 + j]) = {near[1][0], near[1][1]};
  }
};

// A gate of what lies in memory.
template <bool logits, class V>
__device__ __forceinline__ V gate(V x) {
  if constexpr (logits) return logistic(x);
  else return x;
}

// From groups of l tokens to those of 2 l: a later half's sinks x reach over the earlier half, an earlier half's sources z over
// the later one. all: at a group's first token the product of its gates.
template <int tokens>
__device__ __forceinline__ void pass_level(int l, float2 (&x)[tokens], float2 (&z)[tokens], float2 (&all)[tokens]) {
#pragma unroll
  for (int t = 0; t < tokens; ++t) {
    const int first = t / (2 * l) * 2 * l;
    if (t & l) x[t] = x[t] * all[first];
    else z[t] = z[t] * all[first + l];
  }
#pragma unroll
  for (int first = 0; first < tokens; first += 2 * l) all[first] = all[first] * all[first + l];
}

// Where a lane finds its row of a chunk's first 16 columns: as a left operand, and as right ones of eight tokens each.
template <class T, int P>
__device__ __forceinline__ uint32_t left_row(const T (&rows)[CHUNK][P], int lane) {
  return shared_address(&rows[row_of(lane % 16)][lane / 16 * 8]);
}
template <class T, int P>
__device__ __forceinline__ uint32_t right_row(const T (&rows)[CHUNK][P], int lane) {
  return shared_address(&rows[row_of(lane % 8 + lane / 16 * 8)][lane / 8 % 2 * 8]);
}

// By a warp: scores[t][s] = sum over 64 columns of x_t (a_{s+1} .. a_t) z_s for s <= t; sinks = x times the products of a up
// to each token, sources = z times those behind it, all = the products over the chunk. sinks first holds the levels.
template <bool logits, class T, class G, int P, int PA>
__device__ __forceinline__ void gated_scores(const T (&in_x)[CHUNK][P], const T (&in_z)[CHUNK][P], const G (&in_a)[CHUNK][PA],
                                             T (&sinks)[CHUNK][P], T (&sources)[CHUNK][P], float* all_products,
                                             float (&scores)[CHUNK][CHUNK]) {
  using Two = typename Pair<T>::type;
  using TwoG = typename Pair<G>::type;
  const int lane = threadIdx.x % 32;
  Triangle triangle;
  const int c = 2 * lane;
  triangle.add_level<T>(-1, left_row(in_x, lane), right_row(in_z, lane));
  float2 x[CHUNK], z[CHUNK], all[CHUNK];  // as pass_level has them
#pragma unroll
  for (int t = 0; t < CHUNK; ++t) {
    all[t] = gate<logits>(widen(*reinterpret_cast<const TwoG*>(&in_a[row_of(t)][c])));
    x[t] = widen(*reinterpret_cast<const Two*>(&in_x[row_of(t)][c])) * all[t];
    z[t] = widen(*reinterpret_cast<const Two*>(&in_z[row_of(t)][c]));
  }
  const uint32_t left = left_row(sinks, lane), right = right_row(sinks, lane);
#pragma unroll
  for (int level = 0; level < 4; ++level) {
    const int l = 1 << level;
    __syncwarp();
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) *reinterpret_cast<Two*>(&sinks[row_of(t)][c]) = narrow<T>(t & l ? x[t] : z[t]);
    __syncwarp();
    triangle.add_level<T>(level, left, right);
    pass_level(l, x, z, all);
  }
  __syncwarp();
#pragma unroll
  for (int t = 0; t < CHUNK; ++t) {
    *reinterpret_cast<Two*>(&sinks[row_of(t)][c]) = narrow<T>(x[t]);
    *reinterpret_cast<Two*>(&sources[row_of(t)][c]) = narrow<T>(z[t]);
  }
  *reinterpret_cast<float2*>(&all_products[c]) = all[0];
  triangle.put(scores);
  __syncwarp();
}

// A lane's two columns of half a chunk's tokens.
template <class E, int P>
struct HalfRows {
  using Two = typename Pair<E>::type;
  E* of[2];  // seen from the half's token 0, those of tokens 0, 1, 4, 5 and of 2, 3, 6, 7: row_of

  __device__ __forceinline__ HalfRows(E (&rows)[CHUNK][P], bool upper) {
    const int first = upper ? CHUNK / 2 : 0, swap = upper ? 2 : 0, c = 2 * (threadIdx.x % 32);
    of[0] = &rows[first + swap][c], of[1] = &rows[first - swap][c];
  }
  __device__ __forceinline__ Two& at(int t) const { return *reinterpret_cast<Two*>(of[t / 2 % 2] + t * P); }
  __device__ __forceinline__ float2 get(int t) const { return widen(at(t)); }
  __device__ __forceinline__ void put(int t, float2 x) const { at(t) = narrow<E>(x); }
};

// Where a desk keeps the scores of token t with s and s + 1, s even.
template <class Desk>
struct PairScores {
  using T = std::remove_all_extents_t<decltype(Desk::pairs)>;
  static constexpr int pitch = sizeof(Desk::pairs[0]) / sizeof(T);
  T *row, *column;

  __device__ __forceinline__ PairScores(Desk& desk, int t, int s) {
    const int place_t = desk.place(t), place_s = desk.place(s);
    row = &desk.pairs[place_t][place_s], column = &desk.pairs[place_s][place_t];
  }
  // Of token t + later, 0 or 8.
  __device__ __forceinline__ void put(int later, float2 x) const {
    const auto two = narrow<T>(x);
    *reinterpret_cast<typename Pair<T>::type*>(row + later / 2 * pitch) = two;
    column[later / 2] = two.x, column[later / 2 + pitch] = two.y;
  }
};

// The same by two warps, of eight tokens each (`upper`: the later ones).
template <class T>
struct HalfChunk {
  using Two = typename Pair<T>::type;
  static constexpr int HALF = CHUNK / 2;
  bool upper;

  // Where a lane finds its row of four 8x8 matrices of 32 columns of eight tokens; sinks: their second and third change places.
  template <int P>
  __device__ __forceinline__ static uint32_t eight_rows(const T (&rows)[CHUNK][P], bool upper, bool sinks) {
    const int lane = threadIdx.x % 32, part = lane / 8;
    return shared_address(&rows[row_of((upper ? HALF : 0) + lane % 8)][(sinks ? part / 2 + part % 2 * 2 : part) * 8]);
  }
  // Sums over the columns of eight sinks with eight sources: that of lane / 4 with lane % 4 * 2 + e. A left operand's second
  // eight rows are the first's next 16 columns, so that it comes as it lies.
  __device__ __forceinline__ static float2 products(uint32_t sinks, uint32_t sources) {
    float first[4] = {}, second[4] = {};
#pragma unroll
    for (int i = 0; i < SLICE / 32; ++i) {
      uint32_t x[4], z[4];
      load_matrices(x, sinks + i * 32 * sizeof(T));
      load_matrices(z, sources + i * 32 * sizeof(T));
      multiply_add<T>(first, x, z[0], z[1]);
      multiply_add<T>(second, x, z[2], z[3]);
    }
    return {first[0] + second[2], first[1] + second[3]};
  }

  // From a desk's x, z, a: its sinks, which first hold the levels, sources, scores and products of a. a(t): of token t of the
  // half, a lane's columns. meet: a barrier of both warps.
  template <bool logits, class Desk, class Gates, class Meet>
  __device__ __forceinline__ void run(Desk& desk, int parity, const Gates& a, const Meet& meet) const {
    const int lane = threadIdx.x % 32, c = 2 * lane, g = lane / 4, j = lane % 4 * 2, base = upper ? HALF : 0;
    const HalfRows in_x(desk.x(parity), upper), in_z(desk.z(parity), upper);
    const HalfRows to_sinks(desk.sinks(parity), upper), to_sources(desk.sources(parity), upper);
    // A lane's scores are those of tokens g with j and j + 1; DiagonalPairs in one register: the highest bit of `apart` is the
    // level that splits them, 0 stands for equal ones, 16 for no pair.
    float near[2] = {};
    const int apart = g > j ? g ^ j : g == j ? 0 : 16;
    const auto keep = [&](int level, float2 sum) {
      if (level > 0 ? apart >> level == 1 : apart == level + 1) near[0] += sum.x;
      if (level > 0 ? apart >> level == 1 : level < 0 && apart == 1) near[1] += sum.y;
    };
    keep(-1, products(eight_rows(desk.x(parity), upper, true), eight_rows(desk.z(parity), upper, false)));
    float2 x[HALF], z[HALF], all[HALF];  // as pass_level has them
#pragma unroll
    for (int t = 0; t < HALF; ++t) {
      all[t] = gate<logits>(a(t));
      x[t] = in_x.get(t) * all[t];
      z[t] = in_z.get(t);
    }
    auto& levels = desk.sinks(parity);
    const uint32_t sinks = eight_rows(levels, upper, true), sources = eight_rows(levels, upper, false);
#pragma unroll
    for (int level = 0; level < 3; ++level) {
      const int l = 1 << level;
      __syncwarp();
#pragma unroll
      for (int t = 0; t < HALF; ++t) to_sinks.put(t, t & l ? x[t] : z[t]);
      __syncwarp();
      keep(level, products(sinks, sources));
      pass_level(l, x, z, all);
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < HALF; ++t) to_sinks.put(t, upper ? x[t] : z[t]);
    *reinterpret_cast<float2*>(&desk.half[upper][c]) = all[0];
    *reinterpret_cast<float2*>(&desk.near[upper][g][j]) = {near[0], near[1]};
    const PairScores pairs(desk, base + g, base + j);
    if (g > j) pairs.put(0, {near[0], near[1]});
    meet();
    const float2 other = *reinterpret_cast<const float2*>(&desk.half[!upper][c]), one{1.f, 1.f};
    const float2 before = upper ? other : one, behind = upper ? one : other;
#pragma unroll
    for (int t = 0; t < HALF; ++t) to_sources.put(t, z[t] * behind);
    if (upper) {
      *reinterpret_cast<float2*>(&desk.all[c]) = all[0] * other;
      *reinterpret_cast<Two*>(&desk.gates[lane % 4][lane / 4 * 2]) = narrow<T>(all[0] * other);
    } else {
      pairs.put(HALF, products(eight_rows(levels, true, true), sources));
    }
    meet();
#pragma unroll
    for (int t = 0; t < HALF; ++t) to_sinks.put(t, x[t] * before);
  }
};

}  // namespace t2fw::cuda
