// The Python module t2fw._t2fw: plans and their execution over raw addresses. Shapes, dtypes and memory are the package's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "t2fw/t2fw.h"

namespace py = pybind11;

namespace {

using Strides = std::array<int64_t, 3>;
alignas(T2FW_ALIGNMENT) unsigned char empty_operand[T2FW_ALIGNMENT];

struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(t2fw_status status, std::string text) {
  if (status == T2FW_SUCCESS) return;
  if (text.empty()) text = t2fw_status_text(status);
  if (status == T2FW_INVALID_ARGUMENT) throw py::value_error(text);
  if (status == T2FW_UNSUPPORTED) throw Unsupported(text);
  if (status == T2FW_OUT_OF_MEMORY) throw std::bad_alloc();
  throw std::runtime_error(text);
}

// The message lives in a thread-local buffer of the library, so it is copied before the GIL is taken again.
template <typename Call>
void run(Call call) {
  t2fw_status status;
  std::string text;
  {
    py::gil_scoped_release release;
    status = call();
    if (status != T2FW_SUCCESS) text = t2fw_last_error();
  }
  check(status, std::move(text));
}

t2fw_token_strides *token_strides(t2fw_descriptor &d, const std::string &name) {
  if (name == "v") return &d.v_strides;
  if (name == "f") return &d.f_strides;
  if (name == "q") return &d.q_strides;
  if (name == "k") return &d.k_strides;
  if (name == "g") return &d.g_strides;
  if (name == "y") return &d.y_strides;
  if (name == "d_y") return &d.d_y_strides;
  return nullptr;
}

t2fw_state_strides *state_strides(t2fw_descriptor &d, const std::string &name) {
  if (name == "initial_state") return &d.initial_state_strides;
  if (name == "final_state") return &d.final_state_strides;
  if (name == "d_final_state") return &d.d_final_state_strides;
  return nullptr;
}

class Plan {
 public:
  Plan(int rule, int data_dtype, int gate_dtype, int state_dtype, int f, int g, int device, int32_t device_index,
       std::optional<std::string> backend, uint32_t flags, std::array<int64_t, 5> sizes, int64_t sequences,
       const std::vector<std::pair<std::string, Strides>> &strides) {
    const auto [B, T, H, D, K] = sizes;
    t2fw_descriptor d;
    run([&, B = B, T = T, H = H, D = D, K = K] {
      return t2fw_descriptor_init(&d, sizeof d, static_cast<t2fw_rule>(rule), static_cast<t2fw_dtype>(data_dtype), B, T,
                                  H, D, K);
    });
    d.gate_dtype = static_cast<t2fw_dtype>(gate_dtype);
    d.state_dtype = static_cast<t2fw_dtype>(state_dtype);
    d.f = static_cast<t2fw_gate>(f);
    d.g = static_cast<t2fw_gate>(g);
    // Every operand not named below is contiguous; a gate of one value a head is narrower than descriptor_init assumes.
    if (d.f == T2FW_GATE_HEAD) d.f_strides = d.d_f_strides = {T * H, H, 1};
    if (d.g == T2FW_GATE_HEAD) d.g_strides = d.d_g_strides = {T * H, H, 1};
    d.device = static_cast<t2fw_device>(device);
    d.device_index = device_index;
    d.backend = backend ? backend->c_str() : nullptr;
    d.flags = flags;
    d.sequences = sequences;
    for (const auto &[name, s] : strides) {
      if (auto *token = token_strides(d, name)) {
        *token = {s[0], s[1], s[2]};
      } else if (auto *state = state_strides(d, name)) {
        *state = {s[0], s[1], s[2]};
      } else {
        throw py::value_error("no operand is called " + name);
      }
    }
    t2fw_plan *plan = nullptr;
    run([&] { return t2fw_plan_create(&d, &plan); });
    plan_.reset(plan, t2fw_plan_destroy);
  }

  const t2fw_plan *get() const { return plan_.get(); }

 private:
  std::shared_ptr<t2fw_plan> plan_;
};

// The addresses of one execution, in the order in which they are taken; None is NULL, 0 an operand without elements.
class Addresses {
 public:
  explicit Addresses(const py::tuple &all, size_t expected) : all_(all) {
    if (all.size() != expected)
      throw py::value_error(std::to_string(all.size()) + " addresses; expected " + std::to_string(expected));
  }
  void *next() {
    const py::object address = all_[next_++];
    if (address.is_none()) return nullptr;
    const auto number = address.cast<uintptr_t>();
    return number ? reinterpret_cast<void *>(number) : empty_operand;
  }

 private:
  const py::tuple &all_;
  size_t next_ = 0;
};

template <typename Args>
Args inputs(Addresses &at, size_t scratch_size) {
  Args a{};
  a.struct_size = sizeof a;
  for (const void **input : {&a.v, &a.f, &a.q, &a.k, &a.g, &a.initial_state}) *input = at.next();
  a.scratch_size = scratch_size;
  return a;
}

void forward(const Plan &plan, const py::tuple &addresses, size_t saved_size, size_t scratch_size, uintptr_t stream) {
  Addresses at(addresses, 11);
  auto a = inputs<t2fw_forward_args>(at, scratch_size);
  a.cu_seqlens = static_cast<const int64_t *>(at.next());
  for (void **output : {&a.y, &a.final_state, &a.saved, &a.scratch}) *output = at.next();
  a.saved_size = saved_size;
  run([&] { return t2fw_forward(plan.get(), &a, reinterpret_cast<void *>(stream)); });
}

void backward(const Plan &plan, const py::tuple &addresses, size_t saved_size, size_t scratch_size, uintptr_t stream) {
  Addresses at(addresses, 17);
  auto a = inputs<t2fw_backward_args>(at, scratch_size);
  a.cu_seqlens = static_cast<const int64_t *>(at.next());
  for (const void **input : {&a.saved, &a.d_y, &a.d_final_state}) *input = at.next();
  for (void **output : {&a.d_v, &a.d_f, &a.d_q, &a.d_k, &a.d_g, &a.d_initial_state, &a.scratch}) *output = at.next();
  a.saved_size = saved_size;
  run([&] { return t2fw_backward(plan.get(), &a, reinterpret_cast<void *>(stream)); });
}

void step(const Plan &plan, const py::tuple &addresses, int64_t slots, size_t scratch_size, uintptr_t stream) {
  Addresses at(addresses, 10);
  auto a = inputs<t2fw_step_args>(at, scratch_size);
  a.slot_indices = static_cast<const int64_t *>(at.next());
  for (void **output : {&a.final_state, &a.y, &a.scratch}) *output = at.next();
  a.slots = slots;
  run([&] { return t2fw_step(plan.get(), &a, reinterpret_cast<void *>(stream)); });
}

}  // namespace

PYBIND11_MODULE(_t2fw, m) {
  m.doc() = "Plans of the t2fw C library. Use the package t2fw.";
  py::register_exception<Unsupported>(m, "UnsupportedError", PyExc_NotImplementedError);
  m.def("backends", [] { return std::string(t2fw_backends()); });
  m.def("version", [] { return t2fw_version(); });
  m.attr("ALIGNMENT") = T2FW_ALIGNMENT;
  py::class_<Plan>(m, "Plan")
      .def(py::init<int, int, int, int, int, int, int, int32_t, std::optional<std::string>, uint32_t,
                    std::array<int64_t, 5>, int64_t, const std::vector<std::pair<std::string, Strides>> &>(),
           py::arg("rule"), py::arg("data_dtype"), py::arg("gate_dtype"), py::arg("state_dtype"), py::arg("f"),
           py::arg("g"), py::arg("device"), py::arg("device_index"), py::arg("backend"), py::arg("flags"),
           py::arg("sizes"), py::arg("sequences"), py::arg("strides"))
      .def_property_readonly("backend", [](const Plan &p) { return std::string(t2fw_plan_backend(p.get())); })
      .def_property_readonly("explain", [](const Plan &p) { return std::string(t2fw_plan_explain(p.get())); })
      .def_property_readonly("saved_size", [](const Plan &p) { return t2fw_plan_saved_size(p.get()); })
      .def("scratch_size",
           [](const Plan &p, int operation) {
             return t2fw_plan_scratch_size(p.get(), static_cast<t2fw_operation>(operation));
           },
           py::arg("operation"))
      .def("forward", &forward, py::arg("addresses"), py::arg("saved_size"), py::arg("scratch_size"), py::arg("stream"))
      .def("backward", &backward, py::arg("addresses"), py::arg("saved_size"), py::arg("scratch_size"), py::arg("stream"))
      .def("step", &step, py::arg("addresses"), py::arg("slots"), py::arg("scratch_size"), py::arg("stream"));
}
