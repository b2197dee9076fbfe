// What a segment makes of a state, on tensor cores: the pass ahead of decay forward and backward (decay_forward.cuh,
// decay_backward.cuh) where sequences are cut. Forward's adds up what the chunks' sources, values and keys, make of a state of
// zero; backward's what their sinks, gradients of outputs and queries, make of a gradient of zero. Both leave the state and the
// products of the gates (Local).
//
// They begin with the chunk that the other pass ends with, and each chunk's part is multiplied by the products of the gates
// that it meets on its way. When none of these is a normal fp32 number any more, what is left of the segment is not read, nor
// its gates.
//
// Warps of two kinds meet at desks, as in decay_forward.cuh: those of a desk scale the value side and the key side, of up to
// `parts` times 64 keys, of the chunks that are theirs; those that hold the state take them all in order.
#pragma once

#include <cfloat>

#include "kernels.hpp"
#include "state.cuh"

namespace t2fw::cuda {

inline constexpr int STATE_WARPS = SLICE / 16;  // of 64 values by 64 keys, 16 values each
inline constexpr int LOCAL_DESKS = 8;
template <int parts>
inline constexpr int local_threads = 32 * (LOCAL_DESKS + parts * STATE_WARPS);

// What is left of 64 values by 64 keys, as the threads of their state warps hold it.
using TileLocal = Local<SLICE / 8, 32 * STATE_WARPS>;

// From a segment's first token on, so that a chunk's place is {0, 0, token, count}.
struct LocalSide {
  Rows z, a;            // v or k, or in reverse d_y or q; the side's gate
  int column, columns;  // its first here; of the head
};

template <class T, class G, int parts>
struct alignas(16) LocalDesk {
  static constexpr int SIDES = 1 + parts;
  Gate full, done;  // the chunk is ready for the state; the state has loaded it
  T z[SIDES][CHUNK][SLICE];
  G a[SIDES][CHUNK][SLICE];
  T scaled[SIDES][CHUNK][PITCH];
  float all[SIDES][SLICE];  // products of a over the chunk
  float most[SIDES];        // the largest of their magnitudes
};

template <class T, class G, int parts>
struct LocalMemory {
  LocalDesk<T, G, parts> desk[LOCAL_DESKS];
  LocalSide side[1 + parts];  // value, key, the next 64 keys
  bool faded[4][parts * STATE_WARPS];  // of the last rounds, by state warp: products of gates behind one have faded
};
static_assert(sizeof(LocalMemory<__half, float, 2>) <= shared_memory);

template <class T, class G, int parts, bool reverse>
struct LocalPass {
  using Memory = LocalMemory<T, G, parts>;
  using Desk = LocalDesk<T, G, parts>;
  static constexpr int SIDES = Desk::SIDES;
  Memory& memory;
  int length;  // tokens of the segment

  __device__ __forceinline__ int chunks() const { return (length + CHUNK - 1) / CHUNK; }

  // Of the chunk that is taken as number i.
  __device__ __forceinline__ Place place(int i) const {
    const int first = (reverse ? i : chunks() - 1 - i) * CHUNK;
    return {0, 0, first, min(length - first, CHUNK)};
  }
  __device__ __forceinline__ void stage_side(int side, int i) const {
    if (i < chunks()) {
      const LocalSide s = memory.side[side];  // ahead of all copies: behind one the compiler would read it again
      Desk& desk = memory.desk[threadIdx.x / 32];
      const Place c = place(i);
      stage<SLICE>(desk.z[side], s.z, c, s.column, s.columns, 0.f);
      stage<SLICE>(desk.a[side], s.a, c, s.column, s.columns, absent_gate(s.a));
    }
    commit_copies();
  }

  // Sources: z times the products of a behind each token; in reverse, sinks: those up to it.
  __device__ __forceinline__ void scale(int side) const {
    Desk& desk = memory.desk[threadIdx.x / 32];
    const bool logits = memory.side[side].a.logits;
    const int c = 2 * (threadIdx.x % 32);
    float2 all = {1.f, 1.f}, a[CHUNK];
#pragma unroll
    for (int t = 0; t < CHUNK; ++t) a[t] = widen(*reinterpret_cast<const Two<G>*>(&desk.a[side][row_of(t)][c]));
    if (logits)
#pragma unroll
      for (int t = 0; t < CHUNK; ++t) a[t] = logistic(a[t]);
#pragma unroll
    for (int i = 0; i < CHUNK; ++i) {
      const int t = reverse ? i : CHUNK - 1 - i;
      const float2 z = widen(*reinterpret_cast<const Two<T>*>(&desk.z[side][row_of(t)][c])), next = all * a[t];
      *reinterpret_cast<Two<T>*>(&desk.scaled[side][row_of(t)][c]) = narrow<T>(z * (reverse ? next : all));
      all = next;
    }
    *reinterpret_cast<float2*>(&desk.all[side][c]) = all;
    desk.most[side] = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(fmaxf(fabsf(all.x), fabsf(all.y)))));
  }

  // By the warp of a desk.
  __device__ __forceinline__ void run_desk(int warp) const {
    Desk& desk = memory.desk[warp];
    for (int side = 0; side < SIDES; ++side) {  // what staging leaves as it is
      const LocalSide& s = memory.side[side];
      const bool part = s.columns - s.column < SLICE;
      if (part) fill<SLICE>(desk.z[side], 0.f);
      if (part || !s.a.width) fill<SLICE>(desk.a[side], absent_gate(s.a));
    }
    __syncwarp();
    for (int side = 0; side < SIDES; ++side) stage_side(side, warp);
    int round = 0;
    for (int i = warp; i < chunks(); i += LOCAL_DESKS, ++round) {
      if (round) desk.done.wait((round - 1) % 2);
      if (over(round)) {
        desk.full.arrive();
        break;
      }
#pragma unroll
      for (int side = 0; side < SIDES; ++side) {
        wait_copies<SIDES - 1>();
        scale(side);
        __syncwarp();
        stage_side(side, i + LOCAL_DESKS);
      }
      desk.full.arrive();
    }
    wait_copies<0>();
  }

  // Whether all products of gates had faded when the state met the chunks of two rounds before.
  __device__ __forceinline__ bool over(int round) const {
    return __all_sync(~0u, memory.faded[(round - 2) & 3][threadIdx.x % (parts * STATE_WARPS)]);
  }

  using State = StateRows<T, SLICE>;
  // A chunk by a state warp. gates: their products from behind it on, of which none is larger than `most`; then with its own.
  template <bool guarded>
  __device__ __forceinline__ static void add(Desk& desk, int part, int warp, State& state, typename State::Slabs& gates,
                                             float& most) {
    typename State::Values values;
    typename State::Keys keys;
    values.load(desk.scaled[0], desk.all[0], warp * 16), keys.load(desk.scaled[1 + part], desk.all[1 + part], 0);
    most *= desk.most[0] * desk.most[1 + part];
    desk.done.arrive();
    state.template add<guarded>(gates, values, keys);
    State::multiply(gates, values, keys);
  }
  // By a warp that holds 16 values of the state and 64 keys.
  __device__ __forceinline__ void run_state(int number, float* to) const {
    const int part = number / STATE_WARPS, warp = number % STATE_WARPS;
    const LocalSide &value = memory.side[0], &key = memory.side[1 + part];
    State state, gates;
    gates.each(warp * 16, 0, [&](float& x, int d, int k) {  // none yet, of what there is
      x = d < value.columns - value.column && k < key.columns - key.column;
    });
    float most = 1.f;
    for (int first = 0, round = 0; first < chunks(); first += LOCAL_DESKS, ++round) {
      memory.desk[0].full.wait(round % 2);
      if (over(round)) break;
      const int count = min(chunks() - first, LOCAL_DESKS);
      for (int i = 0; i < count; ++i) {
        Desk& desk = memory.desk[i];
        desk.full.wait(round % 2);
        if (most <= FLT_MAX) add<false>(desk, part, warp, state, gates.S, most);
        else add<true>(desk, part, warp, state, gates.S, most);
      }
      memory.faded[round & 3][number] = __all_sync(~0u, TileLocal::have_faded(gates.S));
    }
    TileLocal::put(to + part * TileLocal::FLOATS, warp * 32 + threadIdx.x % 32, state.S, gates.S);
  }

  // By the whole thread block, when memory.side is set. to: where the local state goes, of 64 keys after the other.
  __device__ __forceinline__ void run(float* to) const {
    if (threadIdx.x < LOCAL_DESKS) {
      memory.desk[threadIdx.x].full.init(1);
      memory.desk[threadIdx.x].done.init(parts * STATE_WARPS);
    }
    if (threadIdx.x < sizeof memory.faded) (&memory.faded[0][0])[threadIdx.x] = false;
    __syncthreads();
    const int warp = threadIdx.x / 32;
    if (warp < LOCAL_DESKS) run_desk(warp);
    else run_state(warp - LOCAL_DESKS, to);
  }
};

}  // namespace t2fw::cuda
