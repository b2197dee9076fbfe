// The native kernels as host functions. The arguments were checked; a launch that fails is thrown as std::runtime_error.
#pragma once

#include <cuda_runtime_api.h>

#include "core/problem.hpp"

namespace t2fw::cuda {

// Throws if CUDA refused.
void check(cudaError_t error);

inline constexpr int64_t largest_key = 256;  // K that the forward takes
// Shared memory of a block, at most: on tensor cores, and in the plain form.
inline constexpr int shared_memory = 227 * 1024, plain_shared_memory = 99 * 1024;

// Thread blocks of any launch of a plan, at most, whatever the GPU. A launch counts them in 31 bits.
int64_t most_blocks(const Problem& p);

// The states that forward saves for backward, before every interval-th token of a sequence (core/checkpoints.hpp). narrow:
// for tensor cores, which take them as operands: [slots][H][D] rows (SavedRow) as the data; else [slots][H][K][D] in fp32.
struct Saved {
  int64_t interval;
  bool narrow;
  size_t bytes;
};
Saved saved_states(const Problem& p);

// How sequences are cut into segments (sequence.cuh), in one of two ways or not at all.
struct Cuts {
  int64_t later;    // a batch row's places for segments behind the first ones; 0: none is cut
  int64_t tokens;   // of a packed sequence that is not cut, at most; later segments are about as long
  int64_t lead;     // of few heads, what first segments have more than later ones, in chunks or where else they may start
  int64_t shares;   // how many heads the GPU has room for, if there are more and some are cut in two, else 0
  int64_t from;     // the first of those that may be cut
};

// decay forward of one plan.
class DecayForward {
 public:
  explicit DecayForward(const Problem& p);
  size_t scratch_size() const { return scratch_; }
  size_t saved_size() const { return saved_.bytes; }
  void operator()(const t2fw_forward_args& a, cudaStream_t stream) const;

 private:
  Problem p_;
  Saved saved_;
  bool plain_;
  Cuts cuts_;
  int64_t firsts_, laters_;  // thread blocks of first segments, and of later ones
  int64_t local_floats_, handed_;  // in scratch: of local states, or of those handed over; what tells of these
  size_t scratch_;
};

// decay backward of one plan, from the states that forward saved.
class DecayBackward {
 public:
  static bool takes(const Problem& p);
  explicit DecayBackward(const Problem& p);
  size_t scratch_size() const { return scratch_; }
  void operator()(const t2fw_backward_args& a, cudaStream_t stream) const;

 private:
  Problem p_;
  Saved saved_;
  Cuts cuts_;
  int64_t tiles_, firsts_, laters_;  // of a launch: a head's tiles; thread blocks of first segments, and of later ones
  int64_t shared_;  // states that a block keeps in shared memory
  // in scratch: of local states; states that a block keeps; `started` and `written`; `handed`
  int64_t local_floats_, kept_, told_, handed_;
  size_t scratch_;
};

// decay step of any D and K.
void prepare_step(const Problem& p);  // once, when a plan is made
void step(const Problem& p, const t2fw_step_args& a, cudaStream_t stream);

}  // namespace t2fw::cuda
