// SPDX-License-Identifier: MIT
//
// batch: 1,000 blocks of 64 bytes are taken, then all are given back in the order in which they were taken. ns a pair.
#include <vector>

#include "driver.h"

double bench::batch(const Scale& scale) {
  constexpr size_t kBlocks = 1000;
  const size_t rounds = scale.of(200);
  std::vector<uint64_t*> blocks(kBlocks);
  return median_ns(scale, 5, [&] {
           for (size_t round = 0; round < rounds; round++) {
             for (size_t i = 0; i < kBlocks; i++) blocks[i] = take(64, round ^ i);
             for (size_t i = 0; i < kBlocks; i++) give_back(blocks[i], round ^ i);
           }
         }) / static_cast<double>(rounds * kBlocks);
}
