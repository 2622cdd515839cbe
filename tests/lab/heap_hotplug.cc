// SPDX-License-Identifier: MIT
// Under the preload: CPUs are taken offline and brought back while threads allocate. No block loses its content, and the cache of a
// CPU that is offline is empty within half a minute. To be run as root, in a machine of the lab.
//
// usage: heap_hotplug ROUNDS
#include <malloc.h>
#include <sys/mman.h>

#include <atomic>
#include <cstring>

#include "../as_told.h"
#include "hotplug.h"

namespace {

constexpr size_t kBlocks = 300;

std::atomic<bool> stop{false};
std::atomic<uint64_t> nr_wrong{0}, nr_blocks{0};

struct Block {
  unsigned char *start;
  size_t size_bytes;
  unsigned char mark;
};

Block make_block(std::mt19937_64 &random) {
  const size_t size_bytes = 16 + random() % (random() % 16 == 0 ? 60000 : 1000);
  const Block block{static_cast<unsigned char *>(std::malloc(size_bytes)), size_bytes, static_cast<unsigned char>(1 + random() % 255)};
  std::memset(block.start, block.mark, size_bytes);
  nr_blocks.fetch_add(1, std::memory_order_relaxed);
  return block;
}

void end_block(const Block &block) {
  for (size_t i = 0; i < block.size_bytes; ++i) {
    if (block.start[i] == block.mark) continue;
    std::printf("block %p of %zu bytes, byte %zu: expected %u, found %u\n", static_cast<void *>(block.start), block.size_bytes, i,
                block.mark, block.start[i]);
    ++nr_wrong;
    break;
  }
  std::free(block.start);
}

void churn(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Block> own;
  while (!stop.load()) {
    while (own.size() < kBlocks) own.push_back(make_block(random));
    while (own.size() > random() % kBlocks) {
      end_block(own.back());
      own.pop_back();
    }
    std::this_thread::yield();
  }
  for (const Block &block : own) end_block(block);
}

// What malloc_stats() says. The file that it goes to meanwhile is stderr.
std::string told() {
  const int file = memfd_create("stats", MFD_CLOEXEC);
  const int saved = dup(2);
  dup2(file, 2);
  malloc_stats();
  dup2(saved, 2);
  close(saved);
  std::string text(static_cast<size_t>(lseek(file, 0, SEEK_END)), '\0');
  const ssize_t got = pread(file, text.data(), text.size(), 0);
  close(file);
  text.resize(got < 0 ? 0 : static_cast<size_t>(got));
  return text;
}

bool holds_something(int cpu) { return told().find("  CPU " + std::to_string(cpu) + ":") != std::string::npos; }

}  // namespace

int main(int argc, char **argv) {
  expect_preload();
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  const uint64_t seed = lab::seed();
  std::mt19937_64 random(seed);
  const std::vector<int> cpus = lab::removable_cpus();
  if (cpus.empty()) {
    std::printf("lab: no CPU can be taken offline\n");
    return 77;
  }
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 2; ++i) threads.emplace_back(churn, seed + 1 + i);
  int done = 0, held = 0;
  for (int round = 0; round < rounds; ++round) {
    const int cpu = cpus[random() % cpus.size()];
    std::vector<Block> blocks;
    if (lab::go_to(cpu)) {
      for (size_t i = 0; i < kBlocks; ++i) blocks.push_back(make_block(random));
      for (size_t i = 0; i < kBlocks / 2; ++i) {
        end_block(blocks.back());
        blocks.pop_back();
      }
      held += holds_something(cpu);
      lab::go_anywhere();
    }
    if (!lab::set_online(cpu, false)) {
      ++nr_wrong;
      continue;
    }
    if ((round % 10 == 0 || round == rounds - 1) && !lab::eventually([cpu] { return !holds_something(cpu); })) {
      std::printf("CPU %d: expected an empty cache while it is offline, found\n%s", cpu, told().c_str());
      ++nr_wrong;
    }
    for (const Block &block : blocks) end_block(block);
    if (lab::set_online(cpu, true)) {
      ++done;
    } else {
      ++nr_wrong;
    }
  }
  stop = true;
  for (std::thread &thread : threads) thread.join();
  if (held == 0) {
    std::printf("expected blocks in the cache of the CPU that they were freed on, found none in any round\n");
    ++nr_wrong;
  }
  std::printf("lab: %d times offline and back, %lu blocks, %lu wrong\n", done, static_cast<unsigned long>(nr_blocks.load()),
              static_cast<unsigned long>(nr_wrong.load()));
  return nr_wrong == 0 && done > 0 ? 0 : 1;
}
