// What is read and written: operands of any dtype and stride, brought into tiles of the working precision and back.
#pragma once

#include <cstring>

#include "half.hpp"
#include "logistic.hpp"
#include "problem.hpp"
#include "team.hpp"

namespace t2fw {

// An operand over tokens ([B,T,H,width]) or a state ([B,H,D,K], where `row` is the stride of d).
struct Operand {
  char* data = nullptr;
  t2fw_dtype dtype = T2FW_FP32;
  int width = 0;  // 0: absent; 1 beside a wider tile: one value for all columns
  int64_t batch = 0, row = 0, head = 0;
  bool logits = false;  // loaded through the logistic function

  Operand() = default;
  Operand(const void* pointer, t2fw_dtype type, int64_t columns, const t2fw_token_strides& s)
      : data(static_cast<char*>(const_cast<void*>(pointer))), dtype(type), width(pointer ? static_cast<int>(columns) : 0),
        batch(s.b), row(s.t), head(s.h) {}
  Operand(const void* pointer, t2fw_dtype type, int64_t columns, const t2fw_state_strides& s)
      : data(static_cast<char*>(const_cast<void*>(pointer))), dtype(type), width(pointer ? static_cast<int>(columns) : 0),
        batch(s.b), row(s.d), head(s.h) {}

  KOKKOS_FUNCTION char* at(int64_t b, int64_t r, int64_t h) const {
    return data + (b * batch + r * row + h * head) * static_cast<int64_t>(bytes_of(dtype));
  }
};

// A gate or its gradient. dimension: D for f, K for g.
inline Operand gate_operand(const Problem& p, const void* pointer, t2fw_gate gate, int64_t dimension,
                            const t2fw_token_strides& s) {
  Operand x(pointer, p.gate_dtype, gate_width(gate, dimension), s);
  x.logits = x.width && has_logits(p);
  return x;
}

template <class Real>
KOKKOS_INLINE_FUNCTION Real load_element(const char* row, t2fw_dtype dtype, int column) {
  switch (dtype) {
    case T2FW_FP64: return static_cast<Real>(reinterpret_cast<const double*>(row)[column]);
    case T2FW_FP32: return static_cast<Real>(reinterpret_cast<const float*>(row)[column]);
    case T2FW_FP16: return static_cast<Real>(half_to_float(reinterpret_cast<const uint16_t*>(row)[column]));
    default: return static_cast<Real>(bf16_to_float(reinterpret_cast<const uint16_t*>(row)[column]));
  }
}

template <class Real>
KOKKOS_INLINE_FUNCTION void store_element(Real value, char* row, t2fw_dtype dtype, int column) {
  switch (dtype) {
    case T2FW_FP64: reinterpret_cast<double*>(row)[column] = static_cast<double>(value); return;
    case T2FW_FP32: reinterpret_cast<float*>(row)[column] = static_cast<float>(value); return;
    case T2FW_FP16: reinterpret_cast<uint16_t*>(row)[column] = float_to_half(static_cast<float>(value)); return;
    default: reinterpret_cast<uint16_t*>(row)[column] = float_to_bf16(static_cast<float>(value)); return;
  }
}

// A host's rows, the dtype fixed outside the loop.
template <class Real>
KOKKOS_INLINE_FUNCTION void load_row(Real* to, const char* from, t2fw_dtype dtype, int columns) {
  switch (dtype) {
    case T2FW_FP16: for (int c = 0; c < columns; ++c) to[c] = load_element<Real>(from, T2FW_FP16, c); return;
    case T2FW_BF16: for (int c = 0; c < columns; ++c) to[c] = load_element<Real>(from, T2FW_BF16, c); return;
    default: memcpy(to, from, static_cast<size_t>(columns) * sizeof(Real)); return;  // Real is fp64 or fp32 data's own
  }
}

template <class Real>
KOKKOS_INLINE_FUNCTION void store_row(const Real* from, char* to, t2fw_dtype dtype, int columns) {
  switch (dtype) {
    case T2FW_FP16: for (int c = 0; c < columns; ++c) store_element(from[c], to, T2FW_FP16, c); return;
    case T2FW_BF16: for (int c = 0; c < columns; ++c) store_element(from[c], to, T2FW_BF16, c); return;
    default: memcpy(to, from, static_cast<size_t>(columns) * sizeof(Real)); return;
  }
}

// Where in an operand a tile lies: rows first .. first + count - 1 of (b, h), columns column .. column + columns - 1.
struct Window {
  int64_t b, h, first;
  int count, column, columns;
};

// tile[r][c], r < rows, c < ld: the operand inside the window, `absent` where the operand has no value, `padding` right
// of the window.
template <class Team, class Real>
KOKKOS_INLINE_FUNCTION void load_tile(const Team& team, Real* tile, int rows, int ld, const Operand& x, const Window& w,
                                      Real absent, Real padding) {
  if constexpr (Team::is_host) {
    for (int r = 0; r < rows; ++r) {
      Real* const to = tile + r * ld;
      const int columns = x.width && r < w.count ? w.columns : 0;
      if (columns && x.width == 1) {
        Real value = load_element<Real>(x.at(w.b, w.first + r, w.h), x.dtype, 0);
        if (x.logits) value = logistic(value);
        for (int c = 0; c < columns; ++c) to[c] = value;
      } else if (columns) {
        const char* const from = x.at(w.b, w.first + r, w.h) + static_cast<size_t>(w.column) * bytes_of(x.dtype);
        load_row(to, from, x.dtype, columns);
        if (x.logits) logistic_row(to, columns);
      }
      for (int c = columns; c < ld; ++c) to[c] = c < w.columns ? absent : padding;
    }
  } else {
    team.for_each(rows * ld, [&](int i) {
      const int r = i / ld, c = i % ld;
      Real value = c < w.columns ? absent : padding;
      if (x.width && r < w.count && c < w.columns) {
        value = load_element<Real>(x.at(w.b, w.first + r, w.h), x.dtype, x.width == 1 ? 0 : w.column + c);
        if (x.logits) value = logistic(value);
      }
      tile[i] = value;
    });
  }
}

// Rows that a host will need soon: each call asks its memory for one more. Where rows adjoin it sees by itself what comes.
// The place is kept here, not passed in: GCC 12 takes a function that only prefetches for one without effect, and drops
// its calls.
class Ahead {
 public:
  Ahead(const Operand& x, const Window& w)
      : step_(x.row * static_cast<int64_t>(bytes_of(x.dtype))), bytes_(x.width * static_cast<int64_t>(bytes_of(x.dtype))),
        left_(x.width && step_ != bytes_ ? w.count : 0), row_(left_ > 0 ? x.at(w.b, w.first, w.h) : nullptr) {}

  void fetch() {
    if (left_-- <= 0) return;
    for (int64_t at = 0; at < bytes_; at += 64) __builtin_prefetch(row_ + at);
    row_ += step_;
  }

 private:
  int64_t step_, bytes_;
  int left_;
  const char* row_;
};

// The inverse: writes the window of an operand. An operand of width 1 takes the sum over the columns.
template <class Team, class Real>
KOKKOS_INLINE_FUNCTION void store_tile(const Team& team, const Real* tile, int ld, const Operand& x, const Window& w) {
  if (!x.width) return;
  if (x.width == 1 && w.columns > 1) {
    team.for_each(w.count, [&](int r) {
      Real sum = 0;
      for (int c = 0; c < w.columns; ++c) sum += tile[r * ld + c];
      store_element(sum, x.at(w.b, w.first + r, w.h), x.dtype, 0);
    });
  } else if constexpr (Team::is_host) {
    for (int r = 0; r < w.count; ++r) {
      const Real* const from = tile + r * ld;
      char* const to = x.at(w.b, w.first + r, w.h) + static_cast<size_t>(w.column) * bytes_of(x.dtype);
      store_row(from, to, x.dtype, w.columns);
    }
  } else {
    team.for_each(w.count * w.columns, [&](int i) {
      const int r = i / w.columns, c = i % w.columns;
      store_element(tile[r * ld + c], x.at(w.b, w.first + r, w.h), x.dtype, w.column + c);
    });
  }
}

// The gradients d_a of gates a become those of their logits.
template <class Team, class Real>
KOKKOS_INLINE_FUNCTION void through_logistic(const Team& team, Real* d_a, const Real* a, int size) {
  team.for_each(size, [&](int i) { d_a[i] *= a[i] * (1 - a[i]); });
}

// A tile of a state: rows of the other side, columns of one's own. transposed: the operand's rows are one's own side.
template <class Team, class Real>
KOKKOS_INLINE_FUNCTION void load_state(const Team& team, Real* tile, int others, int ld, const Operand& x, int64_t b,
                                       int64_t h, int column, int columns, bool transposed) {
  team.for_each_of(others, ld, [&](int o, int c) {
    Real value = 0;
    if (x.width && c < columns)
      value = transposed ? load_element<Real>(x.at(b, column + c, h), x.dtype, o)
                         : load_element<Real>(x.at(b, o, h), x.dtype, column + c);
    tile[o * ld + c] = value;
  });
}

template <class Team, class Real>
KOKKOS_INLINE_FUNCTION void store_state(const Team& team, const Real* tile, int others, int ld, const Operand& x,
                                        int64_t b, int64_t h, int column, int columns, bool transposed) {
  if (!x.width) return;
  team.for_each_of(others, columns, [&](int o, int c) {
    const Real value = tile[o * ld + c];
    if (transposed) store_element(value, x.at(b, column + c, h), x.dtype, o);
    else store_element(value, x.at(b, o, h), x.dtype, column + c);
  });
}

}  // namespace t2fw
