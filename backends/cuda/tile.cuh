// The vocabulary of the native kernels: 16-bit pairs, matrix fragments of m16n8k16 and k8, barriers between warps. What needs
// compute capability 9.0 stops a kernel that was built for less: such a build does not serve newer GPUs on tensor cores.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace t2fw::cuda {

template <class T>
struct Pair;  // two neighbouring columns as they lie in memory
template <>
struct Pair<__nv_bfloat16> { using type = __nv_bfloat162; };
template <>
struct Pair<__half> { using type = __half2; };
template <>
struct Pair<float> { using type = float2; };
template <class E>
using Two = typename Pair<E>::type;

__device__ __forceinline__ float2 widen(float2 x) { return x; }
__device__ __forceinline__ float2 widen(__nv_bfloat162 x) {  // one instruction each, where __bfloat1622float2 has three
  const uint32_t two = *reinterpret_cast<const uint32_t*>(&x);
  return {__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u)};
}
__device__ __forceinline__ float2 widen(__half2 x) { return __half22float2(x); }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ Two<T> narrow(float2 x);
template <>
__device__ __forceinline__ __nv_bfloat162 narrow<__nv_bfloat16>(float2 x) { return __float22bfloat162_rn(x); }
template <>
__device__ __forceinline__ __half2 narrow<__half>(float2 x) { return __float22half2_rn(x); }
template <>
__device__ __forceinline__ float2 narrow<float>(float2 x) { return x; }

template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ float narrow<float>(float x) { return x; }

template <class P>
__device__ __forceinline__ uint32_t bits(P pair) {
  static_assert(sizeof(P) == 4);
  return *reinterpret_cast<uint32_t*>(&pair);
}

// The pair whose bits they are.
template <class P>
__device__ __forceinline__ P as_pair(uint32_t bits) {
  static_assert(sizeof(P) == 4);
  return *reinterpret_cast<P*>(&bits);
}

// Four neighbouring columns as they lie in memory.
template <class E>
using Four = std::conditional_t<sizeof(E) == 4, float4, uint2>;

template <class E>
__device__ __forceinline__ float4 widen_four(Four<E> x) {
  if constexpr (sizeof(E) == 4) {
    return x;
  } else {
    const float2 low = widen(as_pair<Two<E>>(x.x)), high = widen(as_pair<Two<E>>(x.y));
    return {low.x, low.y, high.x, high.y};
  }
}
template <class E>
__device__ __forceinline__ Four<E> narrow_four(float4 x) {
  if constexpr (sizeof(E) == 4) return x;
  else return {bits(narrow<E>(float2{x.x, x.y})), bits(narrow<E>(float2{x.z, x.w}))};
}

// x, 0 or more, but nothing else that follows from it is known before this point: what is cheap to compute again is not kept in
// registers through a loop.
__device__ __forceinline__ int fresh(int x) {
  asm volatile("" : "+r"(x));
  __builtin_assume(x >= 0);  // a quotient takes one instruction, not three
  return x;
}

// The gate whose logit is x: 1 / (1 + e^-x). Off by 2 ulp, and by about |x| more below 0; infinite logits give 0 and 1.
__device__ __forceinline__ float logistic(float x) { return __fdividef(1.f, 1.f + __expf(-x)); }
__device__ __forceinline__ float2 logistic(float2 x) { return {logistic(x.x), logistic(x.y)}; }
__device__ __forceinline__ float4 logistic(float4 x) { return {logistic(x.x), logistic(x.y), logistic(x.z), logistic(x.w)}; }
// What its gradient becomes on the way to the logit.
__device__ __forceinline__ float logistic_slope(float gate) { return fmaf(-gate, gate, gate); }

// Two neighbouring columns at once.
__device__ __forceinline__ float2 operator+(float2 x, float2 y) { return {x.x + y.x, x.y + y.y}; }
__device__ __forceinline__ float2 operator*(float2 x, float2 y) { return {x.x * y.x, x.y * y.y}; }
__device__ __forceinline__ float2 operator*(float x, float2 y) { return {x * y.x, x * y.y}; }
__device__ __forceinline__ float2 fma(float2 x, float2 y, float2 z) { return {fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y)}; }
__device__ __forceinline__ float2 fma(float x, float2 y, float2 z) { return {fmaf(x, y.x, z.x), fmaf(x, y.y, z.y)}; }
__device__ __forceinline__ __nv_bfloat162 fma(__nv_bfloat162 x, __nv_bfloat162 y, __nv_bfloat162 z) { return __hfma2(x, y, z); }

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&x)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row) : "memory");
}

// The same the other way.
__device__ __forceinline__ void store_matrices(uint32_t row, const uint32_t (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(row), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
#else
  __trap();
#endif
}
__device__ __forceinline__ void store_matrices_transposed(uint32_t row, const uint32_t (&x)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(row), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]) : "memory");
#else
  __trap();
#endif
}

// What another thread block may just have written, of 2 or 4 bytes: past the L1 cache, and not before what waited for it.
template <class E>
__device__ __forceinline__ E load_written(const E* from) {
  if constexpr (sizeof(E) == 2) {
    uint16_t x;
    asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(x) : "l"(from) : "memory");
    return *reinterpret_cast<const E*>(&x);
  } else {
    uint32_t x;
    asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
    return *reinterpret_cast<const E*>(&x);
  }
}

// A kernel's first word to the one behind it in the stream, if that was launched early (launch.hpp): it may start where there
// is room. And how that one waits until this one has ended, and sees what it wrote.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#else
  __trap();
#endif
}

// By one thread of a thread block: its number among those that have started, so that all of smaller numbers are under way and
// can be waited for, in whatever order the GPU takes them. count: zero before the kernel.
__device__ __forceinline__ int started(uint32_t* count) { return static_cast<int>(atomicAdd(count, 1u)); }

// By one lane: what another thread block's warp has told. Who sees it, sees what that one wrote before.
__device__ __forceinline__ uint32_t look_at(const uint32_t* told) {
  uint32_t now;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(told) : "memory");
  return now;
}
// A warp waits until another thread block's has told `count` or more, and sees what that one wrote before.
__device__ __forceinline__ void wait_for(const uint32_t* told, uint32_t count) {
  uint32_t now = count;
  if (threadIdx.x % 32 == 0) do now = look_at(told);
  while (now < count);
  __syncwarp();
}
__device__ __forceinline__ void tell(uint32_t* to, uint32_t count) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(count) : "memory");
}

// c[16x8] += a[16x16] b[16x8]. Lane l holds rows l / 4 and l / 4 + 8 of c, columns 2 (l % 4) and the next.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c[16x8] += a[16x8] b[8x8] of fp32 numbers, whose last 13 bits count as zeros: each is too small by 2^-10 of it at most. Of a
// a lane holds rows l / 4 and l / 4 + 8 in column l % 4, then both in column l % 4 + 4; of b rows l % 4 and l % 4 + 4 in
// column l / 4.
__device__ __forceinline__ void multiply_add(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// x rounded to what such a product takes of it; NaN and infinity stay.
__device__ __forceinline__ float round_to_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return __uint_as_float(rounded);
}

// The warp's number in its block. The compiler knows that all lanes have the same, and keeps what follows from it once a warp.
__device__ __forceinline__ int warp_number() { return __shfl_sync(~0u, threadIdx.x / 32, 0); }

// 16 bytes from global to shared memory without passing registers.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
// If `wanted`, without a branch.
__device__ __forceinline__ void copy_async_if(bool wanted, void* to, const void* from) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %2, 0;\n@p cp.async.cg.shared.global [%0], [%1], 16;\n}"
               ::"r"(shared_address(to)), "l"(from), "r"(static_cast<int>(wanted)) : "memory");
}
__device__ __forceinline__ void copy_word_async(void* to, const void* from) {  // 4 bytes
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// 16 bytes from global memory, now: the compiler may neither split the load nor make it wait for what decides whether they are
// needed.
__device__ __forceinline__ float4 load_line(const float4* from) {
  float4 x;
  asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "l"(from) : "memory");
  return x;
}
// To global memory at once, where the compiler would store word by word: a pair, two pairs, and 16 bytes.
__device__ __forceinline__ void store_pair(const void* to, uint32_t x) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(to), "r"(x) : "memory");
}
__device__ __forceinline__ void store_pairs(const void* to, uint2 x) {
  asm volatile("st.global.v2.u32 [%0], {%1,%2};" ::"l"(to), "r"(x.x), "r"(x.y) : "memory");
}
__device__ __forceinline__ void store_line(const void* to, uint4 x) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
// If `wanted`, without a branch.
__device__ __forceinline__ void store_line_if(bool wanted, const void* to, uint4 x) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %5, 0;\n@p st.global.v4.u32 [%0], {%1,%2,%3,%4};\n}"
               ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(static_cast<int>(wanted)) : "memory");
}
// To global memory, adding to the 16 bytes of E that another thread block may just have written there. Who adds has waited for
// that one (wait_for), so that sums have one order and the same bits. Of fp32 what is subnormal becomes 0.
template <class E>
__device__ __forceinline__ void add_line(const void* to, uint4 x) {
#if __CUDA_ARCH__ >= 900
  if constexpr (std::is_same_v<E, __nv_bfloat16>)
    asm volatile("red.relaxed.gpu.global.add.noftz.v4.bf16x2 [%0], {%1,%2,%3,%4};"
                 ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
  else if constexpr (std::is_same_v<E, __half>)
    asm volatile("red.relaxed.gpu.global.add.noftz.v4.f16x2 [%0], {%1,%2,%3,%4};"
                 ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
  else
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};"
                 ::"l"(to), "f"(__uint_as_float(x.x)), "f"(__uint_as_float(x.y)), "f"(__uint_as_float(x.z)),
                   "f"(__uint_as_float(x.w)) : "memory");
#else
  __trap();
#endif
}
// Waits for all but so many of the newest groups of this lane's copies, then for the warp's other lanes.
template <int newest>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(newest) : "memory");
  __syncwarp();
}

// A barrier between warps, in shared memory: it opens when `warps` of them have arrived, and then counts anew.
struct Gate {
#ifdef T2FW_RACECHECK
  static constexpr int EACH = 32;  // racecheck follows lanes that arrive themselves; slower
#else
  static constexpr int EACH = 1;
#endif
  uint64_t state;

  __device__ __forceinline__ void init(int warps) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(EACH * warps) : "memory");
  }
  // By one lane of a warp that then arrives: it opens no sooner than so many bytes have come in boxes (box.cuh), or from
  // another block (cluster.cuh).
  __device__ __forceinline__ void expect(uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
                 ::"r"(shared_address(&state)), "r"(bytes) : "memory");
#else
    __trap();
#endif
  }
  // By a whole warp; what it wrote before is seen by those who wait.
  __device__ __forceinline__ void arrive() {
    __syncwarp();
    if (EACH == 32 || threadIdx.x % 32 == 0)
      asm volatile("{\n.reg .b64 token;\nmbarrier.arrive.shared.b64 token, [%0];\n}" ::"r"(shared_address(&state)) : "memory");
  }
  // round: of this wait, modulo 2, from 0.
  __device__ __forceinline__ void wait(uint32_t round) {
    uint32_t open = 0;
    while (!open)
#if __CUDA_ARCH__ >= 900
      asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2, %3;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(open) : "r"(shared_address(&state)), "r"(round), "r"(1000000) : "memory");  // nanoseconds at most
#else
      asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(open) : "r"(shared_address(&state)), "r"(round) : "memory");
#endif
  }
};

}  // namespace t2fw::cuda
