// SPDX-License-Identifier: MIT
//
// What the tests of percpu_statistics.h share: the object under test, RocksDB's own to hold it against, and
// threads of which some have no rseq.
#ifndef PERCPU_EXAMPLES_ROCKSDB_STATISTICS_UNDER_TEST_H
#define PERCPU_EXAMPLES_ROCKSDB_STATISTICS_UNDER_TEST_H

#include <doctest/doctest.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "percpu_statistics.h"

namespace percpu {

using Ours = std::shared_ptr<PercpuStatistics>;
using Theirs = std::shared_ptr<rocksdb::Statistics>;

inline Ours make_ours() {
  Ours ours;
  const rocksdb::Status made = PercpuStatistics::create(&ours);
  REQUIRE_MESSAGE(made.ok(), made.ToString());
  ours->set_stats_level(rocksdb::kAll);
  return ours;
}

// RocksDB's own object: the tests do not link create_db_statistics.cc.
inline Theirs make_theirs() {
  Theirs theirs = rocksdb::CreateDBStatistics();
  REQUIRE(std::string(theirs->Name()) == "BasicStatistics");
  theirs->set_stats_level(rocksdb::kAll);
  return theirs;
}

// Takes the calling thread's rseq away, as glibc registered it (2.35 to 2.39: 32 bytes, whatever __rseq_size says).
// Returns: whether the thread has none now.
inline bool give_rseq_back() {
  void* area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
  constexpr int kUnregister = 1;
  constexpr unsigned kSignature = 0x53053053;
  return syscall(SYS_rseq, area, 32, kUnregister, kSignature) == 0;
}

// Runs body(0), body(1), ... in threads of their own, until all have returned. The destructor waits for them.
class Threads {
 public:
  template <class Body>
  Threads(uint32_t number, const Body& body) {
    for (uint32_t i = 0; i < number; i++) threads_.emplace_back([body, i] { body(i); });
  }
  ~Threads() {
    for (std::thread& thread : threads_) thread.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  std::vector<std::thread> threads_;
};

}  // namespace percpu

#endif  // PERCPU_EXAMPLES_ROCKSDB_STATISTICS_UNDER_TEST_H
