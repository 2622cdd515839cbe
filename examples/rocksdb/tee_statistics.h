// SPDX-License-Identifier: MIT
//
// A rocksdb::Statistics that hands each call on to two others and keeps a third account of its own, in atomic counters.
// A database that counts here counts every event in all of them, whatever threads it uses and however long they take,
// so that two implementations can be compared on real work, and one can tell which of them is wrong.
//
// RocksDB's own object (7.8) loses histogram events where more threads record than there are CPUs: it adds to a
// histogram by loading, adding and storing, in a copy that the threads of a CPU share, so that a thread that is
// preempted in between undoes what others added meanwhile. It is the first one here, and its histograms are recorded
// into under a lock.
//
// Questions are answered by the first. The stats level is checked by each of the two for itself: set it with
// set_level().
// Locking: lock_ around the first one's histograms.
#ifndef PERCPU_EXAMPLES_ROCKSDB_TEE_STATISTICS_H
#define PERCPU_EXAMPLES_ROCKSDB_TEE_STATISTICS_H

#include <rocksdb/statistics.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace percpu {

class TeeStatistics final : public rocksdb::Statistics {
 public:
  TeeStatistics(std::shared_ptr<rocksdb::Statistics> first, std::shared_ptr<rocksdb::Statistics> second)
      : first_(std::move(first)), second_(std::move(second)) {}

  const char* Name() const override { return "TeeStatistics"; }

  // RocksDB reads the level of the object that it holds, before it starts a timer; the two read their own.
  void set_level(rocksdb::StatsLevel level) {
    set_stats_level(level);
    first_->set_stats_level(level);
    second_->set_stats_level(level);
  }

  void recordTick(uint32_t ticker, uint64_t count) override {
    ticks_[ticker] += count;
    first_->recordTick(ticker, count);
    second_->recordTick(ticker, count);
  }
  void recordInHistogram(uint32_t histogram, uint64_t value) override {
    count_[histogram] += 1;
    sum_[histogram] += value;
    {
      std::lock_guard<std::mutex> lock(lock_);
      first_->recordInHistogram(histogram, value);
    }
    second_->recordInHistogram(histogram, value);
  }
  void setTickerCount(uint32_t ticker, uint64_t count) override {
    first_->setTickerCount(ticker, count);
    second_->setTickerCount(ticker, count);
  }
  uint64_t getAndResetTickerCount(uint32_t ticker) override {
    second_->getAndResetTickerCount(ticker);
    return first_->getAndResetTickerCount(ticker);
  }
  rocksdb::Status Reset() override {
    const rocksdb::Status reset = second_->Reset();
    return reset.ok() ? first_->Reset() : reset;
  }

  uint64_t getTickerCount(uint32_t ticker) const override { return first_->getTickerCount(ticker); }
  void histogramData(uint32_t histogram, rocksdb::HistogramData* data) const override {
    first_->histogramData(histogram, data);
  }
  std::string getHistogramString(uint32_t histogram) const override { return first_->getHistogramString(histogram); }
  using rocksdb::Statistics::ToString;
  std::string ToString() const override { return first_->ToString(); }
  bool getTickerMap(std::map<std::string, uint64_t>* tickers) const override { return first_->getTickerMap(tickers); }

  // What was recorded here, whatever the two others made of it.
  uint64_t recorded_ticks(uint32_t ticker) const { return ticks_[ticker]; }
  uint64_t recorded_events(uint32_t histogram) const { return count_[histogram]; }
  uint64_t recorded_sum(uint32_t histogram) const { return sum_[histogram]; }

 private:
  std::array<std::atomic<uint64_t>, rocksdb::TICKER_ENUM_MAX> ticks_{};
  std::array<std::atomic<uint64_t>, rocksdb::HISTOGRAM_ENUM_MAX> count_{}, sum_{};
  std::mutex lock_;
  const std::shared_ptr<rocksdb::Statistics> first_, second_;
};

}  // namespace percpu

#endif  // PERCPU_EXAMPLES_ROCKSDB_TEE_STATISTICS_H
