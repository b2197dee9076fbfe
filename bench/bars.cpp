#include "bars.hpp"

#include <benchmark/benchmark.h>
#include <stdio.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>

namespace bench {
namespace {

struct Bar {
  const char* name;  // of a case of the CPU
  double at_most;    // nanoseconds per token and head on one thread
};
const Bar bars[] = {{"decay/forward/fp32/1x1024x16x64x64", 260},
                    {"decay/forward/fp32/1x1024x16x128x128", 1000},
                    {"decay/forward_backward/fp32/1x1024x16x64x64", 1300}};
const double tokens_heads = 1024 * 16;
const double at_least = 1.7;  // times one thread's speed, on two

// Median wall time of a case in seconds. Kokkos fixes its threads when it starts, so a process of its own measures.
double median_seconds(const std::string& name, int threads) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command =
      "OMP_NUM_THREADS=" + std::to_string(threads) + " '" + self + "' --benchmark_filter='^cpu/kokkos/" + name +
      "/manual_time$' --benchmark_format=csv --benchmark_repetitions=7 --benchmark_min_time=0.2 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> rows(popen(command.c_str(), "r"), pclose);
  double microseconds = 0;
  for (char row[4096]; rows && fgets(row, sizeof row, rows.get());)
    if (const char* rest = std::strstr(row, "_median\",")) std::sscanf(rest, "_median\",%*d,%lf", &microseconds);
  if (microseconds == 0) throw std::runtime_error("failed: " + command);
  return microseconds * 1e-6;
}

void measure(benchmark::State& state, const Bar& bar) try {
  for (auto _ : state) {
    const std::string name = bar.name;
    const double one = median_seconds(name, 1), two = median_seconds(name, 2);
    const double ns = one * 1e9 / tokens_heads, gain = one / two;
    state.SetIterationTime(one);
    state.counters["ns_token_head"] = ns;
    state.counters["ns_at_most"] = bar.at_most;
    state.counters["speedup"] = gain;
    state.counters["speedup_at_least"] = at_least;
    state.SetLabel(std::string(ns <= bar.at_most ? "one thread reached" : "one thread missed") +
                   (gain >= at_least ? ", two threads reached" : ", two threads missed"));
  }
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

}  // namespace

void add_bars() {
  for (const Bar& bar : bars)
    benchmark::RegisterBenchmark((std::string("bars/") + bar.name).c_str(),
                                 [&bar](benchmark::State& state) { measure(state, bar); })
        ->Iterations(1)
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
}

}  // namespace bench
