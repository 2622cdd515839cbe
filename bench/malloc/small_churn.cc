// SPDX-License-Identifier: MIT
//
// small_churn: each thread holds 1,000 blocks of 16 to 512 bytes and replaces a random one by one of a random size, small ones more
// often. One thread unless told otherwise (--threads). ns a replacement, over all threads: half as much with two threads is perfect.
#include <algorithm>
#include <vector>

#include "driver.h"

namespace {

uint32_t small_size(bench::Random& random) {
  const uint64_t bits = random.next();
  return 16 + static_cast<uint32_t>(((bits & 0xFFF) * (bits >> 52)) * 496 >> 24);  // a product: half of them are below 108
}

}  // namespace

double bench::small_churn(const Scale& scale) {
  constexpr uint32_t kBlocks = 1000;
  const unsigned threads = std::max(1u, scale.threads);
  // The work in all is the same whatever the number of threads.
  const size_t steps = scale.of(2'000'000 / threads);
  const auto churn = [=](unsigned thread) {
    Random random(thread + 1);
    std::vector<Block> blocks(kBlocks);
    for (uint32_t i = 0; i < kBlocks; i++) blocks[i].fill(small_size(random), i);
    for (size_t step = 0; step < steps; step++) {
      const uint32_t i = random.below(kBlocks);
      blocks[i].clear(i);
      blocks[i].fill(small_size(random), i);
    }
    for (uint32_t i = 0; i < kBlocks; i++) blocks[i].clear(i);
  };
  const double work = static_cast<double>(steps * threads);
  if (threads == 1) return median_ns(scale, 5, [&] { churn(0); }) / work;
  return median_ns(scale, 5, [&] { run_threads(threads, churn); }) / work;
}
