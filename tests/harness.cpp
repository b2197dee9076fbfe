#include "harness.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

namespace test {

// ---------------------------------------------------------------- dtypes
size_t bytes_of(t2fw_dtype dtype) { return dtype == T2FW_FP64 ? 8 : dtype == T2FW_FP32 ? 4 : 2; }

double tolerance(t2fw_dtype dtype) {
  return dtype == T2FW_FP64 ? 1e-13 : dtype == T2FW_FP32 ? 3e-6 : dtype == T2FW_FP16 ? 1.5e-3 : 8e-3;
}

namespace {

uint16_t to_half(double x) {
  const unsigned sign = std::signbit(x) ? 0x8000 : 0;
  const double a = std::fabs(x);
  if (std::isnan(x)) return 0x7e00;
  if (a >= 65520) return static_cast<uint16_t>(sign | 0x7c00);
  if (a < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<unsigned>(std::nearbyint(a * 0x1p24)));
  const int e = std::ilogb(a);
  return static_cast<uint16_t>(sign | ((static_cast<unsigned>(e + 14) << 10) +
                                       static_cast<unsigned>(std::nearbyint(std::ldexp(a, 10 - e)))));
}

double from_half(uint16_t x) {
  const int e = x >> 10 & 31, m = x & 1023;
  const double a = e == 31 ? (m ? NAN : INFINITY) : e ? std::ldexp(1024 + m, e - 25) : std::ldexp(m, -24);
  return x & 0x8000 ? -a : a;
}

}  // namespace

void encode(double value, t2fw_dtype dtype, unsigned char* at) {
  const float narrow = static_cast<float>(value);
  const uint32_t bits = std::bit_cast<uint32_t>(narrow);
  const uint16_t half = to_half(value), brain = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  if (dtype == T2FW_FP64) std::memcpy(at, &value, 8);
  if (dtype == T2FW_FP32) std::memcpy(at, &narrow, 4);
  if (dtype == T2FW_FP16) std::memcpy(at, &half, 2);
  if (dtype == T2FW_BF16) std::memcpy(at, &brain, 2);
}

double decode(t2fw_dtype dtype, const unsigned char* at) {
  double wide;
  float narrow;
  uint16_t word;
  if (dtype == T2FW_FP64) return std::memcpy(&wide, at, 8), wide;
  if (dtype == T2FW_FP32) return std::memcpy(&narrow, at, 4), narrow;
  std::memcpy(&word, at, 2);
  if (dtype == T2FW_FP16) return from_half(word);
  return std::bit_cast<float>(static_cast<uint32_t>(word) << 16);
}

double rounded(double value, t2fw_dtype dtype) {
  unsigned char bytes[8];
  encode(value, dtype, bytes);
  return decode(dtype, bytes);
}

// ---------------------------------------------------------------- comparisons
void expect_close(const char* what, const Values& got, const Values& want, int64_t row, double tolerance,
                  bool zero_allowed, double* reached) {
  ASSERT_EQ(got.size(), want.size()) << what;
  if (want.empty()) return;
  double error = 0, norm = 0, worst = 0, largest = 0;
  size_t worst_row = 0;
  const size_t n = static_cast<size_t>(row);
  for (size_t at = 0; at < want.size(); at += n) {
    double e = 0, w = 0;
    for (size_t i = at; i < at + n; i++) {
      ASSERT_TRUE(std::isfinite(want[i])) << what << ": the expected value " << i << " is " << want[i];
      ASSERT_TRUE(std::isfinite(got[i])) << what << ": element " << i << " of " << got.size() << " is " << got[i]
                                         << ", expected " << want[i];
      e += (got[i] - want[i]) * (got[i] - want[i]);
      w += want[i] * want[i];
    }
    error += e;
    norm += w;
    if (e > worst) worst = e, worst_row = at / n;
    largest = std::max(largest, w);
  }
  if (norm == 0) {
    ASSERT_TRUE(zero_allowed) << what << ": the expected values are all zero, which tests nothing";
    ASSERT_EQ(error, 0) << what << ": expected zeros";
    return;
  }
  if (reached) *reached = std::sqrt(error / norm);
  EXPECT_LE(std::sqrt(error / norm), tolerance) << what << ": relative L2";
  EXPECT_LE(std::sqrt(worst), 50 * tolerance * std::sqrt(largest)) << what << ": row " << worst_row;
}

// ---------------------------------------------------------------- backends
std::vector<Backend> backends() {
  std::vector<Backend> found;
  std::string rest = t2fw_backends();
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    std::string one = rest.substr(0, comma);
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    one.erase(0, one.find_first_not_of(' '));
    const size_t open = one.find('(');
    const std::string device = one.substr(open + 1, one.size() - open - 2);
    found.push_back({one.substr(0, open), device == "cuda" ? T2FW_CUDA : device == "hip" ? T2FW_HIP : T2FW_CPU});
  }
  return found;
}

namespace {
std::string text(const Backend& b) {
  return b.name + "_" + (b.device == T2FW_CUDA ? "cuda" : b.device == T2FW_HIP ? "hip" : "cpu");
}
}  // namespace

std::ostream& operator<<(std::ostream& out, const Parameter& p) {
  return out << text(p.backend) << " " << name_of(p.problem);
}

std::vector<Parameter> parameters(const std::vector<Case>& cases) {
  std::vector<Parameter> all;
  for (const Backend& b : backends())
    for (const Case& c : cases) all.push_back({b, c});
  return all;
}

std::string parameter_name(const testing::TestParamInfo<Parameter>& info) {
  return text(info.param.backend) + "_" + name_of(info.param.problem);
}
std::string backend_name(const testing::TestParamInfo<Backend>& info) { return text(info.param); }

namespace {

const char* const dtypes[] = {"", "fp64", "fp32", "fp16", "bf16"};

class WorstErrors : public testing::Environment {
 public:
  struct Worst {
    double error = 0, allowed = 0;
    std::string what;
  };
  std::map<std::pair<std::string, t2fw_dtype>, Worst> worst;

  void TearDown() override {
    if (!worst.empty())
      std::printf("%-42s %-5s %-8s %-8s %s\n", "worst relative L2 error of operation, data", "dtype", "reached", "allowed", "in");
    for (const auto& [key, w] : worst)
      std::printf("%-42s %-5s %-8.1e %-8.1e %s\n", key.first.c_str(), dtypes[key.second], w.error, w.allowed, w.what.c_str());
  }
};

WorstErrors& worst_errors() {
  static WorstErrors* const environment = new WorstErrors;  // GoogleTest's, once it is registered
  return *environment;
}
[[maybe_unused]] testing::Environment* const registered = testing::AddGlobalTestEnvironment(&worst_errors());

}  // namespace

double tolerance(const Backend& backend, const Case& c, t2fw_dtype dtype) {
  if (backend.name != "cuda" || bytes_of(c.data) != 2) return tolerance(dtype);
  return c.data == T2FW_BF16 ? 4e-3 : 6e-4;
}

Accuracy::Accuracy(const Backend& backend, const Case& c, const char* operation)
    : backend_(backend), case_(c), step_(std::strcmp(operation, "step") == 0),
      of_(text(backend) + (c.rule == T2FW_DECAY ? " decay " : " delta ") + operation + ", " + dtypes[c.data]) {}

void Accuracy::expect(const char* what, const Values& got, const Values& want, int64_t row, t2fw_dtype dtype,
                      double factor, bool zero_allowed) const {
  const double native = tolerance(backend_, case_, dtype);
  const double allowed = factor * (step_ ? std::min(native, tolerance(dtype)) : native);
  double reached = 0;
  expect_close(what, got, want, row, allowed, zero_allowed, &reached);
  auto& worst = worst_errors().worst[{of_, dtype}];
  if (worst.what.empty() || reached > worst.error) worst = {reached, allowed, what};
}

// ---------------------------------------------------------------- memory
namespace {
constexpr unsigned char poison_bytes[2] = {0xFE, 0xFF};
bool poisoned(const std::vector<unsigned char>& bytes, size_t from, size_t to) {
  for (size_t i = from; i < to; i++)
    if (bytes[i] != poison_bytes[i % 2]) return false;
  return true;
}
}  // namespace

Block::Block(const Memory& memory, size_t bytes, size_t offset)
    : memory_(&memory),
      storage_(memory.allocate(2 * guard + bytes + offset), [m = &memory](void* p) { m->release(p); }),
      data_(static_cast<unsigned char*>(storage_.get()) + guard + offset),
      size_(bytes),
      offset_(offset) {
  poison();
}

void Block::poison() {
  if (!memory_) return;
  std::vector<unsigned char> all(2 * guard + size_ + offset_);
  for (size_t i = 0; i < all.size(); i++) all[i] = poison_bytes[i % 2];
  memory_->upload(storage_.get(), all.data(), all.size());
}

void Block::upload(const std::vector<unsigned char>& bytes) { memory_->upload(data_, bytes.data(), bytes.size()); }

std::vector<unsigned char> Block::download() const {
  std::vector<unsigned char> bytes(size_);
  memory_->download(bytes.data(), data_, size_);
  return bytes;
}

bool Block::guards_intact() const {
  if (!memory_) return true;
  std::vector<unsigned char> all(2 * guard + size_ + offset_);
  memory_->download(all.data(), storage_.get(), all.size());
  return poisoned(all, 0, guard + offset_) && poisoned(all, guard + offset_ + size_, all.size());
}

Operand::Operand(const Memory& memory, t2fw_dtype dtype, const int64_t (&shape)[4], const int64_t (&strides)[3],
                 const Values& values)
    : dtype_(dtype) {
  int64_t low = 0, high = shape[3];
  for (int i = 0; i < 4; i++) shape_[i] = shape[i];
  for (int i = 0; i < 3; i++) {
    strides_[i] = strides[i];
    (strides[i] < 0 ? low : high) += std::max<int64_t>(shape[i] - 1, 0) * strides[i];
  }
  first_ = static_cast<size_t>(-low) * bytes_of(dtype);
  block_ = Block(memory, static_cast<size_t>(high - low) * bytes_of(dtype));
  if (!values.empty()) write(values);
}

template <class Visit>
void Operand::each(Visit visit) const {
  size_t i = 0;
  for (int64_t a = 0; a < shape_[0]; a++)
    for (int64_t b = 0; b < shape_[1]; b++)
      for (int64_t c = 0; c < shape_[2]; c++)
        for (int64_t x = 0; x < shape_[3]; x++, i++) {
          const int64_t at = a * strides_[0] + b * strides_[1] + c * strides_[2] + x;
          visit(i, static_cast<size_t>(static_cast<int64_t>(first_) + at * static_cast<int64_t>(bytes_of(dtype_))));
        }
}

void Operand::write(const Values& values) {
  std::vector<unsigned char> bytes = block_.download();
  each([&](size_t i, size_t at) { encode(values.at(i), dtype_, &bytes[at]); });
  block_.upload(bytes);
}

Values Operand::read() const {
  const std::vector<unsigned char> bytes = block_.download();
  Values values;
  each([&](size_t, size_t at) { values.push_back(decode(dtype_, &bytes[at])); });
  return values;
}

std::vector<unsigned char> Operand::bits() const {
  const std::vector<unsigned char> bytes = block_.download();
  std::vector<unsigned char> bits;
  each([&](size_t, size_t at) { bits.insert(bits.end(), &bytes[at], &bytes[at] + bytes_of(dtype_)); });
  return bits;
}

bool Operand::guards_intact() const {
  if (!block_.guards_intact()) return false;
  if (!data()) return true;
  std::vector<unsigned char> bytes = block_.download();
  each([&](size_t, size_t at) {
    for (size_t i = at; i < at + bytes_of(dtype_); i++) bytes[i] = poison_bytes[i % 2];
  });
  return poisoned(bytes, 0, bytes.size());
}

// ---------------------------------------------------------------- plans
t2fw_descriptor describe(const Backend& backend, const Case& c) {
  t2fw_descriptor d;
  const t2fw_status status = t2fw_descriptor_init(&d, sizeof d, c.rule, c.data, c.B, c.T, c.H, c.D, c.K);
  EXPECT_EQ(status, T2FW_SUCCESS) << t2fw_last_error();
  static const char* const names[] = {"reference", "kokkos", "cuda"};
  for (const char* name : names)
    if (backend.name == name) d.backend = name;
  d.device = backend.device;
  d.f = c.f, d.g = c.g;
  d.gate_dtype = c.gate, d.state_dtype = c.state;
  if (c.logits) d.flags |= T2FW_GATE_LOGITS;
  const auto lay = [&](int64_t width) -> t2fw_token_strides {
    if (c.layout == Layout::Bhtx) return {c.H * c.T * width, width, c.T * width};
    const int64_t token = c.layout == Layout::Packed ? 3 * c.H * width + 5 : c.H * width;
    return {c.T * token, token, width};
  };
  d.v_strides = d.y_strides = d.d_v_strides = d.d_y_strides = lay(c.D);
  d.q_strides = d.k_strides = d.d_q_strides = d.d_k_strides = lay(c.K);
  d.f_strides = d.d_f_strides = lay(gate_width(c.f, c.D));
  d.g_strides = d.d_g_strides = lay(gate_width(c.g, c.K));
  const int64_t row = c.layout == Layout::Packed ? c.K + 3 : c.K;
  d.initial_state_strides = d.final_state_strides = {c.H * c.D * row, c.D * row, row};
  d.d_initial_state_strides = d.d_final_state_strides = d.initial_state_strides;
  return d;
}

Session::Session(const Backend& backend, const Case& c, const Tensors& x, const t2fw_descriptor& descriptor,
         const std::vector<int64_t>& cu_seqlens)
    : d(descriptor), memory(memory_of(backend.device)), use_initial(c.initial) {
  if (!memory.present()) {
    skip = "no device is present for " + backend.name;
    return;
  }
  t2fw_plan* made = nullptr;
  const t2fw_status status = t2fw_plan_create(&d, &made);
  plan.reset(made);
  // The portable backends take every problem; a tuned one may decline.
  if (status == T2FW_UNSUPPORTED && backend.name == "cuda") {
    skip = t2fw_last_error();
    return;
  }
  EXPECT_EQ(status, T2FW_SUCCESS) << t2fw_last_error();
  if (!made) return;
  EXPECT_EQ(t2fw_plan_backend(made), backend.name);
  const auto token = [&](t2fw_dtype type, int64_t width, const t2fw_token_strides& s, const Values& values = {}) {
    return width ? Operand(memory, type, {d.B, d.T, d.H, width}, {s.b, s.t, s.h}, values) : Operand();
  };
  const int64_t N = d.sequences ? d.sequences : d.B;
  const auto state = [&](const t2fw_state_strides& s, const Values& values = {}) {
    return Operand(memory, d.state_dtype, {N, d.H, d.D, d.K}, {s.b, s.h, s.d}, values);
  };
  const int64_t F = gate_width(d.f, d.D), G = gate_width(d.g, d.K);
  v = token(d.data_dtype, d.D, d.v_strides, x.v);
  f = token(d.gate_dtype, F, d.f_strides, x.f);
  q = token(d.data_dtype, d.K, d.q_strides, x.q);
  k = token(d.data_dtype, d.K, d.k_strides, x.k);
  g = token(d.gate_dtype, G, d.g_strides, x.g);
  y = token(d.data_dtype, d.D, d.y_strides);
  d_y = token(d.data_dtype, d.D, d.d_y_strides, x.d_y);
  d_v = token(d.data_dtype, d.D, d.d_v_strides);
  d_f = token(d.gate_dtype, F, d.d_f_strides);
  d_q = token(d.data_dtype, d.K, d.d_q_strides);
  d_k = token(d.data_dtype, d.K, d.d_k_strides);
  d_g = token(d.gate_dtype, G, d.d_g_strides);
  initial_state = state(d.initial_state_strides, x.initial_state);
  final_state = state(d.final_state_strides);
  d_initial_state = state(d.d_initial_state_strides);
  d_final_state = state(d.d_final_state_strides, x.d_final_state);
  saved = Block(memory, t2fw_plan_saved_size(made));
  if (d.sequences) {
    cu = Block(memory, cu_seqlens.size() * 8);
    const auto* raw = reinterpret_cast<const unsigned char*>(cu_seqlens.data());
    cu.upload({raw, raw + cu_seqlens.size() * 8});
  }
}

namespace {
template <class Args>
Args inputs_of(Session& r, t2fw_operation operation) {
  Args a{};
  a.struct_size = sizeof a;
  a.v = r.v.data(), a.f = r.f.data(), a.q = r.q.data(), a.k = r.k.data(), a.g = r.g.data();
  a.initial_state = r.use_initial ? r.initial_state.data() : nullptr;
  r.scratch = Block(r.memory, t2fw_plan_scratch_size(r.plan.get(), operation));
  a.scratch = r.scratch.data(), a.scratch_size = r.scratch.size();
  return a;
}
}  // namespace

void Session::forward(bool with_saved, bool in_place) {
  auto a = inputs_of<t2fw_forward_args>(*this, T2FW_FORWARD);
  a.cu_seqlens = reinterpret_cast<const int64_t*>(cu.data());
  a.y = y.data(), a.final_state = (in_place ? initial_state : final_state).data();
  if (with_saved) a.saved = saved.data(), a.saved_size = saved.size();
  ASSERT_EQ(t2fw_forward(plan.get(), &a, nullptr), T2FW_SUCCESS) << t2fw_last_error();
  expect_guards();
}

void Session::backward() {
  auto a = inputs_of<t2fw_backward_args>(*this, T2FW_BACKWARD);
  a.cu_seqlens = reinterpret_cast<const int64_t*>(cu.data());
  a.saved = saved.data(), a.saved_size = saved.size();
  a.d_y = d_y.data(), a.d_final_state = use_initial ? d_final_state.data() : nullptr;
  a.d_v = d_v.data(), a.d_f = d_f.data(), a.d_q = d_q.data(), a.d_k = d_k.data(), a.d_g = d_g.data();
  a.d_initial_state = d_initial_state.data();
  ASSERT_EQ(t2fw_backward(plan.get(), &a, nullptr), T2FW_SUCCESS) << t2fw_last_error();
  expect_guards();
}

void Session::step(bool in_place, const std::vector<int64_t>& slots, int64_t pool) {
  auto a = inputs_of<t2fw_step_args>(*this, T2FW_STEP);
  a.initial_state = initial_state.data();
  a.final_state = in_place ? initial_state.data() : final_state.data();
  a.y = y.data();
  if (!slots.empty()) {
    slot_block = Block(memory, slots.size() * 8);
    const auto* raw = reinterpret_cast<const unsigned char*>(slots.data());
    slot_block.upload({raw, raw + slots.size() * 8});
    a.slot_indices = reinterpret_cast<const int64_t*>(slot_block.data());
    a.slots = pool;
  }
  ASSERT_EQ(t2fw_step(plan.get(), &a, nullptr), T2FW_SUCCESS) << t2fw_last_error();
  expect_guards();
}

void Session::poison_outputs() {
  for (Operand* o : {&y, &final_state, &d_v, &d_f, &d_q, &d_k, &d_g, &d_initial_state}) o->poison();
  saved.poison();
}

void Session::expect_guards() const {
  const std::pair<const char*, const Operand*> all[] = {
      {"v", &v}, {"f", &f}, {"q", &q}, {"k", &k}, {"g", &g}, {"initial_state", &initial_state}, {"y", &y},
      {"final_state", &final_state}, {"d_v", &d_v}, {"d_f", &d_f}, {"d_q", &d_q}, {"d_k", &d_k}, {"d_g", &d_g},
      {"d_initial_state", &d_initial_state}, {"d_y", &d_y}, {"d_final_state", &d_final_state}};
  for (const auto& [name, operand] : all) EXPECT_TRUE(operand->guards_intact()) << "written beside " << name;
  EXPECT_TRUE(saved.guards_intact()) << "written beside saved";
  EXPECT_TRUE(scratch.guards_intact()) << "written beside scratch";
}

// ---------------------------------------------------------------- parts of tensors
Values part(const Values& x, int64_t B, int64_t first, int64_t count) {
  const int64_t each = B ? static_cast<int64_t>(x.size()) / B : 0;
  return {x.begin() + first * each, x.begin() + (first + count) * each};
}

Values tokens(const Values& x, int64_t B, int64_t T, int64_t first, int64_t count) {
  Values out;
  for (int64_t b = 0; b < B; b++) {
    const Values some = part(x, B * T, b * T + first, count);
    out.insert(out.end(), some.begin(), some.end());
  }
  return out;
}

Tensors tokens(const Case& c, const Tensors& x, int64_t first, int64_t count) {
  Tensors out = x;
  for (auto member : {&Tensors::v, &Tensors::f, &Tensors::q, &Tensors::k, &Tensors::g, &Tensors::y, &Tensors::d_y})
    out.*member = tokens(x.*member, c.B, c.T, first, count);
  return out;
}

Tensors batch_row(const Case& c, const Tensors& x, int64_t b) {
  Tensors out;
  for (auto member : {&Tensors::v, &Tensors::f, &Tensors::q, &Tensors::k, &Tensors::g, &Tensors::y, &Tensors::d_y,
                      &Tensors::initial_state, &Tensors::d_final_state})
    out.*member = part(x.*member, c.B, b, 1);
  return out;
}

}  // namespace test
