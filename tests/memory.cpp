#include "memory.hpp"

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#if defined(T2FW_WITH_KOKKOS_CUDA) || defined(T2FW_WITH_CUDA)
#include <cuda_runtime_api.h>
#define TEST_GPU(name) cuda##name
#elif defined(T2FW_WITH_KOKKOS_HIP)
#include <hip/hip_runtime_api.h>
#define TEST_GPU(name) hip##name
#endif

namespace test {
namespace {

class Host : public Memory {
 public:
  bool present() const override { return true; }
  void* allocate(size_t bytes) const override {
    void* p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!p) throw std::bad_alloc();
    return p;
  }
  void release(void* p) const override { std::free(p); }
  void upload(void* device, const void* host, size_t bytes) const override {
    if (bytes) std::memcpy(device, host, bytes);
  }
  void download(void* host, const void* device, size_t bytes) const override {
    if (bytes) std::memcpy(host, device, bytes);
  }
};

#ifdef TEST_GPU
void check(int status, const char* call) {
  if (status != 0) throw std::runtime_error(std::string(call) + " failed with " + std::to_string(status));
}

class Gpu : public Memory {
 public:
  bool present() const override {
    int count = 0;
    return TEST_GPU(GetDeviceCount)(&count) == 0 && count > 0;
  }
  void* allocate(size_t bytes) const override {
    void* p = nullptr;
    check(TEST_GPU(Malloc)(&p, bytes), "Malloc");
    return p;
  }
  void release(void* p) const override { static_cast<void>(TEST_GPU(Free)(p)); }
  void upload(void* device, const void* host, size_t bytes) const override {
    check(TEST_GPU(Memcpy)(device, host, bytes, TEST_GPU(MemcpyHostToDevice)), "Memcpy");
    check(TEST_GPU(DeviceSynchronize)(), "DeviceSynchronize");
  }
  void download(void* host, const void* device, size_t bytes) const override {
    check(TEST_GPU(DeviceSynchronize)(), "DeviceSynchronize");
    check(TEST_GPU(Memcpy)(host, device, bytes, TEST_GPU(MemcpyDeviceToHost)), "Memcpy");
  }
};

class Managed : public Gpu {
 public:
  void* allocate(size_t bytes) const override {
    void* p = nullptr;
    check(TEST_GPU(MallocManaged)(&p, bytes), "MallocManaged");
    return p;
  }
};

class Pinned : public Host {
 public:
#ifdef T2FW_WITH_KOKKOS_HIP
  void* allocate(size_t bytes) const override {
    void* p = nullptr;
    check(hipHostMalloc(&p, bytes), "hipHostMalloc");
    return p;
  }
  void release(void* p) const override { static_cast<void>(hipHostFree(p)); }
#else
  void* allocate(size_t bytes) const override {
    void* p = nullptr;
    check(cudaMallocHost(&p, bytes), "cudaMallocHost");
    return p;
  }
  void release(void* p) const override { static_cast<void>(cudaFreeHost(p)); }
#endif
};
#else
class Gpu : public Host {
 public:
  bool present() const override { return false; }
};
using Managed = Gpu;
using Pinned = Gpu;
#endif

}  // namespace

const Memory& memory_of(t2fw_device device, MemoryKind kind) {
  static const Host host;
  static const Gpu gpu;
  static const Managed managed;
  static const Pinned pinned;
  if (device == T2FW_CPU) return host;
  if (kind == MemoryKind::Managed) return managed;
  if (kind == MemoryKind::Pinned) return pinned;
  return gpu;
}

}  // namespace test
