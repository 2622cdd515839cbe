// SPDX-License-Identifier: MIT
//
// What one event costs in per-CPU memory and in RocksDB's own statistics, by Google Benchmark, for 1 thread up to twice
// the number of CPUs. Compare figures of one run only, those of CPU time where other programs run, best with
// --benchmark_enable_random_interleaving=true.
#include <benchmark/benchmark.h>
#include <rocksdb/statistics.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#include "percpu_statistics.h"

namespace {

std::shared_ptr<rocksdb::Statistics> make_percpu() {
  std::shared_ptr<percpu::PercpuStatistics> made;
  const rocksdb::Status status = percpu::PercpuStatistics::create(&made);
  if (status.ok()) return made;
  fprintf(stderr, "%s\n", status.ToString().c_str());
  exit(1);
}

template <std::shared_ptr<rocksdb::Statistics> (*kMake)()>
rocksdb::Statistics& shared_object() {
  static const std::shared_ptr<rocksdb::Statistics> made = kMake();
  return *made;
}

template <std::shared_ptr<rocksdb::Statistics> (*kMake)()>
void record_tick(benchmark::State& state) {
  rocksdb::Statistics& statistics = shared_object<kMake>();
  for (auto _ : state) statistics.recordTick(rocksdb::NUMBER_KEYS_READ, 1);
}

template <std::shared_ptr<rocksdb::Statistics> (*kMake)()>
void record_in_histogram(benchmark::State& state) {
  rocksdb::Statistics& statistics = shared_object<kMake>();
  uint64_t i = 0;
  for (auto _ : state) statistics.recordInHistogram(rocksdb::DB_GET, 1 + (i++ * 37 & 63));
}

const int kMostThreads = 2 * static_cast<int>(std::thread::hardware_concurrency());

BENCHMARK_TEMPLATE(record_tick, make_percpu)->ThreadRange(1, kMostThreads)->UseRealTime();
BENCHMARK_TEMPLATE(record_tick, rocksdb::CreateDBStatistics)->ThreadRange(1, kMostThreads)->UseRealTime();
BENCHMARK_TEMPLATE(record_in_histogram, make_percpu)->ThreadRange(1, kMostThreads)->UseRealTime();
BENCHMARK_TEMPLATE(record_in_histogram, rocksdb::CreateDBStatistics)->ThreadRange(1, kMostThreads)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
