// SPDX-License-Identifier: MIT
// The count test: many threads count many events, and every one is counted once.
//
// usage: count [EVENTS]      (100,000,000 by default; PERCPU_SEED is the seed)
//        PERCPU_EXPECT_RSEQ=0|1 in the environment: it fails where threads have rseq (0), or have none (1)
//
// Twice as many threads as CPUs are moved from CPU to CPU and sent signals all the time; the handler counts too. Every
// fourth has no rseq: it unregistered itself before it began. Threads take work in batches, so that fast ones do more; they begin
// when the storm blows, and go on beyond EVENTS until it has blown often enough. A batch counts in one of several ways, each an operation of percpu/ops.h on memory of libpercpu; for each way the
// threads keep their own tally, and in the end the sums must be equal, exactly.
#include <percpu.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../as_told.h"
#include "leave_rseq.h"
#include "storm.h"

PERCPU_DEFINE(uint64_t, counted_static) = 0;

namespace {

constexpr uint64_t kBatch = 2000;
// While they count: so many for each thread, but no more than that, since an emulated machine of 64 CPUs makes one in a quarter of a second.
constexpr uint64_t kLeastBlows = 10;
constexpr uint64_t kBlowsEnough = 300;

// What the events are counted in.
struct Areas {
  uint64_t *incremented = make<uint64_t>();
  int64_t *subtracted = make<int64_t>();
  uint64_t *returned = make<uint64_t>();
  uint64_t *compared = make<uint64_t>();
  uint64_t *carried = make<uint64_t>();
  double *real = make<double>();
  uint32_t *half = make<uint32_t>();
  uint16_t *quarter = make<uint16_t>();
  uint8_t *byte = make<uint8_t>();
  percpu_pair *pair = make<percpu_pair>();
  percpu_pool_t *pool = new_pool();
  uint64_t *in_pool = static_cast<uint64_t *>(percpu_pool_alloc(pool, 8, 8, 0));
  uint64_t *handled = make<uint64_t>();

  template <class T>
  static T *make() {
    return static_cast<T *>(percpu_alloc(sizeof(T), alignof(T)));
  }
  static percpu_pool_t *new_pool() {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.name = "count";
    return percpu_pool_create(&attr);
  }
};

Areas *areas;

// A way of counting one event, and how many were counted that way, by the copies. `modulo`: what the counter holds.
struct Way {
  const char *name;
  void (*count)();
  uint64_t (*total)();
  uint64_t mask;
};

constexpr Way kWays[] = {
    {"inc", [] { percpu_inc(areas->incremented); }, [] { return percpu_sum(areas->incremented); }, ~uint64_t{0}},
    {"sub", [] { percpu_sub(areas->subtracted, 1); },
     [] { return 0 - static_cast<uint64_t>(percpu_sum(areas->subtracted)); }, ~uint64_t{0}},
    {"add_return", [] { percpu_add_return(areas->returned, 1); }, [] { return percpu_sum(areas->returned); },
     ~uint64_t{0}},
    {"try_cmpxchg",
     [] {
       uint64_t seen = percpu_read(areas->compared);
       while (!percpu_try_cmpxchg(areas->compared, &seen, seen + 1)) {
       }
     },
     [] { return percpu_sum(areas->compared); }, ~uint64_t{0}},
    {"xchg", [] { percpu_add(areas->carried, percpu_xchg(areas->carried, 0) + 1); },
     [] { return percpu_sum(areas->carried); }, ~uint64_t{0}},
    {"double", [] { percpu_add(areas->real, 1); }, [] { return static_cast<uint64_t>(percpu_sum(areas->real)); },
     ~uint64_t{0}},
    {"4 bytes", [] { percpu_inc(areas->half); }, [] { return percpu_sum(areas->half); }, 0xffffffff},
    {"2 bytes", [] { percpu_inc(areas->quarter); }, [] { return percpu_sum(areas->quarter); }, 0xffff},
    {"1 byte", [] { percpu_inc(areas->byte); }, [] { return percpu_sum(areas->byte); }, 0xff},
    {"cmpxchg16",
     [] {
       percpu_pair seen = percpu_read16(areas->pair);
       while (!percpu_cmpxchg16(areas->pair, &seen, percpu_pair{seen.low + 1, ~seen.low - 1})) {
       }
     },
     [] {
       uint64_t sum = 0;
       percpu_pair *copy;
       percpu_for_each_copy(copy, areas->pair) {
         if (copy->low != 0 && copy->high != ~copy->low) return ~uint64_t{0};  // the halves do not belong together
         sum += copy->low;
       }
       return sum;
     },
     ~uint64_t{0}},
    {"pool", [] { percpu_pool_inc(areas->pool, areas->in_pool); },
     [] { return percpu_pool_sum(areas->pool, areas->in_pool); }, ~uint64_t{0}},
    {"static", [] { percpu_inc(percpu_static(counted_static)); },
     [] { return percpu_sum(percpu_static(counted_static)); }, ~uint64_t{0}},
};
constexpr size_t kNrWays = sizeof kWays / sizeof kWays[0];

// One thread's own count.
struct alignas(64) Tally {
  uint64_t events[kNrWays] = {};
  volatile uint64_t handled = 0;  // by the signal handler
  bool has_rseq = false;
};

thread_local Tally *tally;

// Counts in the same copies that the code below counts in.
void handler(int) {
  if (tally == nullptr) return;
  tally->handled = tally->handled + 1;
  percpu_inc(areas->handled);
  kWays[3].count();
  kWays[9].count();
}

template <size_t kWay>
void count_batch(uint64_t n) {
  for (uint64_t i = 0; i < n; ++i) kWays[kWay].count();
  tally->events[kWay] += n;
}

template <size_t... kWay>
void count_batch(size_t way, uint64_t n, std::index_sequence<kWay...>) {
  ((way == kWay ? count_batch<kWay>(n) : void()), ...);
}

class Counting {
 public:
  Counting(uint64_t events, uint64_t seed)
      : left_(static_cast<int64_t>(events)), seed_(seed), tallies_(2 * storm::allowed_cpus().size() + 2) {}

  // Returns whether all sums are right.
  bool run() {
    storm::on_signal(handler);
    std::vector<std::thread> threads;
    std::vector<pthread_t> handles;
    for (size_t i = 0; i < tallies_.size(); ++i) threads.emplace_back([this, i] { work(i); });
    for (std::thread &thread : threads) handles.push_back(thread.native_handle());
    while (nr_ready_.load() < threads.size()) usleep(1000);
    uint64_t blows;
    {
      storm::Storm storm(handles, seed_);
      const uint64_t before = storm.blows();
      begun_.store(true);
      const uint64_t least = std::min(kLeastBlows * threads.size(), kBlowsEnough);
      while (storm.blows() - before < least) usleep(1000);
      blown_.store(true);
      while (nr_idle_.load() < threads.size()) usleep(1000);
      storm.end();
      blows = storm.blows() - before;
    }
    stop_.store(true);
    for (std::thread &thread : threads) thread.join();
    return compare(blows);
  }

 private:
  void work(size_t index) {
    Tally &mine = tallies_[index];
    if (index % 4 == 3 && leave_rseq() != 0) std::abort();
    mine.has_rseq = percpu_thread_has_rseq() != 0;
    tally = &mine;
    nr_ready_.fetch_add(1);
    while (!begun_.load()) usleep(1000);
    std::mt19937_64 random(seed_ + index);
    for (;;) {
      int64_t left = left_.fetch_sub(kBatch);
      if (left <= 0 && !blown_.load()) left = kBatch;
      if (left <= 0) break;
      const uint64_t n = left < static_cast<int64_t>(kBatch) ? static_cast<uint64_t>(left) : kBatch;
      count_batch(random() % kNrWays, n, std::make_index_sequence<kNrWays>());
    }
    nr_idle_.fetch_add(1);
    while (!stop_.load()) usleep(1000);  // the storm may still reach us
    tally = nullptr;
  }

  bool compare(uint64_t blows) {
    uint64_t handled = 0, events = 0, nr_without_rseq = 0, nr_wrong = 0;
    for (const Tally &t : tallies_) {
      handled += t.handled;
      nr_without_rseq += !t.has_rseq;
    }
    for (size_t way = 0; way < kNrWays; ++way) {
      uint64_t expected = 0;
      for (const Tally &t : tallies_) expected += t.events[way];
      events += expected;
      if (way == 3 || way == 9) expected += handled;
      nr_wrong += !equal(kWays[way].name, expected & kWays[way].mask, kWays[way].total() & kWays[way].mask);
    }
    nr_wrong += !equal("signal handler", handled, percpu_sum(areas->handled));
    if (handled < tallies_.size()) {
      std::printf("signal handler: expected to have run %zu times at least, found %" PRIu64 "\n", tallies_.size(), handled);
      nr_wrong++;
    }
    const char *told = std::getenv("PERCPU_EXPECT_RSEQ");
    const uint64_t left = tallies_.size() / 4;  // those that unregistered themselves
    const uint64_t nr_expected = told == nullptr ? nr_without_rseq : *told == '0' ? tallies_.size() : left;
    nr_wrong += !equal("threads without rseq", nr_expected, nr_without_rseq);
    std::printf("%" PRIu64 " events by %zu threads (%" PRIu64 " without rseq), %" PRIu64 " migrations and signals, %"
                PRIu64 " handled: %s\n", events, tallies_.size(), nr_without_rseq, blows, handled, nr_wrong == 0 ? "exact" : "WRONG");
    return nr_wrong == 0;
  }

  static bool equal(const char *what, uint64_t expected, uint64_t found) {
    if (expected == found) return true;
    std::printf("%s: expected %" PRIu64 ", found %" PRIu64 "\n", what, expected, found);
    return false;
  }

  std::atomic<int64_t> left_;
  uint64_t seed_;
  std::vector<Tally> tallies_;
  std::atomic<size_t> nr_ready_{0};
  std::atomic<bool> begun_{false};
  std::atomic<bool> blown_{false};  // often enough
  std::atomic<size_t> nr_idle_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace

int main(int argc, char **argv) {
  expect_preload_as_told();
  const uint64_t events = argc > 1 ? std::strtoull(argv[1], nullptr, 0) : 100'000'000;
  const uint64_t seed = storm::seed();
  std::printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  Areas all;
  areas = &all;
  return Counting(events, seed).run() ? 0 : 1;
}
