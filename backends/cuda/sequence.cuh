// Where a sequence's tokens, segments and saved states lie.
#pragma once

#include <cstdint>

namespace t2fw::cuda {

struct Sequence {
  int64_t n, b;        // its number, and its batch row
  int begin, length;   // its tokens there
  int64_t checkpoint;  // slot of its first saved state
};

// A part of a sequence, in which a thread block takes it.
struct Segment {
  int number, count;  // among those of its sequence; count 0: nothing
  int start, end;     // its tokens of the sequence
  int local;          // number of the sequence's first segment among those of its row that leave a local state
  __device__ __forceinline__ bool last() const { return number + 1 == count; }
};

// Which segment has a slot of batch row n. all: of the p.segments slots for all segments, else of the p.local_segments for
// those of sequences that are cut. Args: ForwardArgs or BackwardArgs.
//
// A row of one sequence has a slot for each segment. A packed sequence is cut into as few segments as make none longer than
// p.segment, of one length but for the last, a multiple of `multiple`. Its first slot is begin / p.segment + n: as
// its last one is behind that by length / p.segment at most, it is before the next sequence's first, and
// T / p.segment + sequences slots are enough. Among those that are cut it is begin / (p.segment / 2): a sequence of x > 1
// times p.segment has ceil(x) segments, no more than the floor(2 x) or more slots up to the next one's first; T / (p.segment
// / 2) are enough. Offsets that decrease do no harm.
template <bool all, class Args>
__device__ __forceinline__ void segment_at(const Args& p, int64_t n, int slot, int multiple, Sequence& s, Segment& segment) {
  const int T = static_cast<int>(p.T), most = static_cast<int>(p.segment);
  if (!p.sequences) {
    s = {n, n, 0, T, p.T ? n * ((p.T - 1) / p.interval) : 0};
    segment = {slot, p.segments, slot * most, min(slot * most + most, T), 0};
    return;
  }
  const auto offset = [&](int x) { return static_cast<int>(max(min(p.cu_seqlens[x], p.T), int64_t{0})); };
  const auto first = [&](int x, int begin) { return all ? begin / most + x : begin / (most / 2); };
  int low = all ? max(slot - T / most, 0) : 0, high = all ? min(slot, p.sequences - 1) : p.sequences - 1;  // one of these
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (first(middle, offset(middle)) <= slot) low = middle;
    else high = middle - 1;
  }
  const int begin = offset(low), length = max(offset(low + 1) - begin, 0), number = slot - first(low, begin);
  s = {low, 0, begin, length, begin / p.interval};
  const int cuts = length > most ? (length - 1) / most + 1 : 1;  // no sum here passes 2^31
  const int each = (max(length - 1, 0) / cuts / multiple + 1) * multiple;
  const int count = length ? (length - 1) / each + 1 : 1, local = begin / (most / 2);
  if (number < 0 || number >= count || (count == 1 ? !all : local + count > p.local_segments)) segment = {};
  else segment = {number, count, number * each, min(each, length - number * each) + number * each, local};
}

}  // namespace t2fw::cuda
