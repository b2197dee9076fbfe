// What the kernels of decay forward share: those on tensor cores (decay_forward.cuh) and the plain ones
// (plain_forward.cuh).
#pragma once

#include "sequence.cuh"
#include "state.cuh"

namespace t2fw::cuda {

struct ForwardArgs {
  Rows v, f, q, k, g, y;
  StateOperand initial_state, final_state;
  const int64_t* cu_seqlens;
  void* checkpoints;   // `Saved` by forward, or NULL
  bool narrow;
  float* local;        // what `local` leaves of every segment; NULL if a sequence is one segment
  uint32_t* started;   // where tiles share the keys of a head: zero, to count thread blocks, and zeros
  uint32_t* written;   // for each block's warps to tell how far they are
  int64_t interval, T, H, segment;  // tokens between saved states, and in a segment: multiples of CHUNK
  int D, K, segments, sequences;    // sequences: of a packed batch, else 0
};

// A kernel for each head, tile of its state and segment, and the one that goes before it where there are segments: it leaves
// each segment's state from zero and its products of gates, from which every segment finds the state it starts from.
struct ForwardKernels {
  void (*forward)(ForwardArgs);
  void (*local)(ForwardArgs);
  unsigned threads;
  size_t memory, local_floats;  // shared memory of a block; what `local` leaves of a segment
  int64_t values, keys;         // of a tile
  int waiting;                  // warps of a block that wait for those of a tile of other keys
};

// The plain ones: of any data, K up to largest_key.
ForwardKernels plain_forward(const Problem& p);

// One segment of one head, and the tile of its state that a thread block takes.
struct Task {
  int64_t n, b, h, checkpoint;  // n: sequence; checkpoint: slot of its first saved state
  int begin, length, start;     // the segment's first token in batch row b; tokens of the sequence before it
  int column, key, segment;     // the tile's first value and key; number of the segment
  int block;                    // and of the thread block

  __device__ static Task of(const ForwardArgs& p, int64_t block, int values, int keys) {
    const int slices = (p.D + values - 1) / values, tiles = (p.K + keys - 1) / keys * slices;
    Task t;
    t.block = static_cast<int>(block);
    t.segment = static_cast<int>(block % p.segments);
    const int tile = static_cast<int>(block / p.segments % tiles);
    t.column = tile % slices * values;
    t.key = tile / slices * keys;
    t.h = block / p.segments / tiles % p.H;
    t.n = block / p.segments / tiles / p.H;
    const Sequence sequence = sequence_at(p, t.n);
    t.b = sequence.b;
    t.checkpoint = sequence.checkpoint;
    t.start = static_cast<int>(t.segment * p.segment);
    t.begin = sequence.begin + t.start;
    const int left = sequence.length - t.start, most = static_cast<int>(p.segment);
    t.length = left < 0 ? 0 : t.segment + 1 < p.segments && left > most ? most : left;
    return t;
  }
  // At most `tokens` of them.
  __device__ __forceinline__ Place place(int first, int tokens) const {
    return {b, h, begin + first, min(length - first, tokens)};
  }
};

}  // namespace t2fw::cuda
