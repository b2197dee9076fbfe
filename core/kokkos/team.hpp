// Who computes: a team of threads that shares a workspace. On a host space a team is one thread and works on whole SIMD
// vectors; on a device it is a thread block, and a vector is one number.
#pragma once

#include <Kokkos_Core.hpp>
#include <Kokkos_SIMD.hpp>
#include <cstdint>

namespace t2fw {

template <class Space>
inline constexpr bool on_host = Kokkos::SpaceAccessibility<Space, Kokkos::HostSpace>::accessible;

namespace simd = Kokkos::Experimental;

#if defined(KOKKOS_ENABLE_CUDA) || defined(KOKKOS_ENABLE_HIP)
// A device compiler sees the host path too, and does not know the host's vector instructions.
template <class Space, class Real>
using Lanes = simd::basic_simd<Real, simd::simd_abi::scalar>;
#else
template <class Space, class Real>
using Lanes = simd::simd<Real, simd::simd<double>::size() * (sizeof(double) / sizeof(Real))>;  // whole registers
#endif

template <class V>
inline constexpr int lane_count = static_cast<int>(V::size());

template <class V, class Real>
KOKKOS_FORCEINLINE_FUNCTION V load(const Real* from) {
  return V(from, simd::simd_flag_default);
}

template <class V, class Real>
KOKKOS_FORCEINLINE_FUNCTION void store(const V& value, Real* to) {
  value.copy_to(to, simd::simd_flag_default);
}

// By halves, in a fixed order (Kokkos' own reduction takes the lanes out one by one).
template <class V>
KOKKOS_FORCEINLINE_FUNCTION typename V::value_type sum_lanes(const V& value) {
  constexpr int W = lane_count<V>;
  alignas(64) typename V::value_type lane[W];
  store(value, lane);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

struct HostTeam {
  static constexpr bool is_host = true;
  KOKKOS_FORCEINLINE_FUNCTION void barrier() const {}
  template <class Body>
  KOKKOS_FORCEINLINE_FUNCTION void for_each(int n, const Body& body) const {
    for (int i = 0; i < n; ++i) body(i);
  }
  template <class Body>
  KOKKOS_FORCEINLINE_FUNCTION void for_each_of(int rows, int columns, const Body& body) const {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) body(r, c);
  }
};

template <class Member>
struct DeviceTeam {
  static constexpr bool is_host = false;
  const Member& member;
  int rank, size;
  KOKKOS_FORCEINLINE_FUNCTION explicit DeviceTeam(const Member& m) : member(m), rank(m.team_rank()), size(m.team_size()) {}
  KOKKOS_FORCEINLINE_FUNCTION void barrier() const { member.team_barrier(); }
  template <class Body>
  KOKKOS_FORCEINLINE_FUNCTION void for_each(int n, const Body& body) const {
    for (int i = rank; i < n; i += size) body(i);
  }
  template <class Body>
  KOKKOS_FORCEINLINE_FUNCTION void for_each_of(int rows, int columns, const Body& body) const {
    for_each(rows * columns, [&](int i) { body(i / columns, i % columns); });
  }
};

// How a kernel is spread: `workers` teams walk over the work items; a worker's workspace is `workspace` bytes of team
// memory where the device has that much, else of the caller's scratch.
struct Spread {
  int64_t items = 0;
  int workers = 0;
  size_t workspace = 0;
  bool in_scratch = true;
  size_t scratch() const { return in_scratch ? static_cast<size_t>(workers) * workspace : 0; }
};

inline constexpr int device_team_size = 128;
inline constexpr int device_workers = 528;                // four blocks on each of an H200's 132 multiprocessors
// What every GPU gives a block without asking, less what Kokkos takes of it for a team: a double each thread, and two.
inline constexpr size_t device_team_memory = (48u << 10) - (device_team_size + 2) * sizeof(double);

inline size_t align_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Between two cores' workspaces: what one's prefetchers ask for behind its own is not the other's.
inline constexpr size_t workspace_gap = 4096;

template <class Space>
Spread spread(int64_t items, size_t workspace) {
  Spread s;
  s.items = items;
  const int64_t most = on_host<Space> ? Space().concurrency() : device_workers;
  s.workers = static_cast<int>(items < most ? items : most);
  s.workspace = align_up(workspace) + (on_host<Space> ? workspace_gap : 0);
  s.in_scratch = on_host<Space> || s.workspace > device_team_memory;
  return s;
}

// body(team, item, worker, workspace) for every item.
template <class Space, class Body>
void run(const char* label, const Space& space, const Spread& s, void* scratch, const Body& body) {
  if (s.items == 0) return;
  char* const memory = static_cast<char*>(scratch);
  if constexpr (on_host<Space>) {
    using Policy = Kokkos::RangePolicy<Space, Kokkos::Schedule<Kokkos::Static>, Kokkos::IndexType<int>>;
    Kokkos::parallel_for(label, Policy(space, 0, s.workers), [=](int worker) {
      // neighbouring heads, which lie side by side, by one core: what its prefetchers ask for is its own
      const int64_t last = s.items * (worker + 1) / s.workers;
      for (int64_t item = s.items * worker / s.workers; item < last; ++item)
        body(HostTeam{}, item, worker, memory + static_cast<size_t>(worker) * s.workspace);
    });
  } else {
    using Policy = Kokkos::TeamPolicy<Space>;
    auto policy = Policy(space, s.workers, device_team_size);
    if (!s.in_scratch) policy.set_scratch_size(0, Kokkos::PerTeam(static_cast<int>(s.workspace)));
    const auto light = Kokkos::Experimental::require(policy, Kokkos::Experimental::WorkItemProperty::HintLightWeight);
    Kokkos::parallel_for(label, light, KOKKOS_LAMBDA(const typename Policy::member_type& member) {
      const DeviceTeam<typename Policy::member_type> team(member);
      const int worker = member.league_rank();
      char* const workspace = s.in_scratch ? memory + static_cast<size_t>(worker) * s.workspace
                                           : static_cast<char*>(member.team_scratch(0).get_shmem(s.workspace));
      for (int64_t item = worker; item < s.items; item += s.workers) {
        body(team, item, worker, workspace);
        team.barrier();
      }
    });
  }
}

}  // namespace t2fw
