// Times forward, backward, both, and step on every backend of the build. README.md beside this file says what the counters are.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bars.hpp"
#include "memory.hpp"
#include "t2fw/t2fw.hpp"

#if defined(T2FW_WITH_KOKKOS_CUDA) || defined(T2FW_WITH_CUDA)
#include <cuda_runtime_api.h>
#define BENCH_GPU(name) cuda##name
#elif defined(T2FW_WITH_KOKKOS_HIP)
#include <hip/hip_runtime_api.h>
#define BENCH_GPU(name) hip##name
#endif

namespace {

struct Shape { int64_t B, T, H, D, K; };
const Shape cpu_sequences[] = {{1, 1024, 16, 64, 64}, {1, 1024, 16, 128, 128}, {8, 512, 4, 64, 64}, {2, 2048, 1, 64, 64}};
const Shape cpu_steps[] = {{1, 1, 16, 64, 64}, {16, 1, 16, 64, 64}, {1, 1, 16, 128, 128}};
const Shape gpu_sequences[] = {{8, 4096, 16, 64, 64}, {1, 65536, 16, 64, 64},  {8, 1024, 16, 64, 64},
                               {1, 4096, 16, 64, 64}, {4, 4096, 8, 128, 128}, {32, 2048, 1, 64, 64}};
const Shape gpu_steps[] = {{1, 1, 16, 64, 64}, {32, 1, 16, 64, 64}, {256, 1, 16, 64, 64}, {64, 1, 16, 128, 128}};

struct Dtypes { const char* name; t2fw_dtype data, gate; bool logits = false; float gate_bias = 2; };
const Dtypes all_dtypes[] = {{"fp32", T2FW_FP32, T2FW_FP32},
                             {"bf16", T2FW_BF16, T2FW_FP32},
                             {"bf16_gates", T2FW_BF16, T2FW_BF16},
                             {"bf16_logits", T2FW_BF16, T2FW_BF16, true},
                             {"bf16_near_1", T2FW_BF16, T2FW_BF16, false, 7}};

enum class Work { forward, backward, forward_backward, step };
const char* const work_names[] = {"forward", "backward", "forward_backward", "step"};

struct Case {
  std::string name, backend;
  t2fw_device device;
  t2fw_rule rule;
  Work work;
  Dtypes dtypes;
  Shape shape;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Buffer {
 public:
  Buffer() = default;
  Buffer(t2fw_device device, size_t bytes) : device_(device), bytes_(bytes) {
    if (bytes_) pointer_ = test::memory_of(device).allocate(bytes);
  }
  ~Buffer() {
    if (pointer_) test::memory_of(device_).release(pointer_);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(bytes_, other.bytes_);
    std::swap(pointer_, other.pointer_);
    return *this;
  }
  void* get() const { return pointer_; }
  size_t size() const { return bytes_; }

 private:
  t2fw_device device_ = T2FW_CPU;
  size_t bytes_ = 0;
  void* pointer_ = nullptr;
};

// Waits for the device. Errors of kernels that ran before surface here.
void synchronise([[maybe_unused]] t2fw_device device) {
#ifdef BENCH_GPU
  if (device == T2FW_CPU) return;
  if (const int status = BENCH_GPU(DeviceSynchronize)(); status != 0)
    throw std::runtime_error("DeviceSynchronize failed with " + std::to_string(status));
#endif
}

void copy(t2fw_device device, void* to, const void* from, size_t bytes) {
  if (device == T2FW_CPU) {
    const size_t threads = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::jthread> pool;
    for (size_t i = 0; i < threads; ++i) {
      const size_t begin = bytes * i / threads, end = bytes * (i + 1) / threads;
      pool.emplace_back([=] { std::memcpy((char*)to + begin, (const char*)from + begin, end - begin); });
    }
    return;
  }
#ifdef BENCH_GPU
  if (const int status = BENCH_GPU(MemcpyAsync)(to, from, bytes, BENCH_GPU(MemcpyDeviceToDevice), nullptr); status != 0)
    throw std::runtime_error("MemcpyAsync failed with " + std::to_string(status));
#endif
}

// Bytes read and written a second by a large copy, the best of seven after one that touches the pages; measured once.
double copy_rate(t2fw_device device) {
  static double rates[4] = {};
  double& rate = rates[device];
  if (rate != 0) return rate;
  const size_t bytes = size_t{device == T2FW_CPU ? 128u : 1024u} << 20;
  const Buffer from(device, bytes), to(device, bytes);
  copy(device, from.get(), to.get(), bytes);
  copy(device, to.get(), from.get(), bytes);
  synchronise(device);
  double best = INFINITY;
  for (int i = 0; i < 7; ++i) {
    const auto start = Clock::now();
    copy(device, to.get(), from.get(), bytes);
    synchronise(device);
    best = std::min(best, seconds_since(start));
  }
  return rate = 2.0 * static_cast<double>(bytes) / best;
}

size_t bytes_of(t2fw_dtype dtype) { return dtype == T2FW_BF16 ? 2 : 4; }

// Everything one case needs, ready to be executed again and again.
class Problem {
 public:
  explicit Problem(const Case& c) : case_(c), plan_(descriptor(c)) {
    const auto [B, T, H, D, K] = c.shape;
    const t2fw_descriptor d = descriptor(c);
    const size_t tokens = static_cast<size_t>(B * T * H);
    const auto gate = [&](t2fw_gate g, int64_t width) {
      return g == T2FW_GATE_NONE ? 0 : tokens * static_cast<size_t>(g == T2FW_GATE_FULL ? width : 1);
    };
    const size_t nv = tokens * D, nk = tokens * K, nf = gate(d.f, D), ng = gate(d.g, K);
    const float key_scale = 1 / std::sqrt(static_cast<float>(K));  // |k| is about 1, so that the delta rule is stable
    v_ = random(nv, d.data_dtype, 1, false);
    q_ = random(nk, d.data_dtype, 1, false);
    k_ = random(nk, d.data_dtype, key_scale, false);
    f_ = random(nf, d.gate_dtype, 2, true);
    g_ = random(ng, d.gate_dtype, 2, true);
    y_ = Buffer(c.device, nv * bytes_of(d.data_dtype));
    const size_t inputs = v_.size() + q_.size() + k_.size() + f_.size() + g_.size();
    if (c.work == Work::step) {
      scratch_ = Buffer(c.device, plan_.scratch_size(T2FW_STEP));
      state_ = random(static_cast<size_t>(B * H * D * K), d.state_dtype, key_scale, false);
      traffic_ = inputs + y_.size() + 2 * state_.size();
      return;
    }
    saved_ = Buffer(c.device, plan_.saved_size());
    const size_t backward_scratch = c.work == Work::forward ? 0 : plan_.scratch_size(T2FW_BACKWARD);
    scratch_ = Buffer(c.device, std::max(plan_.scratch_size(T2FW_FORWARD), backward_scratch));
    if (c.work != Work::backward) traffic_ = inputs + y_.size();
    if (c.work == Work::forward) return;
    d_y_ = random(nv, d.data_dtype, 1, false);
    d_v_ = Buffer(c.device, v_.size()), d_q_ = Buffer(c.device, q_.size()), d_k_ = Buffer(c.device, k_.size());
    d_f_ = Buffer(c.device, f_.size()), d_g_ = Buffer(c.device, g_.size());
    traffic_ += 2 * inputs + d_y_.size();
    if (c.work == Work::backward) forward();
  }

  void execute() const {
    if (case_.work == Work::step) return step();
    if (case_.work != Work::backward) forward();
    if (case_.work != Work::forward) backward();
  }
  const Case& which() const { return case_; }
  double traffic() const { return static_cast<double>(traffic_); }
  double extra() const { return static_cast<double>(saved_.size() + scratch_.size()); }
  double memory() const {
    size_t sum = 0;
    for (const Buffer* b : {&v_, &f_, &q_, &k_, &g_, &y_, &state_, &saved_, &scratch_}) sum += b->size();
    for (const Buffer* b : {&d_y_, &d_v_, &d_f_, &d_q_, &d_k_, &d_g_}) sum += b->size();
    return static_cast<double>(sum);
  }

 private:
  static t2fw_descriptor descriptor(const Case& c) {
    const auto [B, T, H, D, K] = c.shape;
    t2fw_descriptor d = t2fw::describe(c.rule, c.dtypes.data, B, T, H, D, K);
    if (c.rule == T2FW_DECAY) d.gate_dtype = c.dtypes.gate;
    if (c.dtypes.logits) d.flags |= T2FW_GATE_LOGITS;
    d.device = c.device;
    d.backend = c.backend.c_str();
    return d;
  }

  // Uniform of standard deviation `scale`; a gate is the sigmoid of that plus Dtypes::gate_bias, or that its logit.
  Buffer random(size_t count, t2fw_dtype dtype, float scale, bool gate) {
    const size_t size = bytes_of(dtype);
    std::vector<unsigned char> host(count * size);
    for (size_t i = 0; i < count; ++i) {
      seed_ = seed_ * 6364136223846793005u + 1442695040888963407u;
      float x = (static_cast<float>(seed_ >> 40) * 0x1p-23f - 1) * std::sqrt(3.0f) * scale;
      if (gate) x += case_.dtypes.gate_bias;
      if (gate && !case_.dtypes.logits) x = 1 / (1 + std::exp(-x));
      uint32_t bits = std::bit_cast<uint32_t>(x);
      if (dtype == T2FW_BF16) bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      std::memcpy(&host[i * size], &bits, size);  // a little-endian host
    }
    Buffer result(case_.device, host.size());
    if (count) test::memory_of(case_.device).upload(result.get(), host.data(), host.size());
    return result;
  }

  template <class Args>
  Args inputs() const {
    Args a = {};
    a.struct_size = sizeof a;
    a.v = v_.get(), a.f = f_.get(), a.q = q_.get(), a.k = k_.get(), a.g = g_.get();
    a.scratch = scratch_.get(), a.scratch_size = scratch_.size();
    return a;
  }
  void forward() const {
    auto a = inputs<t2fw_forward_args>();
    a.y = y_.get();
    a.saved = saved_.get(), a.saved_size = saved_.size();
    plan_.forward(a);
  }
  void backward() const {
    auto a = inputs<t2fw_backward_args>();
    a.saved = saved_.get(), a.saved_size = saved_.size();
    a.d_y = d_y_.get();
    a.d_v = d_v_.get(), a.d_f = d_f_.get(), a.d_q = d_q_.get(), a.d_k = d_k_.get(), a.d_g = d_g_.get();
    plan_.backward(a);
  }
  void step() const {
    auto a = inputs<t2fw_step_args>();
    a.initial_state = a.final_state = state_.get();
    a.y = y_.get();
    plan_.step(a);
  }

  Case case_;
  t2fw::Plan plan_;
  uint64_t seed_ = 1;
  size_t traffic_ = 0;
  Buffer v_, f_, q_, k_, g_, y_, state_, saved_, scratch_, d_y_, d_v_, d_f_, d_q_, d_k_, d_g_;
};

// Kept between calls: Google Benchmark calls measure several times for one case. main releases the last.
std::unique_ptr<Problem> problem;

// Seconds that `calls` calls take, on a GPU by its own clock, the L2 cache emptied before each.
double run(const Problem& p, int calls) {
  double seconds = 0;
  if (p.which().device == T2FW_CPU) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) p.execute();
    return seconds_since(start);
  }
#ifdef BENCH_GPU
  static const Buffer flush(p.which().device, size_t{256} << 20);
  const auto check = [](int status) {
    if (status != 0) throw std::runtime_error("the device's runtime failed with " + std::to_string(status));
  };
  std::vector<BENCH_GPU(Event_t)> events(2 * static_cast<size_t>(calls));
  for (auto& event : events) check(BENCH_GPU(EventCreate)(&event));
  for (size_t i = 0; i < events.size(); i += 2) {
    check(BENCH_GPU(MemsetAsync)(flush.get(), 0, flush.size(), nullptr));
    check(BENCH_GPU(EventRecord)(events[i], nullptr));
    p.execute();
    check(BENCH_GPU(EventRecord)(events[i + 1], nullptr));
  }
  synchronise(p.which().device);
  for (size_t i = 0; i < events.size(); i += 2) {
    float milliseconds = 0;
    check(BENCH_GPU(EventElapsedTime)(&milliseconds, events[i], events[i + 1]));
    seconds += milliseconds * 1e-3;
  }
  for (auto& event : events) check(BENCH_GPU(EventDestroy)(event));
#endif
  return seconds;
}

void measure(benchmark::State& state, const Case& c) try {
  const double copied = copy_rate(c.device);
  if (!problem || problem->which().name != c.name) {
    problem.reset();
    problem = std::make_unique<Problem>(c);
    problem->execute();
    synchronise(c.device);
  }
  const int batch = c.device == T2FW_CPU ? 1 : 16;
  double total = 0;
  while (state.KeepRunningBatch(batch)) {
    const double seconds = run(*problem, batch);
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const double seconds = total / static_cast<double>(state.iterations());
  const double rate = problem->traffic() / seconds;
  state.counters["ns_token_head"] = seconds * 1e9 / static_cast<double>(c.shape.B * c.shape.T * c.shape.H);
  state.counters["GB_s"] = rate * 1e-9;
  state.counters["copy_pct"] = 100 * rate / copied;
  state.counters["peak_MiB"] = problem->memory() / (1 << 20);
  state.counters["extra_MiB"] = problem->extra() / (1 << 20);
} catch (const std::exception& error) {
  state.SkipWithError(error.what());
}

void add(const std::string& backend, const std::string& device_name) {
  const t2fw_device device = device_name == "cpu" ? T2FW_CPU : device_name == "cuda" ? T2FW_CUDA : T2FW_HIP;
  if (!test::memory_of(device).present()) {
    std::fprintf(stderr, "%s(%s) is left out: the machine has no such device\n", backend.c_str(), device_name.c_str());
    return;
  }
  for (const t2fw_rule rule : {T2FW_DECAY, T2FW_DELTA})
    for (const Work work : {Work::forward, Work::backward, Work::forward_backward, Work::step})
      for (const Dtypes& dtypes : all_dtypes) {
        if (rule == T2FW_DELTA && dtypes.gate != t2fw::describe(rule, dtypes.data, 1, 1, 1, 1, 1).gate_dtype) continue;
        const bool step = work == Work::step;
        const auto each = [&](const auto& shapes) {
          for (const Shape& s : shapes) {
            std::ostringstream name;
            name << device_name << '/' << backend << (rule == T2FW_DECAY ? "/decay/" : "/delta/")
                 << work_names[static_cast<int>(work)] << '/' << dtypes.name << '/'
                 << s.B << 'x' << s.T << 'x' << s.H << 'x' << s.D << 'x' << s.K;
            const Case c{name.str(), backend, device, rule, work, dtypes, s};
            benchmark::RegisterBenchmark(c.name.c_str(), [c](benchmark::State& state) { measure(state, c); })
                ->UseManualTime()
                ->Unit(benchmark::kMicrosecond);
          }
        };
        if (device == T2FW_CPU) step ? each(cpu_steps) : each(cpu_sequences);
        else step ? each(gpu_steps) : each(gpu_sequences);
      }
}

}  // namespace

int main(int argc, char** argv) {
  std::istringstream backends(t2fw_backends());  // "name(device),name(device)"
  for (std::string entry; std::getline(backends, entry, ',');) {
    const size_t begin = entry.find_first_not_of(' '), open = entry.find('(');
    add(entry.substr(begin, open - begin), entry.substr(open + 1, entry.find(')') - open - 1));
  }
  bench::add_bars();
  benchmark::AddCustomContext("t2fw_backends", t2fw_backends());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  problem.reset();
  benchmark::Shutdown();
}
