// SPDX-License-Identifier: MIT
//
// Bitmaps as arrays of 64-bit words, bit i in word i / 64, searched and changed a word at a time.
//
// A range is [begin, end) in bits. A search takes the end of the range for "none".
//
// Locking: writers exclude each other (but for the atomic_ functions); readers need not exclude them: every access is a
// relaxed atomic one, which orders nothing and costs nothing.
#ifndef PERCPU_BASE_BITS_H
#define PERCPU_BASE_BITS_H

#include <bit>
#include <cstdint>

namespace percpu {

inline constexpr uint32_t kWordBits = 64;

template <class T>
[[nodiscard]] inline T load_relaxed(const T* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}

template <class T>
inline void store_relaxed(T* to, T value) {
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}

// How many words hold this many bits.
[[nodiscard]] constexpr uint32_t words_for_bits(uint32_t len_bits) {
  return len_bits / kWordBits + (len_bits % kWordBits != 0);
}

// (std::has_single_bit would call libgcc on processors that might lack the instruction.)
[[nodiscard]] constexpr bool is_power_of_two(uint64_t value) { return value != 0 && (value & (value - 1)) == 0; }

// `value` rounded up to a multiple of `to`, a power of two.
template <class T>
[[nodiscard]] constexpr T round_up(T value, T to) {
  return static_cast<T>((value + to - 1) & ~(to - 1));
}

// And down.
template <class T>
[[nodiscard]] constexpr T round_down(T value, T to) {
  return static_cast<T>(value & ~(to - 1));
}

// Up to any `multiple`, by a division.
[[nodiscard]] constexpr uint64_t round_up_to_multiple(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// The bits of bit's word from bit on, and those before it.
[[nodiscard]] constexpr uint64_t word_mask_from(uint32_t bit) { return ~uint64_t{0} << (bit % kWordBits); }
[[nodiscard]] constexpr uint64_t word_mask_before(uint32_t bit) { return ~word_mask_from(bit); }

[[nodiscard]] inline bool test_bit(const uint64_t* words, uint32_t bit) {
  return (load_relaxed(&words[bit / kWordBits]) >> (bit % kWordBits)) & 1;
}

inline void set_bit(uint64_t* words, uint32_t bit) {
  uint64_t* word = &words[bit / kWordBits];
  store_relaxed(word, load_relaxed(word) | uint64_t{1} << (bit % kWordBits));
}

// Sets, or clears, one bit of a word that others change at the same time. Returns: the bit as it was before. Setting
// releases what was written before; clearing acquires it.
inline bool atomic_set_bit(uint64_t* words, uint32_t bit) {
  const uint64_t mask = uint64_t{1} << (bit % kWordBits);
  return __atomic_fetch_or(&words[bit / kWordBits], mask, __ATOMIC_RELEASE) & mask;
}
inline bool atomic_clear_bit(uint64_t* words, uint32_t bit) {
  const uint64_t mask = uint64_t{1} << (bit % kWordBits);
  return __atomic_fetch_and(&words[bit / kWordBits], ~mask, __ATOMIC_ACQ_REL) & mask;
}

// The bits of the range's last word up to its end.
[[nodiscard]] constexpr uint64_t word_mask_to(uint32_t end) { return ~uint64_t{0} >> (-end % kWordBits); }

// Calls change(word, mask) for every word that the range touches; mask has the bits of the range.
template <class Change>
inline void for_words_of_range(uint32_t begin, uint32_t end, Change change) {
  if (begin / kWordBits == (end - 1) / kWordBits) {
    change(begin / kWordBits, word_mask_from(begin) & word_mask_to(end));  // an empty mask where begin == end
    return;
  }
  if (begin >= end) return;
  uint32_t word = begin / kWordBits;
  const uint32_t last = (end - 1) / kWordBits;
  uint64_t mask = word_mask_from(begin);
  for (; word < last; ++word, mask = ~uint64_t{0}) change(word, mask);
  change(last, mask & word_mask_to(end));
}

inline void set_range(uint64_t* words, uint32_t begin, uint32_t end) {
  for_words_of_range(begin, end, [words](uint32_t i, uint64_t mask) {
    store_relaxed(&words[i], load_relaxed(&words[i]) | mask);
  });
}

inline void clear_range(uint64_t* words, uint32_t begin, uint32_t end) {
  for_words_of_range(begin, end, [words](uint32_t i, uint64_t mask) {
    store_relaxed(&words[i], load_relaxed(&words[i]) & ~mask);
  });
}

[[nodiscard]] inline uint32_t count_ones(const uint64_t* words, uint32_t begin, uint32_t end) {
  uint32_t ones = 0;
  for_words_of_range(begin, end, [words, &ones](uint32_t i, uint64_t mask) {
    ones += static_cast<uint32_t>(std::popcount(load_relaxed(&words[i]) & mask));
  });
  return ones;
}

// The first bit of the range that is set in word ^ inverted: with inverted = 0 the first one, with all ones the first zero.
// Returns: the bit, or `end`.
[[nodiscard]] inline uint32_t find_next(const uint64_t* words, uint32_t begin, uint32_t end, uint64_t inverted) {
  if (begin >= end) return end;
  uint32_t word = begin / kWordBits;
  const uint32_t last = (end - 1) / kWordBits;
  uint64_t bits = (load_relaxed(&words[word]) ^ inverted) & word_mask_from(begin);
  while (bits == 0) {
    if (word == last) return end;
    bits = load_relaxed(&words[++word]) ^ inverted;
  }
  const uint32_t found = word * kWordBits + static_cast<uint32_t>(std::countr_zero(bits));
  return found < end ? found : end;
}

[[nodiscard]] inline uint32_t find_next_one(const uint64_t* words, uint32_t begin, uint32_t end) {
  return find_next(words, begin, end, 0);
}

[[nodiscard]] inline uint32_t find_next_zero(const uint64_t* words, uint32_t begin, uint32_t end) {
  return find_next(words, begin, end, ~uint64_t{0});
}

// The last one of the range. Returns: the bit, or `end`.
[[nodiscard]] inline uint32_t find_last_one(const uint64_t* words, uint32_t begin, uint32_t end) {
  if (begin >= end) return end;
  uint32_t word = (end - 1) / kWordBits;
  const uint32_t first = begin / kWordBits;
  uint64_t bits = load_relaxed(&words[word]) & word_mask_to(end);
  while (bits == 0) {
    if (word == first) return end;
    bits = load_relaxed(&words[--word]);
  }
  const uint32_t found = word * kWordBits + kWordBits - 1 - static_cast<uint32_t>(std::countl_zero(bits));
  return found >= begin ? found : end;
}

}  // namespace percpu

#endif  // PERCPU_BASE_BITS_H
