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
       std::optional<std::string> backend, std::array<int64_t, 5> sizes, int64_t sequences,
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

// The addresses of one execution by name; a name that is missing or None is NULL.
class Addresses {
 public:
  explicit Addresses(const py::dict &dict) : dict_(dict) {}
  template <typename T = void>
  T *at(const char *name) const {
    return reinterpret_cast<T *>(static_cast<uintptr_t>(number(name)));
  }
  uint64_t number(const char *name) const {
    if (!dict_.contains(name)) return 0;
    py::object value = dict_[name];
    return value.is_none() ? 0 : value.cast<uint64_t>();
  }

 private:
  const py::dict &dict_;
};

template <typename Args>
void inputs(Args &a, const Addresses &at) {
  a.v = at.at("v");
  a.f = at.at("f");
  a.q = at.at("q");
  a.k = at.at("k");
  a.g = at.at("g");
  a.initial_state = at.at("initial_state");
  a.scratch = at.at("scratch");
  a.scratch_size = at.number("scratch_size");
}

void forward(const Plan &plan, const py::dict &dict) {
  const Addresses at(dict);
  t2fw_forward_args a{};
  a.struct_size = sizeof a;
  inputs(a, at);
  a.cu_seqlens = at.at<const int64_t>("cu_seqlens");
  a.y = at.at("y");
  a.final_state = at.at("final_state");
  a.saved = at.at("saved");
  a.saved_size = at.number("saved_size");
  void *stream = at.at("stream");
  run([&] { return t2fw_forward(plan.get(), &a, stream); });
}

void backward(const Plan &plan, const py::dict &dict) {
  const Addresses at(dict);
  t2fw_backward_args a{};
  a.struct_size = sizeof a;
  inputs(a, at);
  a.cu_seqlens = at.at<const int64_t>("cu_seqlens");
  a.saved = at.at("saved");
  a.saved_size = at.number("saved_size");
  a.d_y = at.at("d_y");
  a.d_final_state = at.at("d_final_state");
  a.d_v = at.at("d_v");
  a.d_f = at.at("d_f");
  a.d_q = at.at("d_q");
  a.d_k = at.at("d_k");
  a.d_g = at.at("d_g");
  a.d_initial_state = at.at("d_initial_state");
  void *stream = at.at("stream");
  run([&] { return t2fw_backward(plan.get(), &a, stream); });
}

void step(const Plan &plan, const py::dict &dict) {
  const Addresses at(dict);
  t2fw_step_args a{};
  a.struct_size = sizeof a;
  inputs(a, at);
  a.final_state = at.at("final_state");
  a.y = at.at("y");
  a.slot_indices = at.at<const int64_t>("slot_indices");
  a.slots = static_cast<int64_t>(at.number("slots"));
  void *stream = at.at("stream");
  run([&] { return t2fw_step(plan.get(), &a, stream); });
}

}  // namespace

PYBIND11_MODULE(_t2fw, m) {
  m.doc() = "Plans of the t2fw C library. Use the package t2fw.";
  py::register_exception<Unsupported>(m, "UnsupportedError", PyExc_NotImplementedError);
  m.def("backends", [] { return std::string(t2fw_backends()); });
  m.def("version", [] { return t2fw_version(); });
  m.attr("ALIGNMENT") = T2FW_ALIGNMENT;
  m.attr("EMPTY_ADDRESS") = reinterpret_cast<uintptr_t>(empty_operand);
  py::class_<Plan>(m, "Plan")
      .def(py::init<int, int, int, int, int, int, int, int32_t, std::optional<std::string>, std::array<int64_t, 5>,
                    int64_t, const std::vector<std::pair<std::string, Strides>> &>(),
           py::arg("rule"), py::arg("data_dtype"), py::arg("gate_dtype"), py::arg("state_dtype"), py::arg("f"),
           py::arg("g"), py::arg("device"), py::arg("device_index"), py::arg("backend"), py::arg("sizes"),
           py::arg("sequences"), py::arg("strides"))
      .def_property_readonly("backend", [](const Plan &p) { return std::string(t2fw_plan_backend(p.get())); })
      .def_property_readonly("explain", [](const Plan &p) { return std::string(t2fw_plan_explain(p.get())); })
      .def_property_readonly("saved_size", [](const Plan &p) { return t2fw_plan_saved_size(p.get()); })
      .def("scratch_size",
           [](const Plan &p, int operation) {
             return t2fw_plan_scratch_size(p.get(), static_cast<t2fw_operation>(operation));
           },
           py::arg("operation"))
      .def("forward", &forward, py::arg("addresses"))
      .def("backward", &backward, py::arg("addresses"))
      .def("step", &step, py::arg("addresses"));
}
