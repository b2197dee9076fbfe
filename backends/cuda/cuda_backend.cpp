#include "cuda_backend.hpp"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <optional>

#include "kernels.hpp"
#include "kokkos/kokkos_backend.hpp"

namespace t2fw {
namespace {

// Makes the plan's GPU the thread's own for as long as it lives. A thread that has not yet used CUDA gets a context, without
// which the driver encodes no boxes (launch.hpp).
class OnDevice {
 public:
  explicit OnDevice(int device) {
    CUcontext context = nullptr;
    cuda::check(cudaGetDevice(&before_));
    cuCtxGetCurrent(&context);
    if (device != before_ || !context) cuda::check(cudaSetDevice(device));
    if (device == before_) before_ = -1;
  }
  ~OnDevice() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = -1;
};

// Forward and step are native, backward where D and K allow (DecayBackward::takes), else the portable one, from the states
// that the native forward saved.
class CudaExecutor final : public Executor {
 public:
  explicit CudaExecutor(const Problem& p) : p_(p), forward_(p), portable_(kokkos_device_backend().bind(p)) {
    if (cuda::DecayBackward::takes(p)) backward_.emplace(p);
    cuda::prepare_step(p);
  }
  size_t scratch_size(t2fw_operation operation) const override {
    if (operation == T2FW_STEP) return 0;
    if (operation == T2FW_FORWARD) return forward_.scratch_size();
    return backward_ ? backward_->scratch_size() : portable_->scratch_size(operation);
  }
  size_t saved_size() const override { return forward_.saved_size(); }
  void forward(const t2fw_forward_args& args, void* stream) const override {
    const OnDevice device(p_.device_index);
    forward_(args, static_cast<cudaStream_t>(stream));
  }
  void backward(const t2fw_backward_args& args, void* stream) const override {
    const OnDevice device(p_.device_index);
    if (backward_) (*backward_)(args, static_cast<cudaStream_t>(stream));
    else portable_->backward(args, stream);
  }
  void step(const t2fw_step_args& args, void* stream) const override {
    const OnDevice device(p_.device_index);
    cuda::step(p_, args, static_cast<cudaStream_t>(stream));
  }

 private:
  Problem p_;
  cuda::DecayForward forward_;
  std::optional<cuda::DecayBackward> backward_;
  std::unique_ptr<Executor> portable_;
};

class CudaBackend final : public Backend {
  static constexpr int64_t most_tokens = 1 << 30;  // tokens are counted in 32 bits

 public:
  const char* name() const override { return "cuda"; }
  t2fw_device device() const override { return T2FW_CUDA; }

  std::string decline(const Problem& p) const override {
    const std::string portable = kokkos_device_backend().decline(p);
    if (!portable.empty()) return portable;
    if (p.rule != T2FW_DECAY) return "only the decay rule is native";
    if (p.data_dtype == T2FW_FP64) return "data_dtype must be T2FW_FP32, T2FW_FP16 or T2FW_BF16";
    if (p.K > cuda::largest_key)
      return "K must be at most " + std::to_string(cuda::largest_key) + " here; K is " + std::to_string(p.K);
    if (p.T > most_tokens)
      return "T must be at most " + std::to_string(most_tokens) + " here; T is " + std::to_string(p.T);
    if (const int64_t blocks = cuda::most_blocks(p); blocks > INT32_MAX)
      return "there must be at most " + std::to_string(INT32_MAX) + " thread blocks, for the tiles and segments of all "
             "heads; there may be " + std::to_string(blocks) + ": split the batch";
    int memory = 0;
    cudaDeviceGetAttribute(&memory, cudaDevAttrMaxSharedMemoryPerBlockOptin, p.device_index);
    if (memory < cuda::plain_shared_memory)
      return "the GPU must give a block " + std::to_string(cuda::plain_shared_memory) +
             " bytes of shared memory, as compute capability 8.0 does; this one gives " + std::to_string(memory);
    return "";
  }

  std::unique_ptr<Executor> bind(const Problem& p) const override {
    const OnDevice device(p.device_index);
    return std::make_unique<CudaExecutor>(p);
  }

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
