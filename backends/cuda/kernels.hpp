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

// How sequences are cut, so that a GPU with room for few thread blocks of them is sooner done (cut).
struct Segments {
  int64_t count, tokens;  // a batch row's slots for segments; tokens of a segment, at most
  int64_t local;          // slots for those that leave a local state
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
  Segments cuts_;
  int64_t blocks_, local_blocks_;  // thread blocks, and those of the kernel for local states
  size_t scratch_;                 // bytes, for all segments' local states
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
  Segments cuts_;
  int64_t tiles_, blocks_, local_blocks_;  // of a launch: a head's tiles; thread blocks, and those of the kernel for local states
  int64_t shared_;  // states that a block keeps in shared memory
  // in scratch: of all segments' local states; states that a block keeps; `started` and `written`
  int64_t local_floats_, kept_, told_;
  size_t scratch_;
};

// decay step of any D and K.
void prepare_step(const Problem& p);  // once, when a plan is made
void step(const Problem& p, const t2fw_step_args& a, cudaStream_t stream);

}  // namespace t2fw::cuda
