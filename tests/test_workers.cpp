// Every result has the same bits on one and on two threads of the CPU. A process has one pool of threads, so the program
// starts itself once for each number, with a file's name in T2FW_TEST_DIGESTS to say so.
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "harness.hpp"

namespace test {
namespace {

constexpr const char* digests_variable = "T2FW_TEST_DIGESTS";

// FNV-1a
uint64_t digest(const std::vector<unsigned char>& bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

struct Problem {
  Case c;
  std::vector<int64_t> cu_seqlens = {};
};

std::vector<Problem> problems() {
  constexpr auto F64 = T2FW_FP64, F32 = T2FW_FP32, BF16 = T2FW_BF16;
  constexpr auto NONE = T2FW_GATE_NONE, HEAD = T2FW_GATE_HEAD, FULL = T2FW_GATE_FULL;
  const auto decay = T2FW_DECAY, delta = T2FW_DELTA;
  const std::vector<int64_t> cu = {0, 1, 1, 65, 66, 150, 199, 200};
  return {
      {{decay, F32, F32, F32, FULL, FULL, 2, 65, 3, 48, 96}},
      {{decay, BF16, F32, F32, HEAD, FULL, 2, 65, 3, 48, 96}},
      {{decay, F64, F64, F64, FULL, HEAD, 1, 65, 5, 3, 16}},
      {{decay, F32, F32, F32, NONE, FULL, 1, 300, 1, 64, 64}},
      {{decay, F32, F32, F32, FULL, FULL, 1, 200, 3, 17, 48}, cu},
      {{delta, F32, F32, F32, NONE, NONE, 2, 65, 3, 48, 96}},
      {{delta, BF16, F32, F32, NONE, NONE, 3, 65, 1, 16, 33}},
      {{delta, F64, F64, F64, NONE, NONE, 1, 300, 1, 64, 64}},
      {{delta, F32, F32, F32, NONE, NONE, 1, 200, 3, 17, 48}, cu},
      {{decay, F32, F32, F32, FULL, FULL, 5, 1, 3, 48, 96}},
      {{decay, BF16, F32, BF16, FULL, NONE, 2, 1, 1, 256, 17}},
      {{delta, F32, F32, F32, NONE, NONE, 5, 1, 3, 48, 96}},
  };
}

// One line a result, and last the scratch of all problems together, which grows with the threads.
void write_digests(const char* path) {
  std::ofstream out(path);
  size_t scratch = 0;
  for (const Backend& backend : backends())
    for (const Problem& problem : problems()) {
      if (backend.device != T2FW_CPU) continue;
      const Case& c = problem.c;
      const std::vector<int64_t>& cu_seqlens = problem.cu_seqlens;
      Case states = c;
      states.B = cu_seqlens.empty() ? c.B : static_cast<int64_t>(cu_seqlens.size()) - 1;
      Tensors x = make_inputs(c);
      const Tensors y = make_inputs(states);
      x.initial_state = y.initial_state, x.d_final_state = y.d_final_state;
      t2fw_descriptor d = describe(backend, c);
      d.sequences = cu_seqlens.empty() ? 0 : states.B;
      Session run(backend, c, x, d, cu_seqlens);
      ASSERT_TRUE(run.ready());
      const auto line = [&](const char* operation, const char* result, const std::vector<unsigned char>& bytes) {
        out << backend.name << ' ' << name_of(c) << ' ' << operation << ' ' << result << ' ' << digest(bytes) << '\n';
      };
      run.forward();
      scratch += run.scratch.size();
      line("forward", "y", run.y.bits());
      line("forward", "final_state", run.final_state.bits());
      line("forward", "saved", run.saved.download());
      run.backward();
      scratch += run.scratch.size();
      for (const auto& [name, operand] :
           {std::pair{"d_v", &run.d_v}, {"d_f", &run.d_f}, {"d_q", &run.d_q}, {"d_k", &run.d_k}, {"d_g", &run.d_g}})
        if (*operand) line("backward", name, operand->bits());
      line("backward", "d_initial_state", run.d_initial_state.bits());
      if (c.T != 1) continue;
      run.poison_outputs();
      run.step(false);
      line("step", "y", run.y.bits());
      line("step", "final_state", run.final_state.bits());
      run.step(true);
      line("step in place", "state", run.initial_state.bits());
    }
  out << scratch << '\n';
}

std::vector<std::string> digests_on(int threads) {
  namespace fs = std::filesystem;
  const fs::path file = fs::path(testing::TempDir()) / ("t2fw_digests_" + std::to_string(threads) + "_" +
                                                        fs::read_symlink("/proc/self").string());
  const std::string command = "GTEST_TOTAL_SHARDS=1 GTEST_SHARD_INDEX=0 OMP_NUM_THREADS=" + std::to_string(threads) +
                              " OMP_DYNAMIC=false " + digests_variable +
                              "='" + file.string() + "' '" + fs::read_symlink("/proc/self/exe").string() +
                              "' --gtest_filter=Workers.OneAndTwoGiveTheSameBits --gtest_output= >&2";
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  std::ifstream in(file);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  fs::remove(file);
  return lines;
}

TEST(Workers, OneAndTwoGiveTheSameBits) {
  if (const char* path = std::getenv(digests_variable)) return write_digests(path);
#ifndef T2FW_WITH_OPENMP
  GTEST_SKIP() << "this build has one thread";
#endif
  const auto one = digests_on(1), two = digests_on(2);
  ASSERT_EQ(one.size(), two.size());
  ASSERT_GT(one.size(), problems().size());
  EXPECT_NE(one.back(), two.back()) << "as much scratch for two threads as for one: was there a second one?";
  for (size_t i = 0; i + 1 < one.size(); i++) EXPECT_EQ(one[i], two[i]);
}

}  // namespace
}  // namespace test
