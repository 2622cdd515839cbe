// SPDX-License-Identifier: MIT
//
// Times statistics objects beside each other: see record_cost.h.
#include "record_cost.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

namespace percpu {
namespace {

// Values as latencies have them: mostly small, spread over a few buckets, no new extreme once all have been seen.
uint64_t latency(uint64_t event) { return 1 + (event * 37 & 63); }

void record(rocksdb::Statistics& statistics, Recorded what, uint64_t events) {
  if (what == Recorded::kTick)
    for (uint64_t i = 0; i < events; i++) statistics.recordTick(rocksdb::NUMBER_KEYS_READ, 1);
  else
    for (uint64_t i = 0; i < events; i++) statistics.recordInHistogram(rocksdb::DB_GET, latency(i));
}

// The time that the calling thread has run for: what other programs take of its CPU is not its cost.
double cpu_time_ns() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// Returns: nanoseconds an event, the mean over the threads.
double time_turn(rocksdb::Statistics& statistics, Recorded what, uint32_t nr_threads, uint64_t events) {
  std::vector<double> ns(nr_threads);
  std::vector<std::thread> threads;
  std::atomic<uint32_t> ready{0};
  for (uint32_t i = 0; i < nr_threads; i++)
    threads.emplace_back([&, i] {
      record(statistics, what, 1'000);
      ready++;
      while (ready != nr_threads) std::this_thread::yield();
      const double from = cpu_time_ns();
      record(statistics, what, events);
      ns[i] = (cpu_time_ns() - from) / static_cast<double>(events);
    });
  for (std::thread& thread : threads) thread.join();
  return std::accumulate(ns.begin(), ns.end(), 0.0) / nr_threads;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 != 0 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

}  // namespace

RecordCost measure_record_cost(rocksdb::Statistics& a, rocksdb::Statistics& b, Recorded what, uint32_t nr_threads,
                               uint64_t events, uint32_t pairs) {
  time_turn(a, what, nr_threads, events);
  time_turn(b, what, nr_threads, events);
  std::vector<double> of_a, of_b, ratios;
  for (uint32_t i = 0; i < pairs; i++) {
    of_a.push_back(time_turn(a, what, nr_threads, events));
    of_b.push_back(time_turn(b, what, nr_threads, events));
    ratios.push_back(of_a.back() / of_b.back());
  }
  RecordCost cost;
  cost.a_ns = median(of_a);
  cost.b_ns = median(of_b);
  cost.ratio = median(ratios);
  return cost;
}

uint64_t count_lost(rocksdb::Statistics& statistics, uint32_t nr_threads, uint64_t events) {
  rocksdb::HistogramData before, after;
  statistics.histogramData(rocksdb::DB_WRITE, &before);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < nr_threads; i++)
    threads.emplace_back([&] {
      for (uint64_t event = 0; event < events; event++) statistics.recordInHistogram(rocksdb::DB_WRITE, latency(event));
    });
  for (std::thread& thread : threads) thread.join();
  statistics.histogramData(rocksdb::DB_WRITE, &after);
  return nr_threads * events - (after.count - before.count);
}

}  // namespace percpu
