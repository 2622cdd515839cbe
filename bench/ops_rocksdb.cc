// SPDX-License-Identifier: MIT
//
// RocksDB's own statistics, as ops.cc's loops want them: eight tickers in turn, by the virtual call that a database makes.
#include <rocksdb/statistics.h>

#include <memory>

#include "ops_loops.h"

namespace {

void tick(size_t i) {
  static const std::shared_ptr<rocksdb::Statistics> statistics = rocksdb::CreateDBStatistics();
  statistics->recordTick(static_cast<uint32_t>(AT), 1);
}
LOOP(rocksdb_record_tick, tick(i))

}  // namespace

extern "C" const ops_loop ops_loops_of_rocksdb[] = {ROW(rocksdb_record_tick), {nullptr, nullptr, nullptr, nullptr}};
