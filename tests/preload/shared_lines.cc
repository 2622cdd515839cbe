// SPDX-License-Identifier: MIT
//
// Under the preload: threads that run at the same time, each on a CPU of its own, take small blocks of lines of their own, also when each
// first frees one that another thread took for all, again and again. (When blocks that lay alone in a line came first, two threads were in
// one line in a round of four.)
//
// usage: shared_lines [ROUNDS]      (300 by default; those in which two threads stayed on two CPUs); 77 where there is one CPU
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <vector>

#include "../as_told.h"

namespace {

constexpr int kBlocks = 200;
constexpr int kMostThreads = 4;

struct Worker {
  pthread_t thread;
  uint64_t* first;      // that the main thread took
  uintptr_t lines[8];   // of the blocks that it took itself
  int nr_lines = 0;
  int cpu = -1;         // where all of it ran; -1: it moved
};

std::atomic<int> arrived{0};
int nr_threads = 0;

void* work(void* argument) {
  auto* worker = static_cast<Worker*>(argument);
  const int cpu = sched_getcpu();
  arrived++;
  while (arrived < nr_threads) sched_yield();
  free(worker->first);
  for (int i = 0; i < kBlocks; ++i) {
    auto* block = static_cast<volatile uint64_t*>(malloc(8));
    *block = static_cast<uint64_t>(i);
    const uintptr_t line = reinterpret_cast<uintptr_t>(block) / 64;
    int known = 0;
    while (known < worker->nr_lines && worker->lines[known] != line) known++;
    if (known == worker->nr_lines && known < 8) worker->lines[worker->nr_lines++] = line;
    free(const_cast<uint64_t*>(block));
  }
  worker->cpu = sched_getcpu() == cpu ? cpu : -1;
  return nullptr;
}

// Whether two of them were in one line, on two CPUs. *any: whether two were on two CPUs.
bool any_shared(const std::vector<Worker>& workers, bool* any) {
  for (size_t a = 0; a < workers.size(); ++a) {
    for (size_t b = a + 1; b < workers.size(); ++b) {
      if (workers[a].cpu < 0 || workers[b].cpu < 0 || workers[a].cpu == workers[b].cpu) continue;
      *any = true;
      for (int i = 0; i < workers[a].nr_lines; ++i) {
        for (int j = 0; j < workers[b].nr_lines; ++j) {
          if (workers[a].lines[i] == workers[b].lines[j]) return true;
        }
      }
    }
  }
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  expect_preload_as_told();
  alarm(600);  // of rounds that are none there is no end
  const int rounds = argc > 1 ? atoi(argv[1]) : 300;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  nr_threads = CPU_COUNT(&allowed) < kMostThreads ? CPU_COUNT(&allowed) : kMostThreads;
  if (nr_threads < 2) return 77;
  int shared = 0;
  for (int round = 0; round < rounds;) {
    std::vector<Worker> workers(static_cast<size_t>(nr_threads));
    for (Worker& worker : workers) {
      worker.first = static_cast<uint64_t*>(malloc(8));
      if (worker.first == nullptr) return 1;
      *worker.first = 7;
    }
    arrived = 0;
    for (Worker& worker : workers) {
      if (pthread_create(&worker.thread, nullptr, work, &worker) != 0) return 1;
    }
    for (Worker& worker : workers) pthread_join(worker.thread, nullptr);
    bool any = false;
    shared += any_shared(workers, &any);
    round += any;
  }
  if (shared * 20 > rounds) {
    fprintf(stderr, "shared_lines: expected threads on two CPUs in lines of their own, but for one round in twenty; found %d of %d\n",
            shared, rounds);
    return 1;
  }
  return 0;
}
