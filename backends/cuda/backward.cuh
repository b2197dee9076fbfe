// What the kernels of decay backward share: those on tensor cores (decay_backward.cuh) and the plain ones
// (plain_backward.cuh). A thread block takes a tile of 64 values by 64 keys of a head's state. A gradient that sums over the
// other side's tiles is added up where it lies, in their order: the first tile stores, the next ones add. On tensor cores all
// are of one launch, and wait for each other; the plain ones that share a gradient are of launches one after the other.
#pragma once

#include "launch.hpp"
#include "sequence.cuh"
#include "state.cuh"

namespace t2fw::cuda {

struct SideArgs {
  Rows z, a, x, d_z, d_a, d_x;  // d_x: absent on the value side
  struct Turn {
    int16_t tile;  // its number on this side
    bool adds;     // to what earlier launches have left of its gradients on this side
  };
  Turn turn[4];      // for the plain kernels: a head's tiles in the launch
  int width, tiles;  // D or K; of 64 columns
};

struct BackwardArgs {
  SideArgs side[2];  // value, key
  StateOperand initial_state, d_final_state, d_initial_state;
  const int64_t* cu_seqlens;
  const void* checkpoints;    // `Saved` by forward; if narrow, rows of saved_row elements, saved_state of them a head
  int64_t saved_state;
  int saved_row;
  float* local;               // what `local` leaves of every segment but the first; NULL if none is cut
  int64_t interval, T, H, segment;  // tokens between saved states (a power of two, at least 16), and in a segment at most
  int segments, local_segments, sequences;  // slots of a batch row (Segment); of a packed batch, else 0
  uint32_t* started;          // on tensor cores, if a head has more than one tile: zero, to count thread blocks, and zeros
  uint32_t* written;          // for each block's warps to tell how far they are
  float* states;              // for the plain kernels: room for the last `kept` states that each thread block keeps of its tile,
  int kept, kept_shared;      // and how many first ones it has in shared memory
  int together, number;       // and how many of a head's tiles the launch has; its number
};

// One segment of one head, and the tile that a thread block takes of it.
struct TileTask {
  int64_t row;  // of those that a tile of a batch row's head makes; in the plain kernels, of the launch's
  int block, value, key, h;  // block: its number, on tensor cores, of those that write; value, key: the tile's first
  Sequence sequence;
  Segment segment;

  // Slot `slot` of row `row` of those that a tile of a batch row's head makes. outputs: of the kernel that writes them, else of
  // `local`.
  template <bool outputs>
  __device__ static TileTask of(const BackwardArgs& p, int64_t row, int slot) {
    const int tiles = p.side[0].tiles * p.side[1].tiles;
    TileTask t;
    t.row = row, t.block = static_cast<int>(row * p.segments + slot);
    const int tile = static_cast<int>(row % tiles);
    t.value = tile % p.side[0].tiles * SLICE;
    t.key = tile / p.side[0].tiles * SLICE;
    t.h = static_cast<int>(row / tiles % p.H);
    // a segment starts where a state was saved, and on tensor cores with a block
    segment_at<outputs>(p, row / tiles / p.H, slot, max(static_cast<int>(p.interval), SLICE), t.sequence, t.segment);
    return t;
  }
  // What `local` leaves of the sequence's segment `number`.
  __device__ __forceinline__ float* local(const BackwardArgs& p, int64_t floats, int number) const {
    return p.local + (row * p.local_segments + segment.local + number) * floats;
  }
};

// `local` goes first where there are segments, as in forward.cuh.
struct BackwardKernels {
  Kernel<BackwardArgs> backward, local;
  size_t local_floats;  // what `local` leaves of a segment
  int run;              // tokens between the states that a block keeps; 0: it keeps none
  int waiting;          // warps of a block that wait for those of another tile's; 0: the tiles go by launches
};

// The plain ones: of any data.
BackwardKernels plain_backward(const Problem& p);

}  // namespace t2fw::cuda
