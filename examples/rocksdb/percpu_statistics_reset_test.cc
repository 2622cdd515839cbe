// SPDX-License-Identifier: MIT
//
// Resets of percpu_statistics.h while other threads count: no event lost, none doubled, no value in the wrong period.
// RocksDB's own object cannot be held against these, since it makes no such promises.
#include <doctest/doctest.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "percpu_statistics.h"
#include "seed.h"
#include "statistics_under_test.h"

namespace percpu {
namespace {

// The CPUs that this process may run on.
std::vector<int> allowed_cpus() {
  cpu_set_t set;
  REQUIRE(sched_getaffinity(0, sizeof set, &set) == 0);
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

void run_on(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

// The part of a ticker that lies in the copies of no CPU.
uint64_t in_extra_copies(const uint64_t* ticker) {
  uint64_t sum = percpu_sum(ticker);
  unsigned cpu;
  percpu_for_each_possible_cpu(cpu) sum -= *percpu_ptr(ticker, cpu);
  return sum;
}

TEST_CASE("resetting a ticker while others count loses no event and doubles none") {
  constexpr uint32_t kThreads = 6, kWithoutRseq = 2;
  constexpr uint64_t kEvents = 4'000'000;
  Ours ours = make_ours();
  std::atomic<uint32_t> running{kThreads}, without_rseq{0}, moved{0};
  const std::vector<int> cpus = allowed_cpus();
  uint64_t taken = 0, resets = 0;
  {
    Threads threads(kThreads, [&](uint32_t number) {
      if (number < kWithoutRseq && give_rseq_back()) without_rseq++;
      for (uint64_t i = 0; i < kEvents; i++) {
        if (i % 4096 == 0) run_on(cpus[(number + moved++) % cpus.size()]);
        ours->recordTick(rocksdb::BYTES_READ, 1 + i % 3);
      }
      running--;
    });
    while (running != 0) {
      taken += ours->getAndResetTickerCount(rocksdb::BYTES_READ);
      resets++;
    }
  }
  taken += ours->getAndResetTickerCount(rocksdb::BYTES_READ);
  uint64_t by_each = 0;
  for (uint64_t i = 0; i < kEvents; i++) by_each += 1 + i % 3;
  CHECK(taken == kThreads * by_each);
  CHECK(ours->getTickerCount(rocksdb::BYTES_READ) == 0);
  printf("ticker: %llu events, %llu resets, %u threads without rseq\n",
         static_cast<unsigned long long>(kThreads * kEvents), static_cast<unsigned long long>(resets),
         without_rseq.load());
  CHECK(resets > 1'000);
  // Those without rseq, and only they, shared copies of their own. (Builds without sequences share them all.)
  const uint64_t shared = in_extra_copies(ours->ticker_handle(rocksdb::BYTES_READ));
  if (PERCPU_HAVE_SEQUENCES) CHECK(shared == without_rseq * by_each);
}

TEST_CASE("setting a ticker while others count loses no later event") {
  constexpr uint32_t kThreads = 3;
  constexpr uint64_t kEvents = 2'000'000;
  Ours ours = make_ours();
  const uint64_t* raw = ours->ticker_handle(rocksdb::BYTES_READ);
  std::atomic<uint32_t> running{kThreads};
  uint64_t value = 0, raw_before = 0, raw_after = 0;
  {
    Threads threads(kThreads, [&](uint32_t) {
      for (uint64_t i = 0; i < kEvents; i++) ours->recordTick(rocksdb::BYTES_READ, 1);
      running--;
    });
    while (running != 0) {
      value += 1'000'000'007;
      raw_before = percpu_sum(raw);
      ours->setTickerCount(rocksdb::BYTES_READ, value);
      raw_after = percpu_sum(raw);
      const uint64_t later = ours->getTickerCount(rocksdb::BYTES_READ) - value;
      CHECK(later <= percpu_sum(raw) - raw_before);
    }
  }
  const uint64_t later = ours->getTickerCount(rocksdb::BYTES_READ) - value;
  CHECK(later >= kThreads * kEvents - raw_after);
  CHECK(later <= kThreads * kEvents - raw_before);
}

TEST_CASE("taking everything while others count loses no event and doubles none, in any histogram") {
  constexpr uint32_t kThreads = 5, kWithoutRseq = 2;
  constexpr uint64_t kEvents = 1'000'000, kSmallest = 50, kLargest = 5'000;
  Ours ours = make_ours();
  const std::unique_ptr<PercpuStatistics::Snapshot> part(new PercpuStatistics::Snapshot);
  HistogramCounts taken;
  uint64_t ticks_taken = 0, takes = 0;
  const auto take = [&] {
    ours->take(part.get());
    const HistogramCounts& h = part->histograms[rocksdb::DB_GET];
    for (size_t b = 0; b < kNrBuckets; b++) taken.buckets[b] += h.buckets[b];
    taken.sum += h.sum;
    taken.sum_squares += h.sum_squares;
    ticks_taken += part->tickers[rocksdb::BYTES_READ];
    takes++;
  };

  std::array<HistogramCounts, kThreads> recorded;
  std::atomic<uint32_t> running{kThreads};
  {
    const uint64_t seed = test_seed();
    Threads threads(kThreads, [&](uint32_t number) {
      if (number < kWithoutRseq) give_rseq_back();
      std::mt19937_64 random(seed + number);
      HistogramCounts mine;
      for (uint64_t i = 0; i < kEvents; i++) {
        const uint64_t value = kSmallest + random() % (kLargest - kSmallest + 1);
        ours->recordInHistogram(rocksdb::DB_GET, value);
        ours->recordTick(rocksdb::BYTES_READ, value);
        mine.buckets[bucket_of(value)]++;
        mine.sum += value;
        mine.sum_squares += value * value;
      }
      recorded[number] = mine;
      running--;
    });
    while (running != 0) take();
  }
  take();

  HistogramCounts wanted;
  for (const HistogramCounts& each : recorded) {
    for (size_t b = 0; b < kNrBuckets; b++) wanted.buckets[b] += each.buckets[b];
    wanted.sum += each.sum;
    wanted.sum_squares += each.sum_squares;
  }
  CHECK(taken.count() == kThreads * kEvents);
  CHECK(taken.buckets == wanted.buckets);
  CHECK(taken.sum == wanted.sum);
  CHECK(taken.sum_squares == wanted.sum_squares);
  CHECK(ticks_taken == wanted.sum);
  printf("histogram: %llu events, taken %llu times\n", static_cast<unsigned long long>(kThreads * kEvents),
         static_cast<unsigned long long>(takes));
  CHECK(takes > 100);
  CHECK(ours->read_histogram(rocksdb::DB_GET).count() == 0);
}

// Each thread records 1, 2, 3, ... above a large number, in a histogram and on a CPU of its own. All its values share
// one bucket, so that the counts that are taken say exactly which values each period counted.
TEST_CASE("min and max of a period hold every value that it counted, and none from before its reset began") {
  constexpr uint64_t kFirst = 7'000'000'000'000'000'000u, kEvents = 4'000'000;
  const std::vector<int> cpus = allowed_cpus();
  const uint32_t nr_threads = static_cast<uint32_t>(std::min<size_t>(cpus.size(), 8)) + 1;  // the last without rseq
  Ours ours = make_ours();
  const std::unique_ptr<PercpuStatistics::Snapshot> part(new PercpuStatistics::Snapshot);
  // By thread: how many values periods have counted that are over; how many were recorded when the current period's
  // take began, and when the one before it did.
  std::vector<uint64_t> counted(nr_threads, 0), begun(nr_threads, 0), begun_before(nr_threads, 0);
  uint64_t periods = 0;
  const auto take = [&] {
    begun_before.swap(begun);
    for (uint32_t i = 0; i < nr_threads; i++) begun[i] = counted[i] + ours->read_histogram(i).count();
    ours->take(part.get());
    for (uint32_t i = 0; i < nr_threads; i++) {
      const HistogramCounts& h = part->histograms[i];
      const uint64_t smallest = kFirst + counted[i];
      counted[i] += h.count();
      const uint64_t largest = kFirst + counted[i] - 1;
      if (h.count() < 2) continue;
      periods++;
      CAPTURE(i);
      CAPTURE(h.count());
      // The last event may not have got further than its bucket.
      CHECK(h.min <= smallest);
      CHECK(h.max >= largest - 1);
      // What is too much was recorded while one of the two resets ran.
      CHECK(h.min + 1 >= kFirst + begun_before[i]);
      CHECK(h.max < kFirst + counted[i] + ours->read_histogram(i).count());
    }
  };
  {
    std::atomic<uint32_t> running{nr_threads};
    Threads threads(nr_threads, [&](uint32_t number) {
      run_on(cpus[number % cpus.size()]);
      if (number == nr_threads - 1) give_rseq_back();
      for (uint64_t i = 0; i < kEvents; i++) ours->recordInHistogram(number, kFirst + i);
      running--;
    });
    while (running != 0) take();
  }
  take();
  for (uint64_t each : counted) CHECK(each == kEvents);
  printf("extremes: %llu periods with events\n", static_cast<unsigned long long>(periods));
  CHECK(periods > 100);
}

TEST_CASE("after a reset, while others count, min and max hold no value from before it and every one from after") {
  constexpr uint32_t kThreads = 4;
  constexpr uint64_t kRounds = 3'000;
  Ours ours = make_ours();
  // The values of a round lie in a band of its own, rising and falling in turn, so that both ends are tested.
  const auto value_of = [](uint64_t round) { return round % 2 == 0 ? 1'000'000 + round : 500'000 - round; };
  std::atomic<uint64_t> round{0};
  std::atomic<bool> stop{false};
  std::array<std::atomic<uint64_t>, kThreads> done{};  // the last round in which the thread began and ended an event
  {
    Threads threads(kThreads, [&](uint32_t number) {
      if (number == 0) give_rseq_back();
      while (!stop) {
        const uint64_t now = round;
        ours->recordInHistogram(rocksdb::DB_GET, value_of(now));
        if (done[number].exchange(now) == now) std::this_thread::yield();  // let the others come to this round
      }
    });
    const auto wait_for_all = [&](uint64_t wanted) {
      for (const std::atomic<uint64_t>& each : done)
        while (each < wanted) std::this_thread::yield();
    };
    for (uint64_t r = 1; r <= kRounds; r++) {
      round = r;
      wait_for_all(r);  // so nobody records a value of an earlier round any more
      REQUIRE(ours->Reset().ok());
      const HistogramCounts counts = ours->read_histogram(rocksdb::DB_GET);
      if (counts.count() == 0) continue;
      const uint64_t value = value_of(r);
      CAPTURE(r);
      // Exact, or the bounds of the bucket while the period's first event is under way.
      CHECK(counts.min >= kBucketLimits[bucket_of(value) - 1]);
      CHECK(counts.min <= value);
      CHECK(counts.max >= value);
      CHECK(counts.max <= kBucketLimits[bucket_of(value)]);
    }
    stop = true;
  }
  // All quiet: what is counted is within [min, max], and they are values of the last round.
  const HistogramCounts counts = ours->read_histogram(rocksdb::DB_GET);
  if (counts.count() != 0) {
    CHECK(counts.min == value_of(kRounds));
    CHECK(counts.max == value_of(kRounds));
  }
}

// For the next test, whose signal handler has no other way to reach them.
std::atomic<PercpuStatistics*> interrupted{nullptr};
PercpuStatistics::Snapshot thrown_away;
std::atomic<bool> handled{false};
constexpr uint64_t kAfterwards = 6;  // not a bound of its bucket, 5 .. 6, as far as min goes

// Runs inside a recording, at any instruction of it: two resets, then an event of the period after them. The
// interrupted thread holds no lock then, since it does nothing but record.
void reset_twice_and_record(int) {
  interrupted.load()->take(&thrown_away);
  interrupted.load()->take(&thrown_away);
  interrupted.load()->recordInHistogram(rocksdb::DB_GET, kAfterwards);
  handled = true;
}

TEST_CASE("a thread that is held up inside an event, while two periods end, disturbs no later one") {
  constexpr uint32_t kSignals = 1'000;
  Ours ours = make_ours();
  interrupted = ours.get();
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = reset_twice_and_record;
  REQUIRE(sigaction(SIGUSR1, &action, &before) == 0);
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> checked{0};
  uint32_t wrong = 0;
  // Smaller than all before and larger than all before, in turn: both of a period's places are wanted all the time.
  std::thread recording([&] {
    for (uint64_t i = 0; !stop; i++) {
      const uint64_t distance = i % 100'000;
      ours->recordInHistogram(rocksdb::DB_GET, i % 2 == 0 ? 1'000'000 - distance : 1'000'000 + distance);
      if (!handled) continue;
      const HistogramCounts counts = ours->read_histogram(rocksdb::DB_GET);
      wrong += counts.min != kAfterwards || counts.max < kAfterwards || counts.count() > 2;
      handled = false;
      checked++;
    }
  });
  for (uint32_t i = 0; i < kSignals; i++) {
    pthread_kill(recording.native_handle(), SIGUSR1);
    while (checked == i) std::this_thread::yield();
  }
  stop = true;
  recording.join();
  REQUIRE(sigaction(SIGUSR1, &before, nullptr) == 0);
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace percpu
