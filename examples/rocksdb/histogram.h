// SPDX-License-Identifier: MIT
//
// What a RocksDB histogram is, as plain data: the limits of its buckets, the place of a value among them, and the
// figures that are worked out from the counts. Nothing here is per-CPU; percpu_statistics.h fills these in.
//
// RocksDB documents the limits by a rule: they grow by a factor of 1.5 and are cut to two significant digits, so that
// people can read them (1, 2, 3, 4, 6, 10, 15, 22, 34, 51, 76, 110, 170, ...). Bucket b holds the values above the
// limit of bucket b - 1 and up to its own; the last one also holds whatever is larger.
//
// Invariants:
//   - the limits rise; there are 109, all that fit into 64 bits
//   - min is never above the last limit and max never below 0: what RocksDB says of a histogram without events
#ifndef PERCPU_EXAMPLES_ROCKSDB_HISTOGRAM_H
#define PERCPU_EXAMPLES_ROCKSDB_HISTOGRAM_H

#include <rocksdb/statistics.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace percpu {

inline constexpr size_t kNrBuckets = 109;

// The limits of all buckets. The growth is worked out exactly; only what is stored is cut, and a limit whose first
// three digits are 100 to 109 keeps the third one (108, not 100: the rule would otherwise lose up to a tenth there).
constexpr std::array<uint64_t, kNrBuckets> make_bucket_limits() {
  std::array<uint64_t, kNrBuckets> limits{1, 2};
  double exact = 2;
  for (size_t b = 2; b < kNrBuckets; b++) {
    exact *= 1.5;
    const uint64_t whole = static_cast<uint64_t>(exact);
    uint64_t unit = 1;
    while (whole / unit >= 110) unit *= 10;
    limits[b] = whole / unit * unit;
  }
  return limits;
}
inline constexpr std::array<uint64_t, kNrBuckets> kBucketLimits = make_bucket_limits();
static_assert(kBucketLimits.back() == 13'000'000'000'000'000'000u, "1.5 times the last limit exceeds 64 bits");

// For each bit length, the bucket of the smallest value that has it: one or two steps from there reach any other's.
constexpr std::array<uint8_t, 65> make_first_buckets() {
  std::array<uint8_t, 65> first{};
  for (size_t bits = 1; bits <= 64; bits++) {
    size_t b = first[bits - 1];
    while (b + 1 < kNrBuckets && kBucketLimits[b] < uint64_t{1} << (bits - 1)) b++;
    first[bits] = static_cast<uint8_t>(b);
  }
  return first;
}
inline constexpr std::array<uint8_t, 65> kFirstBuckets = make_first_buckets();

// The bucket that counts `value`.
inline size_t bucket_of(uint64_t value) {
  size_t b = kFirstBuckets[value == 0 ? 0 : 64 - static_cast<size_t>(__builtin_clzll(value))];
  while (b + 1 < kNrBuckets && kBucketLimits[b] < value) b++;
  return b;
}

// A histogram's counts at one moment.
struct HistogramCounts {
  uint64_t sum = 0;
  uint64_t sum_squares = 0;  // modulo 2^64, as RocksDB's
  uint64_t min = kBucketLimits.back();
  uint64_t max = 0;
  std::array<uint64_t, kNrBuckets> buckets{};

  // The number of events.
  uint64_t count() const;

  double average() const;
  double standard_deviation() const;

  // The value that `percent` of all events do not exceed: the events of a bucket are taken to lie evenly between its
  // limits. Never outside [min, max]. 0 without events.
  double percentile(double percent) const;

  // Sets min and max to the limits of the buckets in use: where there are events whose own values are not known yet.
  void take_extremes_from_buckets();

  // The figures that RocksDB's histogramData() gives.
  rocksdb::HistogramData data() const;

  // The table that RocksDB's getHistogramString() gives, character by character.
  std::string text() const;
};

}  // namespace percpu

#endif  // PERCPU_EXAMPLES_ROCKSDB_HISTOGRAM_H
