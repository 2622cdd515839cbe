// SPDX-License-Identifier: MIT
//
// create_db_statistics.cc in the two ways that it is used: linked before RocksDB's library, and preloaded into Debian's
// db_bench, which knows nothing of it. Environment: PERCPU_DB_BENCH, the program (else that test has nothing to run and
// says so); PERCPU_ROCKSDB_LIBRARY, the shared library.
#include <doctest/doctest.h>
#include <rocksdb/statistics.h>
#include <sys/wait.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>

#include "database_load.h"

namespace percpu {
namespace {

struct Output {
  int exit_code = -1;
  std::string text;  // of stdout and stderr
};

Output run(const std::string& command) {
  Output output;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  char buffer[4096];
  for (size_t got; (got = fread(buffer, 1, sizeof buffer, pipe)) > 0;) output.text.append(buffer, got);
  const int status = pclose(pipe);
  if (WIFEXITED(status)) output.exit_code = WEXITSTATUS(status);
  return output;
}

// The number after "NAME ... COUNT : " in the statistics that a program printed; UINT64_MAX where no line has that
// name.
uint64_t count_of(const Output& output, const std::string& name) {
  std::istringstream lines(output.text);
  for (std::string line; std::getline(lines, line);) {
    const size_t at = line.rfind(name + " ", 0) == 0 ? line.find("COUNT : ") : std::string::npos;
    if (at != std::string::npos) return strtoull(line.c_str() + at + 8, nullptr, 10);
  }
  return UINT64_MAX;
}

constexpr uint64_t kKeys = 20'000, kReads = 5'000, kThreads = 3;

// Fills, overwrites, compacts and reads. Each thread writes kKeys keys in each of two phases and reads kReads.
Output run_db_bench(const std::string& environment) {
  const char* db_bench = getenv("PERCPU_DB_BENCH");
  REQUIRE(db_bench != nullptr);
  const TemporaryDirectory directory;
  return run(environment + " '" + db_bench + "' --benchmarks=fillrandom,overwrite,compact,readrandom --num=" +
             std::to_string(kKeys) + " --reads=" + std::to_string(kReads) + " --threads=" + std::to_string(kThreads) +
             " --statistics --stats_level=5 --db='" + directory.path() + "/db'");
}

std::string preload() {
  const char* library = getenv("PERCPU_ROCKSDB_LIBRARY");
  REQUIRE(library != nullptr);
  return "LD_PRELOAD='" + std::string(library) + "'";
}

void check_work_was_counted(const Output& output) {
  CHECK(output.exit_code == 0);
  CHECK(count_of(output, "rocksdb.number.keys.written") == 2 * kThreads * kKeys);
  CHECK(count_of(output, "rocksdb.number.keys.read") == kThreads * kReads);
  CHECK(count_of(output, "rocksdb.db.get.micros") == kThreads * kReads);
  CHECK(count_of(output, "rocksdb.db.write.micros") == 2 * kThreads * kKeys);
}

TEST_CASE("a program that links the library before RocksDB's gets statistics in per-CPU memory") {
  const std::shared_ptr<rocksdb::Statistics> statistics = rocksdb::CreateDBStatistics();
  REQUIRE(statistics != nullptr);
  CHECK(std::string(statistics->Name()) == "PercpuStatistics");
  CHECK(statistics->get_stats_level() == rocksdb::kExceptDetailedTimers);  // what RocksDB's own begins with
  statistics->recordTick(rocksdb::BYTES_READ, 12);
  CHECK(statistics->getTickerCount(rocksdb::BYTES_READ) == 12);
  CHECK(statistics->ToString().find("\npercpu.copies COUNT : ") != std::string::npos);
}

TEST_CASE("db_bench, unchanged, counts in per-CPU memory when the library is preloaded") {
  if (getenv("PERCPU_DB_BENCH") == nullptr) {
    puts("no db_bench here (package rocksdb-tools): nothing was run");
    return;
  }
  const Output plain = run_db_bench("");
  CHECK_MESSAGE(count_of(plain, "percpu.copies") == UINT64_MAX, plain.text);
  CHECK(count_of(plain, "rocksdb.number.keys.written") == 2 * kThreads * kKeys);

  const Output ours = run_db_bench(preload());
  CAPTURE(ours.text);
  check_work_was_counted(ours);
  CHECK(count_of(ours, "percpu.copies") >= 1);
  CHECK(count_of(ours, "percpu.copies") != UINT64_MAX);
  printf("db_bench: %" PRIu64 " keys written, %" PRIu64 " read, counted in %" PRIu64 " copies of %" PRIu64 " bytes\n",
         count_of(ours, "rocksdb.number.keys.written"), count_of(ours, "rocksdb.number.keys.read"),
         count_of(ours, "percpu.copies"), count_of(ours, "percpu.copy.bytes"));
}

TEST_CASE("where there is no room for the area, db_bench runs on RocksDB's own statistics and is told so") {
  if (getenv("PERCPU_DB_BENCH") == nullptr) {
    puts("no db_bench here (package rocksdb-tools): nothing was run");
    return;
  }
  const Output output = run_db_bench("PERCPU_CONF=max_alloc:32K " + preload());
  CAPTURE(output.text);
  CHECK(output.exit_code == 0);
  CHECK(count_of(output, "percpu.copies") == UINT64_MAX);
  CHECK(count_of(output, "rocksdb.number.keys.written") == 2 * kThreads * kKeys);
  CHECK(output.text.find("libpercpu_rocksdb: Not implemented: ") != std::string::npos);
}

}  // namespace
}  // namespace percpu
