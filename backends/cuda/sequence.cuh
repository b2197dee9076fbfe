// Where a sequence's tokens and saved states lie.
#pragma once

#include <cstdint>

namespace t2fw::cuda {

struct Sequence {
  int64_t b;
  int begin, length;   // its tokens in batch row b
  int64_t checkpoint;  // slot of its first saved state
};

// Args: ForwardArgs or BackwardArgs.
template <class Args>
__device__ __forceinline__ Sequence sequence_at(const Args& p, int64_t n) {
  const int T = static_cast<int>(p.T);
  Sequence s{n, 0, T, p.T ? n * ((p.T - 1) / p.interval) : 0};
  if (p.sequences) {
    const auto clamp = [&](int64_t x) { return x < 0 ? 0 : x > T ? T : static_cast<int>(x); };
    const int begin = clamp(p.cu_seqlens[n]), end = clamp(p.cu_seqlens[n + 1]);
    s = {0, begin, end > begin ? end - begin : 0, begin / p.interval};
  }
  return s;
}

}  // namespace t2fw::cuda
