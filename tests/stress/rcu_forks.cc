// SPDX-License-Identifier: MIT
// A program that uses liburcu itself, brackets its forks as liburcu asks, and forks in a storm of readers and of
// percpu_free_rcu().
//
// usage: rcu_forks before|after|never [FORKS]      (200 by default; PERCPU_SEED is the seed)
//
// The word says when the program registers urcu_bp_before_fork() and its twins with pthread_atfork(): before the first use of
// libpercpu, or after it (handlers run in the reverse order, so that liburcu's locks are taken before libpercpu hears of the
// fork), or never, and then only the thread that forks uses liburcu: readers of other threads would be for ever inside in a
// child that liburcu was not told of.
//
// A published area is replaced all the time; readers inside rcu_read_lock(), who allocate there, must find in it what belongs there, never
// what somebody wrote into memory that was freed too early. In each child the same goes on, and the frees come.
#include "expect.h"
#include "storm.h"

#include <cstring>
#include <sys/wait.h>
#include <urcu-bp.h>
#include <vector>

#include "../as_told.h"

namespace {

constexpr uint64_t kGood = 0x600d600d600d600d;
constexpr size_t kWords = 6;

std::atomic<bool> stop{false};
std::atomic<uint64_t> replaced{0}, looked{0};
uint64_t *published;  // the handle of the area that readers may find
bool uses_liburcu = true;

uint64_t *new_area() {
  auto *area = static_cast<uint64_t *>(percpu_alloc(kWords * sizeof(uint64_t), 8));
  EXPECT(area != nullptr);
  uint64_t *copy;
  percpu_for_each_copy(copy, area) {
    for (size_t i = 0; i < kWords; ++i) {
      EXPECT(copy[i] == 0);
      __atomic_store_n(&copy[i], kGood, __ATOMIC_RELAXED);
    }
  }
  return area;
}

// Not seen by ThreadSanitizer, which does not know that a grace period lies between this and what is done to the area when it was
// freed: liburcu is not compiled for it.
__attribute__((noinline, no_sanitize("thread"))) bool is_good(const volatile uint64_t *copy) {
  for (size_t i = 0; i < kWords; ++i) {
    if (copy[i] != kGood) return false;
  }
  return true;
}

void look() {
  urcu_bp_read_lock();
  uint64_t *area = __atomic_load_n(&published, __ATOMIC_ACQUIRE);
  void *volatile block = malloc(looked % 5000 + 1);
  for (int round = 0; round < 3; ++round) {
    uint64_t *copy;
    percpu_for_each_copy(copy, area) EXPECT(is_good(copy));
  }
  free(block);
  urcu_bp_read_unlock();
}

void replace() {
  uint64_t *old = __atomic_exchange_n(&published, new_area(), __ATOMIC_ACQ_REL);
  percpu_free_rcu(old);
  // What is freed is soon somebody else's, who writes to it.
  auto *other = static_cast<uint64_t *>(percpu_alloc(kWords * sizeof(uint64_t), 8));
  EXPECT(other != nullptr);
  uint64_t *copy;
  percpu_for_each_copy(copy, other) {
    for (size_t i = 0; i < kWords; ++i) __atomic_store_n(&copy[i], 0xbad, __ATOMIC_RELAXED);
  }
  percpu_free(other);
}

void read_on(uint64_t) {
  while (!stop) {
    look();
    ++looked;
  }
}
void replace_on(uint64_t seed) {
  std::mt19937_64 random(seed);
  while (!stop) {
    replace();
    ++replaced;
    if (random() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
  }
}
void wait_on(uint64_t) {
  while (!stop) {
    if (uses_liburcu) urcu_bp_synchronize_rcu();
    percpu_pool_t *pool = percpu_pool_create(nullptr);
    EXPECT(pool != nullptr);
    percpu_pool_free_rcu(pool, percpu_pool_alloc(pool, 64, 8, 0));
    EXPECT(percpu_pool_destroy(pool) == 0);
  }
}

// Whether all that waits for a grace period is freed: a pool can only go when nothing waits in it.
void in_child(bool inside_section) {
  alarm(storm::kHangSeconds);
  if (inside_section) urcu_bp_read_unlock();
  // The areas that other threads of the parent were about to publish are nobody's; the published one is whole.
  look();
  for (int i = 0; i < 20; ++i) {
    replace();
    look();
  }
  // A thread that is new to liburcu takes its lock, which nobody gives back where the parent could not wait for it.
  if (!inside_section) std::thread([] { look(); }).join();
  if (uses_liburcu) urcu_bp_synchronize_rcu();
  percpu_free(percpu_alloc(100, 4));
  EXPECT(percpu_pool_check(percpu_pool_default()) == 0);
  if (!inside_section) {
    percpu_pool_t *pool = percpu_pool_create(nullptr);
    EXPECT(pool != nullptr);
    for (int i = 0; i < 10; ++i) percpu_pool_free_rcu(pool, percpu_pool_alloc(pool, 64, 8, 0));
    EXPECT(percpu_pool_destroy(pool) == 0);  // waits for them
  }
  _exit(0);
}

void fork_on(uint64_t seed, int forks) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < forks; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    // A fork inside a read section: where the program brackets its forks, liburcu itself would wait for that section.
    const bool inside_section = !uses_liburcu && random() % 4 == 0;
    if (inside_section) {
      urcu_bp_read_lock();
      std::this_thread::sleep_for(std::chrono::milliseconds(random() % 20));
    }
    if (!inside_section) look();
    const pid_t child = fork();
    if (child == 0) in_child(inside_section);
    EXPECT(child > 0);
    if (inside_section) urcu_bp_read_unlock();
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child);
    if (status != 0) fprintf(stderr, "child %d ended with status 0x%x\n", i, status);
    EXPECT(status == 0);
  }
}

void register_brackets() {
  EXPECT(pthread_atfork(urcu_bp_before_fork, urcu_bp_after_fork_parent, urcu_bp_after_fork_child) == 0);
}

}  // namespace

int main(int argc, char **argv) {
  expect_preload_as_told();
  EXPECT(argc > 1);
  const char *when = argv[1];
  const int forks = argc > 2 ? atoi(argv[2]) : 200;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  uses_liburcu = strcmp(when, "never") != 0;
  if (strcmp(when, "before") == 0) register_brackets();
  published = new_area();
  if (strcmp(when, "after") == 0) register_brackets();

  std::vector<std::thread> threads;
  if (uses_liburcu) threads.emplace_back(read_on, seed);
  threads.emplace_back(replace_on, seed + 1);
  threads.emplace_back(wait_on, seed + 2);
  fork_on(seed + 3, forks);
  stop = true;
  for (std::thread &thread : threads) thread.join();

  percpu_free_rcu(published);
  percpu_pool_t *pool = percpu_pool_default();
  percpu_free(percpu_alloc(5000, 4));
  EXPECT(storm::eventually([&] {
    percpu_balance();
    return storm::stats_of(pool).nr_chunks <= 2;
  }));
  EXPECT(storm::stats_of(pool).nr_live == 0);
  EXPECT(percpu_pool_check(pool) == 0);
  printf("%d forks, %" PRIu64 " areas replaced, %" PRIu64 " looks\n", forks, replaced.load(), looked.load());
  return 0;
}
