#include "launch.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it has been told: the application's next check is not to find it again
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

bool tensor_cores(const Problem& p) { return bytes_of(p.data_dtype) == 2 && most_shared_memory(p) >= shared_memory; }

void raise_shared_memory(const void* kernel, size_t bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

void load(const void* kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel));
}

Rows rows(const void* data, t2fw_dtype dtype, int64_t width, int64_t columns, const t2fw_token_strides& s) {
  const int64_t each = 16 / static_cast<int64_t>(bytes_of(dtype));
  const bool aligned = s.b % each == 0 && s.t % each == 0 && s.h % each == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  return {data, s.t, s.b, s.h, data ? static_cast<int>(width) : 0, data && width == columns && width % each == 0 && aligned,
          false, false};
}

Rows gate_rows(const Problem& p, const void* data, t2fw_gate gate, int64_t columns, const t2fw_token_strides& s) {
  Rows x = rows(data, p.gate_dtype, gate_width(gate, columns), columns, s);
  x.logits = has_logits(p);
  return x;
}

bool encode(Box& box, const Problem& p, const Rows& x, t2fw_dtype dtype) {
  const int64_t each = static_cast<int64_t>(bytes_of(dtype)), numbers[3] = {p.T, p.H, p.B}, steps[3] = {x.t, x.h, x.b};
  cuuint64_t sizes[4] = {static_cast<cuuint64_t>(x.width)}, strides[3] = {};
  for (int i = 0; i < 3; ++i) {
    if (!x.whole || numbers[i] == 0) return false;
    sizes[i + 1] = static_cast<cuuint64_t>(numbers[i]);
    if (numbers[i] == 1) continue;  // its stride means nothing
    if (steps[i] < 0 || steps[i] >= (int64_t{1} << 40) / each) return false;
    strides[i] = static_cast<cuuint64_t>(steps[i] * each);
  }
  const CUtensorMapDataType type = dtype == T2FW_FP32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                   : dtype == T2FW_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint32_t columns_tokens[4] = {SLICE, CHUNK, 1, 1}, all[4] = {1, 1, 1, 1};
  const CUresult result = cuTensorMapEncodeTiled(
      &box, type, 4, const_cast<void*>(x.data), sizes, strides, columns_tokens, all, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) throw std::runtime_error("CUDA: the driver encodes no tensor map: " + std::to_string(result));
  return true;
}

int multiprocessors(const Problem& p) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, p.device_index));
  return count;
}

int most_shared_memory(const Problem& p) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, p.device_index));
  return bytes;
}

int64_t most_blocks(const Problem& p) {
  // A head's tiles: backward's, of 64 values by 64 keys, are as many as these or fewer; forward's slices have 16 values or
  // more, step's 32.
  static_assert(SLICE == 64 && largest_key == 4 * SLICE);
  const int64_t tiles = (p.D + SLICE - 1) / SLICE * 4;
  const int64_t segments = p.T / SEGMENT;  // of the least that is cut
  return (p.sequences ? p.sequences + segments : p.B * std::max<int64_t>(1, segments)) * p.H * tiles;
}

int64_t token_bytes(const Problem& p) {
  return 4 * (p.D + p.K) * static_cast<int64_t>(bytes_of(p.data_dtype)) +
         2 * (gate_width(p.f, p.D) + gate_width(p.g, p.K)) * static_cast<int64_t>(bytes_of(p.gate_dtype));
}

// Tokens of a segment of a sequence that is cut, at least: its scratch is one in so many bytes of its operands and results.
// With the saved states, which on tensor cores are up to a sixth of them with full gates at widths up to 128 (64x64: a
// twelfth), else up to a fifth, that is a quarter at most.
static int64_t least_segment(const Problem& p, int64_t scratch) {
  return std::max(SEGMENT, scratch * (tensor_cores(p) ? 12 : 20) / token_bytes(p));
}

static Segments cut_packed(const Problem& p, int64_t slices, int64_t slots, double local_pass, int64_t multiple,
                           int64_t scratch) {
  const auto round = [&](int64_t tokens) { return (tokens + multiple - 1) / multiple * multiple; };
  const Segments uncut{p.sequences, round(p.T + 1), 0};
  if (p.flags & T2FW_BATCH_INVARIANT) return uncut;  // a sequence's neighbours would decide where it is cut
  Problem even = p;  // as many sequences of one length
  even.sequences = 0, even.B = p.sequences, even.T = (p.T + p.sequences - 1) / p.sequences;
  const Segments cuts = cut(even, slices, slots, local_pass, multiple, scratch);
  const int64_t share = p.T * p.H * slices / slots;  // of all tokens, what one of the GPU's slots has
  const int64_t wanted = cuts.count > 1 ? cuts.tokens * 5 / 4 : std::max(LONG_SEQUENCE, 2 * std::max(even.T, share));
  const int64_t tokens = round(std::max(wanted, 2 * least_segment(p, scratch)));  // there are two slots for each
  return tokens < p.T ? Segments{p.sequences + p.T / tokens, tokens, p.T / (tokens / 2)} : uncut;
}

Segments cut(const Problem& p, int64_t slices, int64_t slots, double local_pass, int64_t multiple, int64_t scratch) {
  if (p.sequences) return cut_packed(p, slices, slots, local_pass, multiple, scratch);
  const bool alone = p.flags & T2FW_BATCH_INVARIANT;  // as if the sequence were the only one
  const int64_t blocks = std::max<int64_t>(1, (alone ? 1 : p.B) * p.H * slices);
  const auto rounds = [&](int64_t count) {  // a round of whole sequences is one
    return static_cast<double>((blocks * count + slots - 1) / slots) / static_cast<double>(count);
  };
  const int64_t least = least_segment(p, scratch);
  int64_t wanted = 1;
  double best = rounds(1);
  for (int64_t count = 2; count <= std::min(slots, p.T / least); ++count)
    if (const double time = rounds(count) * local_pass; time < WORTH * best) wanted = count, best = time;
  const int64_t tokens = ((p.T + wanted - 1) / wanted + multiple - 1) / multiple * multiple;
  const int64_t count = std::max<int64_t>(1, tokens ? (p.T + tokens - 1) / tokens : 1);
  return {count, tokens, count > 1 ? count : 0};
}

}  // namespace t2fw::cuda
