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
  float* local;               // what segments leave for later ones (state.cuh); NULL if none is cut
  uint32_t* handed;           // HANDED words for each place there: whether a first segment has handed its state over
  int64_t interval, T, H, segment;  // interval: tokens between saved states (a power of two, at least 16); segment: segment_of
  int64_t firsts;             // thread blocks, the first ones, that take first segments
  int64_t cut_from;           // first head that is cut
  int later, lead, shares, sequences;  // later, lead, shares: Cuts; sequences: if packed, else 0
  uint32_t* started;          // on tensor cores, if a head has more than one tile: zero, to count thread blocks, and zeros
  uint32_t* written;          // for each block's warps to tell how far they are
  float* states;              // for the plain kernels: room for the last `kept` states that each thread block keeps of its
  int kept, kept_shared;      // tile, and how many first ones it has in shared memory
  int together, number;       // and how many of a head's tiles the launch has; its number
};

// One segment of one head, and the tile that a thread block takes of it.
struct TileTask {
  int block, tile, tiles;  // its number; which of the head's in the launch
  int h, value, key;       // value, key: the tile's first
  Sequence sequence;
  Segment segment;

  // Of thread block `block`, whose neighbours have the head's other tiles. local: of `local`'s.
  template <bool local>
  __device__ static TileTask of(const BackwardArgs& p, int block, int tiles) {
    const int H = static_cast<int>(p.H);
    TileTask t;
    t.block = block, t.tile = block % tiles, t.tiles = tiles;
    const bool first = !local && block < p.firsts;
    int64_t n = (first || local ? block : block - p.firsts) / tiles;
    const int number = first ? 0 : static_cast<int>(n % p.later) + 1;
    if (!first) n = n / p.later + p.cut_from;
    t.h = static_cast<int>(n % H), n /= H;
    const int multiple = max(static_cast<int>(p.interval), SLICE);  // where states were saved, on tensor cores between blocks
    segment_at<true, local>(p, n, t.h, number, multiple, t.sequence, t.segment);
    return t;
  }
  // value and key: of the head's tile `number`.
  __device__ __forceinline__ void set_tile(const BackwardArgs& p, int number) {
    value = number % p.side[0].tiles * SLICE, key = number / p.side[0].tiles * SLICE;
  }
  // The place of what the sequence's first segment leaves, of `floats`; that of the next one is tiles places behind it.
  __device__ __forceinline__ int64_t left(const BackwardArgs& p) const {
    return ((sequence.b * p.H + h - p.cut_from) * p.later + segment.local) * tiles + tile;
  }
  __device__ __forceinline__ float* local(const BackwardArgs& p, int64_t floats) const { return p.local + left(p) * floats; }
  __device__ __forceinline__ uint32_t* handed(const BackwardArgs& p) const { return p.handed + left(p) * HANDED; }
};

// `local` goes first where there are later segments, as in forward.cuh.
struct BackwardKernels {
  Kernel<BackwardArgs> backward, local;
  size_t local_floats;  // what `local` leaves of a segment
  int run;              // tokens between the states that a block keeps; 0: it keeps none
  int waiting;          // warps of a block that wait for those of another tile's; 0: the tiles go by launches
};

// The plain ones: of any data.
BackwardKernels plain_backward(const Problem& p);

}  // namespace t2fw::cuda
