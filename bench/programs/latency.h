// SPDX-License-Identifier: MIT
//
// A histogram of latencies: 32 buckets for each power of two, so a percentile is at most a thirty-second too high. Its size is
// fixed: recording allocates nothing, and the histograms of many threads are added up at the end.
#ifndef PERCPU_BENCH_PROGRAMS_LATENCY_H
#define PERCPU_BENCH_PROGRAMS_LATENCY_H

#include <time.h>

#include <array>
#include <bit>
#include <cstdint>

inline uint64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

class Latencies {
 public:
  void record(uint64_t ns) {
    counts_[bucket_of(ns)]++;
    count_++;
  }
  void add(const Latencies& other) {
    for (uint32_t i = 0; i < kBuckets; ++i) counts_[i] += other.counts_[i];
    count_ += other.count_;
  }
  uint64_t count() const { return count_; }

  // Returns: the upper end, in microseconds, of the bucket below which this part of all latencies lies; 0 when there are none.
  double percentile_us(double part) const {
    const auto wanted = static_cast<uint64_t>(part * static_cast<double>(count_));
    uint64_t seen = 0;
    for (uint32_t i = 0; i < kBuckets; ++i) {
      seen += counts_[i];
      if (seen > wanted || (seen == count_ && seen != 0)) return static_cast<double>(end_of(i)) / 1000;
    }
    return 0;
  }

 private:
  static constexpr uint32_t kShift = 5;
  static constexpr uint32_t kSteps = 1U << kShift;
  static constexpr uint32_t kBuckets = (64 - kShift + 1) * kSteps;

  static uint32_t bucket_of(uint64_t ns) {
    if (ns < kSteps) return static_cast<uint32_t>(ns);
    const auto power = static_cast<uint32_t>(std::bit_width(ns)) - 1 - kShift;  // how many low bits the bucket leaves out
    return (power + 1) * kSteps + static_cast<uint32_t>(ns >> power) - kSteps;
  }
  static uint64_t end_of(uint32_t bucket) {
    if (bucket < kSteps) return bucket + 1;
    const uint32_t power = bucket / kSteps - 1;
    return (uint64_t{kSteps} + bucket % kSteps + 1) << power;
  }

  std::array<uint64_t, kBuckets> counts_{};
  uint64_t count_ = 0;
};

#endif  // PERCPU_BENCH_PROGRAMS_LATENCY_H
