#include "cuda_backend.hpp"

#include <cuda_runtime_api.h>

#include <optional>

#include "kernels.hpp"
#include "kokkos/kokkos_backend.hpp"

namespace t2fw {
namespace {

// Forward is native, backward where D and K allow; both take the states that the other backend's forward saved. Step is
// the portable backend's.
class CudaExecutor final : public Executor {
 public:
  explicit CudaExecutor(const Problem& p) : forward_(p), portable_(kokkos_device_backend().bind(p)) {
    if (cuda::DecayBackward::takes(p)) backward_.emplace(p);
  }
  size_t scratch_size(t2fw_operation operation) const override {
    if (operation == T2FW_FORWARD) return forward_.scratch_size();
    if (operation == T2FW_BACKWARD && backward_) return backward_->scratch_size();
    return portable_->scratch_size(operation);
  }
  size_t saved_size() const override { return portable_->saved_size(); }
  void forward(const t2fw_forward_args& args, void* stream) const override {
    forward_(args, static_cast<cudaStream_t>(stream));
  }
  void backward(const t2fw_backward_args& args, void* stream) const override {
    if (backward_) (*backward_)(args, static_cast<cudaStream_t>(stream));
    else portable_->backward(args, stream);
  }
  void step(const t2fw_step_args& args, void* stream) const override { portable_->step(args, stream); }

 private:
  cuda::DecayForward forward_;
  std::optional<cuda::DecayBackward> backward_;
  std::unique_ptr<Executor> portable_;
};

class CudaBackend final : public Backend {
 public:
  const char* name() const override { return "cuda"; }
  t2fw_device device() const override { return T2FW_CUDA; }

  std::string decline(const Problem& p) const override {
    const std::string portable = kokkos_device_backend().decline(p);
    if (!portable.empty()) return portable;
    if (p.rule != T2FW_DECAY) return "only the decay rule is native";
    if (bytes_of(p.data_dtype) != 2) return "data_dtype must be T2FW_FP16 or T2FW_BF16";
    if (p.K > cuda::largest_key)
      return "K must be at most " + std::to_string(cuda::largest_key) + " here; K is " + std::to_string(p.K);
    int major = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, p.device_index);
    if (major < 8) return "the GPU must be of compute capability 8.0 or newer";
    return "";
  }

  std::unique_ptr<Executor> bind(const Problem& p) const override { return std::make_unique<CudaExecutor>(p); }

  std::string wrong_memory(const Problem& p, const void* pointer) const override {
    return kokkos_device_backend().wrong_memory(p, pointer);
  }
};

}  // namespace

const Backend& cuda_backend() {
  static const CudaBackend backend;
  return backend;
}

}  // namespace t2fw
