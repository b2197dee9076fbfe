// Thread blocks in pairs (a cluster of two), that reach each other's shared memory: what one has there, the other has at the
// same place.
#pragma once

#include "tile.cuh"

namespace t2fw::cuda {

// This block's number in its pair, of a grid of one dimension.
__device__ __forceinline__ int pair_rank() { return static_cast<int>(blockIdx.x % 2); }
// A barrier of all threads of both blocks, which behind it see each other's writes, and gates that were made ready.
__device__ __forceinline__ void sync_pair() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  asm volatile("fence.mbarrier_init.release.cluster;\nbarrier.cluster.arrive.release.aligned;\n"
               "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}
// Where the other block has what this one has there. By a whole warp, whose lanes the compiler knows to get the same.
__device__ __forceinline__ uint32_t other_address(const void* own) {
  uint32_t there = 0;
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(own)), "r"(pair_rank() ^ 1));
#endif
  return __shfl_sync(~0u, there, 0);
}
// By one lane: copies `bytes`, a multiple of 16, to the other block, whose gate expects them. All who wrote them have passed
// fence_boxes.
__device__ __forceinline__ void copy_to_other(uint32_t to, const void* own, uint32_t bytes, uint32_t gate) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               ::"r"(to), "r"(shared_address(own)), "r"(bytes), "r"(gate) : "memory");
#else
  __trap();
#endif
}
// By a whole warp behind fence_boxes: arrives at the other block's gate, which waits there by wait_for_other and then copies to
// what this block has read. Those reads are over: their values have been used, or came to warps that have since arrived at a
// gate which this one has passed. No release, that would wait for all stores to global memory (17 % of a warp's time).
__device__ __forceinline__ void arrive_at_other(uint32_t gate) {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  if (Gate::EACH == 32 || threadIdx.x % 32 == 0)
    asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(gate) : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void wait_for_other(const Gate& gate, uint32_t round) {
#if __CUDA_ARCH__ >= 900
  uint32_t open = 0;
  while (!open)
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2, %3;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(open) : "r"(shared_address(&gate.state)), "r"(round), "r"(1000000) : "memory");
#else
  __trap();
#endif
}

}  // namespace t2fw::cuda
