#include "api/checks.hpp"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "api/error.hpp"

namespace t2fw {
namespace {

std::string number(int64_t n) { return std::to_string(n); }

bool is_empty(const Operand& o) { return std::find(o.dims.begin(), o.dims.end(), 0) != o.dims.end(); }

bool in_use(const Operand& o) { return o.pointer && !is_empty(o); }

// "fp32 [B=2,T=5,H=3,D=16]", "int64 [4]"
std::string shape(const Operand& o) {
  std::string text = std::string(o.dtype) + " [";
  const size_t first = *o.labels[0] ? 0 : 3;
  for (size_t i = first; i < 4; ++i)
    text += (i > first ? "," : "") + (*o.labels[i] ? std::string(o.labels[i]) + "=" : "") + number(o.dims[i]);
  return text + "]";
}

std::string stride_text(const Operand& o) {
  return number(o.strides[0]) + "," + number(o.strides[1]) + "," + number(o.strides[2]);
}

// One operand as bytes: levels of (stride, count) above a contiguous row, the largest stride first. Dimensions of size
// 1 and strides of 0 add nothing to what is touched and are left out.
struct Footprint {
  struct Level { int64_t stride, count; };
  std::array<Level, 3> levels;
  size_t depth = 0;
  int64_t row = 0;
};

Footprint footprint(const Operand& o) {
  Footprint f;
  for (size_t i = 0; i < 3; ++i)
    if (o.dims[i] > 1 && o.strides[i] != 0) f.levels[f.depth++] = {o.strides[i] * o.element_size, o.dims[i]};
  std::sort(f.levels.begin(), f.levels.begin() + f.depth,
            [](const auto& a, const auto& b) { return std::abs(a.stride) > std::abs(b.stride); });
  f.row = o.dims[3] * o.element_size;
  return f;
}

// The bytes [low, high) that the levels from `first` inwards can reach.
struct Range { int64_t low, high; };

Range range(const Footprint& f, size_t first) {
  Range r{0, f.row};
  for (size_t i = first; i < f.depth; ++i) {
    const int64_t reach = f.levels[i].stride * (f.levels[i].count - 1);
    (reach < 0 ? r.low : r.high) += reach;
  }
  return r;
}

int64_t floor_divide(int64_t a, int64_t b) { return a / b - (a % b < 0); }  // b > 0

enum class Overlap { no, maybe, yes };

// Two footprints whose outermost `common` levels have equal strides; b starts `distance` bytes after a. Below those
// levels each is taken as a solid range, which is exact for dense rows and errs towards overlap otherwise.
bool meet(const Footprint& a, const Footprint& b, int64_t distance, size_t level, size_t common) {
  const Range ra = range(a, level), rb = range(b, level);
  if (level == common) return distance + rb.low < ra.high && ra.low < distance + rb.high;
  const int64_t stride = a.levels[level].stride;
  const Range ia = range(a, level + 1), ib = range(b, level + 1);
  // Index differences that bring the inner ranges together; few, because outputs do not overlap themselves.
  const int64_t least = std::max(floor_divide(ia.low - ib.high - distance, stride), 1 - a.levels[level].count);
  const int64_t most = std::min(floor_divide(ia.high - ib.low - distance, stride) + 1, b.levels[level].count - 1);
  if (most - least > 16) return true;
  for (int64_t i = least; i <= most; ++i)
    if (meet(a, b, distance + i * stride, level + 1, common)) return true;
  return false;
}

Overlap overlap(const Operand& a, const Operand& b) {
  const Footprint fa = footprint(a), fb = footprint(b);
  const auto at = [](const Operand& o) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(o.pointer)); };
  const Range ra = range(fa, 0), rb = range(fb, 0);
  if (at(a) + ra.high <= at(b) + rb.low || at(b) + rb.high <= at(a) + ra.low) return Overlap::no;
  size_t common = 0;
  while (common < std::min(fa.depth, fb.depth) && fa.levels[common].stride > 0 &&
         fa.levels[common].stride == fb.levels[common].stride)
    ++common;
  if (!meet(fa, fb, at(b) - at(a), 0, common)) return Overlap::no;
  return common == fa.depth && common == fb.depth ? Overlap::yes : Overlap::maybe;
}

bool same_layout(const Operand& a, const Operand& b) {
  for (size_t i = 0; i < 3; ++i)
    if (a.dims[i] > 1 && a.strides[i] != b.strides[i]) return false;
  return a.dims == b.dims && a.element_size == b.element_size;
}

bool is_in_place(const Operand& a, const Operand& b) {
  const std::string_view x = a.name, y = b.name;
  const bool pair = (x == "initial_state" && y == "final_state") || (x == "final_state" && y == "initial_state");
  return pair && a.pointer == b.pointer && same_layout(a, b);
}

void check_extent(const Operand& o) {
  int64_t low = 0, high = 0, step = 0;
  bool bad = __builtin_mul_overflow(o.dims[3], o.element_size, &high);
  for (size_t i = 0; i < 3 && !bad; ++i) {
    if (o.dims[i] <= 1) continue;
    bad = __builtin_mul_overflow(o.strides[i], o.element_size, &step) || __builtin_mul_overflow(step, o.dims[i] - 1, &step) ||
          (step < 0 ? __builtin_add_overflow(low, step, &low) : __builtin_add_overflow(high, step, &high));
  }
  int64_t extent = 0;
  if (bad || __builtin_sub_overflow(high, low, &extent) || extent > INT64_MAX / 4)
    fail(T2FW_INVALID_ARGUMENT, std::string(o.name) + " of " + shape(o) + " with strides " + stride_text(o) +
                                    " does not fit into the address space; expected at most 2^61 bytes");
}

void check_self_overlap(const Operand& o) {
  std::array<size_t, 3> order = {0, 1, 2};
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return o.strides[a] < o.strides[b]; });
  int64_t extent = o.dims[3];
  for (const size_t i : order) {
    if (o.dims[i] <= 1) continue;
    if (o.strides[i] < extent)
      fail(T2FW_INVALID_ARGUMENT, std::string(o.name) + "_strides are " + stride_text(o) + " for " + shape(o) +
                                      ": the stride of " + o.labels[i] + " is " + number(o.strides[i]) +
                                      "; expected at least " + number(extent) +
                                      ", because the elements of an output must not overlap one another");
    extent += o.strides[i] * (o.dims[i] - 1);
  }
}

}  // namespace

void Operands::add(const Operand& operand) { list_.at(count_++) = operand; }

void Operands::tokens(const char* name, const void* pointer, Kind kind, const t2fw_token_strides& strides, Access access) {
  const Problem& p = problem_;
  const bool is_f = kind == Kind::f, is_gate = is_f || kind == Kind::g, is_value = is_f || kind == Kind::value;
  const int64_t dimension = is_value ? p.D : p.K;
  const t2fw_gate gate = is_f ? p.f : is_gate ? p.g : T2FW_GATE_FULL;
  const t2fw_dtype dtype = is_gate ? p.gate_dtype : p.data_dtype;
  const char* label = gate == T2FW_GATE_HEAD ? "" : is_value ? "D" : "K";
  add({name, pointer, gate == T2FW_GATE_NONE ? Need::absent : Need::required, access, text_of(dtype),
       static_cast<int64_t>(bytes_of(dtype)), {"B", "T", "H", label}, {p.B, p.T, p.H, gate_width(gate, dimension)},
       {strides.b, strides.t, strides.h}});
}

void Operands::state(const char* name, const void* pointer, const t2fw_state_strides& strides, Access access, Need need,
                     const char* label, int64_t states) {
  const Problem& p = problem_;
  if (!label) {
    label = p.sequences ? "sequences" : "B";
    states = sequence_count(p);
  }
  add({name, pointer, need, access, text_of(p.state_dtype), static_cast<int64_t>(bytes_of(p.state_dtype)),
       {label, "H", "D", "K"}, {states, p.H, p.D, p.K}, {strides.b, strides.h, strides.d}});
}

void Operands::indices(const char* name, const void* pointer, int64_t count, Need need) {
  add({name, pointer, need, Access::in, "int64", 8, {"", "", "", ""}, {1, 1, 1, count}, {0, 0, 0}});
}

void Operands::bytes(const char* name, const void* pointer, size_t size, size_t needed, Access access, Need need) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!needed || (!pointer && need == Need::optional)) return;
  const std::string expected = "; expected " + std::to_string(needed) + " bytes aligned to " + number(T2FW_ALIGNMENT);
  if (!pointer) fail(T2FW_INVALID_ARGUMENT, std::string(name) + " is NULL" + expected);
  if (size < needed)
    fail(T2FW_INVALID_ARGUMENT, std::string(name) + "_size is " + std::to_string(size) + expected);
  if (address % T2FW_ALIGNMENT)
    fail(T2FW_INVALID_ARGUMENT, std::string(name) + " is " + number(static_cast<int64_t>(address % T2FW_ALIGNMENT)) +
                                    " bytes past a multiple of 64" + expected);
  add({name, pointer, need, access, "byte", 1, {"", "", "", ""}, {1, 1, 1, static_cast<int64_t>(needed)}, {0, 0, 0}});
}

void Operands::check_layouts() const {
  for (size_t i = 0; i < count_; ++i) {
    const Operand& o = list_[i];
    if (o.need == Need::absent || is_empty(o)) continue;
    check_extent(o);
    if (o.access == Access::out) check_self_overlap(o);
  }
}

void Operands::check_pointers(const Backend& backend) const {
  for (size_t i = 0; i < count_; ++i) {
    const Operand& o = list_[i];
    if (o.need == Need::absent && o.pointer)
      fail(T2FW_INVALID_ARGUMENT, std::string(o.name) + " is not NULL; expected NULL, because the plan has none");
    if (o.need == Need::absent || is_empty(o)) continue;
    if (!o.pointer && o.need == Need::optional) continue;
    const auto expected = [&] { return "; expected a pointer to " + shape(o) + " on the " + text_of(problem_.device); };
    if (!o.pointer) fail(T2FW_INVALID_ARGUMENT, std::string(o.name) + " is NULL" + expected());
    if (const auto past = reinterpret_cast<uintptr_t>(o.pointer) % static_cast<uintptr_t>(o.element_size); past)
      fail(T2FW_INVALID_ARGUMENT, std::string(o.name) + " is " + std::to_string(past) + " bytes past a multiple of " +
                                      number(o.element_size) + expected() + ", aligned to " + number(o.element_size) +
                                      " bytes");
    if (const std::string where = backend.wrong_memory(problem_, o.pointer); !where.empty())
      fail(T2FW_INVALID_ARGUMENT, std::string(o.name) + " points to " + where + expected());
  }
}

void Operands::check_overlaps() const {
  for (size_t i = 0; i < count_; ++i)
    for (size_t j = 0; j < count_; ++j) {
      const Operand &a = list_[i], &b = list_[j];
      if (a.access != Access::out || i == j || (b.access == Access::out && j < i)) continue;
      if (!in_use(a) || !in_use(b) || is_in_place(a, b)) continue;
      const Overlap found = overlap(a, b);
      if (found == Overlap::no) continue;
      fail(T2FW_INVALID_ARGUMENT, std::string(a.name) + (found == Overlap::yes ? " overlaps " : " may overlap ") + b.name +
                                      ": " + shape(a) + " and " + shape(b) + " lie " +
                                      number(static_cast<const char*>(b.pointer) - static_cast<const char*>(a.pointer)) +
                                      " bytes apart; expected memory of its own for every output");
    }
}

void check_cu_seqlens(const Problem& p, const int64_t* cu_seqlens) {
  const auto bad = [&](int64_t n, const std::string& expected) {
    fail(T2FW_INVALID_ARGUMENT, "cu_seqlens[" + number(n) + "] is " + number(cu_seqlens[n]) + "; expected " + expected);
  };
  if (cu_seqlens[0] != 0) bad(0, "0");
  for (int64_t n = 1; n <= p.sequences; ++n)
    if (cu_seqlens[n] < cu_seqlens[n - 1]) bad(n, "at least " + number(cu_seqlens[n - 1]) + ", the value before it");
  if (cu_seqlens[p.sequences] != p.T) bad(p.sequences, "T=" + number(p.T));
}

void check_slot_indices(const int64_t* slot_indices, int64_t count, int64_t slots) {
  const auto bad = [&](int64_t b, const std::string& expected) {
    fail(T2FW_INVALID_ARGUMENT,
         "slot_indices[" + number(b) + "] is " + number(slot_indices[b]) + "; expected " + expected);
  };
  for (int64_t b = 0; b < count; ++b)
    if (slot_indices[b] != T2FW_SKIP_SLOT && (slot_indices[b] < 0 || slot_indices[b] >= slots))
      bad(b, "0 .. slots-1=" + number(slots - 1) + ", or T2FW_SKIP_SLOT=-1");
  if (count < 2) return;
  // One bit a slot, a window of slots at a time: finds every repetition without allocating.
  constexpr int64_t window = 1 << 16;
  uint64_t seen[window / 64];
  for (int64_t low = 0; low < slots; low += std::min(window, slots - low)) {
    std::fill_n(seen, (std::min(window, slots - low) + 63) / 64, 0);
    for (int64_t b = 0; b < count; ++b) {
      const int64_t slot = slot_indices[b] - low;
      if (slot_indices[b] < 0 || slot < 0 || slot >= window) continue;
      if (seen[slot / 64] >> (slot % 64) & 1) bad(b, "no slot twice");
      seen[slot / 64] |= uint64_t{1} << (slot % 64);
    }
  }
}

}  // namespace t2fw
