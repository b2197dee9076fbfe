// Scores of the pairs of a chunk's tokens, without division (recurrences.md: gated_scores), and the chunk's sinks and
// sources as the state meets them.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda {

// The lower triangle of [16][16] scores as a lane holds it: two elements of each diagonal quarter, two of the quarter of
// the last level.
struct Triangle {
  float near[2][2] = {}, far[2] = {};

  // Pairs of a quarter on the diagonal are split at the highest bit in which the token numbers differ, equal ones at none.
  __device__ __forceinline__ static bool split_here(int level, int e) {
    const int t = threadIdx.x % 32 / 4, s = threadIdx.x % 4 * 2 + e;
    return level < 0 ? t == s : t > s && (t ^ s) >> level == 1;
  }

  // Adds the products of sinks with sources, rows of 64 columns in shared memory, as far as the level asks for them.
  // From level 0 on the rows are both.
  template <class T>
  __device__ __forceinline__ void add_level(int level, uint32_t sinks, uint32_t sources) {
    float all[2][4] = {};
#pragma unroll
    for (int j = 0; j < SLICE / 16; ++j) {
      uint32_t x[4], z[4];
      load_matrices(x, sinks + j * 16 * sizeof(T));
      if (level < 0) load_matrices(z, sources + j * 16 * sizeof(T));
      const uint32_t(&s)[4] = level < 0 ? z : x;
      multiply_add<T>(all[0], x, s[0], s[2]);
      if (level < 3) multiply_add<T>(all[1], x, s[1], s[3]);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (level == 3) {
        far[e] += all[0][2 + e];
      } else if (split_here(level, e)) {
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

// By a warp: scores[t][s] = sum over W columns of x_t (a_{s+1} .. a_t) z_s for s <= t; sinks = x times the products of a up
// to each token, sources = z times those behind it, all = the products over the chunk. sinks first holds the levels.
template <int W, class T, class G, int P, int PA>
__device__ __forceinline__ void gated_scores(const T (&in_x)[CHUNK][P], const T (&in_z)[CHUNK][P], const G (&in_a)[CHUNK][PA],
                                             T (&sinks)[CHUNK][P], T (&sources)[CHUNK][P], float* all_products,
                                             float (&scores)[CHUNK][CHUNK]) {
  using Two = typename Pair<T>::type;
  using TwoG = typename Pair<G>::type;
  const int lane = threadIdx.x % 32;
  Triangle triangle;
#pragma unroll
  for (int slab = 0; slab < W; slab += SLICE) {
    const int c = slab + 2 * lane, row = row_of(lane % 16), half = slab + lane / 16 * 8;
    const uint32_t level_rows = shared_address(&sinks[row][half]);
    triangle.add_level<T>(-1, shared_address(&in_x[row][half]), shared_address(&in_z[row][half]));
    float2 x[CHUNK], z[CHUNK], all[CHUNK];  // all: at a group's first token the product of its gates
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      all[t] = widen(*reinterpret_cast<const TwoG*>(&in_a[row_of(t)][c]));
      x[t] = widen(*reinterpret_cast<const Two*>(&in_x[row_of(t)][c])) * all[t];
      z[t] = widen(*reinterpret_cast<const Two*>(&in_z[row_of(t)][c]));
    }
#pragma unroll
    for (int level = 0; level < 4; ++level) {
      const int l = 1 << level;
      __syncwarp();
#pragma unroll
      for (int t = 0; t < CHUNK; ++t) *reinterpret_cast<Two*>(&sinks[row_of(t)][c]) = narrow<T>(t & l ? x[t] : z[t]);
      __syncwarp();
      triangle.add_level<T>(level, level_rows, 0);
#pragma unroll
      for (int t = 0; t < CHUNK; ++t) {
        const int first = t / (2 * l) * 2 * l;
        if (t & l) x[t] = x[t] * all[first];
        else z[t] = z[t] * all[first + l];
      }
#pragma unroll
      for (int first = 0; first < CHUNK; first += 2 * l) all[first] = all[first] * all[first + l];
    }
    __syncwarp();
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      *reinterpret_cast<Two*>(&sinks[row_of(t)][c]) = narrow<T>(x[t]);
      *reinterpret_cast<Two*>(&sources[row_of(t)][c]) = narrow<T>(z[t]);
    }
    *reinterpret_cast<float2*>(&all_products[c]) = all[0];
  }
  triangle.put(scores);
  __syncwarp();
}

// The sources alone, of one column pair; returns the products over the chunk.
template <class T, class G, int W, int WA, int WO>
__device__ __forceinline__ float2 scale_sources(const T (&z)[CHUNK][W], const G (&a)[CHUNK][WA], bool gated,
                                                T (&sources)[CHUNK][WO], int c) {
  using Two = typename Pair<T>::type;
  float2 all = {1.f, 1.f};
#pragma unroll
  for (int t = CHUNK - 1; t >= 0; --t) {
    *reinterpret_cast<Two*>(&sources[row_of(t)][c]) = narrow<T>(widen(*reinterpret_cast<const Two*>(&z[row_of(t)][c])) * all);
    if (gated) all = all * widen(*reinterpret_cast<const typename Pair<G>::type*>(&a[row_of(t)][c]));
  }
  return all;
}

// The sinks alone.
template <class T, class G, int W, int WA, int WO>
__device__ __forceinline__ float2 scale_sinks(const T (&x)[CHUNK][W], const G (&a)[CHUNK][WA], T (&sinks)[CHUNK][WO], int c) {
  using Two = typename Pair<T>::type;
  float2 all = {1.f, 1.f};
#pragma unroll
  for (int t = 0; t < CHUNK; ++t) {
    all = all * widen(*reinterpret_cast<const typename Pair<G>::type*>(&a[row_of(t)][c]));
    *reinterpret_cast<Two*>(&sinks[row_of(t)][c]) = narrow<T>(widen(*reinterpret_cast<const Two*>(&x[row_of(t)][c])) * all);
  }
  return all;
}

}  // namespace t2fw::cuda
