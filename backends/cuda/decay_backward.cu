#include "decay_backward.cuh"

#include <algorithm>
#include <type_traits>

#include "core/checkpoints.hpp"
#include "kernels.hpp"
#include "launch.hpp"
#include "tuning.hpp"

namespace t2fw::cuda {
namespace {

template <class T, class G, bool logits>
BackwardKernels kernels() {
  static_assert(sizeof(BackwardMemory<T, G>) <= shared_memory);
  return {{decay_backward_kernel<T, G, logits>, 32 * BACKWARD_WARPS, sizeof(BackwardMemory<T, G>)},
          {decay_backward_local_kernel<T, G>, local_threads<1>, sizeof(LocalMemory<T, G, 1>)},
          TileLocal::FLOATS,
          0,
          BACKWARD_WARPS};
}

BackwardKernels choose(const Problem& p, bool plain) {
  if (plain) return plain_backward(p);
  return by_types(p, [&]<class T, class G>() {
    if constexpr (sizeof(T) != 2) return plain_backward(p);
    else return has_logits(p) ? kernels<T, G, true>() : kernels<T, G, false>();
  });
}

constexpr int64_t largest = 256;  // D and K

int64_t tiles(int64_t width) { return (width + SLICE - 1) / SLICE; }

constexpr int64_t tile_bytes = SLICE * SLICE * static_cast<int64_t>(sizeof(float));  // of a state that a block keeps

// How the kernels divide a head's work: tokens between saved states, states that a block keeps between two of those, in shared
// memory and in scratch, and tiles of a launch.
struct Form {
  int64_t interval, shared, kept, together;
};

// For the plain kernels. No two blocks fit a multiprocessor's registers, so that one may have all of its shared memory: states
// are saved so often that those kept between two fit there, if that makes saved ones no more than a fifth of operands and
// results; packed or not, as for one sequence. What does not fit is kept in scratch, of tiles that share no gradient, or, where
// all would be over a quarter of operands and results, of one tile a launch.
Form plain_form(const Problem& p) {
  const BackwardKernels use = plain_backward(p);
  const int64_t room = (most_shared_memory(p) - static_cast<int64_t>(use.backward.memory)) / tile_bytes;
  const int64_t state = p.D * p.K * static_cast<int64_t>(sizeof(float));
  const auto kept = [&](int64_t interval) {  // before all runs of a stretch but the last
    return (std::max<int64_t>(1, std::min(interval, p.T)) - 1) / use.run;
  };
  int64_t interval = checkpoint_interval(p);
  while (kept(interval) > room && interval > CHUNK && 5 * state <= interval / 2 * token_bytes(p)) interval /= 2;
  const int64_t shared = std::min(kept(interval), room), scratch = kept(interval) - shared;
  const int64_t together = std::min(tiles(p.D), tiles(p.K));
  // of a head
  const int64_t bytes = checkpoint_slots(p, interval) * state + sequence_count(p) * together * scratch * tile_bytes;
  const bool sums = p.f == T2FW_GATE_HEAD || p.g == T2FW_GATE_HEAD, over = 4 * bytes > p.B * p.T * token_bytes(p);
  return {interval, shared, scratch, sums || (scratch && over) ? 1 : together};
}

Form form(const Problem& p) {
  if (!DecayBackward::takes(p)) return {checkpoint_interval(p), 0, 0, 0};  // the portable backward's
  if (tensor_cores(p)) return {BLOCK, 0, 0, tiles(p.D) * tiles(p.K)};
  return plain_form(p);
}

// Gives the plain kernels the tiles of their next launch. They go by rounds, which have every tile of the side of fewer once
// and none of the other side's twice: two of a round share no gradient but one of one value a token.
void take_turns(BackwardArgs& p) {
  const bool keys_are_few = p.side[1].tiles < p.side[0].tiles;
  SideArgs &few = p.side[keys_are_few], &many = p.side[!keys_are_few];
  static_assert(std::extent_v<decltype(few.turn)> == largest / SLICE);
  for (int i = 0; i < p.together; ++i) {
    const int place = p.number * p.together + i, round = place / few.tiles, tile = place % few.tiles;
    const bool untouched = tile + 1 == few.tiles && tile + round < many.tiles;  // of the many, one that no round has had
    few.turn[i] = {static_cast<int16_t>(tile), round > 0};
    many.turn[i] = {static_cast<int16_t>((tile + round) % many.tiles), round > 0 && !untouched};
  }
}

}  // namespace

Saved saved_states(const Problem& p) {
  const bool narrow = DecayBackward::takes(p) && tensor_cores(p);
  const int64_t interval = form(p).interval;
  const int64_t states = checkpoint_slots(p, interval) * p.H;
  const size_t row = narrow ? static_cast<size_t>(SavedRow::width(p.K)) * bytes_of(p.data_dtype)
                            : static_cast<size_t>(p.K) * sizeof(float);
  return {interval, narrow, static_cast<size_t>(states * p.D) * row};
}

bool DecayBackward::takes(const Problem& p) { return p.D <= largest && p.K <= largest; }

DecayBackward::DecayBackward(const Problem& p) : p_(p), saved_(saved_states(p)) {
  const BackwardKernels use = choose(p, !saved_.narrow);
  for (const auto& kernel : {use.backward, use.local})
    raise_shared_memory(reinterpret_cast<const void*>(kernel.function), static_cast<size_t>(most_shared_memory(p)));
  const Form of = form(p);
  const int64_t local = static_cast<int64_t>(use.local_floats);
  shared_ = of.shared, kept_ = of.kept, tiles_ = of.together;
  const int64_t bytes = tiles_ * (local * static_cast<int64_t>(sizeof(float)) + kept_ * tile_bytes);  // of a segment
  // They start where a state was saved.
  const int64_t multiple = std::max<int64_t>(BLOCK, saved_.interval);
  cuts_ = cut(p, tiles_, multiprocessors(p), saved_.narrow ? BACKWARD : PLAIN_BACKWARD, multiple, bytes);
  firsts_ = sequence_count(p) * p.H * tiles_, laters_ = later_segments(p, cuts_) * tiles_;
  const int64_t blocks = firsts_ + laters_;
  local_floats_ = laters_ * local;
  told_ = blocks && tiles_ > 1 && use.waiting ? 1 + blocks * use.waiting : 0, handed_ = cuts_.shares ? laters_ * HANDED : 0;
  scratch_ = static_cast<size_t>(local_floats_ + blocks * kept_ * SLICE * SLICE + told_ + handed_) * sizeof(float);
}

void DecayBackward::operator()(const t2fw_backward_args& a, cudaStream_t stream) const {
  const Problem& p = p_;
  if (!firsts_) return;
  const auto value = [&](const void* data, const t2fw_token_strides& s) { return rows(data, p.data_dtype, p.D, p.D, s); };
  const auto key = [&](const void* data, const t2fw_token_strides& s) { return rows(data, p.data_dtype, p.K, p.K, s); };
  const bool wide = p.state_dtype == T2FW_FP32;
  // Behind the local states are words to tell and those that tell of states handed over, or states that the plain kernels keep.
  uint32_t *const told = static_cast<uint32_t*>(a.scratch) + local_floats_,
           *const handed = static_cast<uint32_t*>(a.scratch) + scratch_ / sizeof(uint32_t) - handed_;
  BackwardArgs args{
      {{value(a.v, p.v_strides), gate_rows(p, a.f, p.f, p.D, p.f_strides), value(a.d_y, p.d_y_strides),
        value(a.d_v, p.d_v_strides), gate_rows(p, a.d_f, p.f, p.D, p.d_f_strides), {}, {},
        static_cast<int>(p.D), static_cast<int>(tiles(p.D))},
       {key(a.k, p.k_strides), gate_rows(p, a.g, p.g, p.K, p.g_strides), key(a.q, p.q_strides),
        key(a.d_k, p.d_k_strides), gate_rows(p, a.d_g, p.g, p.K, p.d_g_strides), key(a.d_q, p.d_q_strides), {},
        static_cast<int>(p.K), static_cast<int>(tiles(p.K))}},
      {a.initial_state, p.initial_state_strides, wide},
      {a.d_final_state, p.d_final_state_strides, wide},
      {a.d_initial_state, p.d_initial_state_strides, wide},
      a.cu_seqlens,
      a.saved,
      p.D * SavedRow::width(p.K),
      static_cast<int>(SavedRow::width(p.K)),
      laters_ ? static_cast<float*>(a.scratch) : nullptr,
      handed,
      saved_.interval,
      p.T,
      p.H,
      cuts_.tokens,
      firsts_,
      cuts_.from,
      static_cast<int>(cuts_.later),
      static_cast<int>(cuts_.lead),
      static_cast<int>(cuts_.shares),
      static_cast<int>(p.sequences),
      told_ ? told : nullptr,
      told_ ? told + 1 : nullptr,
      static_cast<float*>(a.scratch) + local_floats_,
      static_cast<int>(kept_),
      static_cast<int>(shared_),
      static_cast<int>(tiles_),
      0};
  const BackwardKernels use = choose(p, !saved_.narrow);
  Kernel<BackwardArgs> backward = use.backward;
  backward.memory += static_cast<size_t>(shared_ * tile_bytes);
  const bool local = laters_ && !cuts_.shares;
  if (const int64_t words = told_ + handed_)
    check(cudaMemsetAsync(told, 0, static_cast<size_t>(words) * sizeof *told, stream));
  for (; args.number * tiles_ < tiles(p.D) * tiles(p.K); ++args.number) {
    if (!use.waiting) take_turns(args);
    if (local) launch(use.local, laters_, stream, args);
    launch(backward, firsts_ + laters_, stream, args, local && use.waiting);
  }
}

}  // namespace t2fw::cuda
