#include "backends/reference/reference.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace t2fw {
namespace {

// ---- numbers as they lie in memory; 16-bit formats differ only in how many bits the fraction and the exponent have
double widen(uint16_t bits, int fraction_bits, int exponent_bits) {
  const int top = (1 << exponent_bits) - 1, bias = top / 2;
  const int exponent = bits >> fraction_bits & top, fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == top) return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

uint16_t narrow(double x, int fraction_bits, int exponent_bits) {
  const int top = (1 << exponent_bits) - 1, bias = top / 2, infinity = top << fraction_bits;
  const int sign = std::signbit(x) ? 0x8000 : 0;
  const double size = std::fabs(x);
  if (std::isnan(x)) return static_cast<uint16_t>(sign | infinity | 1 << (fraction_bits - 1));
  if (std::isinf(x)) return static_cast<uint16_t>(sign | infinity);
  if (size == 0) return static_cast<uint16_t>(sign);
  // In units of the last place, subnormals sharing the smallest exponent; a carry runs into the exponent by itself.
  const int exponent = std::max(std::ilogb(size), 1 - bias);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(size, fraction_bits - exponent)));  // ties to even
  return static_cast<uint16_t>(sign | std::min(units + ((exponent + bias - 1) << fraction_bits), infinity));
}

double load(const void* p, t2fw_dtype dtype, int64_t i) {
  switch (dtype) {
    case T2FW_FP64: return static_cast<const double*>(p)[i];
    case T2FW_FP32: return static_cast<const float*>(p)[i];
    case T2FW_FP16: return widen(static_cast<const uint16_t*>(p)[i], 10, 5);
    case T2FW_BF16: return widen(static_cast<const uint16_t*>(p)[i], 7, 8);
  }
  return 0;
}

void store(void* p, t2fw_dtype dtype, int64_t i, double x) {
  switch (dtype) {
    case T2FW_FP64: static_cast<double*>(p)[i] = x; break;
    case T2FW_FP32: static_cast<float*>(p)[i] = static_cast<float>(x); break;
    case T2FW_FP16: static_cast<uint16_t*>(p)[i] = narrow(x, 10, 5); break;
    case T2FW_BF16: static_cast<uint16_t*>(p)[i] = narrow(x, 7, 8); break;
  }
}

// ---- where things are
struct Token { int64_t b, t, h; };

int64_t offset(const t2fw_token_strides& s, const Token& i) { return i.b * s.b + i.t * s.t + i.h * s.h; }

struct Tokens { int64_t b, first, count; };

Tokens tokens_of(const Problem& p, const int64_t* cu_seqlens, int64_t n) {
  if (!p.sequences) return {n, 0, p.T};
  return {0, cu_seqlens[n], cu_seqlens[n + 1] - cu_seqlens[n]};
}

// Hands out rows of doubles from the caller's scratch.
struct Scratch {
  double* next;
  double* take(int64_t count) { return std::exchange(next, next + count); }
};

// One token in double. dv .. dg exist in backward only.
struct Rows {
  double *v, *f, *y, *q, *k, *g;
  double *dy = nullptr, *dv = nullptr, *df = nullptr, *dq = nullptr, *dk = nullptr, *dg = nullptr;

  Rows(Scratch& s, const Problem& p)
      : v(s.take(p.D)), f(s.take(p.D)), y(s.take(p.D)), q(s.take(p.K)), k(s.take(p.K)), g(s.take(p.K)) {}
  void take_gradients(Scratch& s, const Problem& p) {
    for (double** row : {&dy, &dv, &df}) *row = s.take(p.D);
    for (double** row : {&dq, &dk, &dg}) *row = s.take(p.K);
  }
};
constexpr int64_t forward_rows = 3, backward_rows = 6;  // of D and of K each

void load_row(const void* p, t2fw_dtype dtype, int64_t at, int64_t n, double* row) {
  for (int64_t i = 0; i < n; ++i) row[i] = load(p, dtype, at + i);
}

void store_row(void* p, t2fw_dtype dtype, int64_t at, int64_t n, const double* row) {
  for (int64_t i = 0; i < n; ++i) store(p, dtype, at + i, row[i]);
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

void load_gate(const Problem& p, t2fw_gate gate, const void* from, int64_t at, int64_t n, double* row) {
  if (gate == T2FW_GATE_NONE) std::fill_n(row, n, 1.0);
  if (gate == T2FW_GATE_HEAD) std::fill_n(row, n, load(from, p.gate_dtype, at));
  if (gate == T2FW_GATE_FULL) load_row(from, p.gate_dtype, at, n, row);
  if (gate != T2FW_GATE_NONE && has_logits(p)) std::transform(row, row + n, row, logistic);
}

// a: the gate of the gradient da, which becomes the logit's with T2FW_GATE_LOGITS.
void store_gate_gradient(const Problem& p, t2fw_gate gate, void* to, int64_t at, int64_t n, const double* a, double* da) {
  for (int64_t i = 0; has_logits(p) && i < n; ++i) da[i] *= a[i] * (1 - a[i]);
  if (gate == T2FW_GATE_HEAD) store(to, p.gate_dtype, at, std::accumulate(da, da + n, 0.0));
  if (gate == T2FW_GATE_FULL) store_row(to, p.gate_dtype, at, n, da);
}

template <class Args>
void load_inputs(const Problem& p, const Args& a, const Token& i, Rows& r) {
  load_row(a.v, p.data_dtype, offset(p.v_strides, i), p.D, r.v);
  load_row(a.q, p.data_dtype, offset(p.q_strides, i), p.K, r.q);
  load_row(a.k, p.data_dtype, offset(p.k_strides, i), p.K, r.k);
  load_gate(p, p.f, a.f, offset(p.f_strides, i), p.D, r.f);
  load_gate(p, p.g, a.g, offset(p.g_strides, i), p.K, r.g);
}

void load_state(const Problem& p, const void* from, const t2fw_state_strides& s, int64_t n, int64_t h, double* S) {
  if (!from) std::fill_n(S, p.D * p.K, 0.0);
  for (int64_t d = 0; from && d < p.D; ++d)
    load_row(from, p.state_dtype, n * s.b + h * s.h + d * s.d, p.K, S + d * p.K);
}

void store_state(const Problem& p, void* to, const t2fw_state_strides& s, int64_t n, int64_t h, const double* S) {
  for (int64_t d = 0; to && d < p.D; ++d)
    store_row(to, p.state_dtype, n * s.b + h * s.h + d * s.d, p.K, S + d * p.K);
}

// ---- the formulas. S, R: [D,K]
void read(const Problem& p, const double* S, const double* x, double* out) {  // out = S x
  for (int64_t d = 0; d < p.D; ++d) {
    out[d] = 0;
    for (int64_t c = 0; c < p.K; ++c) out[d] += S[d * p.K + c] * x[c];
  }
}

void read_transposed(const Problem& p, const double* S, const double* x, double* out) {  // out = S^T x
  for (int64_t c = 0; c < p.K; ++c) {
    out[c] = 0;
    for (int64_t d = 0; d < p.D; ++d) out[c] += S[d * p.K + c] * x[d];
  }
}

// S_t from S_{t-1}; they may be the same memory. y gets S_{t-1} k_t in delta: scratch.
void update(const Problem& p, const double* before, const Rows& r, double* after) {
  if (p.rule == T2FW_DELTA) read(p, before, r.k, r.y);
  for (int64_t d = 0; d < p.D; ++d)
    for (int64_t c = 0; c < p.K; ++c) {
      const int64_t i = d * p.K + c;
      after[i] = p.rule == T2FW_DECAY ? r.f[d] * r.g[c] * before[i] + r.v[d] * r.k[c]
                                      : before[i] + (r.v[d] - r.y[d]) * r.k[c];
    }
}

template <class Args>
void forward_token(const Problem& p, const Args& a, const Token& i, Rows& r, double* S) {
  load_inputs(p, a, i, r);
  const int64_t at = offset(p.y_strides, i);
  if (p.rule == T2FW_DELTA) {  // reads before the update
    read(p, S, r.q, r.y);
    store_row(a.y, p.data_dtype, at, p.D, r.y);
    update(p, S, r, S);
  } else {
    update(p, S, r, S);
    read(p, S, r.q, r.y);
    store_row(a.y, p.data_dtype, at, p.D, r.y);
  }
}

// before, after: S_{t-1}, S_t. R: dL/dS_t from later tokens on entry, dL/dS_{t-1} on return.
void backward_decay(const Problem& p, const double* before, const double* after, double* R, Rows& r) {
  for (int64_t d = 0; d < p.D; ++d)
    for (int64_t c = 0; c < p.K; ++c) R[d * p.K + c] += r.dy[d] * r.q[c];
  read_transposed(p, after, r.dy, r.dq);
  read(p, R, r.k, r.dv);
  read_transposed(p, R, r.v, r.dk);
  std::fill_n(r.df, p.D, 0.0);
  std::fill_n(r.dg, p.K, 0.0);
  for (int64_t d = 0; d < p.D; ++d)
    for (int64_t c = 0; c < p.K; ++c) {
      const int64_t i = d * p.K + c;
      r.df[d] += R[i] * before[i] * r.g[c];
      r.dg[c] += R[i] * before[i] * r.f[d];
      R[i] *= r.f[d] * r.g[c];
    }
}

void backward_delta(const Problem& p, const double* before, double* R, Rows& r) {
  double* u = r.y;  // v_t - S_{t-1} k_t
  read(p, before, r.k, u);
  for (int64_t d = 0; d < p.D; ++d) u[d] = r.v[d] - u[d];
  read(p, R, r.k, r.dv);
  read_transposed(p, before, r.dy, r.dq);
  for (int64_t c = 0; c < p.K; ++c) {
    r.dk[c] = 0;
    for (int64_t d = 0; d < p.D; ++d) r.dk[c] += R[d * p.K + c] * u[d] - before[d * p.K + c] * r.dv[d];
  }
  for (int64_t d = 0; d < p.D; ++d)
    for (int64_t c = 0; c < p.K; ++c) R[d * p.K + c] += r.dy[d] * r.q[c] - r.dv[d] * r.k[c];
}

void store_gradients(const Problem& p, const t2fw_backward_args& a, const Token& i, Rows& r) {
  store_row(a.d_v, p.data_dtype, offset(p.d_v_strides, i), p.D, r.dv);
  store_row(a.d_q, p.data_dtype, offset(p.d_q_strides, i), p.K, r.dq);
  store_row(a.d_k, p.data_dtype, offset(p.d_k_strides, i), p.K, r.dk);
  store_gate_gradient(p, p.f, a.d_f, offset(p.d_f_strides, i), p.D, r.f, r.df);
  store_gate_gradient(p, p.g, a.d_g, offset(p.d_g_strides, i), p.K, r.g, r.dg);
}

// ---- the loops over sequences, heads and tokens
class ReferenceExecutor final : public Executor {
 public:
  explicit ReferenceExecutor(const Problem& problem) : p_(problem) {}

  size_t scratch_size(t2fw_operation operation) const override {
    const bool is_backward = operation == T2FW_BACKWARD;
    const int64_t states = is_backward ? p_.T + 2 : 1;  // backward: S_0 .. S_T, R
    return sizeof(double) * static_cast<size_t>(states * p_.D * p_.K +
                                                (is_backward ? backward_rows : forward_rows) * (p_.D + p_.K));
  }
  size_t saved_size() const override { return 0; }

  void forward(const t2fw_forward_args& a, void*) const override {
    Scratch scratch{static_cast<double*>(a.scratch)};
    Rows rows(scratch, p_);
    double* S = scratch.take(p_.D * p_.K);
    for (int64_t n = 0; n < sequence_count(p_); ++n)
      for (int64_t h = 0; h < p_.H; ++h) {
        const Tokens s = tokens_of(p_, a.cu_seqlens, n);
        load_state(p_, a.initial_state, p_.initial_state_strides, n, h, S);
        for (int64_t t = 0; t < s.count; ++t) forward_token(p_, a, {s.b, s.first + t, h}, rows, S);
        store_state(p_, a.final_state, p_.final_state_strides, n, h, S);
      }
  }

  void backward(const t2fw_backward_args& a, void*) const override {
    const int64_t size = p_.D * p_.K;
    Scratch scratch{static_cast<double*>(a.scratch)};
    Rows rows(scratch, p_);
    rows.take_gradients(scratch, p_);
    double *R = scratch.take(size), *S = scratch.take((p_.T + 1) * size);
    for (int64_t n = 0; n < sequence_count(p_); ++n)
      for (int64_t h = 0; h < p_.H; ++h) {
        const Tokens s = tokens_of(p_, a.cu_seqlens, n);
        load_state(p_, a.initial_state, p_.initial_state_strides, n, h, S);
        for (int64_t t = 0; t < s.count; ++t) {
          load_inputs(p_, a, {s.b, s.first + t, h}, rows);
          update(p_, S + t * size, rows, S + (t + 1) * size);
        }
        load_state(p_, a.d_final_state, p_.d_final_state_strides, n, h, R);
        for (int64_t t = s.count - 1; t >= 0; --t) {
          const Token token{s.b, s.first + t, h};
          load_inputs(p_, a, token, rows);
          load_row(a.d_y, p_.data_dtype, offset(p_.d_y_strides, token), p_.D, rows.dy);
          if (p_.rule == T2FW_DECAY) backward_decay(p_, S + t * size, S + (t + 1) * size, R, rows);
          else backward_delta(p_, S + t * size, R, rows);
          store_gradients(p_, a, token, rows);
        }
        store_state(p_, a.d_initial_state, p_.d_initial_state_strides, n, h, R);
      }
  }

  void step(const t2fw_step_args& a, void*) const override {
    Scratch scratch{static_cast<double*>(a.scratch)};
    Rows rows(scratch, p_);
    double* S = scratch.take(p_.D * p_.K);
    for (int64_t b = 0; b < p_.B; ++b)
      for (int64_t h = 0; h < p_.H; ++h) {
        const int64_t slot = a.slot_indices ? a.slot_indices[b] : b;
        if (slot == T2FW_SKIP_SLOT) {
          std::fill_n(rows.y, p_.D, 0.0);
          store_row(a.y, p_.data_dtype, offset(p_.y_strides, {b, 0, h}), p_.D, rows.y);
          continue;
        }
        load_state(p_, a.initial_state, p_.initial_state_strides, slot, h, S);
        forward_token(p_, a, {b, 0, h}, rows, S);
        store_state(p_, a.final_state, p_.final_state_strides, slot, h, S);
      }
  }

 private:
  const Problem p_;
};

class ReferenceBackend final : public Backend {
 public:
  const char* name() const override { return "reference"; }
  t2fw_device device() const override { return T2FW_CPU; }
  std::string decline(const Problem& p) const override {
    if (p.device != T2FW_CPU) return "runs on the CPU only; set device to T2FW_CPU";
    if (static_cast<double>(p.T + 2) * (static_cast<double>(p.D) * static_cast<double>(p.K) + 1) > 1e17)
      return "backward keeps all T+1 states of one head in double, which is more than the address space; shorten T";
    return {};
  }
  std::unique_ptr<Executor> bind(const Problem& p) const override { return std::make_unique<ReferenceExecutor>(p); }
  std::string wrong_memory(const Problem&, const void*) const override { return {}; }
};

}  // namespace

const Backend& reference_backend() {
  static const ReferenceBackend backend;
  return backend;
}

}  // namespace t2fw
