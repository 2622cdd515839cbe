// SPDX-License-Identifier: MIT
//
// calloc: 500 blocks of 16 bytes to 4 KiB, one in 64 of 64 to 256 KiB, all zero when they come and all written before they are given
// back; a random one is replaced. Each word is looked at, in a block that is not zero any more the next time. ns a replacement.
#include <cstring>
#include <vector>

#include "driver.h"

namespace {

struct Zeroed {
  uint64_t* words = nullptr;
  size_t nr_words = 0;

  void fill(size_t count) {
    words = static_cast<uint64_t*>(std::calloc(count, sizeof(uint64_t)));
    nr_words = count;
    if (words == nullptr) bench::fail("calloc() found no memory");
    uint64_t seen = 0;
    for (size_t i = 0; i < count; i++) seen |= words[i];
    if (seen != 0) bench::fail("calloc() gave a block that is not zero");
    std::memset(words, 0xA5, count * sizeof(uint64_t));
  }
  void clear() {
    if (words[nr_words - 1] != 0xA5A5A5A5A5A5A5A5u) bench::fail("a block does not hold what was written to it");
    std::free(words);
  }
};

size_t nr_words(bench::Random& random) {
  return random.below(64) == 0 ? random.between(8 << 10, 32 << 10) : random.between(2, 512);
}

}  // namespace

double bench::calloc_blocks(const Scale& scale) {
  constexpr uint32_t kBlocks = 500;
  const size_t steps = scale.of(20'000);
  Random first(1);
  std::vector<Zeroed> blocks(kBlocks);
  for (Zeroed& block : blocks) block.fill(nr_words(first));
  const double ns = median_ns(scale, 3, [&] {
    Random random(2);
    for (size_t step = 0; step < steps; step++) {
      Zeroed& block = blocks[random.below(kBlocks)];
      block.clear();
      block.fill(nr_words(random));
    }
  });
  for (Zeroed& block : blocks) block.clear();
  return ns / static_cast<double>(steps);
}
