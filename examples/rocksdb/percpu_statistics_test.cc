// SPDX-License-Identifier: MIT
//
// The promises of percpu_statistics.h and histogram.h, held against RocksDB's own statistics object.
#include "percpu_statistics.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <sstream>
#include <vector>

#include "child.h"
#include "database_load.h"
#include "seed.h"
#include "statistics_under_test.h"
#include "tee_statistics.h"

namespace percpu {
namespace {

constexpr uint32_t kNrTickers = PercpuStatistics::kNrTickers;
constexpr uint32_t kNrHistograms = PercpuStatistics::kNrHistograms;

// Equal but for what rounding may do to the last digits.
bool close(double a, double b) { return std::fabs(a - b) <= 1e-9 * std::max(std::fabs(a), std::fabs(b)); }

uint64_t bucket_of_real(double value) {
  if (value > static_cast<double>(kBucketLimits.back())) return kNrBuckets;
  return bucket_of(static_cast<uint64_t>(std::ceil(value)));
}

void check_same_histogram(const rocksdb::Statistics& ours, const rocksdb::Statistics& theirs, uint32_t histogram) {
  rocksdb::HistogramData a, b;
  ours.histogramData(histogram, &a);
  theirs.histogramData(histogram, &b);
  CAPTURE(histogram);
  CHECK(a.count == b.count);
  CHECK(a.sum == b.sum);
  CHECK(a.min == b.min);
  CHECK(a.max == b.max);
  CHECK(bucket_of_real(a.median) == bucket_of_real(b.median));
  CHECK(bucket_of_real(a.percentile95) == bucket_of_real(b.percentile95));
  CHECK(bucket_of_real(a.percentile99) == bucket_of_real(b.percentile99));
  CHECK(close(a.median, b.median));
  CHECK(close(a.percentile95, b.percentile95));
  CHECK(close(a.percentile99, b.percentile99));
  CHECK(close(a.average, b.average));
  CHECK(close(a.standard_deviation, b.standard_deviation));
  CHECK(ours.getHistogramString(histogram) == theirs.getHistogramString(histogram));
}

// ToString() without the two lines that only ours has.
std::string without_own_lines(const std::string& text) {
  std::istringstream lines(text);
  std::string line, kept;
  while (std::getline(lines, line))
    if (line.rfind("percpu.", 0) != 0) kept += line + "\n";
  return kept;
}

void check_same(const rocksdb::Statistics& ours, const rocksdb::Statistics& theirs) {
  for (uint32_t t = 0; t < kNrTickers; t++) {
    CAPTURE(t);
    CHECK(ours.getTickerCount(t) == theirs.getTickerCount(t));
  }
  for (uint32_t h = 0; h < kNrHistograms; h++) check_same_histogram(ours, theirs, h);
  std::map<std::string, uint64_t> a, b;
  CHECK(ours.getTickerMap(&a));
  CHECK(theirs.getTickerMap(&b));
  CHECK(a == b);
  CHECK(without_own_lines(ours.ToString()) == theirs.ToString());
}

TEST_CASE("a value goes into the bucket that RocksDB's own object puts it into") {
  std::mt19937_64 random(test_seed());
  std::vector<uint64_t> values{0, UINT64_MAX, UINT64_MAX - 1};
  for (uint64_t limit : kBucketLimits)
    for (uint64_t near : {limit - 1, limit, limit + 1}) values.push_back(near);
  for (int bits = 0; bits < 64; bits++)
    for (uint64_t near : {(uint64_t{1} << bits) - 1, uint64_t{1} << bits, (uint64_t{1} << bits) + 1})
      values.push_back(near);
  for (int i = 0; i < 20'000; i++) values.push_back(random() >> (random() % 64));

  // One value a histogram at a time: the text names the limits of the only bucket in use.
  Theirs theirs = make_theirs();
  for (size_t i = 0; i < values.size(); i += kNrHistograms) {
    REQUIRE(theirs->Reset().ok());
    for (uint32_t h = 0; h < kNrHistograms && i + h < values.size(); h++) {
      const uint64_t value = values[i + h];
      theirs->recordInHistogram(h, value);
      HistogramCounts counts;
      counts.sum = value;
      counts.sum_squares = value * value;
      counts.min = std::min(counts.min, value);
      counts.max = value;
      counts.buckets[bucket_of(value)] = 1;
      CAPTURE(value);
      CHECK(counts.text() == theirs->getHistogramString(h));
    }
  }
}

TEST_CASE("percentiles, average, deviation and text are RocksDB's own, for any mixture of values") {
  std::mt19937_64 random(test_seed());
  Ours ours = make_ours();
  Theirs theirs = make_theirs();
  check_same(*ours, *theirs);  // without events
  for (unsigned widest_of_all : {20u, 44u, 64u}) {
    for (int round = 0; round < 2; round++) {
      for (uint32_t h = 0; h < kNrHistograms; h++) {
        const uint64_t nr_values = random() % 300;
        const unsigned widest = static_cast<unsigned>(1 + random() % widest_of_all);
        for (uint64_t i = 0; i < nr_values; i++) {
          const uint64_t value = random() >> (63 - random() % widest);
          ours->recordInHistogram(h, value);
          theirs->recordInHistogram(h, value);
        }
      }
      for (uint32_t t = 0; t < kNrTickers; t++) {
        const uint64_t count = random();
        ours->recordTick(t, count);
        theirs->recordTick(t, count);
      }
      // RocksDB's own ToString() fails an assertion where the numbers of a line are as long as 64 bits can be.
      if (widest_of_all < 64) check_same(*ours, *theirs);
      for (uint32_t h = 0; h < kNrHistograms; h++) check_same_histogram(*ours, *theirs, h);
    }
    REQUIRE(ours->Reset().ok());
    REQUIRE(theirs->Reset().ok());
    check_same(*ours, *theirs);
  }
}

TEST_CASE("each stats level records what RocksDB's own object records at it") {
  Ours ours = make_ours();
  Theirs theirs = make_theirs();
  for (uint8_t level = rocksdb::kDisableAll; level <= rocksdb::kAll; level++) {
    for (rocksdb::Statistics* each : std::initializer_list<rocksdb::Statistics*>{ours.get(), theirs.get()}) {
      each->set_stats_level(static_cast<rocksdb::StatsLevel>(level));
      each->recordTick(rocksdb::BYTES_READ, 1 + level);
      each->recordInHistogram(rocksdb::BYTES_PER_READ, 10 + level);
      each->reportTimeToHistogram(rocksdb::DB_GET, 100 + level);
      each->setTickerCount(rocksdb::BYTES_WRITTEN, 7u + level);
    }
    CAPTURE(int{level});
    check_same(*ours, *theirs);
    CHECK(ours->HistEnabledForType(rocksdb::DB_GET) == theirs->HistEnabledForType(rocksdb::DB_GET));
  }
  CHECK(ours->getTickerCount(rocksdb::BYTES_READ) != 0);
}

TEST_CASE("setting and resetting a ticker goes on from there") {
  Ours ours = make_ours();
  Theirs theirs = make_theirs();
  for (rocksdb::Statistics* each : std::initializer_list<rocksdb::Statistics*>{ours.get(), theirs.get()}) {
    each->recordTick(rocksdb::BYTES_READ, 5);
    each->setTickerCount(rocksdb::BYTES_READ, 1'000);
    each->recordTick(rocksdb::BYTES_READ, 1);
    CHECK(each->getTickerCount(rocksdb::BYTES_READ) == 1'001);
    CHECK(each->getAndResetTickerCount(rocksdb::BYTES_READ) == 1'001);
    CHECK(each->getAndResetTickerCount(rocksdb::BYTES_READ) == 0);
    each->recordTick(rocksdb::BYTES_READ, 2);
    each->setTickerCount(rocksdb::BYTES_WRITTEN, 3);
    each->setTickerCount(rocksdb::BYTES_WRITTEN, 1);
  }
  check_same(*ours, *theirs);
}

TEST_CASE("a number outside the enumerations counts nothing and reads as zero") {
  Ours ours = make_ours();
  const std::string before = ours->ToString();
  for (uint32_t wrong : {uint32_t{rocksdb::TICKER_ENUM_MAX}, UINT32_MAX}) {
    ours->recordTick(wrong, 1);
    ours->setTickerCount(wrong, 1);
    ours->recordInHistogram(wrong, 1);
    CHECK(ours->getTickerCount(wrong) == 0);
    CHECK(ours->getAndResetTickerCount(wrong) == 0);
    rocksdb::HistogramData data;
    ours->histogramData(wrong, &data);
    CHECK(data.count == 0);
    CHECK(ours->getHistogramString(wrong).rfind("Count: 0 ", 0) == 0);
  }
  CHECK(ours->ToString() == before);
  CHECK_FALSE(ours->getTickerMap(nullptr));
}

TEST_CASE("a database's work is counted alike, in every ticker and every histogram") {
  Ours ours = make_ours();
  Theirs theirs = make_theirs();
  auto tee = std::make_shared<TeeStatistics>(theirs, ours);
  tee->set_level(rocksdb::kAll);
  const TemporaryDirectory directory;
  DatabaseLoad load;
  load.directory = directory.path();
  load.statistics = tee;
  load.seed = test_seed();
  DatabaseLoadCounts counts;
  const rocksdb::Status ran = run_database_load(load, &counts);
  REQUIRE_MESSAGE(ran.ok(), ran.ToString());

  for (uint32_t t = 0; t < kNrTickers; t++) {
    CAPTURE(t);
    CHECK(ours->getTickerCount(t) == tee->recorded_ticks(t));
  }
  for (uint32_t h = 0; h < kNrHistograms; h++) {
    CAPTURE(h);
    CHECK(ours->read_histogram(h).count() == tee->recorded_events(h));
    CHECK(ours->read_histogram(h).sum == tee->recorded_sum(h));
  }
  check_same(*ours, *theirs);
  CHECK(ours->getTickerCount(rocksdb::NUMBER_KEYS_READ) == counts.keys_read);
  CHECK(ours->getTickerCount(rocksdb::NUMBER_KEYS_WRITTEN) >= counts.keys_written);  // DeleteRange writes keys, too
  // The work was varied enough to be worth comparing.
  uint32_t tickers = 0, histograms = 0, cpus = 0;
  for (uint32_t t = 0; t < kNrTickers; t++) tickers += ours->getTickerCount(t) != 0;
  for (uint32_t h = 0; h < kNrHistograms; h++) histograms += ours->read_histogram(h).count() != 0;
  const uint64_t* copy;
  percpu_for_each_copy(copy, ours->ticker_handle(rocksdb::NUMBER_KEYS_WRITTEN)) cpus += *copy != 0;
  printf("database: %u tickers and %u histograms in use, %llu keys written, counted in %u copies\n", tickers,
         histograms, static_cast<unsigned long long>(ours->getTickerCount(rocksdb::NUMBER_KEYS_WRITTEN)), cpus);
  CHECK(tickers >= 60);
  CHECK(histograms >= 20);
  for (uint32_t t : {rocksdb::BLOOM_FILTER_USEFUL, rocksdb::BLOCK_CACHE_DATA_MISS, rocksdb::COMPACT_WRITE_BYTES,
                     rocksdb::NUMBER_DB_PREV, rocksdb::NUMBER_MULTIGET_CALLS, rocksdb::WAL_FILE_BYTES}) {
    CAPTURE(t);
    CHECK(ours->getTickerCount(t) != 0);
  }
}

TEST_CASE("every object has an area of its own, and gives it back") {
  percpu_stats before, during, after;
  { Ours warm = make_ours(); }
  REQUIRE(percpu_stats_read(&before, sizeof before) == 0);
  {
    Ours one = make_ours(), two = make_ours();
    one->recordTick(rocksdb::BYTES_READ, 3);
    one->recordInHistogram(rocksdb::DB_GET, 4);
    CHECK(two->getTickerCount(rocksdb::BYTES_READ) == 0);
    CHECK(two->read_histogram(rocksdb::DB_GET).count() == 0);
    REQUIRE(percpu_stats_read(&during, sizeof during) == 0);
    CHECK(during.nr_live == before.nr_live + 2);
  }
  REQUIRE(percpu_stats_read(&after, sizeof after) == 0);
  CHECK(after.nr_live == before.nr_live);
  Ours again = make_ours();  // memory that held counts begins at zero
  CHECK(again->getTickerCount(rocksdb::BYTES_READ) == 0);
  CHECK(again->read_histogram(rocksdb::DB_GET).max == 0);
}

// What the next test runs in a process with a small pool.
TEST_CASE("the area does not fit" * doctest::skip()) {
  Ours ours;
  const rocksdb::Status made = PercpuStatistics::create(&ours);
  CHECK(made.IsNotSupported());
  CHECK(ours == nullptr);
  CHECK(made.ToString().find(std::to_string(PercpuStatistics::kAreaBytes)) != std::string::npos);
  CHECK(made.ToString().find("max_alloc") != std::string::npos);
}

TEST_CASE("where the area does not fit, the error says how large it is") {
  const ChildEnd end = run_again("the area does not fit", {"PERCPU_CONF=max_alloc:32K"});
  CHECK_MESSAGE(end.exit_code == 0, end.standard_error);
}

}  // namespace
}  // namespace percpu
