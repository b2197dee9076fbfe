// What the kernels of decay forward share: those on tensor cores (decay_forward.cuh) and the plain ones
// (plain_forward.cuh).
#pragma once

#include "launch.hpp"
#include "sequence.cuh"
#include "state.cuh"

namespace t2fw::cuda {

struct ForwardArgs {
  Rows v, f, q, k, g, y;
  struct {
    Box v, f, q, k, g;
  } boxes;  // of those that are `boxed`, for the kernels on tensor cores
  StateOperand initial_state, final_state;
  const int64_t* cu_seqlens;
  void* checkpoints;   // `Saved` by forward, or NULL
  bool narrow;
  float* local;        // what `local` leaves of every segment; NULL if none is cut
  int64_t interval, T, H, segment;  // tokens between saved states, and in a segment at most: multiples of CHUNK
  int D, K, segments, local_segments, sequences;  // slots of a batch row (Segment); sequences: of a packed batch, else 0
};

// A kernel for each head, its values by so many, and segment, and the one that goes before it where there are segments: it
// leaves each segment's state from zero and its products of gates, tile by tile, from which every segment finds the state it
// starts from.
struct ForwardKernels {
  Kernel<ForwardArgs> forward, local;
  size_t local_floats;   // what `local` leaves of a segment
  int64_t values, keys;  // of a tile of `local`; the forward's block has as many values, and all keys
};

// The plain ones: of any data, K up to largest_key.
ForwardKernels plain_forward(const Problem& p);

// One segment of one head, and what of its state a thread block takes.
struct Task {
  Sequence sequence;
  Segment segment;
  int64_t h, row;     // row: of its (first) tile, among those of `local`
  int begin, length;  // the segment's tokens in the batch row
  int column, key;    // its first value and key

  // outputs: of the kernel that writes them, else of `local`
  template <bool outputs>
  __device__ static Task of(const ForwardArgs& p, int64_t block, int values, int keys) {
    const int segments = outputs ? p.segments : p.local_segments;
    const int slices = (p.D + values - 1) / values, tiles = (p.K + keys - 1) / keys * slices;
    Task t;
    t.row = block / segments;
    const int tile = static_cast<int>(t.row % tiles);
    t.column = tile % slices * values;
    t.key = tile / slices * keys;
    t.h = t.row / tiles % p.H;
    segment_at<outputs>(p, t.row / tiles / p.H, static_cast<int>(block % segments), CHUNK, t.sequence, t.segment);
    t.begin = t.sequence.begin + t.segment.start;
    t.length = t.segment.end - t.segment.start;
    return t;
  }
  // What `local` leaves of the sequence's segment `number`.
  __device__ __forceinline__ float* local(const ForwardArgs& p, int64_t floats, int number) const {
    return p.local + (row * p.local_segments + segment.local + number) * floats;
  }
  // At most `tokens` of them.
  __device__ __forceinline__ Place place(int first, int tokens) const {
    return {sequence.b, h, begin + first, min(length - first, tokens)};
  }
};

}  // namespace t2fw::cuda
