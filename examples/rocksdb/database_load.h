// SPDX-License-Identifier: MIT
//
// Work for a real database, to have something to count: a RocksDB database in a directory of its own that is filled,
// overwritten, merged into, read, scanned both ways, deleted from, compacted, closed, opened again and read from its
// files, by several threads. The values that are read are checked against those that were written.
#ifndef PERCPU_EXAMPLES_ROCKSDB_DATABASE_LOAD_H
#define PERCPU_EXAMPLES_ROCKSDB_DATABASE_LOAD_H

#include <rocksdb/statistics.h>
#include <rocksdb/status.h>

#include <cstdint>
#include <memory>
#include <string>

namespace percpu {

// A directory that is removed, with all that is in it, together with the object.
class TemporaryDirectory {
 public:
  // Under $TMPDIR, or /tmp. Stops the program where none can be made.
  TemporaryDirectory();
  ~TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

struct DatabaseLoad {
  std::string directory;
  std::shared_ptr<rocksdb::Statistics> statistics;
  uint32_t nr_threads = 4;
  uint64_t nr_keys = 20'000;  // of each thread
  uint64_t seed = 1;
};

// How many of the calls that a caller can count for itself were made.
struct DatabaseLoadCounts {
  uint64_t keys_written = 0;  // put, merged, deleted one by one
  uint64_t keys_read = 0;     // by Get()
};

// Does all of it, and closes the database, so that afterwards nothing is counted any more.
// Returns: the first error that RocksDB returned, or Corruption where a value read is not the one written.
rocksdb::Status run_database_load(const DatabaseLoad& load, DatabaseLoadCounts* counts);

}  // namespace percpu

#endif  // PERCPU_EXAMPLES_ROCKSDB_DATABASE_LOAD_H
