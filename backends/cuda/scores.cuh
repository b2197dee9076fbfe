// Scores of the pairs of a chunk's tokens, without division (recurrences.md: gated_scores), and the chunk's sinks and
// sources as the state meets them.
#pragma once

#include "chunk.cuh"

namespace t2fw::cuda {

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

// Scores of the pairs inside quarters, of tokens whose numbers differ in the last two bits alone. A lane multiplies its two
// columns in fp32, and two matrix products add up the lanes: the first one every four, with the sum in the row of its pair,
// the second one the rest. Levels that go through shared memory, as those above do, each wait for it twice.
//
// Eight tokens have two tables of 16 rows. Of token t, r = t % 4, they hold in the rows t and 8 + t: the first table the
// score with the token before (r odd) or with itself (r = 2), and with itself (r = 0, 1, 3); the second one, where r > 1,
// those with the first and second token of t's quarter.
template <class T, int tokens>
struct QuarterScores {
  // The matrix products drop a number's last 13 bits. fp16 rounds to the others, bf16 corrects the sums (WHOLE).
  static constexpr bool ROUNDS = std::is_same_v<T, __half>;
  float sums[tokens / 8][2][4] = {};  // [eight tokens][table]
  uint32_t halves[2];                 // of lane l: byte l / 4 is the highest one of 0.5, the others are zeros

  __device__ __forceinline__ QuarterScores() {
    const uint64_t half = 0x3full << fresh(threadIdx.x % 32) / 4 * 8;
    halves[0] = static_cast<uint32_t>(half), halves[1] = static_cast<uint32_t>(half >> 32);
  }
  // 0.5 for lanes l with l / 4 == i, else 0: one instruction.
  __device__ __forceinline__ float half_if(int i) const {
    return __uint_as_float(__byte_perm(halves[i / 4], 0, i % 4 << 12 | 0x444));
  }

  __device__ __forceinline__ static float kept(float x) {
    if constexpr (ROUNDS) return round_to_tf32(x);
    else return x;
  }

  __device__ __forceinline__ static float dot(float2 x, float2 z) { return fmaf(x.y, z.y, x.x * z.x); }

  // To rows `first` and 8 + `second` of a table: both numbers of body(t), for every eight tokens from t on.
  template <class Body>
  __device__ __forceinline__ void add(int table, int first, int second, const Body& body) {
    const float rows[4] = {half_if(first), 0.f, 0.f, half_if(second)};
#pragma unroll
    for (int t = 0; t < tokens; t += 8) {
      const float2 both = body(t);
      multiply_add(sums[t / 8][table], rows, kept(both.x), kept(both.y));
    }
  }

  // x, z, all: as pass_level has them but x without its token's gate. They become those of groups of four tokens.
  __device__ __forceinline__ void run(float2 (&x)[tokens], float2 (&z)[tokens], float2 (&all)[tokens]) {
    float same[tokens];
#pragma unroll
    for (int t = 0; t < tokens; ++t) same[t] = dot(x[t], z[t]), x[t] = x[t] * all[t];
#pragma unroll
    for (int q = 0; q < 8; q += 4) {
      add(0, q + 2, q, [&](int t) { return float2{same[t + q + 2], same[t + q]}; });
#pragma unroll
      for (int i = q + 1; i < q + 4; i += 2)
        add(0, i, i, [&](int t) { return float2{dot(x[t + i], z[t + i - 1]), same[t + i]}; });
    }
    pass_level(1, x, z, all);
#pragma unroll
    for (int q = 0; q < 8; q += 4)
#pragma unroll
      for (int i = q + 2; i < q + 4; ++i)
        add(1, i, i, [&](int t) { return float2{dot(x[t + i], z[t + q]), dot(x[t + i], z[t + q + 1])}; });
    pass_level(2, x, z, all);
  }

  // Of token lane / 4 of eight: with its quarter's tokens up to itself; what follows is no score.
  __device__ __forceinline__ float4 row(int eight) const {
    const int g = fresh(threadIdx.x % 32) / 4;
    float rows[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto& x = sums[eight][i];
      const float both[4] = {kept(x[0]), kept(x[1]), kept(x[2]), kept(x[3])};
      multiply_add(rows[i], both, 1 - g % 2, g % 2);
    }
    const auto sum = [&](int table, int second) { return (rows[table][second] + rows[table][second + 2]) * WHOLE; };
    const float near = sum(0, 0), same = sum(0, 1), far[2] = {sum(1, 0), sum(1, 1)};
    const int t = g % 4;
    return {t >= 2 ? far[0] : t ? near : same, t >= 2 ? far[1] : same, near, same};
  }
  // Against the halves, and, where nothing is rounded, for what both products drop: 2^-11 / ln 4 of a number on average, so
  // that of numbers which lose nothing a score comes out 0.07 % too large.
  static constexpr float WHOLE = ROUNDS ? 2.f : 2 * 1.000704f;
};

// Sums over 64 columns of eight sinks with eight sources.
template <class T>
struct EightByEight {
  // Where a lane finds its row of four 8x8 matrices of 32 columns of eight tokens; sinks: the second and third change
  // places.
  template <int P>
  __device__ __forceinline__ static uint32_t rows(const T (&of)[CHUNK][P], bool upper, bool sinks) {
    const int lane = threadIdx.x % 32, part = lane / 8;
    return shared_address(&of[row_of((upper ? 8 : 0) + lane % 8)][(sinks ? part / 2 + part % 2 * 2 : part) * 8]);
  }
  // That of lane / 4 with lane % 4 * 2 + e. A left operand's second eight rows are the first's next 16 columns, so that it
  // comes as it lies.
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
};

// By a warp, from rows in the order of the tokens: scores[t][s] = sum over 64 columns of x_t (a_{s+1} .. a_t) z_s for s <= t;
// sinks = x times the products of a up to each token, sources = z times those behind it, all = the products over the chunk.
// sinks first holds two levels: eight tokens as sinks, then eight as sources.
template <bool logits, class T, class G, int P>
__device__ __forceinline__ void gated_scores(const T (&in_x)[CHUNK][SLICE], const T (&in_z)[CHUNK][SLICE],
                                             const G (&in_a)[CHUNK][SLICE], T (&sinks)[CHUNK][P], T (&sources)[CHUNK][P],
                                             float* all_products, float (&scores)[CHUNK][CHUNK]) {
  const int lane = threadIdx.x % 32, c = 2 * lane, g = lane / 4, j = lane % 4 * 2;
  float2 x[CHUNK], z[CHUNK], all[CHUNK];  // as pass_level has them
#pragma unroll
  for (int t = 0; t < CHUNK; ++t) {
    all[t] = gate<logits>(widen(*reinterpret_cast<const Two<G>*>(&in_a[t][c])));
    x[t] = widen(*reinterpret_cast<const Two<T>*>(&in_x[t][c]));
    z[t] = widen(*reinterpret_cast<const Two<T>*>(&in_z[t][c]));
  }
  QuarterScores<T, CHUNK> quarters;
  quarters.run(x, z, all);
#pragma unroll
  for (int first = 0; first < CHUNK; first += 8) {
    const float4 row = quarters.row(first / 8);
    if (j == 0) *reinterpret_cast<float4*>(&scores[first + g][first + g / 4 * 4]) = row;
  }
  using Eight = EightByEight<T>;
  const uint32_t left = Eight::rows(sinks, false, true), right = Eight::rows(sinks, true, false);
#pragma unroll
  for (int l = 4; l < CHUNK; l *= 2) {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) {
      const int place = l == 8 ? t ^ 8 : (t & 4 ? 0 : 8) + t / 8 * 4 + t % 4;
      *reinterpret_cast<Two<T>*>(&sinks[row_of(place)][c]) = narrow<T>(t & l ? x[t] : z[t]);
    }
    __syncwarp();
    const float2 two = Eight::products(left, right);
    if (l == 8) *reinterpret_cast<float2*>(&scores[8 + g][j]) = two;
    else if (g / 4 == j / 4) *reinterpret_cast<float2*>(&scores[4 + g + g / 4 * 4][j + j / 4 * 4]) = two;
    pass_level(l, x, z, all);
  }
  __syncwarp();
#pragma unroll
  for (int t = 0; t < CHUNK; ++t) {
    *reinterpret_cast<Two<T>*>(&sinks[row_of(t)][c]) = narrow<T>(x[t]);
    *reinterpret_cast<Two<T>*>(&sources[row_of(t)][c]) = narrow<T>(z[t]);
  }
  *reinterpret_cast<float2*>(&all_products[c]) = all[0];
  __syncwarp();
}

// A lane's two columns of half a chunk's tokens.
template <class E, int P>
struct HalfRows {
  E* of[2];  // seen from the half's token 0, those of tokens 0, 1, 4, 5 and of 2, 3, 6, 7: row_of

  __device__ __forceinline__ HalfRows(E (&rows)[CHUNK][P], bool upper) {
    const int first = upper ? CHUNK / 2 : 0, swap = upper ? 2 : 0, c = 2 * (threadIdx.x % 32);
    of[0] = &rows[first + swap][c], of[1] = &rows[first - swap][c];
  }
  __device__ __forceinline__ Two<E>& at(int t) const { return *reinterpret_cast<Two<E>*>(of[t / 2 % 2] + t * P); }
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
    *reinterpret_cast<Two<T>*>(row + later / 2 * pitch) = two;
    column[later / 2] = two.x, column[later / 2 + pitch] = two.y;
  }
};

// The same by two warps, of eight tokens each (`upper`: the later ones).
template <class T>
struct HalfChunk {
  using Eight = EightByEight<T>;
  static constexpr int HALF = CHUNK / 2;
  bool upper;

  // From a desk's x, z, a: its sinks, which first hold the levels, sources, scores and products of a. a(t): of token t of the
  // half, a lane's columns. meet: a barrier of both warps.
  template <bool logits, class Desk, class Gates, class Meet>
  __device__ __forceinline__ void run(Desk& desk, int parity, const Gates& a, const Meet& meet) const {
    const int lane = fresh(threadIdx.x % 32), c = 2 * lane, g = lane / 4, j = lane % 4 * 2, base = upper ? HALF : 0;
    const HalfRows in_x(desk.x(parity), upper), in_z(desk.z(parity), upper);
    const HalfRows to_sinks(desk.sinks(parity), upper), to_sources(desk.sources(parity), upper);
    float2 x[HALF], z[HALF], all[HALF];  // as pass_level has them
#pragma unroll
    for (int t = 0; t < HALF; ++t) all[t] = gate<logits>(a(t)), x[t] = in_x.get(t), z[t] = in_z.get(t);
    QuarterScores<T, HALF> quarters;
    quarters.run(x, z, all);
    const float4 near = quarters.row(0);
    if (j == 0) *reinterpret_cast<float4*>(&desk.near[upper][g][g / 4 * 4]) = near;
    auto& levels = desk.sinks(parity);
    const uint32_t sinks = Eight::rows(levels, upper, true), sources = Eight::rows(levels, upper, false);
    const PairScores pairs(desk, base + g, base + j);
    __syncwarp();
#pragma unroll
    for (int t = 0; t < HALF; ++t) to_sinks.put(t, t & 4 ? x[t] : z[t]);
    __syncwarp();
    const float2 two = Eight::products(sinks, sources);
    if (g >= 4 && j < 4) pairs.put(0, two);
    pass_level(4, x, z, all);
    __syncwarp();
    if (upper)
#pragma unroll
      for (int t = 0; t < HALF; ++t) to_sinks.put(t, x[t]);
    else
#pragma unroll
      for (int t = 0; t < HALF; ++t) to_sinks.put(t, z[t]);
    *reinterpret_cast<float2*>(&desk.half[upper][c]) = all[0];
    meet();
    const float2 other = *reinterpret_cast<const float2*>(&desk.half[!upper][c]);
    if (!upper)
#pragma unroll
      for (int t = 0; t < HALF; ++t) z[t] = z[t] * other;
#pragma unroll
    for (int t = 0; t < HALF; ++t) to_sources.put(t, z[t]);
    if (upper) {
      *reinterpret_cast<float2*>(&desk.all[c]) = all[0] * other;
      *reinterpret_cast<Two<T>*>(&desk.gates[lane % 4][lane / 4 * 2]) = narrow<T>(all[0] * other);
    } else {
      pairs.put(HALF, Eight::products(Eight::rows(levels, true, true), sources));
    }
    meet();
    if (upper)
#pragma unroll
      for (int t = 0; t < HALF; ++t) x[t] = x[t] * other;
#pragma unroll
    for (int t = 0; t < HALF; ++t) to_sinks.put(t, x[t]);
  }
};

}  // namespace t2fw::cuda
