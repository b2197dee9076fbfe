// Where a sequence's tokens, segments and saved states lie.
#pragma once

#include <cstdint>

#include "tuning.hpp"

namespace t2fw::cuda {

struct Sequence {
  int64_t n, b;        // its number, and its batch row
  int begin, length;   // its tokens there
  int64_t checkpoint;  // slot of its first saved state
};

// A part of a sequence, in which a thread block takes it. They are numbered as the pass goes: forward's from the first token
// on, backward's from the last. The first one starts from a state that is given. Forward may write its final state where that
// lies: every segment reads it as it starts, and the last one, whose thread block starts behind the others', writes as it ends.
//
// Few heads (Cuts::later) are all cut, into a first segment and some later ones. A kernel ahead (`local`) leaves what each of
// these but the last makes of a state, through which the given one goes on its way to a later segment. The first ones need not
// wait for it, and are longer by about what they do in that time (Pace::lead).
//
// Of more heads than a GPU has room for (Cuts::shares) some are cut in two, so that it has work all the time: McNaughton's
// rule. There is room for `shares` heads at once, and there are r more. Head k of shares - 1 is cut behind its k-th part of
// `shares`; r + 1 are whole, behind those. Thread blocks go in this order, then the later segments: r heads start where the
// r shortest first segments were, and the later segment of head k where the first one of head k + r was, which hands over the
// state behind it. Who waits for one relies on a GPU to start blocks in order, as scans by look-back do (to count those that
// have started, a launch would have to clear the count first).
struct Segment {
  int number, count;  // among those of its sequence; count 0: nothing
  int start, end;     // its tokens of the sequence
  int local;          // what the sequence's first segment has of its row's `later` places for local states
  __device__ __forceinline__ bool last() const { return number + 1 == count; }
};

// Args: ForwardArgs or BackwardArgs.
template <class Args>
__device__ __forceinline__ Sequence sequence_at(const Args& p, int64_t n) {
  const int T = static_cast<int>(p.T);
  if (!p.sequences) return {n, n, 0, T, p.T ? n * ((p.T - 1) / p.interval) : 0};
  const auto offset = [&](int64_t x) { return static_cast<int>(max(min(p.cu_seqlens[x], p.T), int64_t{0})); };
  const int begin = offset(n);
  return {n, 0, begin, max(offset(n + 1) - begin, 0), begin / p.interval};
}

// Segment `number` of a sequence, or nothing. All start at a multiple of `multiple`. head: of all sequences. local: the segment
// before it, for `local`.
//
// A packed sequence is cut if it is longer than p.segment, then into as few segments as would make none longer if all were
// equal, but for rounding. Its first place is begin / (p.segment / 2): of x > 1 times p.segment it has ceil(x) - 1 later
// segments, fewer than the floor(2 x) or more places up to the next one's first; T / (p.segment / 2) are enough. Offsets that
// decrease do no harm.
template <bool reverse, bool local, class Args>
__device__ __forceinline__ Segment segment_of(const Args& p, const Sequence& s, int64_t head, int number, int multiple) {
  const uint32_t all = (s.length + multiple - 1) / multiple;
  int later = p.later, place = 0, first = 0, each = 0;
  if (p.shares) {
    const uint32_t shares = p.shares, k = static_cast<uint32_t>(head - p.cut_from) + 1;
    later = k > 0 && k < shares;
    first = static_cast<int>(all / shares * k + all % shares * k / shares), each = static_cast<int>(all) - first;
  } else if (later) {
    if (p.sequences) {
      const int most = static_cast<int>(p.segment);
      later = s.length > most ? (s.length - 1) / most : 0, place = s.begin / (most / 2);
    }
    each = later ? (static_cast<int>(all) - p.lead + later) / (later + 1) : 0;
    first = max(static_cast<int>(all) - later * each, 0);
  }
  if (number < 0 || number > later) return {};
  if (local) --number;
  const int part = reverse ? later - number : number;
  const auto cut = [&](int i) {  // the token before which part i begins, in their order
    return i > later ? s.length : min((reverse ? i * each : i ? first + (i - 1) * each : 0) * multiple, s.length);
  };
  return {number, later + 1, cut(part), cut(part + 1), place};
}

// number 0: the first segment of sequence n; else the later one that has place number - 1 of batch row n, if one has it, or if
// `local` the one before it.
template <bool reverse, bool local, class Args>
__device__ __forceinline__ void segment_at(const Args& p, int64_t n, int64_t h, int number, int multiple, Sequence& s,
                                           Segment& segment) {
  if (number && p.sequences) {
    const int half = static_cast<int>(p.segment / 2), place = number - 1;
    int low = 0, high = p.sequences - 1;  // one of these
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (sequence_at(p, middle).begin / half <= place) low = middle;
      else high = middle - 1;
    }
    n = low, number -= sequence_at(p, low).begin / half;
    if (number < 1) number = -1;  // the place is none of the sequence's
  }
  s = sequence_at(p, n);
  segment = segment_of<reverse, local>(p, s, n * p.H + h, number, multiple);
}

}  // namespace t2fw::cuda
