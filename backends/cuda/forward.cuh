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
  float* local;        // what segments leave for later ones (state.cuh); NULL if none is cut
  uint32_t* handed;    // HANDED words for each place there: whether a first segment has handed its state over
  int64_t interval, T, H, segment;  // interval: tokens between saved states, a multiple of CHUNK; segment: segment_of
  int64_t firsts;     // thread blocks, the first ones, that take first segments
  int64_t cut_from;   // first head that is cut
  int D, K, later, lead, shares, sequences;  // later, lead, shares: Cuts; sequences: if packed, else 0
};

// A kernel for each segment of each head, its values by so many, and the one that goes before it where few heads are cut:
// `local`, which has thread blocks for the segments before the later ones.
struct ForwardKernels {
  Kernel<ForwardArgs> forward, local;
  size_t local_floats;  // what a thread block of `local` leaves of a segment
  int64_t values;
};

// The plain ones: of any data, K up to largest_key.
ForwardKernels plain_forward(const Problem& p);

// One segment of one head, and what of its state a thread block takes: some values, all keys.
struct Task {
  Sequence sequence;
  Segment segment;
  int64_t h;
  int slice, slices;          // which of the head's
  int column, begin, length;  // its first value; the segment's tokens in the batch row

  // Of thread block `block`, whose neighbours have the head's other values. local: of `local`'s.
  template <bool local>
  __device__ static Task of(const ForwardArgs& p, int64_t block, int values) {
    const bool first = !local && block < p.firsts;
    if (!local && !first) block -= p.firsts;
    Task t;
    t.slices = (p.D + values - 1) / values, t.slice = static_cast<int>(block % t.slices);
    t.column = t.slice * values;
    block /= t.slices;
    const int number = first ? 0 : static_cast<int>(block % p.later) + 1;
    if (!first) block = block / p.later + p.cut_from;
    t.h = block % p.H;
    segment_at<false, local>(p, block / p.H, t.h, number, CHUNK, t.sequence, t.segment);
    t.begin = t.sequence.begin + t.segment.start;
    t.length = t.segment.end - t.segment.start;
    return t;
  }
  // The same, of which the compiler knows that a warp's lanes have the same.
  __device__ __forceinline__ Task of_warp() const {
    Task t = *this;
    const auto one = [](auto& x) { x = __shfl_sync(~0u, static_cast<int>(x), 0); };
    one(t.sequence.b), one(t.h), one(t.column), one(t.begin), one(t.length);
    return t;
  }
  // The place of what the sequence's first segment leaves, of `floats`; that of the next one is slices places behind it.
  __device__ __forceinline__ int64_t left(const ForwardArgs& p) const {
    return ((sequence.b * p.H + h - p.cut_from) * p.later + segment.local) * slices + slice;
  }
  __device__ __forceinline__ float* local(const ForwardArgs& p, int64_t floats) const { return p.local + left(p) * floats; }
  __device__ __forceinline__ uint32_t* handed(const ForwardArgs& p) const { return p.handed + left(p) * HANDED; }
  // At most `tokens` of them.
  __device__ __forceinline__ Place place(int first, int tokens) const {
    return {sequence.b, h, begin + first, min(length - first, tokens)};
  }
};

}  // namespace t2fw::cuda
