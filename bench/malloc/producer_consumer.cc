// SPDX-License-Identifier: MIT
//
// producer_consumer: one thread takes blocks of 16 to 256 bytes and hands them on through a ring of 4,096 places; another reads and frees
// them. Every free is of another thread's block. Who finds the ring full or empty yields. ns a block.
#include <sched.h>

#include <atomic>
#include <memory>

#include "driver.h"

namespace {

struct Ring {
  static constexpr size_t kPlaces = 4096;
  // Whole batches are handed over, so that the ring costs little beside the allocator.
  static constexpr size_t kBatch = 64;
  alignas(64) std::atomic<size_t> produced{0};
  alignas(64) std::atomic<size_t> consumed{0};
  alignas(64) uint64_t* places[kPlaces];
};

}  // namespace

double bench::producer_consumer(const Scale& scale) {
  const size_t blocks = (scale.of(2'000'000) + Ring::kBatch - 1) / Ring::kBatch * Ring::kBatch;
  const auto ring = std::make_unique<Ring>();
  const auto produce = [&] {
    Random random(1);
    for (size_t i = 0; i < blocks; i += Ring::kBatch) {
      while (i + Ring::kBatch - ring->consumed.load(std::memory_order_acquire) > Ring::kPlaces) sched_yield();
      for (size_t j = i; j < i + Ring::kBatch; j++) ring->places[j % Ring::kPlaces] = take(random.between(16, 256), j);
      ring->produced.store(i + Ring::kBatch, std::memory_order_release);
    }
  };
  const auto consume = [&] {
    for (size_t i = 0; i < blocks; i += Ring::kBatch) {
      while (ring->produced.load(std::memory_order_acquire) == i) sched_yield();
      for (size_t j = i; j < i + Ring::kBatch; j++) give_back(ring->places[j % Ring::kPlaces], j);
      ring->consumed.store(i + Ring::kBatch, std::memory_order_release);
    }
  };
  return median_ns(scale, 3, [&] {
           ring->produced = ring->consumed = 0;
           run_threads(2, [&](unsigned thread) { thread == 0 ? produce() : consume(); });
         }) / static_cast<double>(blocks);
}
