// SPDX-License-Identifier: MIT
//
// rocksdb::CreateDBStatistics(), taken over. In a shared library that the dynamic linker searches before RocksDB's -
// one that LD_PRELOAD names, or that a program links first - this definition answers the calls of a program that knows
// nothing of it, such as Debian's db_bench with --statistics.
#include <dlfcn.h>

#include <cstdio>
#include <memory>

#include "percpu_statistics.h"

namespace rocksdb {

// Returns: statistics in per-CPU memory; RocksDB's own where there is no per-CPU memory for them, after one line on
// stderr that says so, since the callers of this function use what it returns without looking.
__attribute__((visibility("default"))) std::shared_ptr<Statistics> CreateDBStatistics() {
  std::shared_ptr<percpu::PercpuStatistics> ours;
  const Status made = percpu::PercpuStatistics::create(&ours);
  if (made.ok()) return ours;
  fprintf(stderr, "libpercpu_rocksdb: %s; using RocksDB's own statistics\n", made.ToString().c_str());
  using Create = std::shared_ptr<Statistics> (*)();
  // The name of this function, as the dynamic linker knows it.
  const Create next = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "_ZN7rocksdb18CreateDBStatisticsEv"));
  return next != nullptr ? next() : nullptr;
}

}  // namespace rocksdb
