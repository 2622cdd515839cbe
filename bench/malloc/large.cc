// SPDX-License-Identifier: MIT
//
// large: 10 blocks of 5 to 25 MiB; a random one is freed and one of another size taken; one byte in each of its pages is written, and read
// before it is freed. us a replacement. Most of it is the system's: pages that were given back are faulted in again.
#include <vector>

#include "driver.h"

namespace {

constexpr size_t kPage = 4096;

struct Pages {
  unsigned char* bytes = nullptr;
  size_t size = 0;

  void fill(size_t wanted) {
    bytes = static_cast<unsigned char*>(std::malloc(wanted));
    size = wanted;
    if (bytes == nullptr) bench::fail("malloc() found no memory");
    for (size_t i = 0; i < size; i += kPage) bytes[i] = static_cast<unsigned char>(i / kPage);
  }
  void clear() {
    for (size_t i = 0; i < size; i += kPage)
      if (bytes[i] != static_cast<unsigned char>(i / kPage)) bench::fail("a large block lost bytes");
    std::free(bytes);
  }
};

}  // namespace

double bench::large(const Scale& scale) {
  constexpr uint32_t kBlocks = 10;
  const size_t steps = scale.of(64);
  const auto size = [](Random& random) { return size_t{random.between(5 << 10, 25 << 10)} << 10; };
  Random first(1);
  std::vector<Pages> blocks(kBlocks);
  for (Pages& block : blocks) block.fill(size(first));
  const double ns = median_ns(scale, 3, [&] {
    Random random(2);
    for (size_t step = 0; step < steps; step++) {
      Pages& block = blocks[random.below(kBlocks)];
      block.clear();
      block.fill(size(random));
    }
  });
  for (Pages& block : blocks) block.clear();
  return ns / 1e3 / static_cast<double>(steps);
}
