// SPDX-License-Identifier: MIT
//
// thread_storm: threads that live shortly: four at a time are created, each takes and frees 100 blocks of 16 to 1,024 bytes, and ends. us a
// thread, most of which is the system's.
#include <array>
#include <thread>

#include "driver.h"

namespace {

void live_shortly(unsigned seed) {
  constexpr uint32_t kBlocks = 100;
  bench::Random random(seed);
  std::array<bench::Block, kBlocks> blocks;
  for (uint32_t i = 0; i < kBlocks; i++) blocks[i].fill(random.between(16, 1024), i);
  for (uint32_t i = 0; i < kBlocks; i++) blocks[i].clear(i);
}

}  // namespace

double bench::thread_storm(const Scale& scale) {
  constexpr size_t kAtOnce = 4;
  const size_t rounds = scale.of(125);
  return median_ns(3, [&] {
           for (size_t round = 0; round < rounds; round++) {
             std::array<std::thread, kAtOnce> threads;
             unsigned seed = 1;
             for (std::thread& thread : threads) thread = std::thread(live_shortly, seed++);
             for (std::thread& thread : threads) thread.join();
           }
         }) / 1e3 / static_cast<double>(rounds * kAtOnce);
}
