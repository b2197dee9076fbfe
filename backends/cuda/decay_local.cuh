// What a segment makes of a state, on tensor cores: the pass ahead of decay forward and backward (decay_forward.cuh,
// decay_backward.cuh) where sequences are cut. Forward's begins with a state of zero and takes the chunks from the first one on
// by their sources, values and keys; backward's begins with a gradient of zero and takes them from the last one on by their
// sinks, gradients of outputs and queries. Both leave the state and the products of all gates (Local).
//
// Warps of two kinds meet at desks, as in decay_forward.cuh: those of a desk scale the value side and the key side, of up to
// `parts` times 64 keys, of the chunks that are theirs; those that hold the state take them all in order.
#pragma once

#include "kernels.hpp"
#include "state.cuh"

namespace t2fw::cuda {

inline constexpr int STATE_WARPS = SLICE / 16;  // of 64 values by 64 keys, 16 values each
inline constexpr int LOCAL_DESKS = 8;
template <int parts>
inline constexpr int local_threads = 32 * (LOCAL_DESKS + parts * STATE_WARPS);

// What is left of 64 values by 64 keys, as the threads of their state warps hold it.
using TileLocal = Local<SLICE / 8, 32 * STATE_WARPS>;

// Clears `handed` of a head, by the thread block of its last segment, which has nothing else to do. The next kernel starts when
// all blocks have let it; then this is in memory, so that its first segments may tell while this kernel still runs.
__device__ __forceinline__ void nothing_handed(uint32_t* handed) {
  if (threadIdx.x < HANDED) {
    handed[threadIdx.x] = 0;
    __threadfence();
  }
  __syncthreads();
}

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
};

template <class T, class G, int parts>
struct LocalMemory {
  LocalDesk<T, G, parts> desk[LOCAL_DESKS];
  LocalSide side[1 + parts];  // value, key, the next 64 keys
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
    const int first = (reverse ? chunks() - 1 - i : i) * CHUNK;
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
    uint32_t taken = 0;
    for (int i = warp; i < chunks(); i += LOCAL_DESKS, ++taken) {
      if (taken) desk.done.wait((taken - 1) % 2);
#pragma unroll
      for (int side = 0; side < SIDES; ++side) {
        wait_copies<SIDES - 1>();
        scale(side);
        __syncwarp();
        stage_side(side, i + LOCAL_DESKS);
      }
      desk.full.arrive();
    }
  }

  // By a warp that holds 16 values of the state and 64 keys.
  __device__ __forceinline__ void run_state(int warp, float* to) const {
    const int part = warp / STATE_WARPS;
    warp %= STATE_WARPS;
    StateRows<T, SLICE> state;
    TileLocal local;
    for (int i = 0; i < chunks(); ++i) {
      Desk& desk = memory.desk[i % LOCAL_DESKS];
      typename StateRows<T, SLICE>::Values values;
      typename StateRows<T, SLICE>::Keys keys;
      desk.full.wait(i / LOCAL_DESKS % 2);
      values.load(desk.scaled[0], desk.all[0], warp * 16), keys.load(desk.scaled[1 + part], desk.all[1 + part], 0);
      desk.done.arrive();
      state.apply(values, keys);
      state.multiply(local.gates, values, keys);
    }
    local.put(to + part * TileLocal::FLOATS, warp * 32 + threadIdx.x % 32, state.S);
  }

  // By the whole thread block, when memory.side is set. to: where the local state goes, of 64 keys after the other.
  __device__ __forceinline__ void run(float* to) const {
    if (threadIdx.x < LOCAL_DESKS) {
      memory.desk[threadIdx.x].full.init(1);
      memory.desk[threadIdx.x].done.init(parts * STATE_WARPS);
    }
    __syncthreads();
    const int warp = threadIdx.x / 32;
    if (warp < LOCAL_DESKS) run_desk(warp);
    else run_state(warp - LOCAL_DESKS, to);
  }
};

}  // namespace t2fw::cuda
