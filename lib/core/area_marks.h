// SPDX-License-Identifier: MIT
//
// The live marks of a pool, for who knows that the offset lies in a map: the begin and the end of an area's life by arithmetic
// on a few constants. PoolCore's end_life() says the same of the end for any numbers.
//
// Context: lock-free, async-signal-safe.
#ifndef PERCPU_CORE_AREA_MARKS_H
#define PERCPU_CORE_AREA_MARKS_H

#include <bit>
#include <cstdint>

#include "base/bits.h"
#include "base/ids.h"
#include "core/live_marks.h"
#include "core/pool_shape.h"

namespace percpu {

class AreaMarks {
 public:
  constexpr AreaMarks() = default;
  // `live`, `bound`: the bitmaps of a unit in chunk 0's dynamic map, of `unit_words` each; the next chunk's are `map_words` further.
  AreaMarks(uint64_t* live, const uint64_t* bound, uint64_t map_words, uint32_t unit_words, MarkOrder order)
      : live_(live), bound_(bound), map_words_(map_words), unit_words_(unit_words), order_(order) {}

  // Begins the life of an area whose live mark is clear and that the caller has. Releases what was written before.
  void begin_life(ChunkId chunk, AreaOffset offset) const {
    const uint32_t mark = order_.mark(offset.bytes / kFragmentBytes);
    __atomic_fetch_or(&live_[chunk.value * map_words_ + mark / kWordBits], uint64_t{1} << (mark % kWordBits), __ATOMIC_RELEASE);
  }

  // Ends the life of the area that starts here. Returns: its size in fragments; 0 if the caller did not win, or there was none;
  // kLong for one that is longer than 64, or that its map's end bounds. Requires: a chunk below the pool's maximum; an offset
  // in the unit, a multiple of 4, in chunk 0 not before the dynamic part.
  static constexpr uint32_t kLong = UINT32_MAX;
  [[nodiscard]] __attribute__((always_inline)) inline uint32_t end_life(ChunkId chunk, AreaOffset offset) const {
    const uint32_t fragment = offset.bytes / kFragmentBytes;
    const uint32_t mark = order_.mark(fragment);
    uint64_t* live = &live_[chunk.value * map_words_ + mark / kWordBits];
    const uint64_t own = uint64_t{1} << (mark % kWordBits);
    // Looked at first: what was never allocated, in a chunk that does not exist, is not to be written to. (A compare-and-exchange
    // takes the processor less than a bit test with a register does.)
    uint64_t marks = load_relaxed(live);
    do {
      if ((marks & own) == 0) return 0;
    } while (!__atomic_compare_exchange_n(live, &marks, marks & ~own, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    const uint64_t* bound = &bound_[chunk.value * map_words_];
    const uint32_t word = fragment / kWordBits;
    const uint64_t here = load_relaxed(&bound[word]) >> (fragment % kWordBits) >> 1;
    if (here != 0) return static_cast<uint32_t>(std::countr_zero(here)) + 1;
    if (word + 1 == unit_words_) return kLong;
    const uint64_t next = load_relaxed(&bound[word + 1]);
    const uint32_t len = kWordBits - fragment % kWordBits + static_cast<uint32_t>(std::countr_zero(next));
    return next == 0 || len > kWordBits ? kLong : len;
  }

 private:
  uint64_t* live_ = nullptr;
  const uint64_t* bound_ = nullptr;
  uint64_t map_words_ = 0;
  uint32_t unit_words_ = 0;
  MarkOrder order_;
};

}  // namespace percpu

#endif  // PERCPU_CORE_AREA_MARKS_H
