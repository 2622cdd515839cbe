// SPDX-License-Identifier: MIT
//
// RocksDB's statistics kept in per-CPU memory. A rocksdb::Statistics whose tickers and histograms live in one area of
// libpercpu: an event is added to the copy of the CPU that it happens on, by a few plain instructions, and whoever asks
// adds the copies up. Give it to a database as Options::statistics; it answers all that RocksDB's own object answers.
//
//   one copy of the area (kAreaBytes; one a possible CPU, and one a group for threads without rseq)
//   +----------------------------------------------------------+--------------------+
//   | histogram 0 | histogram 1 | ...                          | ticker 0 | 1 | ... |
//   +----------------------------------------------------------+--------------------+
//     min {value, period} x 2 | max {value, period} x 2 | sum | sum of squares | bucket 0 .. 108
//
// A reset changes no copy, so it cannot lose what a CPU adds meanwhile. It moves the baseline: what had been counted
// when the last reset read the copies, in ordinary memory. What a caller sees is sum over the copies - baseline. Every
// event lies on exactly one side of a reset: a copy's word only grows, and the word that the reset read is the very
// number that later readings subtract.
//
// A smallest and a largest value cannot be subtracted. They carry the number of the period (reset to reset) that they
// belong to, and are changed together with it by one 16-byte operation; one of an older period counts as absent. Even
// and odd periods have places of their own, so that a period's values are still there when the reset that ended it
// reads:
//
//   recording: add to the bucket ... load the period ... offer the value to that period's min and max
//   reset:     raise the period      percpu_fence()       read the buckets, then min and max
//
//   An event that the reset did not find in its bucket was added by a sequence that began after the fence; so it also
//   finds the new period. Therefore [min, max] of a period holds every value that the period counts, once the recording
//   of it is over. (It may also hold a value that was recorded while the reset ran, and was counted before it. What
//   take() returns holds the values found in both periods' places, for the events between the first two steps.) And a
//   thread that was held up with an old period in hand cannot disturb a new one: it finds a larger number in the place
//   or leaves one that counts as absent, and its event was counted before.
//
// An event is several additions: bucket, sum, sum of squares. A reset or a reading between them sees the first without
// the last, as with RocksDB's own object; each word by itself neither loses nor repeats anything, over any number of
// resets.
//
// Where the kernel refuses the fence (percpu_fence() fails), a reset is still exact but for one thing: min and max may
// lack an event that was being recorded at that moment.
//
// Invariants:
//   - words of the area are only added to; min falls and max rises within a period; a period's number never falls
//   - every word of the baseline is what the copies added up to at a reset (less what setTickerCount() set)
// Locking: recording takes no lock. Readers and resets hold mutex_, which guards baseline_ and orders the periods.
#ifndef PERCPU_EXAMPLES_ROCKSDB_PERCPU_STATISTICS_H
#define PERCPU_EXAMPLES_ROCKSDB_PERCPU_STATISTICS_H

#include <percpu.h>
#include <rocksdb/statistics.h>
#include <rocksdb/status.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "histogram.h"

namespace percpu {

class PercpuStatistics final : public rocksdb::Statistics {
 public:
  static constexpr size_t kNrTickers = rocksdb::TICKER_ENUM_MAX;
  static constexpr size_t kNrHistograms = rocksdb::HISTOGRAM_ENUM_MAX;

  // All that was counted in one period.
  struct Snapshot {
    std::array<uint64_t, kNrTickers> tickers{};
    std::array<HistogramCounts, kNrHistograms> histograms{};
  };

  // Makes an object with all counts at zero.
  // Errors: NotSupported where the area is larger than percpu_max_alloc(), MemoryLimit where there is no memory for it;
  // the message says how much is needed.
  // Context: thread-safe.
  static rocksdb::Status create(std::shared_ptr<PercpuStatistics>* out);

  // Requires: nobody records any more. Gives the area back.
  ~PercpuStatistics() override;

  PercpuStatistics(const PercpuStatistics&) = delete;
  PercpuStatistics& operator=(const PercpuStatistics&) = delete;

  // ---- what RocksDB asks for. Context: thread-safe, all of it. A number outside the enumerations counts nothing and
  // reads as zero. The stats level decides what is recorded, as with RocksDB's own object: no tickers at kDisableAll,
  // no histograms up to kExceptHistogramOrTimers, no timers up to kExceptTimers. Resets and readings ignore it.
  static const char* kClassName() { return "PercpuStatistics"; }
  const char* Name() const override { return kClassName(); }

  void recordTick(uint32_t ticker, uint64_t count) override;
  void recordInHistogram(uint32_t histogram, uint64_t value) override;

  uint64_t getTickerCount(uint32_t ticker) const override;
  void setTickerCount(uint32_t ticker, uint64_t count) override;
  // Returns what was counted since the last reset of this ticker; later events count from zero, none is lost or
  // doubled.
  uint64_t getAndResetTickerCount(uint32_t ticker) override;

  void histogramData(uint32_t histogram, rocksdb::HistogramData* data) const override;
  std::string getHistogramString(uint32_t histogram) const override;

  rocksdb::Status Reset() override;

  using rocksdb::Statistics::ToString;
  // RocksDB's lines, then two more in the same form that say where the counts live: percpu.copies, percpu.copy.bytes.
  std::string ToString() const override;
  bool getTickerMap(std::map<std::string, uint64_t>* tickers) const override;

  // ---- what RocksDB's own object does not have.

  // Everything, in one reading.
  void read(Snapshot* out) const;

  // Everything, and resets it: an event is in what this call returns or in what a later one does, never in both.
  void take(Snapshot* out);

  // One histogram. Requires: histogram < kNrHistograms.
  HistogramCounts read_histogram(uint32_t histogram) const;

  // The handle of a ticker, for percpu_ptr(): its CPUs' words count from the object's beginning, resets
  // notwithstanding.
  // Requires: ticker < kNrTickers.
  const uint64_t* ticker_handle(uint32_t ticker) const;

 private:
  // The words of a histogram that only grow.
  static constexpr size_t kSum = 0;
  static constexpr size_t kSumSquares = 1;
  static constexpr size_t kFirstBucket = 2;
  static constexpr size_t kNrWords = kFirstBucket + kNrBuckets;
  using Words = std::array<uint64_t, kNrWords>;

  // One CPU's part of a histogram. Whole cache lines: the extremes fill the first.
  struct alignas(64) HistogramCopy {
    percpu_pair min[2];  // by period % 2. {low: the value, high: its period}; period 0, as the area begins: none yet
    percpu_pair max[2];
    uint64_t words[kNrWords];
  };

  // One CPU's copy of the area.
  struct Copy {
    HistogramCopy histograms[kNrHistograms];
    uint64_t tickers[kNrTickers];
  };

  // What the copies' words summed up to at the last reset.
  struct Baseline {
    std::array<uint64_t, kNrTickers> tickers{};
    std::array<Words, kNrHistograms> histograms{};
  };

  explicit PercpuStatistics(Copy* area) : area_(area) {}

  Words sum_words(uint32_t histogram) const;
  static HistogramCounts counts_since(const Words& baseline, const Words& sums);
  bool add_extremes(uint32_t histogram, uint64_t period, HistogramCounts* counts) const;
  HistogramCounts read_locked(uint32_t histogram) const;

  // The handle: no memory is there. Constant.
  Copy* const area_;
  // The number of the current period; from 1, since the area begins as zeroes. Written under mutex_. With area_ on a
  // line that recording reads, and only a reset writes.
  std::atomic<uint64_t> period_{1};

  alignas(64) mutable std::mutex mutex_;
  Baseline baseline_;  // guarded by mutex_

 public:
  // The size of the area, bytes in each copy.
  static constexpr size_t kAreaBytes = sizeof(Copy);
};

}  // namespace percpu

#endif  // PERCPU_EXAMPLES_ROCKSDB_PERCPU_STATISTICS_H
