// What every property is written with: operands between guard bands, plans, backends as parameters, comparisons.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "cases.hpp"
#include "memory.hpp"
#include "oracle.hpp"

namespace test {

// ---- dtypes
size_t bytes_of(t2fw_dtype dtype);
void encode(double value, t2fw_dtype dtype, unsigned char* at);
double decode(t2fw_dtype dtype, const unsigned char* at);
double rounded(double value, t2fw_dtype dtype);
double tolerance(t2fw_dtype dtype);

// ---- comparisons
// Relative L2 over all, and every row of `row` elements within 50 tolerances of the largest row. Expected values that
// are all zero fail unless zero_allowed, and then got must be zero exactly.
// reached receives the relative L2.
void expect_close(const char* what, const Values& got, const Values& want, int64_t row, double tolerance,
                  bool zero_allowed = false, double* reached = nullptr);

// ---- backends
struct Backend {
  std::string name;
  t2fw_device device;
};
// Parsed from t2fw_backends().
std::vector<Backend> backends();

struct Parameter {
  Backend backend;
  Case problem;
};
std::ostream& operator<<(std::ostream& out, const Parameter& p);
std::vector<Parameter> parameters(const std::vector<Case>& cases);
std::string parameter_name(const testing::TestParamInfo<Parameter>& info);
std::string backend_name(const testing::TestParamInfo<Backend>& info);

// What an output of `dtype` may be off by. The native CUDA path multiplies 16-bit data on tensor cores where it can, which
// round every operand to 16 bits: its wider outputs are as good as the data, and all of them better than a 16-bit result
// need be. Its step multiplies in fp32: Accuracy holds that to both bounds.
double tolerance(const Backend& backend, const Case& c, t2fw_dtype dtype);

// expect_close, within factor * tolerance of dtype, for one operation of a backend. The worst error of every backend,
// operation, data and dtype is printed after the tests.
class Accuracy {
 public:
  Accuracy(const Backend& backend, const Case& c, const char* operation);
  void expect(const char* what, const Values& got, const Values& want, int64_t row, t2fw_dtype dtype, double factor = 1,
              bool zero_allowed = false) const;

 private:
  const Backend& backend_;
  const Case& case_;
  bool step_;
  std::string of_;
};

// ---- memory
// Device bytes between guard bands, all poisoned: every 16-bit word is a NaN that no arithmetic makes.
class Block {
 public:
  Block() = default;
  Block(const Memory& memory, size_t bytes, size_t offset = 0);
  unsigned char* data() const { return data_; }
  size_t size() const { return size_; }
  void poison();
  void upload(const std::vector<unsigned char>& bytes);
  std::vector<unsigned char> download() const;
  bool guards_intact() const;

 private:
  static constexpr size_t guard = 512;
  const Memory* memory_ = nullptr;
  std::shared_ptr<void> storage_;
  unsigned char* data_ = nullptr;
  size_t size_ = 0, offset_ = 0;
};

// A strided operand [n0,n1,n2,width]; what lies between its elements is guarded too.
class Operand {
 public:
  Operand() = default;
  // strides in elements; values: contiguous, or empty to leave poison.
  Operand(const Memory& memory, t2fw_dtype dtype, const int64_t (&shape)[4], const int64_t (&strides)[3],
          const Values& values = {});
  unsigned char* data() const { return block_.data() ? block_.data() + first_ : nullptr; }
  explicit operator bool() const { return data() != nullptr; }
  void write(const Values& values);
  void poison() { block_.poison(); }
  Values read() const;
  // The elements alone, in order.
  std::vector<unsigned char> bits() const;
  bool guards_intact() const;

 private:
  template <class Visit>
  void each(Visit visit) const;
  Block block_;
  t2fw_dtype dtype_ = T2FW_FP64;
  int64_t shape_[4] = {}, strides_[3] = {};
  size_t first_ = 0;
};

// ---- plans
struct DestroyPlan {
  void operator()(t2fw_plan* plan) const { t2fw_plan_destroy(plan); }
};
using Plan = std::unique_ptr<t2fw_plan, DestroyPlan>;

t2fw_descriptor describe(const Backend& backend, const Case& c);

// A problem on a backend with all its operands.
struct Session {
  Session(const Backend& backend, const Case& c, const Tensors& x) : Session(backend, c, x, describe(backend, c)) {}
  Session(const Backend& backend, const Case& c, const Tensors& x, const t2fw_descriptor& descriptor,
      const std::vector<int64_t>& cu_seqlens = {});

  // False, after a failure or a skip was recorded, if there is no plan.
  bool ready() const { return plan != nullptr; }
  // in_place: the final state overwrites the initial one.
  void forward(bool with_saved = true, bool in_place = false);
  void backward();
  // One token; in place unless final_state is another operand.
  void step(bool in_place, const std::vector<int64_t>& slots = {}, int64_t pool = 0);
  void poison_outputs();
  void expect_guards() const;

  t2fw_descriptor d;
  const Memory& memory;
  Plan plan;
  std::string skip;  // why there is no plan, if that is legitimate
  bool use_initial;
  Operand v, f, q, k, g, initial_state, y, final_state;
  Operand d_v, d_f, d_q, d_k, d_g, d_initial_state, d_y, d_final_state;
  Block saved, scratch, cu, slot_block;
};

#define T2FW_NEED_PLAN(run)                      \
  do {                                           \
    if (!(run).skip.empty()) GTEST_SKIP() << (run).skip; \
    if (!(run).ready()) return;                  \
  } while (0)

// Copies of b of a [B,n,...] array: [first, first+count) of its leading dimension.
Values part(const Values& x, int64_t B, int64_t first, int64_t count);
// Tokens [first, first+count) of [B,T,...].
Values tokens(const Values& x, int64_t B, int64_t T, int64_t first, int64_t count);
// The same of all token operands; states and their gradients are kept.
Tensors tokens(const Case& c, const Tensors& x, int64_t first, int64_t count);
Tensors batch_row(const Case& c, const Tensors& x, int64_t b);

}  // namespace test
