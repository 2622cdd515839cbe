// SPDX-License-Identifier: MIT
//
// Under the preload: threads that are born, free blocks of others first, allocate, leave blocks to others, and die, while caches are
// closed all the time (malloc_trim, fork) and signals move every thread from CPU to CPU. Each block is full of a number of its
// own, compared when it is freed: no block may be in two hands.
//
// usage: first_frees [SECONDS]      (5 by default)
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>
#include <vector>

#include "../as_told.h"

namespace {

constexpr size_t kSizes[] = {8, 16, 32, 48, 64, 24, 100, 8, 304, 2000};

[[noreturn]] void fail(const char* what) {
  fprintf(stderr, "first_frees: %s\n", what);
  abort();
}

std::atomic<bool> stop{false};
std::atomic<uint64_t> next_number{1};

class Block {
 public:
  Block() = default;
  explicit Block(size_t size) : words_(static_cast<uint64_t*>(malloc(size))), count_(size / 8), number_(next_number++ << 32) {
    if (words_ == nullptr) fail("no memory");
    for (size_t i = 0; i < count_; ++i) words_[i] = number_ + i;
  }
  void release() {
    for (size_t i = 0; i < count_; ++i) {
      if (words_[i] != number_ + i) fail("a block holds what its owner did not write");
    }
    memset(words_, 0x5a, 8 * count_);
    free(words_);
  }

 private:
  uint64_t* words_ = nullptr;
  size_t count_ = 0;
  uint64_t number_ = 0;
};

// Where threads leave blocks to one another. Allocates nothing; its lock is held while this process forks.
class Exchange {
 public:
  bool leave(Block block) {
    pthread_mutex_lock(&lock_);
    const bool room = count_ < kPlaces;
    if (room) blocks_[count_++] = block;
    pthread_mutex_unlock(&lock_);
    return room;
  }
  bool take(uint64_t random, Block* block) {
    pthread_mutex_lock(&lock_);
    const bool any = count_ != 0;
    if (any) {
      Block& chosen = blocks_[random % count_];
      *block = chosen;
      chosen = blocks_[--count_];
    }
    pthread_mutex_unlock(&lock_);
    return any;
  }
  pid_t fork_with_lock() {
    pthread_mutex_lock(&lock_);
    const pid_t child = fork();
    pthread_mutex_unlock(&lock_);
    return child;
  }

 private:
  static constexpr size_t kPlaces = 20'000;
  pthread_mutex_t lock_ = PTHREAD_MUTEX_INITIALIZER;
  size_t count_ = 0;
  Block blocks_[kPlaces];
};
Exchange exchange;

cpu_set_t allowed;
void move_to(uint64_t n) {
  n %= static_cast<uint64_t>(CPU_COUNT(&allowed));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0;; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || n-- != 0) continue;
    CPU_SET(cpu, &one);
    break;
  }
  sched_setaffinity(0, sizeof one, &one);
}
void on_signal(int) {
  static std::atomic<uint64_t> nr_signals{0};
  const int saved_errno = errno;
  move_to(nr_signals++);
  errno = saved_errno;
}

void live(uint64_t seed) {
  std::minstd_rand random(static_cast<unsigned>(seed));
  Block block;
  for (unsigned i = random() % 3 + 1; i > 0; --i) {
    if (exchange.take(random(), &block)) block.release();
  }
  for (unsigned i = random() % 40; i > 0; --i) {
    Block own(kSizes[random() % std::size(kSizes)]);
    if (random() % 2 == 0 || !exchange.leave(own)) own.release();
    if (random() % 3 == 0 && exchange.take(random(), &block)) block.release();
  }
}

void bear_threads(uint64_t seed) {
  while (!stop) {
    std::thread threads[3];
    for (std::thread& thread : threads) thread = std::thread(live, ++seed * 7919);
    for (std::thread& thread : threads) thread.join();
  }
}

// Keeps the exchange half full.
void trade() {
  std::minstd_rand random(7);
  std::vector<Block> some;
  while (!stop) {
    for (unsigned i = random() % 100; i > 0; --i) some.emplace_back(kSizes[random() % std::size(kSizes)]);
    for (Block& block : some) {
      if (!exchange.leave(block)) block.release();
    }
    some.clear();
    Block block;
    for (unsigned i = random() % 100; i > 0 && exchange.take(random(), &block); --i) block.release();
    usleep(50);
  }
}

void trim() {
  while (!stop) {
    malloc_trim(0);
    usleep(300);
  }
}

void fork_and_go_on() {
  while (!stop) {
    const pid_t child = exchange.fork_with_lock();
    if (child == 0) {
      for (size_t i = 0; i < 300; ++i) {
        Block own(kSizes[i % std::size(kSizes)]), others;
        if (exchange.take(i, &others)) others.release();
        own.release();
      }
      _exit(0);
    }
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) fail("a child failed");
    usleep(2000);
  }
}

}  // namespace

int main(int argc, char** argv) {
  expect_preload_as_told();
  const auto seconds = std::chrono::seconds(argc > 1 ? atoi(argv[1]) : 5);
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) fail("sched_getaffinity");
  std::vector<std::thread> threads;
  threads.emplace_back(bear_threads, 1);
  threads.emplace_back(bear_threads, 1'000'000);
  threads.emplace_back(trade);
  threads.emplace_back(trim);
  threads.emplace_back(fork_and_go_on);
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, nullptr);
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGALRM;
  timer_t timer;
  const itimerspec often{{0, 150'000}, {0, 150'000}};
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &often, nullptr) != 0) fail("no timer");
  const auto end = std::chrono::steady_clock::now() + seconds;
  while (std::chrono::steady_clock::now() < end) usleep(100'000);
  stop = true;
  for (std::thread& thread : threads) thread.join();
  timer_delete(timer);
  Block block;
  while (exchange.take(0, &block)) block.release();
  return 0;
}
