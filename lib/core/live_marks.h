// SPDX-License-Identifier: MIT
//
// The order of the live marks in their bitmap. The mark of an area is written by every allocation and free of it, which the
// front caches otherwise keep apart by CPU; if neighbours' marks shared a cache line, CPUs that use neighbouring areas would
// take it from each other all the time. So the marks of neighbours are put on different lines:
//
//   fragment   | high | inner (8 bits) | low (1 to 5 bits) | pair |      a group is the bits below `high`
//   mark       | high | low ^ inner    | inner             | pair |      a line has 512 bits: inner, pair
//
// `low` alone would put areas at multiples of a large power of two on one line; `inner` spreads these.
//
// Invariants: a bijection on the fragments of a map; so it is on each aligned group of them.
#ifndef PERCPU_CORE_LIVE_MARKS_H
#define PERCPU_CORE_LIVE_MARKS_H

#include <bit>
#include <cstdint>

namespace percpu {

class MarkOrder {
 public:
  static constexpr uint32_t kMaxShift = 14;  // of a group: 32 lines, what 64 KiB of a unit have
  static constexpr uint32_t kLineShift = 9;  // 64 bytes of bits

  constexpr MarkOrder() : MarkOrder(kMaxShift) {}
  // Of a bitmap of so many bits, a multiple of 1024.
  [[nodiscard]] static constexpr MarkOrder of(uint32_t len_bits) {
    const auto zeros = static_cast<uint32_t>(std::countr_zero(len_bits));
    return MarkOrder(zeros < kMaxShift ? zeros : kMaxShift);
  }

  [[nodiscard]] constexpr uint32_t mark(uint32_t fragment) const {
    const uint32_t inner = (fragment & group_mask_) >> inner_shift_;
    const uint32_t line = ((fragment >> 1) ^ inner) & line_mask_;
    return (fragment & high_and_pair_) | line << kLineShift | inner << 1;
  }
  [[nodiscard]] constexpr uint32_t fragment(uint32_t mark) const {
    const uint32_t inner = (mark & kInnerMask) >> 1;
    const uint32_t low = (mark >> kLineShift ^ inner) & line_mask_;
    return (mark & high_and_pair_) | inner << inner_shift_ | low << 1;
  }

  // All marks of the fragments below `len` are below this.
  [[nodiscard]] constexpr uint32_t end(uint32_t len) const { return (len + group_mask_) & ~group_mask_; }

 private:
  static constexpr uint32_t kInnerMask = (1u << kLineShift) - 1;

  explicit constexpr MarkOrder(uint32_t group_shift)
      : group_mask_((1u << group_shift) - 1),
        high_and_pair_(~group_mask_ | 1),
        inner_shift_(group_shift - (kLineShift - 1)),
        line_mask_((1u << (group_shift - kLineShift)) - 1) {}

  // Worked out once: every allocation and free comes here.
  uint32_t group_mask_;
  uint32_t high_and_pair_;
  uint32_t inner_shift_;
  uint32_t line_mask_;
};

}  // namespace percpu

#endif  // PERCPU_CORE_LIVE_MARKS_H
