// SPDX-License-Identifier: MIT
//
// thread_storm: threads that live shortly. In one chain per CPU, each thread takes and frees 100 blocks of 16 to 1,024 bytes, begins the next
// one, and ends: nobody waits for anybody, so that the time of waking up sleepers is not what is measured. us a thread.
#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "driver.h"

namespace {

void live_shortly(uint64_t seed) {
  constexpr uint32_t kBlocks = 100;
  bench::Random random(seed);
  std::array<bench::Block, kBlocks> blocks;
  for (uint32_t i = 0; i < kBlocks; i++) blocks[i].fill(random.between(16, 1024), i);
  for (uint32_t i = 0; i < kBlocks; i++) blocks[i].clear(i);
}

struct Chain {
  std::vector<std::thread> threads;

  explicit Chain(size_t length) : threads(length) {}
  // Each begins the next one before it ends, so who has joined one finds the next.
  void begin(size_t i) {
    threads[i] = std::thread([this, i] {
      live_shortly(i);
      if (i + 1 < threads.size()) begin(i + 1);
    });
  }
};

}  // namespace

double bench::thread_storm(const Scale& scale) {
  const size_t length = scale.of(150);
  const unsigned count = nr_cpus();
  return median_ns(scale, 3, [&] {
           std::vector<std::unique_ptr<Chain>> chains;
           for (unsigned i = 0; i < count; i++) chains.push_back(std::make_unique<Chain>(length));
           for (const auto& chain : chains) chain->begin(0);
           for (const auto& chain : chains)
             for (std::thread& thread : chain->threads) thread.join();
         }) / 1e3 / static_cast<double>(length * count);
}
