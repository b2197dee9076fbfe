// What the launches of the native kernels share.
#pragma once

#include <cuda_runtime.h>

#include "box.cuh"
#include "chunk.cuh"
#include "kernels.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {

// A kernel, a block's threads and its shared bytes, and how many blocks reach each other's shared memory.
template <class Args>
struct Kernel {
  void (*function)(Args);
  unsigned threads;
  size_t memory;
  unsigned cluster = 1;
};

// The one way to launch, whose status cudaGetLastError would mix with an application's earlier one. early: right behind a
// kernel that lets it, it may start before that one's end, which it awaits by wait_for_launch.
template <class Args>
void launch(const Kernel<Args>& kernel, int64_t blocks, cudaStream_t stream, const Args& args, bool early = false) {
  cudaLaunchAttribute more[2]{};
  cudaLaunchConfig_t how{};
  how.gridDim = dim3(static_cast<unsigned>(blocks)), how.blockDim = dim3(kernel.threads);
  how.dynamicSmemBytes = kernel.memory, how.stream = stream, how.attrs = more;
  if (early) {
    more[how.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    more[how.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (kernel.cluster > 1) {
    more[how.numAttrs].id = cudaLaunchAttributeClusterDimension;
    more[how.numAttrs++].val.clusterDim = {kernel.cluster, 1, 1};
  }
  check(cudaLaunchKernelEx(&how, kernel.function, args));
}

// Whether the kernels on tensor cores can take the plan: they need 16-bit data and shared memory. The plain ones take every
// plan. The layout of the saved states (`Saved`) follows the backward; every forward writes it.
bool tensor_cores(const Problem& p);
// What a kernel may ask for at most: one number for all plans of a GPU.
void raise_shared_memory(const void* kernel, size_t bytes);
// Loads a kernel when a plan is made, so that its first launch need not wait for that.
void load(const void* kernel);

// What choose.operator()<T, G>() returns for the types of the plan's data and gates.
template <class Choose>
auto by_types(const Problem& p, const Choose& choose) {
  const bool wide = p.gate_dtype == T2FW_FP32;
  if (p.data_dtype == T2FW_FP32) return choose.template operator()<float, float>();
  if (p.data_dtype == T2FW_BF16) {
    if (wide) return choose.template operator()<__nv_bfloat16, float>();
    return choose.template operator()<__nv_bfloat16, __nv_bfloat16>();
  }
  return wide ? choose.template operator()<__half, float>() : choose.template operator()<__half, __half>();
}

// width: of the operand as it lies in memory; columns: of its side.
Rows rows(const void* data, t2fw_dtype dtype, int64_t width, int64_t columns, const t2fw_token_strides& s);
// Of a gate or its gradient.
Rows gate_rows(const Problem& p, const void* data, t2fw_gate gate, int64_t columns, const t2fw_token_strides& s);

// What brings 64 columns of a chunk of the operand, by a thread that has a context. False: nothing does, and its elements come
// one by one, as it is not `whole`, is empty, or has a stride that is negative or 2^40 bytes or more. Throws where the driver
// encodes nothing.
bool encode(Box& box, const Problem& p, const Rows& x, t2fw_dtype dtype);

// Cuts sequences (sequence.cuh) where that lets a GPU that has room for `slots` thread blocks at once be sooner done. The host
// does not know packed sequences' lengths: `tokens` is a quarter more than a later segment if all were of one length, or, if
// that needed no cut, twice as much as the average and as a slot's share; `later` is how many places they may need.
// slices: thread blocks of a segment of a head; segments start at a multiple of `multiple`; scratch: bytes of it that each
// later segment of a head costs; there are no more than let them and the saved states be a quarter of operands and results.
Cuts cut(const Problem& p, int64_t slices, int64_t slots, const Pace& pace, int64_t multiple, int64_t scratch);
// How many later segments all heads may have.
int64_t later_segments(const Problem& p, const Cuts& cuts);

// Of a token of a head: v, y, q, k, the gates, and the gradients of all.
int64_t token_bytes(const Problem& p);

// Of the plan's GPU.
int multiprocessors(const Problem& p);
int most_shared_memory(const Problem& p);  // of a thread block

}  // namespace t2fw::cuda
