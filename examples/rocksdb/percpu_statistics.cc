// SPDX-License-Identifier: MIT
//
// RocksDB's statistics in per-CPU memory: see percpu_statistics.h for how counting, resets and periods fit together.
#include "percpu_statistics.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace percpu {
namespace {

// Reads a {value, period} of any CPU's copy, which that CPU may be changing. The period first: the two are written
// together, so a value that is read after its period belongs to that period or to a later one.
percpu_pair load(const percpu_pair& extreme) {
  percpu_pair seen;
  seen.high = __atomic_load_n(&extreme.high, __ATOMIC_ACQUIRE);
  seen.low = __atomic_load_n(&extreme.low, __ATOMIC_RELAXED);
  return seen;
}

// Whether `value`, of `period`, has something to say to an extreme that was seen. Not where that is of a later period:
// the event was counted before the reset in between.
bool improves(const percpu_pair& seen, bool smallest, uint64_t value, uint64_t period) {
  if (seen.high != period) return seen.high < period;
  return smallest ? value < seen.low : value > seen.low;
}

// Makes `value` known to this CPU's extreme. Out of line: it seldom has anything to do once a period is under way.
// What is written goes to the CPU that runs the exchange, whichever that is: any copy will do.
__attribute__((noinline)) void settle(percpu_pair* extreme, bool smallest, uint64_t value, uint64_t period) {
  percpu_pair wanted;
  wanted.low = value;
  wanted.high = period;
  percpu_pair seen = percpu_read16(extreme);
  while (improves(seen, smallest, value, period) && !percpu_cmpxchg16(extreme, &seen, wanted)) {
  }
}

__attribute__((format(printf, 3, 4))) void append_line(std::string* text, const std::string& name, const char* format,
                                                       ...) {
  char line[256];  // four doubles of at most 27 characters ("%f" of 2^64), two integers, and the words between them
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof line, format, values);
  va_end(values);
  text->append(name).append(line);
}

}  // namespace

rocksdb::Status PercpuStatistics::create(std::shared_ptr<PercpuStatistics>* out) {
  static_assert(sizeof(Copy) < 64 * 1024, "the area fits into the smallest units that percpu.h allows but one");
  const size_t largest = percpu_max_alloc();
  char needed[160];
  snprintf(needed, sizeof needed, "%zu tickers and %zu histograms need an area of %zu bytes a CPU", kNrTickers,
           kNrHistograms, sizeof(Copy));
  if (sizeof(Copy) > largest)
    return rocksdb::Status::NotSupported(
        needed, "percpu_max_alloc() is " + std::to_string(largest) + ": raise max_alloc and unit_size in PERCPU_CONF");
  Copy* area = static_cast<Copy*>(percpu_alloc(sizeof(Copy), alignof(Copy)));
  if (area == nullptr) return rocksdb::Status::MemoryLimit(needed, std::string("percpu_alloc(): ") + strerror(errno));
  out->reset(new PercpuStatistics(area));
  return rocksdb::Status::OK();
}

PercpuStatistics::~PercpuStatistics() { percpu_free(area_); }

// ---- recording

void PercpuStatistics::recordTick(uint32_t ticker, uint64_t count) {
  if (get_stats_level() <= rocksdb::kExceptTickers || ticker >= kNrTickers) return;
  percpu_add(&area_->tickers[ticker], count);
}

void PercpuStatistics::recordInHistogram(uint32_t histogram, uint64_t value) {
  if (get_stats_level() <= rocksdb::kExceptHistogramOrTimers || histogram >= kNrHistograms) return;
  HistogramCopy* handle = &area_->histograms[histogram];
  percpu_inc(&handle->words[kFirstBucket + bucket_of(value)]);
  percpu_add(&handle->words[kSum], value);
  percpu_add(&handle->words[kSumSquares], value * value);

  // After the bucket: take() relies on it. Pairs with its store and percpu_fence().
  const uint64_t period = period_.load(std::memory_order_acquire);
  const uint64_t place = period % 2;
  const HistogramCopy* here = percpu_this_ptr(handle);
  if (improves(load(here->min[place]), true, value, period)) settle(&handle->min[place], true, value, period);
  if (improves(load(here->max[place]), false, value, period)) settle(&handle->max[place], false, value, period);
}

// ---- reading and resetting

uint64_t PercpuStatistics::getTickerCount(uint32_t ticker) const {
  if (ticker >= kNrTickers) return 0;
  std::lock_guard<std::mutex> lock(mutex_);
  return percpu_sum(&area_->tickers[ticker]) - baseline_.tickers[ticker];
}

void PercpuStatistics::setTickerCount(uint32_t ticker, uint64_t count) {
  if (ticker >= kNrTickers) return;
  std::lock_guard<std::mutex> lock(mutex_);
  baseline_.tickers[ticker] = percpu_sum(&area_->tickers[ticker]) - count;
}

uint64_t PercpuStatistics::getAndResetTickerCount(uint32_t ticker) {
  if (ticker >= kNrTickers) return 0;
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t sum = percpu_sum(&area_->tickers[ticker]);
  const uint64_t counted = sum - baseline_.tickers[ticker];
  baseline_.tickers[ticker] = sum;
  return counted;
}

PercpuStatistics::Words PercpuStatistics::sum_words(uint32_t histogram) const {
  Words sums;
  percpu_sum_n(&area_->histograms[histogram].words[0], kNrWords, sums.data());
  return sums;
}

// What a histogram counted since `baseline`, without min and max.
HistogramCounts PercpuStatistics::counts_since(const Words& baseline, const Words& sums) {
  HistogramCounts counts;
  counts.sum = sums[kSum] - baseline[kSum];
  counts.sum_squares = sums[kSumSquares] - baseline[kSumSquares];
  for (size_t b = 0; b < kNrBuckets; b++)
    counts.buckets[b] = sums[kFirstBucket + b] - baseline[kFirstBucket + b];
  return counts;
}

// Widens min and max by what the copies hold for `period`. Returns: whether they hold anything.
// Requires: mutex_ is held; the buckets were read before.
bool PercpuStatistics::add_extremes(uint32_t histogram, uint64_t period, HistogramCounts* counts) const {
  bool found = false;
  const HistogramCopy* copy;
  percpu_for_each_copy(copy, static_cast<const HistogramCopy*>(&area_->histograms[histogram])) {
    const percpu_pair min = load(copy->min[period % 2]);
    const percpu_pair max = load(copy->max[period % 2]);
    if (min.high == period) counts->min = std::min(counts->min, min.low);
    if (max.high == period) counts->max = std::max(counts->max, max.low);
    found |= min.high == period && max.high == period;
  }
  return found;
}

HistogramCounts PercpuStatistics::read_locked(uint32_t histogram) const {
  HistogramCounts counts = counts_since(baseline_.histograms[histogram], sum_words(histogram));
  if (!add_extremes(histogram, period_.load(std::memory_order_relaxed), &counts)) counts.take_extremes_from_buckets();
  return counts;
}

HistogramCounts PercpuStatistics::read_histogram(uint32_t histogram) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return read_locked(histogram);
}

void PercpuStatistics::read(Snapshot* out) const {
  std::lock_guard<std::mutex> lock(mutex_);
  percpu_sum_n(&area_->tickers[0], kNrTickers, out->tickers.data());
  for (uint32_t t = 0; t < kNrTickers; t++) out->tickers[t] -= baseline_.tickers[t];
  for (uint32_t h = 0; h < kNrHistograms; h++) out->histograms[h] = read_locked(h);
}

void PercpuStatistics::take(Snapshot* out) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t period = period_.load(std::memory_order_relaxed);
  period_.store(period + 1, std::memory_order_seq_cst);
  // What is not in a bucket after this goes to the new period's extremes. A failure matters no more than the opening
  // comment of percpu_statistics.h says.
  (void)percpu_fence(PERCPU_ALL_CPUS);

  for (uint32_t h = 0; h < kNrHistograms; h++) {
    const Words sums = sum_words(h);
    HistogramCounts counts = counts_since(baseline_.histograms[h], sums);
    baseline_.histograms[h] = sums;
    const bool found_old = counts.count() != 0 && add_extremes(h, period, &counts);
    const bool found_new = counts.count() != 0 && add_extremes(h, period + 1, &counts);
    if (!found_old && !found_new) counts.take_extremes_from_buckets();
    out->histograms[h] = counts;
  }
  std::array<uint64_t, kNrTickers> tickers;
  percpu_sum_n(&area_->tickers[0], kNrTickers, tickers.data());
  for (uint32_t t = 0; t < kNrTickers; t++) out->tickers[t] = tickers[t] - baseline_.tickers[t];
  baseline_.tickers = tickers;
}

rocksdb::Status PercpuStatistics::Reset() {
  const std::unique_ptr<Snapshot> forgotten(new Snapshot);
  take(forgotten.get());
  return rocksdb::Status::OK();
}

void PercpuStatistics::histogramData(uint32_t histogram, rocksdb::HistogramData* data) const {
  *data = histogram < kNrHistograms ? read_histogram(histogram).data() : HistogramCounts().data();
}

std::string PercpuStatistics::getHistogramString(uint32_t histogram) const {
  return histogram < kNrHistograms ? read_histogram(histogram).text() : HistogramCounts().text();
}

std::string PercpuStatistics::ToString() const {
  const std::unique_ptr<Snapshot> now(new Snapshot);
  read(now.get());
  std::string text;
  text.reserve(20'000);
  for (const auto& [ticker, name] : rocksdb::TickersNameMap)
    append_line(&text, name, " COUNT : %" PRIu64 "\n", now->tickers[ticker]);
  for (const auto& [histogram, name] : rocksdb::HistogramsNameMap) {
    const rocksdb::HistogramData data = now->histograms[histogram].data();
    append_line(&text, name, " P50 : %f P95 : %f P99 : %f P100 : %f COUNT : %" PRIu64 " SUM : %" PRIu64 "\n",
                data.median, data.percentile95, data.percentile99, data.max, data.count, data.sum);
  }
  uint64_t copies = 0;
  const Copy* copy;
  percpu_for_each_copy(copy, static_cast<const Copy*>(area_)) copies++;
  append_line(&text, "percpu.copies", " COUNT : %" PRIu64 "\n", copies);
  append_line(&text, "percpu.copy.bytes", " COUNT : %zu\n", kAreaBytes);
  return text;
}

bool PercpuStatistics::getTickerMap(std::map<std::string, uint64_t>* tickers) const {
  if (tickers == nullptr) return false;
  std::array<uint64_t, kNrTickers> counts;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    percpu_sum_n(&area_->tickers[0], kNrTickers, counts.data());
    for (uint32_t t = 0; t < kNrTickers; t++) counts[t] -= baseline_.tickers[t];
  }
  tickers->clear();
  for (const auto& [ticker, name] : rocksdb::TickersNameMap) (*tickers)[name] = counts[ticker];
  return true;
}

const uint64_t* PercpuStatistics::ticker_handle(uint32_t ticker) const { return &area_->tickers[ticker]; }

}  // namespace percpu
