// Operands of one call as a table, and the checks that run over it. Allocates only to word an error.
#pragma once

#include <array>
#include <string>

#include "backend.hpp"

namespace t2fw {

enum class Need { required, optional, absent };
enum class Access { in, out };
enum class Kind { value, key, f, g };  // which shape and dtype a token operand has

struct Operand {
  const char* name;
  const void* pointer;
  Need need;
  Access access;
  const char* dtype;
  int64_t element_size;                 // also the alignment that is demanded
  std::array<const char*, 4> labels;    // of the dimensions, for messages; "" for a plain array
  std::array<int64_t, 4> dims;
  std::array<int64_t, 3> strides;       // in elements; the last dimension is contiguous
};

class Operands {
 public:
  explicit Operands(const Problem& problem) : problem_(problem) {}

  void tokens(const char* name, const void* pointer, Kind kind, const t2fw_token_strides& strides, Access access);
  // states: the first dimension, called label; the problem's own if label is NULL.
  void state(const char* name, const void* pointer, const t2fw_state_strides& strides, Access access, Need need,
             const char* label = nullptr, int64_t states = 0);
  void indices(const char* name, const void* pointer, int64_t count, Need need);
  void bytes(const char* name, const void* pointer, size_t size, size_t needed, Access access, Need need);

  // Extents fit into 64 bits of bytes; no output overlaps itself.
  void check_layouts() const;
  // Present or absent as demanded, aligned, and on the device.
  void check_pointers(const Backend& backend) const;
  // No output overlaps another operand, except final_state as initial_state itself.
  void check_overlaps() const;

 private:
  void add(const Operand& operand);

  const Problem& problem_;
  std::array<Operand, 20> list_{};
  size_t count_ = 0;
};

void check_cu_seqlens(const Problem& problem, const int64_t* cu_seqlens);
void check_slot_indices(const int64_t* slot_indices, int64_t count, int64_t slots);

}  // namespace t2fw
