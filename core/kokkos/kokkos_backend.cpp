#include "kokkos/kokkos_backend.hpp"

#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "kernels.hpp"

namespace t2fw {
namespace {

// Kokkos is initialised once a process, by the host application or here; what is initialised here is finalized at exit.
void ensure_kokkos([[maybe_unused]] int device_index) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (Kokkos::is_initialized()) return;
  if (Kokkos::is_finalized()) throw std::runtime_error("Kokkos was finalized by the application");
  Kokkos::initialize(Kokkos::InitializationSettings().set_disable_warnings(true)
#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
                         .set_device_id(device_index)
#endif
  );
  std::atexit([] {
    if (!Kokkos::is_finalized()) Kokkos::finalize();
  });
}

// The execution space instance for the caller's stream: making one allocates and synchronises, so each is kept.
template <class Space>
Space instance([[maybe_unused]] void* stream) {
#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
  if constexpr (!on_host<Space>) {
#if defined(KOKKOS_ENABLE_CUDA)
    using Stream = cudaStream_t;
#else
    using Stream = hipStream_t;
#endif
    static std::mutex mutex;
    static auto* const instances = new std::vector<std::pair<void*, Space>>;  // never destroyed: streams may be gone first
    const std::lock_guard lock(mutex);
    for (const auto& [known, space] : *instances)
      if (known == stream) return space;
    return instances->emplace_back(stream, Space(static_cast<Stream>(stream))).second;
  } else
#endif
    return Space();
}

template <class Space, class Real>
class KokkosExecutor final : public Executor {
 public:
  explicit KokkosExecutor(const Problem& problem) : p_(problem) {
    const bool decay = p_.rule == T2FW_DECAY;
    forward_ = decay ? decay_forward_sizes<Space, Real>(p_) : delta_forward_sizes<Space, Real>(p_);
    backward_ = decay ? decay_backward_sizes<Space, Real>(p_) : delta_backward_sizes<Space, Real>(p_);
    step_ = step_sizes<Space, Real>(p_);
  }

  size_t scratch_size(t2fw_operation operation) const override {
    return (operation == T2FW_FORWARD ? forward_ : operation == T2FW_BACKWARD ? backward_ : step_).scratch;
  }
  size_t saved_size() const override { return forward_.saved; }

  void forward(const t2fw_forward_args& args, void* stream) const override {
    const Space space = instance<Space>(stream);
    if (p_.rule == T2FW_DECAY) decay_forward<Space, Real>(space, p_, args);
    else delta_forward<Space, Real>(space, p_, args);
  }
  void backward(const t2fw_backward_args& args, void* stream) const override {
    const Space space = instance<Space>(stream);
    if (p_.rule == T2FW_DECAY) decay_backward<Space, Real>(space, p_, args);
    else delta_backward<Space, Real>(space, p_, args);
  }
  void step(const t2fw_step_args& args, void* stream) const override {
    t2fw::step<Space, Real>(instance<Space>(stream), p_, args);
  }

 private:
  Problem p_;
  Sizes forward_, backward_, step_;
};

template <class Space>
class KokkosBackend final : public Backend {
 public:
  const char* name() const override { return "kokkos"; }

  t2fw_device device() const override {
    if constexpr (on_host<Space>) return T2FW_CPU;
#if defined(KOKKOS_ENABLE_HIP)
    return T2FW_HIP;
#else
    return T2FW_CUDA;
#endif
  }

  std::string decline(const Problem& p) const override {
    const auto fits = [&](t2fw_dtype dtype) {
      return dtype == p.data_dtype || (dtype == T2FW_FP32 && bytes_of(p.data_dtype) == 2);
    };
    if (p.device != device()) return "this backend computes on another device";
    if (p.rule == T2FW_DELTA && (p.f != T2FW_GATE_NONE || p.g != T2FW_GATE_NONE))
      return "the delta rule with gates (the gated delta rule) is not available yet; set f and g to T2FW_GATE_NONE";
    if (!fits(p.gate_dtype)) return "gate_dtype must be data_dtype, or T2FW_FP32 beside 16-bit data";
    if (!fits(p.state_dtype)) return "state_dtype must be data_dtype, or T2FW_FP32 beside 16-bit data";
    if (p.D > largest || p.K > largest)
      return "D and K must be at most " + std::to_string(largest) + " here; D is " + std::to_string(p.D) + ", K is " +
             std::to_string(p.K);
    if constexpr (!on_host<Space>) {
      ensure_kokkos(p.device_index);
      if (Kokkos::device_id() != p.device_index)
        return "Kokkos runs on GPU " + std::to_string(Kokkos::device_id()) + " in this process, not on GPU " +
               std::to_string(p.device_index);
    }
    return "";
  }

  std::unique_ptr<Executor> bind(const Problem& p) const override {
    ensure_kokkos(p.device_index);
    if (p.data_dtype == T2FW_FP64) return std::make_unique<KokkosExecutor<Space, double>>(p);
    return std::make_unique<KokkosExecutor<Space, float>>(p);
  }

  std::string wrong_memory(const Problem&, [[maybe_unused]] const void* pointer) const override {
    if constexpr (on_host<Space>) return "";
#if defined(KOKKOS_ENABLE_CUDA)
    cudaPointerAttributes attributes;
    if (cudaPointerGetAttributes(&attributes, pointer) != cudaSuccess) {
      static_cast<void>(cudaGetLastError());  // else the next launch would report it
      return "memory of no CUDA device";
    }
    if (attributes.type == cudaMemoryTypeManaged) return "";
    if (attributes.type != cudaMemoryTypeDevice) return "host memory";
    if (attributes.device != Kokkos::device_id()) return "CUDA device " + std::to_string(attributes.device);
#elif defined(KOKKOS_ENABLE_HIP)
    hipPointerAttribute_t attributes;
    if (hipPointerGetAttributes(&attributes, pointer) != hipSuccess) {
      static_cast<void>(hipGetLastError());  // HIP before 6 calls memory that it did not allocate an error
      return "host memory";
    }
    if (attributes.isManaged) return "";
#if HIP_VERSION_MAJOR >= 6
    const hipMemoryType type = attributes.type;
#else
    const hipMemoryType type = attributes.memoryType;
#endif
    if (type != hipMemoryTypeDevice) return "host memory";
    if (attributes.device != Kokkos::device_id()) return "HIP device " + std::to_string(attributes.device);
#endif
    return "";
  }

 private:
  static constexpr int64_t largest = 1024;  // a state tile's elements stay below 2^31
};

}  // namespace

const Backend& kokkos_host_backend() {
  static const KokkosBackend<Kokkos::DefaultHostExecutionSpace> backend;
  return backend;
}

#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
const Backend& kokkos_device_backend() {
  static const KokkosBackend<Kokkos::DefaultExecutionSpace> backend;
  return backend;
}
#endif

}  // namespace t2fw
