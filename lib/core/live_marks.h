// SPDX-License-Identifier: MIT
//
// The order of the live marks in their bitmap. The mark of an area is written by every allocation and free of it, which the
// front caches otherwise keep apart by CPU; if neighbours' marks shared a cache line, CPUs that use neighbouring areas would
// take it from each other all the time. So the marks of neighbours are put on different lines, by a multiplication in each
// aligned group of 2^s fragments:
//
//   mark = fragment * factor (mod 2^s)
//
// An odd factor makes it a bijection. Which one: of all, the one by which fewest areas that lie side by side share a line of 512
// marks, over the sizes that front caches hold, those of counters weighing most; found by trying them all. In groups of 2^13 and
// 2^14 none do. Smaller ones have fewer lines (2^10: two), and some do: of 8 bytes one pair in eleven at 2^10, none above.
//
// Invariants: a bijection on the fragments of a unit; so it is on each aligned group of them.
#ifndef PERCPU_CORE_LIVE_MARKS_H
#define PERCPU_CORE_LIVE_MARKS_H

#include <bit>
#include <cstdint>

namespace percpu {

class MarkOrder {
 public:
  static constexpr uint32_t kMaxShift = 14;  // of a group: 32 lines, what 64 KiB of a unit have

  constexpr MarkOrder() : MarkOrder(kMaxShift) {}
  // Of a bitmap of so many bits, a multiple of 1024.
  [[nodiscard]] static constexpr MarkOrder of(uint32_t len_bits) {
    const auto zeros = static_cast<uint32_t>(std::countr_zero(len_bits));
    return MarkOrder(zeros < kMaxShift ? zeros : kMaxShift);
  }

  [[nodiscard]] constexpr uint32_t mark(uint32_t fragment) const { return moved(fragment, factor_); }
  [[nodiscard]] constexpr uint32_t fragment(uint32_t mark) const { return moved(mark, inverse()); }

  // The marks of the fragments in [begin, end) are in [first(begin), last(end)).
  [[nodiscard]] constexpr uint32_t first(uint32_t begin) const { return begin & ~group_mask_; }
  [[nodiscard]] constexpr uint32_t last(uint32_t end) const { return (end + group_mask_) & ~group_mask_; }

 private:
  static constexpr uint32_t kMinShift = 10;
  static constexpr uint32_t kFactors[kMaxShift - kMinShift + 1] = {233, 1687, 913, 545, 529};

  explicit constexpr MarkOrder(uint32_t group_shift)
      : group_mask_((1u << group_shift) - 1), factor_(kFactors[group_shift - kMinShift]) {}

  [[nodiscard]] constexpr uint32_t moved(uint32_t from, uint32_t factor) const {
    return (from & ~group_mask_) | (from * factor & group_mask_);
  }
  // Newton's iteration doubles the bits that are right; an odd number is its own inverse in the lowest three.
  [[nodiscard]] constexpr uint32_t inverse() const {
    uint32_t found = factor_;
    for (uint32_t right = 3; right < 32; right *= 2) found *= 2 - factor_ * found;
    return found;
  }

  uint32_t group_mask_;
  uint32_t factor_;
};

}  // namespace percpu

#endif  // PERCPU_CORE_LIVE_MARKS_H
