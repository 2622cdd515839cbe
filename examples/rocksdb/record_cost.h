// SPDX-License-Identifier: MIT
//
// What one event costs: times two statistics objects beside each other, in turns (A B A B ...), so that whatever else
// the machine does falls on both. Also counts what each of them loses.
#ifndef PERCPU_EXAMPLES_ROCKSDB_RECORD_COST_H
#define PERCPU_EXAMPLES_ROCKSDB_RECORD_COST_H

#include <rocksdb/statistics.h>

#include <cstdint>

namespace percpu {

enum class Recorded { kTick, kHistogram };

struct RecordCost {
  double a_ns = 0;   // CPU time an event, nanoseconds of one thread: the median of all turns
  double b_ns = 0;
  double ratio = 0;  // the median of a's cost over b's in the same pair of turns
};

// Each turn records `events` events in each of `nr_threads` threads, which run at the same time; `pairs` turns for each
// of the two, after one that is not counted. The calls go through the virtual table, as those of a database do.
// Requires: nr_threads, events, pairs > 0.
RecordCost measure_record_cost(rocksdb::Statistics& a, rocksdb::Statistics& b, Recorded what, uint32_t nr_threads,
                               uint64_t events, uint32_t pairs);

// Records nr_threads * events events in one histogram, from threads that run at the same time.
// Returns: how many of them the object does not know of afterwards.
uint64_t count_lost(rocksdb::Statistics& statistics, uint32_t nr_threads, uint64_t events);

}  // namespace percpu

#endif  // PERCPU_EXAMPLES_ROCKSDB_RECORD_COST_H
