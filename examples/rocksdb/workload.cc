// SPDX-License-Identifier: MIT
//
// The example as a program: a real RocksDB database works, counts in per-CPU memory, and the counts are shown, copy by
// copy. With --demo also where that memory lies and what an event costs, beside RocksDB's own statistics.
#include <percpu.h>
#include <rocksdb/statistics.h>
#include <rocksdb/version.h>

#include <getopt.h>
#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "database_load.h"
#include "percpu_statistics.h"
#include "record_cost.h"

namespace percpu {
namespace {

struct Arguments {
  bool demo = false;
  bool all = false;
  uint32_t nr_threads = 4;
  uint64_t nr_keys = 20'000;
};

void print_usage(FILE* to) {
  fprintf(to,
          "workload [--demo] [--all] [--threads N] [--keys N]\n"
          "  fills, overwrites, reads, scans, deletes and compacts a database in a temporary directory,\n"
          "  and prints its statistics from per-CPU memory\n"
          "  --demo       also print the layout of that memory, and what an event costs beside RocksDB's own\n"
          "  --all        print every counter that is not zero, not only the best known\n"
          "  --threads N  threads of the database's user, 1 .. 256 (default 4)\n"
          "  --keys N     keys of each thread, 100 .. 10000000 (default 20000)\n");
}

// Reads a number of [least, most]; else says so and ends the program.
uint64_t number_of(const char* option, const char* text, uint64_t least, uint64_t most) {
  char* end = nullptr;
  errno = 0;
  const uint64_t number = strtoull(text, &end, 10);
  if (errno == 0 && end != text && *end == '\0' && *text != '-' && number >= least && number <= most) return number;
  fprintf(stderr, "--%s wants a number from %" PRIu64 " to %" PRIu64 ", got \"%s\"\n", option, least, most, text);
  exit(2);
}

Arguments read_arguments(int argc, char** argv) {
  static const option kOptions[] = {{"demo", no_argument, nullptr, 'd'},
                                    {"all", no_argument, nullptr, 'a'},
                                    {"threads", required_argument, nullptr, 't'},
                                    {"keys", required_argument, nullptr, 'k'},
                                    {"help", no_argument, nullptr, 'h'},
                                    {nullptr, 0, nullptr, 0}};
  Arguments arguments;
  for (int found; (found = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (found) {
      case 'd': arguments.demo = true; break;
      case 'a': arguments.all = true; break;
      case 't': arguments.nr_threads = static_cast<uint32_t>(number_of("threads", optarg, 1, 256)); break;
      case 'k': arguments.nr_keys = number_of("keys", optarg, 100, 10'000'000); break;
      case 'h': print_usage(stdout); exit(0);
      default: print_usage(stderr); exit(2);
    }
  }
  if (optind == argc) return arguments;
  fprintf(stderr, "what is \"%s\"?\n", argv[optind]);
  print_usage(stderr);
  exit(2);
}

const char* name_of_ticker(uint32_t ticker) {
  for (const auto& [number, name] : rocksdb::TickersNameMap)
    if (number == ticker) return name.c_str();
  return "?";
}

// A line a ticker: the words of up to kShown CPUs, of the threads without rseq, and the sum.
void print_tickers(const PercpuStatistics& statistics, bool all) {
  constexpr unsigned kShown = 8;
  const std::vector<uint32_t> best_known{
      rocksdb::NUMBER_KEYS_WRITTEN,   rocksdb::NUMBER_KEYS_READ,      rocksdb::BYTES_WRITTEN,
      rocksdb::BYTES_READ,            rocksdb::MEMTABLE_HIT,          rocksdb::MEMTABLE_MISS,
      rocksdb::BLOCK_CACHE_HIT,       rocksdb::BLOCK_CACHE_MISS,      rocksdb::BLOOM_FILTER_USEFUL,
      rocksdb::NUMBER_DB_SEEK,        rocksdb::NUMBER_DB_NEXT,        rocksdb::NUMBER_DB_PREV,
      rocksdb::COMPACT_READ_BYTES,    rocksdb::COMPACT_WRITE_BYTES,   rocksdb::FLUSH_WRITE_BYTES,
      rocksdb::NUMBER_MULTIGET_CALLS, rocksdb::NUMBER_BLOCK_COMPRESSED};
  printf("%-38s", "ticker");
  unsigned cpu, column = 0;
  percpu_for_each_possible_cpu(cpu) if (column++ < kShown) printf(" %10s %2u", "CPU", cpu);
  printf(" %13s %13s\n", "other copies", "sum");
  uint32_t in_use = 0;
  for (uint32_t t = 0; t < PercpuStatistics::kNrTickers; t++) {
    const uint64_t sum = statistics.getTickerCount(t);
    in_use += sum != 0;
    if (sum == 0 || (!all && std::find(best_known.begin(), best_known.end(), t) == best_known.end())) continue;
    printf("%-38s", name_of_ticker(t));
    uint64_t others = percpu_sum(statistics.ticker_handle(t));
    column = 0;
    percpu_for_each_possible_cpu(cpu) {
      if (column++ >= kShown) continue;
      const uint64_t here = *percpu_ptr(statistics.ticker_handle(t), cpu);
      others -= here;
      printf(" %13" PRIu64, here);
    }
    printf(" %13" PRIu64 " %13" PRIu64 "\n", others, sum);
  }
  printf("%u of %zu tickers are not zero\n\n", in_use, PercpuStatistics::kNrTickers);
}

void print_histograms(const PercpuStatistics& statistics, bool all) {
  const std::vector<uint32_t> best_known{rocksdb::DB_GET,     rocksdb::DB_WRITE,        rocksdb::DB_SEEK,
                                         rocksdb::FLUSH_TIME, rocksdb::COMPACTION_TIME, rocksdb::SST_READ_MICROS,
                                         rocksdb::BYTES_PER_READ};
  printf("%-38s %10s %10s %10s %10s %10s %10s\n", "histogram", "events", "average", "P50", "P99", "min", "max");
  for (const auto& [histogram, name] : rocksdb::HistogramsNameMap) {
    const HistogramCounts counts = statistics.read_histogram(histogram);
    if (counts.count() == 0) continue;
    if (!all && std::find(best_known.begin(), best_known.end(), histogram) == best_known.end()) continue;
    printf("%-38s %10" PRIu64 " %10.1f %10.1f %10.1f %10" PRIu64 " %10" PRIu64 "\n", name.c_str(), counts.count(),
           counts.average(), counts.percentile(50), counts.percentile(99), counts.min, counts.max);
  }
  printf("\n");
}

void print_layout() {
  std::string text(percpu_report(PERCPU_REPORT_LAYOUT, nullptr, 0) + 1, '\0');
  percpu_report(PERCPU_REPORT_LAYOUT, text.data(), text.size());
  printf("the memory they are in: one area of %zu bytes in the unit of each CPU\n%s\n", PercpuStatistics::kAreaBytes,
         text.c_str());
}

// The number of CPUs that this process may run on.
uint32_t nr_allowed_cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<uint32_t>(CPU_COUNT(&set)) : 1;
}

void print_costs(PercpuStatistics& ours, rocksdb::Statistics& theirs) {
  const uint32_t nr_cpus = nr_allowed_cpus();
  constexpr uint32_t kPairs = 11;
  constexpr uint64_t kEvents = 2'000'000;
  printf("what an event costs (medians of %u turns each, taken in turns):\n", kPairs);
  printf("%-20s %8s %14s %18s %8s\n", "", "threads", "per-CPU ns", "RocksDB's own ns", "ratio");
  std::vector<uint32_t> counts{1};
  if (nr_cpus > 1) counts.push_back(nr_cpus);
  for (const auto& [what, name] : {std::pair{Recorded::kTick, "recordTick"},
                                   std::pair{Recorded::kHistogram, "recordInHistogram"}})
    for (uint32_t nr_threads : counts) {
      const RecordCost cost = measure_record_cost(ours, theirs, what, nr_threads, kEvents, kPairs);
      printf("%-20s %8u %14.2f %18.2f %8.3f\n", name, nr_threads, cost.a_ns, cost.b_ns, cost.ratio);
    }
  const uint32_t crowd = 8 * nr_cpus;
  const uint64_t lost = count_lost(ours, crowd, kEvents);
  const uint64_t lost_theirs = count_lost(theirs, crowd, kEvents);
  printf("histogram events lost, of %" PRIu64 " in %u threads: %" PRIu64 " by per-CPU memory, %" PRIu64
         " by RocksDB's own\n",
         crowd * kEvents, crowd, lost, lost_theirs);
}

int run(const Arguments& arguments) {
  std::shared_ptr<PercpuStatistics> statistics;
  rocksdb::Status status = PercpuStatistics::create(&statistics);
  if (!status.ok()) {
    fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  const TemporaryDirectory directory;
  DatabaseLoad load;
  load.directory = directory.path();
  load.statistics = statistics;
  load.nr_threads = arguments.nr_threads;
  load.nr_keys = arguments.nr_keys;
  printf("RocksDB %d.%d.%d: %u threads with %" PRIu64 " keys each fill, overwrite, merge, read, scan, delete,\n"
         "compact, open again, read and scan, and count in %s\n\n",
         ROCKSDB_MAJOR, ROCKSDB_MINOR, ROCKSDB_PATCH, load.nr_threads, load.nr_keys, statistics->Name());
  fflush(stdout);
  DatabaseLoadCounts counts;
  status = run_database_load(load, &counts);
  if (!status.ok()) {
    fprintf(stderr, "the database: %s\n", status.ToString().c_str());
    return 1;
  }
  print_tickers(*statistics, arguments.all);
  print_histograms(*statistics, arguments.all);
  const uint64_t read = statistics->getTickerCount(rocksdb::NUMBER_KEYS_READ);
  if (read != counts.keys_read) {
    fprintf(stderr, "%" PRIu64 " keys were read, %" PRIu64 " were counted\n", counts.keys_read, read);
    return 1;
  }
  if (!arguments.demo) return 0;
  print_layout();
  const std::shared_ptr<rocksdb::Statistics> theirs = rocksdb::CreateDBStatistics();
  print_costs(*statistics, *theirs);
  return 0;
}

}  // namespace
}  // namespace percpu

int main(int argc, char** argv) { return percpu::run(percpu::read_arguments(argc, argv)); }
