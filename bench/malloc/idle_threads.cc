// SPDX-License-Identifier: MIT
//
// idle_threads: N threads (--threads, else 200) each take 4,000 blocks of 16 to 1,024 bytes, replace half of them, free all, and then wait, as
// the threads of a pool do. MiB that the process holds half a second later: what was left in caches and arenas of threads.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "driver.h"

namespace {

void work_a_while(unsigned seed, uint32_t count) {
  bench::Random random(seed);
  std::vector<bench::Block> blocks(count);
  for (uint32_t i = 0; i < count; i++) blocks[i].fill(random.between(16, 1024), i);
  for (uint32_t step = 0; step < count / 2; step++) {
    const uint32_t i = random.below(count);
    blocks[i].clear(i);
    blocks[i].fill(random.between(16, 1024), i);
  }
  for (uint32_t i = 0; i < count; i++) blocks[i].clear(i);
}

}  // namespace

double bench::idle_threads(const Scale& scale) {
  const unsigned count = scale.threads != 0 ? scale.threads : static_cast<unsigned>(scale.of(200));
  std::vector<std::thread> threads;
  std::atomic<unsigned> idle{0};
  std::atomic<bool> end{false};
  // Not more at once than there are CPUs, as where a pool's threads get work in turn.
  std::atomic<unsigned> turns{nr_cpus()};
  for (unsigned i = 0; i < count; i++) {
    threads.emplace_back([&, i] {
      for (unsigned left = turns.load();;) {
        if (left == 0) turns.wait(0), left = turns.load();
        else if (turns.compare_exchange_weak(left, left - 1)) break;
      }
      work_a_while(i + 1, 4000);
      turns.fetch_add(1);
      turns.notify_one();
      idle.fetch_add(1);
      idle.notify_one();
      end.wait(false);
    });
  }
  for (unsigned seen = idle.load(); seen != count; seen = idle.load()) idle.wait(seen);
  usleep(500'000);
  const double left = resident_bytes();
  end.store(true);
  end.notify_all();
  for (std::thread& thread : threads) thread.join();
  return left / (1 << 20);
}
