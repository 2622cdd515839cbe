// SPDX-License-Identifier: MIT
//
// The figures of a histogram. The formulas are those whose results RocksDB prints, so that dashboards made for one work
// with the other; the test compares them, and the text, with RocksDB's own object over random histograms.
#include "histogram.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdarg>
#include <cstdio>

namespace percpu {
namespace {

// Appends formatted text. `line` has room for every line that text() makes: numbers of at most 20 digits each.
__attribute__((format(printf, 2, 3))) void append(std::string* text, const char* format, ...) {
  char line[512];
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof line, format, values);
  va_end(values);
  *text += line;
}

}  // namespace

uint64_t HistogramCounts::count() const {
  uint64_t events = 0;
  for (uint64_t in_bucket : buckets) events += in_bucket;
  return events;
}

double HistogramCounts::average() const {
  const uint64_t events = count();
  return events == 0 ? 0 : static_cast<double>(sum) / static_cast<double>(events);
}

double HistogramCounts::standard_deviation() const {
  const double n = static_cast<double>(count());
  if (n == 0) return 0;
  const double total = static_cast<double>(sum);
  const double squares = static_cast<double>(sum_squares);
  // Below zero only by rounding, or where the sum of squares wrapped around.
  return std::sqrt(std::max((squares * n - total * total) / (n * n), 0.0));
}

double HistogramCounts::percentile(double percent) const {
  const uint64_t events = count();
  if (events == 0) return 0;
  const double wanted = static_cast<double>(events) * (percent / 100.0);
  uint64_t below = 0;
  size_t b = 0;
  while (b + 1 < kNrBuckets && static_cast<double>(below + buckets[b]) < wanted) below += buckets[b++];
  const uint64_t from = b == 0 ? 0 : kBucketLimits[b - 1];
  const double share =
      buckets[b] == 0 ? 0 : (wanted - static_cast<double>(below)) / static_cast<double>(buckets[b]);
  const double value = static_cast<double>(from) + static_cast<double>(kBucketLimits[b] - from) * share;
  return std::min(std::max(value, static_cast<double>(min)), static_cast<double>(max));
}

void HistogramCounts::take_extremes_from_buckets() {
  for (size_t b = 0; b < kNrBuckets; b++) {
    if (buckets[b] == 0) continue;
    min = std::min(min, b == 0 ? 0 : kBucketLimits[b - 1] + 1);
    max = kBucketLimits[b];
  }
}

rocksdb::HistogramData HistogramCounts::data() const {
  rocksdb::HistogramData data{};
  data.median = percentile(50);
  data.percentile95 = percentile(95);
  data.percentile99 = percentile(99);
  data.average = average();
  data.standard_deviation = standard_deviation();
  data.max = static_cast<double>(max);
  data.count = count();
  data.sum = sum;
  data.min = static_cast<double>(min);
  return data;
}

std::string HistogramCounts::text() const {
  const uint64_t events = count();
  std::string text;
  append(&text, "Count: %" PRIu64 " Average: %.4f  StdDev: %.2f\n", events, average(), standard_deviation());
  append(&text, "Min: %" PRIu64 "  Median: %.4f  Max: %" PRIu64 "\n", events == 0 ? 0 : min, percentile(50),
         events == 0 ? 0 : max);
  append(&text, "Percentiles: P50: %.2f P75: %.2f P99: %.2f P99.9: %.2f P99.99: %.2f\n", percentile(50),
         percentile(75), percentile(99), percentile(99.9), percentile(99.99));
  text.append(54, '-').push_back('\n');
  uint64_t so_far = 0;
  for (size_t b = 0; b < kNrBuckets; b++) {
    if (buckets[b] == 0) continue;
    so_far += buckets[b];
    const double one_percent = 100.0 / static_cast<double>(events);
    const double percent = one_percent * static_cast<double>(buckets[b]);
    append(&text, "%c %7" PRIu64 ", %7" PRIu64 " ] %8" PRIu64 " %7.3f%% %7.3f%% ", b == 0 ? '[' : '(',
           b == 0 ? 0 : kBucketLimits[b - 1], kBucketLimits[b], buckets[b], percent,
           one_percent * static_cast<double>(so_far));
    text.append(static_cast<size_t>(percent / 5 + 0.5), '#').push_back('\n');
  }
  return text;
}

}  // namespace percpu
