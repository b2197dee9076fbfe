// Memory of the device that a backend works on.
#pragma once

#include <cstddef>

#include "t2fw/t2fw.h"

namespace test {

class Memory {
 public:
  virtual ~Memory() = default;
  virtual bool present() const = 0;
  virtual void* allocate(size_t bytes) const = 0;  // aligned to at least 256 bytes
  virtual void release(void* pointer) const = 0;
  virtual void upload(void* device, const void* host, size_t bytes) const = 0;
  // Waits for everything enqueued before.
  virtual void download(void* host, const void* device, size_t bytes) const = 0;
};

// Managed: one address for host and GPU. Pinned: host memory that the GPU can reach. On the CPU both are plain memory.
enum class MemoryKind { Plain, Managed, Pinned };

const Memory& memory_of(t2fw_device device, MemoryKind kind = MemoryKind::Plain);

}  // namespace test
