// SPDX-License-Identifier: MIT
//
// random_sizes: 2,000 blocks of 16 bytes to 16 KiB; a random one is replaced by one of another random size. ns a replacement.
#include <vector>

#include "driver.h"

double bench::random_sizes(const Scale& scale) {
  constexpr uint32_t kBlocks = 2000, kMost = 16 << 10;
  const size_t steps = scale.of(1'000'000);
  Random first(1);
  std::vector<Block> blocks(kBlocks);
  for (uint32_t i = 0; i < kBlocks; i++) blocks[i].fill(first.between(16, kMost), i);
  const double ns = median_ns(scale, 3, [&] {
    Random random(2);
    for (size_t step = 0; step < steps; step++) {
      const uint32_t i = random.below(kBlocks);
      blocks[i].clear(i);
      blocks[i].fill(random.between(16, kMost), i);
    }
  });
  for (uint32_t i = 0; i < kBlocks; i++) blocks[i].clear(i);
  return ns / static_cast<double>(steps);
}
