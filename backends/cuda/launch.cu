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
  return (sequence_count(p) + p.B * (p.T / SEGMENT)) * p.H * tiles;
}

int64_t token_bytes(const Problem& p) {
  return 4 * (p.D + p.K) * static_cast<int64_t>(bytes_of(p.data_dtype)) +
         2 * (gate_width(p.f, p.D) + gate_width(p.g, p.K)) * static_cast<int64_t>(bytes_of(p.gate_dtype));
}

// Tokens of a sequence that is cut to each of its segments, at least: a later one's scratch is one in so many bytes of its
// operands and results. With the saved states, which on tensor cores are up to a sixth of them with full gates at widths up to
// 128 (64x64: a twelfth), else up to a fifth, that is a quarter at most.
static int64_t least_segment(const Problem& p, int64_t scratch) {
  return std::max(SEGMENT, scratch * (tensor_cores(p) ? 12 : 20) / token_bytes(p));
}

// Of few heads of one length. least: tokens to each segment.
static Cuts cut_few(const Problem& p, int64_t slices, int64_t slots, const Pace& pace, int64_t multiple, int64_t least) {
  const bool alone = p.flags & T2FW_BATCH_INVARIANT;  // as if the sequence were the only one
  const int64_t blocks = std::max<int64_t>(1, (alone ? 1 : p.B) * p.H * slices), all = (p.T + multiple - 1) / multiple;
  const int64_t lead = pace.lead / multiple;
  const auto each = [&](int64_t later) { return later ? (all - lead + later) / (later + 1) : all; };  // as in segment_of
  const auto time = [&](int64_t later) {  // a round of whole sequences is one; without rounding, whose steps are no trend
    const double rounds = static_cast<double>((blocks * (later + 1) + slots - 1) / slots);
    return later ? rounds * pace.local_pass / static_cast<double>(later + 1) : rounds;
  };
  int64_t later = 0;
  for (int64_t more = 1; more < std::min(slots, p.T / least); ++more)
    if (more * each(more) < all && time(more) < WORTH * time(later)) later = more;  // and none is empty
  return {later, each(later) * multiple, lead, 0, 0};
}

static Cuts cut_packed(const Problem& p, int64_t slices, int64_t slots, const Pace& pace, int64_t multiple, int64_t least) {
  const Cuts uncut{0, p.T + 1, 0, 0, 0};
  if (p.flags & T2FW_BATCH_INVARIANT) return uncut;  // a sequence's neighbours would decide where it is cut
  Problem even = p;  // as many sequences of one length
  even.sequences = 0, even.B = p.sequences, even.T = (p.T + p.sequences - 1) / p.sequences;
  const Cuts cuts = cut_few(even, slices, slots, pace, multiple, least);
  const int64_t share = p.T * p.H * slices / slots;  // of all tokens, what one of the GPU's slots has
  const int64_t wanted = cuts.later ? cuts.tokens * 5 / 4 : std::max(LONG_SEQUENCE, 2 * std::max(even.T, share));
  const int64_t tokens = std::max(wanted, 2 * least);  // there are two places for each
  return tokens < p.T ? Cuts{p.T / (tokens / 2), tokens, cuts.lead, 0, 0} : uncut;
}

// Of more heads than there is room for.
static Cuts cut_many(const Problem& p, int64_t slices, int64_t slots, int64_t least) {
  const int64_t heads = p.B * p.H, shares = slots / slices;
  const int64_t rounds = (heads + shares - 1) / shares, more = heads % shares;
  const bool sooner = static_cast<double>(heads) < WORTH_SHARING * static_cast<double>(rounds * shares);
  return sooner && shares > 1 && p.T >= 2 * least ? Cuts{1, 0, 0, shares, heads - more - shares} : Cuts{};
}

Cuts cut(const Problem& p, int64_t slices, int64_t slots, const Pace& pace, int64_t multiple, int64_t scratch) {
  const int64_t least = std::max(multiple, least_segment(p, scratch));
  if (p.sequences) return cut_packed(p, slices, slots, pace, multiple, least);
  const bool many = pace.shares && p.B * p.H * slices > slots && slots >= slices;
  const Cuts few = !many || (p.flags & T2FW_BATCH_INVARIANT) ? cut_few(p, slices, slots, pace, multiple, least) : Cuts{};
  return many && !few.later ? cut_many(p, slices, slots, least) : few;
}

int64_t later_segments(const Problem& p, const Cuts& cuts) {
  return cuts.shares ? cuts.shares - 1 : p.B * p.H * cuts.later;
}

}  // namespace t2fw::cuda
