#include "oracle.hpp"

#include <cmath>
#include <random>

#include "harness.hpp"

namespace test {
namespace {

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

// The gate, or its logit.
double gate_value(std::mt19937_64& random, const Case& c) {
  static constexpr double special[] = {0, -0.5, 1e-30, 1, 1.5}, special_logits[] = {-INFINITY, -1000, -40, 40, 1000, INFINITY};
  std::normal_distribution<double> normal;
  double x = normal(random);
  if (c.regime == Regime::Mixed && random() % 12 == 0) return c.logits ? special_logits[random() % 6] : special[random() % 5];
  if (c.regime == Regime::Mixed && c.logits) return std::uniform_real_distribution<double>(-4.6, 9.2)(random);
  x = c.regime == Regime::Slow ? 5 + x : 1 + 1.5 * x;
  return c.logits ? x : logistic(x);
}

// The gates of x in place of their logits, while this lives.
class GatesOfLogits {
 public:
  GatesOfLogits(const Case& c, Tensors& x) : x_(x), f_(x.f), g_(x.g) {
    for (Values* gates : {&x.f, &x.g})
      for (double& e : *gates) e = c.logits ? logistic(e) : e;
  }
  ~GatesOfLogits() { x_.f = f_, x_.g = g_; }

 private:
  Tensors& x_;
  const Values f_, g_;
};

// One head of one sequence: where its token t lies in [B,T,H,X].
struct Head {
  int64_t b, h, T, H;
  size_t at(int64_t t, int64_t width) const { return static_cast<size_t>(((b * T + t) * H + h) * width); }
};

double gate_at(const Values& gate, t2fw_gate kind, const Head& head, int64_t t, int64_t i, int64_t dimension) {
  if (kind == T2FW_GATE_NONE) return 1;
  if (kind == T2FW_GATE_HEAD) return gate[head.at(t, 1)];
  return gate[head.at(t, dimension) + static_cast<size_t>(i)];
}

// S_t from S_{t-1}; u receives what delta writes in place of v.
void advance(const Case& c, const Tensors& x, const Head& head, int64_t t, Values& S, Values& u) {
  const double *v = &x.v[head.at(t, c.D)], *k = &x.k[head.at(t, c.K)];
  for (int64_t i = 0; i < c.D; i++) {
    double* row = &S[static_cast<size_t>(i * c.K)];
    double written = v[i];
    if (c.rule == T2FW_DELTA)
      for (int64_t j = 0; j < c.K; j++) written -= row[j] * k[j];
    u[static_cast<size_t>(i)] = written;
    for (int64_t j = 0; j < c.K; j++) {
      const double kept = c.rule == T2FW_DELTA ? 1
                                               : gate_at(x.f, c.f, head, t, i, c.D) * gate_at(x.g, c.g, head, t, j, c.K);
      row[j] = kept * row[j] + written * k[j];
    }
  }
}

void backward_head(const Case& c, Tensors& x, const Head& head, size_t state_at) {
  const auto D = c.D, K = c.K;
  const size_t DK = static_cast<size_t>(D * K);
  std::vector<Values> states{Values(x.initial_state.begin() + static_cast<int64_t>(state_at),
                                    x.initial_state.begin() + static_cast<int64_t>(state_at + DK))};
  std::vector<Values> written;
  for (int64_t t = 0; t < c.T; t++) {
    Values S = states.back(), u(static_cast<size_t>(D));
    advance(c, x, head, t, S, u);
    states.push_back(S);
    written.push_back(u);
  }
  Values R(x.d_final_state.begin() + static_cast<int64_t>(state_at),
           x.d_final_state.begin() + static_cast<int64_t>(state_at + DK));
  for (int64_t t = c.T - 1; t >= 0; t--) {
    const size_t at_v = head.at(t, D), at_k = head.at(t, K);
    const Values &before = states[static_cast<size_t>(t)], &after = states[static_cast<size_t>(t) + 1];
    const Values& u = written[static_cast<size_t>(t)];
    const bool delta = c.rule == T2FW_DELTA;
    for (int64_t i = 0; i < D; i++) {
      const size_t vi = at_v + static_cast<size_t>(i);
      for (int64_t j = 0; j < K; j++) {
        const size_t kj = at_k + static_cast<size_t>(j), ij = static_cast<size_t>(i * K + j);
        x.d_q[kj] += (delta ? before : after)[ij] * x.d_y[vi];
        if (!delta) R[ij] += x.d_y[vi] * x.q[kj];
        x.d_v[vi] += R[ij] * x.k[kj];
        x.d_k[kj] += R[ij] * u[static_cast<size_t>(i)];
      }
    }
    for (int64_t i = 0; i < D; i++) {
      const size_t vi = at_v + static_cast<size_t>(i);
      for (int64_t j = 0; j < K; j++) {
        const size_t kj = at_k + static_cast<size_t>(j), ij = static_cast<size_t>(i * K + j);
        if (delta) {
          x.d_k[kj] -= before[ij] * x.d_v[vi];
          R[ij] += x.d_y[vi] * x.q[kj] - x.d_v[vi] * x.k[kj];
          continue;
        }
        const double f = gate_at(x.f, c.f, head, t, i, D), g = gate_at(x.g, c.g, head, t, j, K);
        if (c.f != T2FW_GATE_NONE)
          x.d_f[c.f == T2FW_GATE_HEAD ? head.at(t, 1) : vi] += R[ij] * before[ij] * g;
        if (c.g != T2FW_GATE_NONE)
          x.d_g[c.g == T2FW_GATE_HEAD ? head.at(t, 1) : kj] += R[ij] * before[ij] * f;
        R[ij] *= f * g;
      }
    }
  }
  std::copy(R.begin(), R.end(), x.d_initial_state.begin() + static_cast<int64_t>(state_at));
}

}  // namespace

int64_t gate_width(t2fw_gate gate, int64_t dimension) {
  return gate == T2FW_GATE_NONE ? 0 : gate == T2FW_GATE_HEAD ? 1 : dimension;
}

Tensors make_inputs(const Case& c) {
  std::mt19937_64 random(std::hash<std::string>{}(name_of(c)));
  std::normal_distribution<double> normal;
  const auto tokens = c.B * c.T * c.H, states = c.B * c.H * c.D * c.K;
  const auto fill = [&](int64_t n, t2fw_dtype dtype, double scale) {
    Values x(static_cast<size_t>(n));
    for (double& e : x) e = rounded(scale * normal(random), dtype);
    return x;
  };
  const auto gates = [&](t2fw_gate kind, int64_t dimension) {
    Values x(static_cast<size_t>(tokens * gate_width(kind, dimension)));
    for (double& e : x) e = rounded(gate_value(random, c), c.gate);
    return x;
  };
  const double by_K = 1 / std::sqrt(static_cast<double>(c.K));
  Tensors x;
  x.v = fill(tokens * c.D, c.data, 1);
  x.f = gates(c.f, c.D);
  x.q = fill(tokens * c.K, c.data, by_K);
  x.k = fill(tokens * c.K, T2FW_FP64, by_K);
  x.g = gates(c.g, c.K);
  if (c.regime == Regime::Opposed) x.f.assign(x.f.size(), 2), x.g.assign(x.g.size(), 0.5);
  for (size_t at = 0; at < x.k.size(); at += static_cast<size_t>(c.K)) {
    double square = 0;
    for (size_t j = 0; j < static_cast<size_t>(c.K); j++) square += x.k[at + j] * x.k[at + j];
    const double scale = c.rule == T2FW_DELTA ? c.key_norm / std::sqrt(square) : 1;
    for (size_t j = 0; j < static_cast<size_t>(c.K); j++) x.k[at + j] = rounded(x.k[at + j] * scale, c.data);
  }
  x.d_y = fill(tokens * c.D, c.data, 1);
  x.initial_state = fill(states, c.state, c.initial ? 1 : 0);
  x.d_final_state = fill(states, c.state, c.initial ? 1 : 0);
  return x;
}

void oracle_forward(const Case& c, Tensors& x) {
  const GatesOfLogits gates(c, x);
  x.y.assign(x.v.size(), 0);
  x.final_state = x.initial_state;
  const size_t DK = static_cast<size_t>(c.D * c.K);
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t h = 0; h < c.H; h++) {
      const Head head{b, h, c.T, c.H};
      const auto at = x.final_state.begin() + (b * c.H + h) * c.D * c.K;
      Values S(at, at + static_cast<int64_t>(DK)), u(static_cast<size_t>(c.D));
      for (int64_t t = 0; t < c.T; t++) {
        if (c.rule == T2FW_DECAY) advance(c, x, head, t, S, u);
        for (int64_t i = 0; i < c.D; i++)
          for (int64_t j = 0; j < c.K; j++)
            x.y[head.at(t, c.D) + static_cast<size_t>(i)] +=
                S[static_cast<size_t>(i * c.K + j)] * x.q[head.at(t, c.K) + static_cast<size_t>(j)];
        if (c.rule == T2FW_DELTA) advance(c, x, head, t, S, u);
      }
      std::copy(S.begin(), S.end(), at);
    }
}

void oracle_backward(const Case& c, Tensors& x) {
  const GatesOfLogits gates(c, x);
  x.d_v.assign(x.v.size(), 0);
  x.d_f.assign(x.f.size(), 0);
  x.d_q.assign(x.q.size(), 0);
  x.d_k.assign(x.k.size(), 0);
  x.d_g.assign(x.g.size(), 0);
  x.d_initial_state.assign(x.initial_state.size(), 0);
  for (int64_t b = 0; b < c.B; b++)
    for (int64_t h = 0; h < c.H; h++)
      backward_head(c, x, {b, h, c.T, c.H}, static_cast<size_t>((b * c.H + h) * c.D * c.K));
  if (!c.logits) return;
  for (size_t i = 0; i < x.f.size(); i++) x.d_f[i] *= x.f[i] * (1 - x.f[i]);
  for (size_t i = 0; i < x.g.size(); i++) x.d_g[i] *= x.g[i] * (1 - x.g[i]);
}

}  // namespace test
