#include "bars.hpp"

#include <benchmark/benchmark.h>
#include <stdio.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

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
const int rounds = 5;

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Median wall time of a case in seconds. Kokkos fixes its threads when it starts, so a process of its own measures.
double median_seconds(const std::string& name, int threads) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command =
      "OMP_NUM_THREADS=" + std::to_string(threads) + " '" + self + "' --benchmark_filter='^cpu/kokkos/" + name +
      "/manual_time$' --benchmark_format=csv --benchmark_repetitions=3 --benchmark_min_time=0.03 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> rows(popen(command.c_str(), "r"), pclose);
  double microseconds = 0;
  for (char row[4096]; rows && fgets(row, sizeof row, rows.get());)
    if (const char* rest = std::strstr(row, "_median\",")) std::sscanf(rest, "_median\",%*d,%lf", &microseconds);
  if (microseconds == 0) throw std::runtime_error("failed: " + command);
  return microseconds * 1e-6;
}

// About 20 ms of arithmetic in registers alone: chains enough that a core's units are busy, few enough for its registers.
void calculate() {
  float x[96], first = 0;
  for (float& chain : x) chain = first++;
  for (int i = 0; i < 20'000'000; ++i)
    for (float& chain : x) chain = chain * 0.999f + 0.001f;
  benchmark::DoNotOptimize(x);
}

double calculating_seconds(size_t threads) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::jthread> pool;
  while (pool.size() < threads) pool.emplace_back(calculate);
  pool.clear();  // joins
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// How many times as much two threads calculate as one: 2 if the machine gives each a core of its own.
double machine_speedup() {
  std::vector<double> gains;
  while (gains.size() < 3) gains.push_back(2 * calculating_seconds(1) / calculating_seconds(2));
  return median(gains);
}

// The second core of a machine that others use comes and goes: one thread is compared with two within a round.
void measure(benchmark::State& state, const Bar& bar) try {
  for (auto _ : state) {
    std::vector<double> ones, gains, machine;
    for (int i = 0; i < rounds; ++i) {
      ones.push_back(median_seconds(bar.name, 1));
      gains.push_back(ones.back() / median_seconds(bar.name, 2));
      machine.push_back(machine_speedup());
    }
    const double one = median(ones), ns = one * 1e9 / tokens_heads, gain = median(gains);
    state.SetIterationTime(one);
    state.counters["ns_token_head"] = ns;
    state.counters["ns_at_most"] = bar.at_most;
    state.counters["speedup"] = gain;
    state.counters["speedup_at_least"] = at_least;
    state.counters["machine_speedup"] = median(machine);
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
