// SPDX-License-Identifier: MIT
//
// given_back: 128 MiB of blocks of 16 to 1,024 bytes and 128 MiB of blocks of 1 to 8 MiB are written, and freed in random order. MiB that the
// process holds three seconds later, during which it sleeps: what an allocator gives back to the system by itself. With --threads 2 there is
// another thread, which waits all the time: some allocators only work by themselves in programs of many threads.
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "driver.h"

double bench::given_back(const Scale& scale) {
  const size_t each = scale.of(128 << 20);
  std::atomic<bool> end{false};
  std::thread other;
  if (scale.threads > 1) other = std::thread([&] { end.wait(false); });
  {
    Random random(1);
    std::vector<Block> blocks;
    const auto add = [&](uint32_t size) {
      blocks.emplace_back().fill(size, 0);
      std::memset(blocks.back().words, 0, size - 1);
    };
    for (size_t taken = 0; taken < each; taken += blocks.back().size) add(random.between(16, 1024));
    for (size_t taken = 0; taken < each; taken += blocks.back().size) add(random.between(1 << 20, 8 << 20));
    for (uint32_t i = static_cast<uint32_t>(blocks.size()); i > 1; i--) std::swap(blocks[i - 1], blocks[random.below(i)]);
    for (Block& block : blocks) block.clear(0);
  }
  sleep(3);
  const double left = resident_bytes();
  end.store(true);
  end.notify_all();
  if (other.joinable()) other.join();
  return left / (1 << 20);
}
