// Boxes: 64 columns of a chunk's tokens that the tensor memory accelerator brings from an operand to shared memory, asked for
// by one thread. They spare a warp its copies of 16 bytes a lane, and the shared memory their way there.
#pragma once

#include <cuda.h>

#include "tile.cuh"

namespace t2fw::cuda {

// An operand as the accelerator takes it (launch.hpp: encode).
using Box = CUtensorMap;

// A box's first element.
struct BoxPlace {
  int column, token, h, b;
};

// Between what this thread has written to shared memory, or seen of what others wrote, and what is copied there or from there
// in bulk: boxes, and what blocks send each other (cluster.cuh).
__device__ __forceinline__ void fence_boxes() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// To rows of 64 columns that lie on 128 bytes, in the order of the tokens, zeros behind the operand's last column; `gate`
// expects the bytes of all of it.
__device__ __forceinline__ void bring_box(void* rows, const Box& box, const BoxPlace& from, Gate& gate) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
               ::"r"(shared_address(rows)), "l"(&box), "r"(from.column), "r"(from.token), "r"(from.h), "r"(from.b),
                 "r"(shared_address(&gate.state)) : "memory");
#else
  __trap();
#endif
}

}  // namespace t2fw::cuda
