// SPDX-License-Identifier: MIT
//
// Under a preload that sees three nodes: a CPU allocates from its own node's part of the window, and what it frees of
// another node's goes back there. Addresses tell: the parts lie far apart.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <malloc.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <thread>
#include <vector>

namespace {

// The kernel's own view: the preload hides nothing from a raw system call.
bool move_to(int cpu) {
  unsigned long mask[16] = {};
  mask[cpu / 64] = 1ul << cpu % 64;
  return syscall(SYS_sched_setaffinity, 0, sizeof mask, mask) == 0 && sched_getcpu() == cpu;
}

int here = -1;   // two CPUs of different nodes that the process may use
int there = -1;

// Whether there are two. Before anything moves this thread.
bool find_two_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return false;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &set)) continue;
    if (here < 0) here = cpu;
    there = cpu;
    if (there % 3 != here % 3) return true;
  }
  return false;
}

// Parts are TiBs apart, or at least more than one test uses.
bool same_node(const void* a, const void* b) {
  const uintptr_t x = reinterpret_cast<uintptr_t>(a);
  const uintptr_t y = reinterpret_cast<uintptr_t>(b);
  return (x > y ? x - y : y - x) < uintptr_t{1} << 32;
}

// Without rseq there are no caches: what is freed goes back at once.
const bool cached = __rseq_size != 0;

constexpr size_t kSizes[] = {64, 1000, 20000, 100000};
constexpr size_t kBlocks = 2000;

}  // namespace

TEST_CASE("each CPU allocates from its own node") {
  for (const size_t size : kSizes) {
    CAPTURE(size);
    REQUIRE(move_to(here));
    std::vector<void*> a;
    for (int i = 0; i < 300; ++i) a.push_back(malloc(size));
    REQUIRE(move_to(there));
    std::vector<void*> b;
    for (int i = 0; i < 300; ++i) b.push_back(malloc(size));
    for (void* block : a) CHECK(same_node(block, a[0]));
    for (void* block : b) CHECK(same_node(block, b[0]));
    CHECK_FALSE(same_node(a[0], b[0]));
    for (void* block : a) free(block);
    for (void* block : b) free(block);
  }
}

TEST_CASE("what is freed on another node goes back to its own, in batches, and is never handed out there") {
  for (const size_t size : kSizes) {
    CAPTURE(size);
    REQUIRE(move_to(here));
    std::set<void*> mine;
    // All that the test itself needs: where it grew afterwards it would take the pages that blocks have left.
    std::vector<void*> others;
    std::vector<void*> more;
    others.reserve(kBlocks);
    more.reserve(kBlocks);
    for (size_t i = 0; i < kBlocks; ++i) mine.insert(malloc(size));
    void* const any = *mine.begin();
    const std::vector<void*> in_order(mine.begin(), mine.end());
    const size_t block_bytes = malloc_usable_size(any);
    const size_t batch = std::clamp(16 * 1024 / block_bytes, size_t{4}, size_t{64});
    REQUIRE(move_to(there));
    (void)malloc_trim(0);  // so that this CPU's cache holds nothing else
    const size_t before = mallinfo2().fsmblks;
    size_t most = 0;
    size_t last = 0;
    size_t trips = 0;  // frees that took others along
    for (void* block : in_order) {
      free(block);
      const size_t waiting = mallinfo2().fsmblks - before;
      trips += waiting <= last;
      most = std::max(most, waiting);
      last = waiting;
    }
    if (size <= 32768 && cached) {
      CHECK(most <= batch * block_bytes);  // at most a batch of them waits on this CPU
      CHECK(most > batch * block_bytes / 2);
      CHECK(trips >= 1);
      CHECK(trips * batch / 2 <= kBlocks);  // at least half a batch each time
    } else {
      CHECK(most == 0);
    }
    for (size_t i = 0; i < kBlocks; ++i) {
      others.push_back(malloc(size));
      REQUIRE_FALSE(same_node(others.back(), any));
    }
    REQUIRE(move_to(here));
    // Nearly all of them come again on their own node. (Free runs of pages are joined, and cut elsewhere.)
    int again = 0;
    for (size_t i = 0; i < kBlocks; ++i) {
      more.push_back(malloc(size));
      REQUIRE(same_node(more.back(), any));
      again += mine.count(more.back()) != 0;
    }
    if (size <= 32768) CHECK(again > 1500);
    for (void* block : others) free(block);
    for (void* block : more) free(block);
  }
  CHECK(malloc_trim(0) == 1);
}

TEST_CASE("threads of several nodes hand blocks to each other") {
  std::vector<void*> slots(4096);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t, cpu = t % 2 == 0 ? here : there] {
      if (!move_to(cpu)) abort();
      uint64_t seed = 88172645463325252u + static_cast<uint64_t>(t);
      for (int i = 0; i < 100000; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const size_t size = 16 + (seed >> 33) % 3000;
        uint64_t* block = static_cast<uint64_t*>(malloc(size));
        block[0] = reinterpret_cast<uint64_t>(block);
        uint64_t* old = static_cast<uint64_t*>(__atomic_exchange_n(&slots[(seed >> 20) % slots.size()], block, __ATOMIC_ACQ_REL));
        if (old == nullptr) continue;
        if (old[0] != reinterpret_cast<uint64_t>(old)) abort();
        free(old);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (void* block : slots) free(block);
  const struct mallinfo2 before = mallinfo2();
  malloc_trim(0);
  const struct mallinfo2 after = mallinfo2();
  CHECK(after.uordblks <= before.uordblks);
  CHECK(after.fsmblks <= before.fsmblks);
}

int main(int argc, char** argv) {
  if (!find_two_cpus()) {
    puts("nodes: skipped, the process may use the CPUs of one node only");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
