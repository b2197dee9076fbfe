// What the kernels of decay backward share: those on tensor cores (decay_backward.cuh) and the plain ones
// (plain_backward.cuh). A thread block takes a tile of 64 values by 64 keys of a head's state. A gradient that sums over the
// other side's tiles is added up in a cluster, or by the plain ones left in parts, which sum_parts adds up.
#pragma once

#include "sequence.cuh"
#include "state.cuh"

namespace t2fw::cuda {

struct SideArgs {
  Rows z, a, x, d_z, d_a, d_x;  // d_x: absent on the value side
  int64_t next_part, next_gate_part;  // floats between two tiles' parts of d_z and d_x, of d_a; 0: there are no parts
  int width, tiles;                   // D or K; of 64 columns

  // Where d_z or d_x, and where d_a of the tile go: `own` of this side's tiles, `other` of the other's. A gate of one value
  // a token sums over both.
  __device__ __forceinline__ Rows part(Rows x, int other) const {
    x.data = static_cast<const float*>(x.data) + other * next_part;
    return x;
  }
  __device__ __forceinline__ Rows gate_part(int own, int other) const {
    Rows x = d_a;
    x.data = static_cast<const float*>(x.data) + (x.width == width ? other : other * tiles + own) * next_gate_part;
    return x;
  }
};

struct BackwardArgs {
  SideArgs side[2];  // value, key
  StateOperand initial_state, d_final_state, d_initial_state;
  const int64_t* cu_seqlens;
  const void* checkpoints;    // `Saved` by forward; if narrow, rows of saved_row elements, saved_state of them a head
  int64_t saved_state;
  int saved_row;
  float* local;               // what `local` leaves of every segment but the first; NULL if a sequence is one segment
  int64_t interval, T, H, segment;  // tokens between saved states (a power of two, at least 16), and in a segment
  int segments, sequences;    // sequences: of a packed batch, else 0
  float* states;              // for the plain kernels: room for `kept` states of each thread block's tile
  int kept;
};

// One segment of one head, and the tile that a thread block takes of it.
struct TileTask {
  int segment, value, key, n, h;  // value, key: the tile's first; n: sequence
  Sequence sequence;

  __device__ static TileTask of(const BackwardArgs& p, int64_t block) {
    const int tiles = p.side[0].tiles * p.side[1].tiles;
    TileTask t;
    t.segment = static_cast<int>(block % p.segments);
    const int tile = static_cast<int>(block / p.segments % tiles);
    t.value = tile % p.side[0].tiles * SLICE;
    t.key = tile / p.side[0].tiles * SLICE;
    t.h = static_cast<int>(block / p.segments / tiles % p.H);
    t.n = static_cast<int>(block / p.segments / tiles / p.H);
    t.sequence = sequence_at(p, t.n);
    return t;
  }
};

// What sum_parts adds up: an output of T, or of G, and its parts, [count][B][T][H][width].
struct SumArgs {
  struct Output {
    Rows to;
    const float* parts;
    int64_t next;
    int count;
    bool gate;
  } output[5];
  int64_t B, T, H;
};

// One thread an element, blockIdx.y an output.
template <class T, class G>
__global__ void sum_parts(const __grid_constant__ SumArgs p) {
  const SumArgs::Output& o = p.output[blockIdx.y];
  const int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (!o.count || i >= p.B * p.T * p.H * o.to.width) return;
  float sum = 0;
  for (int part = 0; part < o.count; ++part) sum += o.parts[part * o.next + i];
  const int64_t token = i / o.to.width, h = token % p.H, t = token / p.H % p.T, b = token / p.H / p.T;
  const int64_t at = b * o.to.b + t * o.to.t + h * o.to.h + i % o.to.width;
  void* const data = const_cast<void*>(o.to.data);
  if (o.gate) static_cast<G*>(data)[at] = narrow<G>(sum);
  else static_cast<T*>(data)[at] = narrow<T>(sum);
}

// `local` goes first where there are segments, as in forward.cuh, and `sum` last where there are parts.
struct BackwardKernels {
  void (*backward)(BackwardArgs);
  void (*local)(BackwardArgs);
  void (*sum)(SumArgs);
  unsigned threads;
  size_t memory, local_floats;  // shared memory of a block; what `local` leaves of a segment
  int run;                      // tokens between the states that a block keeps in scratch; 0: it keeps none
  bool cluster;                 // the blocks of a head's tiles, blockIdx.y, add up their gradients; else there are parts
};

// The plain ones: of any data.
BackwardKernels plain_backward(const Problem& p);

}  // namespace t2fw::cuda
