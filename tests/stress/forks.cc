// SPDX-License-Identifier: MIT
// Forks in the middle of a storm of allocating, freeing and counting: parent and child both go on.
//
// usage: forks [FORKS]      (200 by default; PERCPU_SEED is the seed)
//
// Threads allocate, free (also after a grace period), count, ask, and make pools; two of them fork. Each child checks its
// pool, finds the areas of the thread that forked as they were and the counts of that thread's own counter exact, frees
// them, allocates and frees in several threads, and sees its own balance thread give the memory back; some fork again. The
// parent's counts are exact in the end, and its pool is empty.
#include "expect.h"
#include "storm.h"

#include <cstring>
#include <sys/wait.h>
#include <vector>

#include "../as_told.h"

namespace {

std::atomic<bool> stop{false};
std::atomic<uint64_t> counted_total{0};
uint64_t *shared_count;

struct Area {
  unsigned char *handle;
  uint32_t size_bytes;
  unsigned char mark;
};

// One thread's areas, each marked in all copies; whoever finds another mark shares them with somebody.
class Owner {
 public:
  explicit Owner(uint64_t seed) : random_(seed), count_(static_cast<uint64_t *>(percpu_alloc(8, 8))) {
    EXPECT(count_ != nullptr);
  }
  void step() {
    if (own_.size() < 100 && random_() % 2 == 0) {
      take();
    } else if (!own_.empty()) {
      give(random_() % own_.size());
    }
    percpu_inc(count_);
    percpu_inc(shared_count);
    ++counted_;
  }
  void check() const {
    for (const Area &area : own_) {
      EXPECT(percpu_alloc_size(area.handle) == (area.size_bytes + 3) / 4 * 4);
      const unsigned char *copy;
      percpu_for_each_copy(copy, area.handle) {
        EXPECT(copy[0] == area.mark);
        EXPECT(copy[area.size_bytes - 1] == area.mark);
      }
    }
    EXPECT(percpu_sum(count_) == counted_);
  }
  void end() {
    while (!own_.empty()) give(own_.size() - 1);
    percpu_free(count_);
    counted_total += counted_;
  }
  std::mt19937_64 &random() { return random_; }

 private:
  void take() {
    Area area{};
    area.size_bytes = 4 + static_cast<uint32_t>(random_() % (random_() % 16 == 0 ? 8000 : 250));
    area.handle = static_cast<unsigned char *>(percpu_alloc(area.size_bytes, size_t{4} << random_() % 5));
    EXPECT(area.handle != nullptr);
    area.mark = static_cast<unsigned char>(1 + random_() % 255);
    unsigned char *copy;
    percpu_for_each_copy(copy, area.handle) {
      for (uint32_t i = 0; i < area.size_bytes; ++i) EXPECT(copy[i] == 0);
      memset(copy, area.mark, area.size_bytes);
    }
    own_.push_back(area);
  }
  void give(size_t index) {
    if (random_() % 8 == 0) {
      percpu_free_rcu(own_[index].handle);
    } else {
      percpu_free(own_[index].handle);
    }
    own_[index] = own_.back();
    own_.pop_back();
  }

  std::mt19937_64 random_;
  std::vector<Area> own_;
  uint64_t *count_;
  uint64_t counted_ = 0;
};

void wait_for(pid_t child) {
  int status = -1;
  EXPECT(waitpid(child, &status, 0) == child);
  if (status != 0) fprintf(stderr, "child %d ended with status 0x%x\n", static_cast<int>(child), status);
  EXPECT(status == 0);
}

void in_child(Owner &owner, bool fork_again) {
  alarm(storm::kHangSeconds);
  percpu_pool_t *pool = percpu_pool_default();
  EXPECT(percpu_pool_check(pool) == 0);
  owner.check();
  const uint64_t shared_before = percpu_sum(shared_count);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([t, seed = owner.random()()] {
      Owner mine(seed + static_cast<uint64_t>(t));
      for (int i = 0; i < 300; ++i) mine.step();
      mine.check();
      mine.end();
    });
  }
  if (fork_again) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(storm::kHangSeconds);
      owner.check();
      EXPECT(percpu_pool_check(pool) == 0);
      percpu_pool_t *another = percpu_pool_create(nullptr);
      EXPECT(another != nullptr && percpu_pool_destroy(another) == 0);
      _exit(0);
    }
    wait_for(child);
  }
  for (int i = 0; i < 200; ++i) owner.step();
  for (std::thread &thread : threads) thread.join();
  EXPECT(percpu_sum(shared_count) == shared_before + 600 + 200);
  owner.end();
  // Its balance thread gives back what this child alone has taken.
  std::vector<void *> areas;
  for (int i = 0; i < 200; ++i) areas.push_back(percpu_alloc(8000, 4));
  const uint64_t chunks = storm::stats_of(pool).nr_chunks;
  for (void *area : areas) percpu_free(area);
  EXPECT(storm::eventually([&] { return storm::stats_of(pool).nr_chunks < chunks; }));
  EXPECT(percpu_pool_check(pool) == 0);
  _exit(0);
}

void fork_and_work(uint64_t seed, int forks) {
  Owner owner(seed);
  for (int i = 0; i < forks; ++i) {
    for (uint64_t steps = owner.random()() % 200; steps > 0; --steps) owner.step();
    const bool again = owner.random()() % 4 == 0;
    const pid_t child = fork();
    if (child == 0) in_child(owner, again);
    EXPECT(child > 0);
    owner.check();
    wait_for(child);
  }
  owner.check();
  owner.end();
}

void work(uint64_t seed) {
  Owner owner(seed);
  while (!stop) owner.step();
  owner.check();
  owner.end();
}

// The rest of what may be under way while a process forks.
void ask(uint64_t seed) {
  std::mt19937_64 random(seed);
  char text[2048];
  while (!stop) {
    percpu_address info;
    EXPECT(percpu_address_info(percpu_this_ptr(shared_count), &info) == 1 && info.handle == shared_count);
    percpu_report(PERCPU_REPORT_JSON, text, sizeof text);
    if (random() % 8 == 0) {
      percpu_pool_t *pool = percpu_pool_create(nullptr);
      EXPECT(pool != nullptr);
      percpu_pool_free(pool, percpu_pool_alloc(pool, 40000, 8, 0));
      EXPECT(percpu_pool_destroy(pool) == 0);
    }
    if (random() % 4 == 0) percpu_balance();
    percpu_domain_t *domain = percpu_domain_create("storm", PERCPU_NO_LIMIT, nullptr);
    percpu_domain_set(domain);
    percpu_free(percpu_alloc_flags(100, 4, PERCPU_ACCOUNT));
    percpu_domain_set(nullptr);
    percpu_domain_put(domain);
  }
}

}  // namespace

int main(int argc, char **argv) {
  expect_preload_as_told();
  const int forks = argc > 1 ? atoi(argv[1]) : 200;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  shared_count = static_cast<uint64_t *>(percpu_alloc(8, 8));
  EXPECT(shared_count != nullptr);
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 2; ++t) threads.emplace_back(work, seed + t);
  threads.emplace_back(ask, seed + 7);
  std::vector<std::thread> forkers;
  for (uint64_t t = 0; t < 2; ++t) forkers.emplace_back(fork_and_work, seed + 10 + t, forks / 2);
  for (std::thread &thread : forkers) thread.join();
  stop = true;
  for (std::thread &thread : threads) thread.join();

  EXPECT(percpu_sum(shared_count) == counted_total);
  percpu_free(shared_count);
  percpu_pool_t *pool = percpu_pool_default();
  percpu_free(percpu_alloc(5000, 4));
  EXPECT(storm::stats_of(pool).nr_live == 0);
  EXPECT(storm::eventually([&] {
    percpu_balance();
    return storm::stats_of(pool).nr_chunks <= 2;
  }));
  EXPECT(percpu_pool_check(pool) == 0);
  printf("%d forks, %" PRIu64 " counted\n", forks, counted_total.load());
  return 0;
}
