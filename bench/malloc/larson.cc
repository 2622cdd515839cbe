// SPDX-License-Identifier: MIT
//
// larson: a server after Larson and Krishnan (1998). Each of N threads (--threads, else one per CPU) has 1,000 blocks of 16 to 1,024 bytes
// and replaces random ones. After a while (five milliseconds or more) it ends, and a new thread goes on with its blocks: which were taken
// by others that are gone. ns a replacement, over all threads: half as much with two threads is perfect. The first blocks, which one
// thread takes for all, and the last frees are not timed.
#include <array>
#include <memory>
#include <thread>
#include <vector>

#include "driver.h"

namespace {

constexpr uint32_t kBlocks = 1000;
constexpr size_t kGenerations = 3;

struct Client {
  std::vector<bench::Block> blocks{kBlocks};
  bench::Random random;
  size_t steps;
  std::array<std::thread, kGenerations> generations;

  Client(unsigned seed, size_t each) : random(seed), steps(each) {
    for (uint32_t i = 0; i < kBlocks; i++) blocks[i].fill(random.between(16, 1024), i);
  }
  void serve() {
    for (size_t step = 0; step < steps; step++) {
      const uint32_t i = random.below(kBlocks);
      blocks[i].clear(i);
      blocks[i].fill(random.between(16, 1024), i);
    }
  }
  // Each generation begins the next one before it ends, so who has joined one finds the next.
  void begin(size_t generation) {
    generations[generation] = std::thread([this, generation] {
      serve();
      if (generation + 1 < kGenerations) begin(generation + 1);
    });
  }
  void join() {
    for (std::thread& generation : generations) generation.join();
  }
  void finish() {
    for (uint32_t i = 0; i < kBlocks; i++) blocks[i].clear(i);
  }
};

}  // namespace

double bench::larson(const Scale& scale) {
  const unsigned threads = scale.threads != 0 ? scale.threads : nr_cpus();
  // Blocks of many threads do not fit into caches: there a step takes longer.
  const size_t steps = scale.of(threads > 16 ? 250'000 : 500'000);
  return median_of(3, [&] {
    std::vector<std::unique_ptr<Client>> clients;
    for (unsigned i = 0; i < threads; i++) clients.push_back(std::make_unique<Client>(i + 1, steps));
    const double before = now_ns();
    for (const auto& client : clients) client->begin(0);
    for (const auto& client : clients) client->join();
    const double ns = now_ns() - before;
    for (const auto& client : clients) client->finish();
    return ns / static_cast<double>(threads * kGenerations * steps);
  });
}
