// The operations of the portable backend on one execution space, and how much memory each needs.
#pragma once

#include "block.hpp"
#include "checkpoints.hpp"

namespace t2fw {

// The side a work item owns (columns of its state) and the side it sums over (rows). Value side: own v, f, d_y, other
// k, g, q; key side the other way round.
template <class Space, class Real>
struct Shape {
  static constexpr int W = lane_count<Lanes<Space, Real>>;
  int D, K, tile;  // tile: columns of one's own side that a work item takes
  KOKKOS_FUNCTION static constexpr int padded(int n) { return (n + W - 1) / W * W; }
  KOKKOS_FUNCTION static constexpr int tiles(int n, int tile) { return (n + tile - 1) / tile; }
};

// A host takes decay token by token, its tile of the state in registers; a device takes it block by block. The build
// option T2FW_HOST_BLOCKS gives the host the block form too, so that machines without a GPU can test it.
#if defined(T2FW_HOST_BLOCKS)
template <class Space>
inline constexpr bool block_form = true;
#else
template <class Space>
inline constexpr bool block_form = !on_host<Space>;
#endif

// Columns of its own side that a work item takes. A gate that is one value a token and head has a gradient that sums
// over the whole side, so that side stays whole.
template <class Space>
int own_tile(int n, bool whole) {
  return on_host<Space> || whole || n < 64 ? n : 64;
}

// Where a sequence's tokens and saved states lie.
struct Sequence {
  int64_t b, begin, length, slot;
};

KOKKOS_INLINE_FUNCTION Sequence sequence_at(const Problem& p, const int64_t* cu_seqlens, int64_t interval, int64_t n) {
  if (!cu_seqlens) return {n, 0, p.T, p.T ? n * ((p.T - 1) / interval) : 0};
  const auto clamp = [&](int64_t x) { return x < 0 ? 0 : x > p.T ? p.T : x; };
  const int64_t begin = clamp(cu_seqlens[n]), end = clamp(cu_seqlens[n + 1]);
  return {0, begin, end > begin ? end - begin : 0, begin / interval};
}

KOKKOS_INLINE_FUNCTION Window block_window(const Sequence& s, int64_t h, int64_t first, int column, int columns) {
  const int64_t left = s.length - first;
  return {s.b, h, s.begin + first, static_cast<int>(left < C ? left : C), column, columns};
}

// Hands out pieces of a workspace; without one it only counts.
template <class Real>
struct Arena {
  Real* base;
  size_t used = 0;
  KOKKOS_INLINE_FUNCTION explicit Arena(char* workspace = nullptr) : base(reinterpret_cast<Real*>(workspace)) {}
  KOKKOS_INLINE_FUNCTION Real* take(int n) {
    Real* const piece = base ? base + used : nullptr;
    used += (static_cast<size_t>(n) + 15) / 16 * 16;
    return piece;
  }
  size_t bytes() const { return used * sizeof(Real); }
};

struct Sizes {
  size_t scratch = 0, saved = 0;
};

template <class Space, class Real>
Sizes decay_forward_sizes(const Problem&);
template <class Space, class Real>
void decay_forward(const Space&, const Problem&, const t2fw_forward_args&);
template <class Space, class Real>
Sizes decay_backward_sizes(const Problem&);
template <class Space, class Real>
void decay_backward(const Space&, const Problem&, const t2fw_backward_args&);
template <class Space, class Real>
Sizes delta_forward_sizes(const Problem&);
template <class Space, class Real>
void delta_forward(const Space&, const Problem&, const t2fw_forward_args&);
template <class Space, class Real>
Sizes delta_backward_sizes(const Problem&);
template <class Space, class Real>
void delta_backward(const Space&, const Problem&, const t2fw_backward_args&);
template <class Space, class Real>
Sizes step_sizes(const Problem&);
template <class Space, class Real>
void step(const Space&, const Problem&, const t2fw_step_args&);

// Each kernel's file ends with this, so that a kernel is compiled for the spaces and precisions of the build, once.
#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
#define T2FW_FOR_EACH_SPACE(X)                                                             \
  X(Kokkos::DefaultHostExecutionSpace, float) X(Kokkos::DefaultHostExecutionSpace, double) \
  X(Kokkos::DefaultExecutionSpace, float) X(Kokkos::DefaultExecutionSpace, double)
#else
#define T2FW_FOR_EACH_SPACE(X) X(Kokkos::DefaultExecutionSpace, float) X(Kokkos::DefaultExecutionSpace, double)
#endif

}  // namespace t2fw
