// SPDX-License-Identifier: MIT
//
// Sets of CPUs and of NUMA nodes, as bitmaps of fixed size, in the form that the kernel's system calls take. Plain data:
// may be copied, and a set of all zero bytes is the empty set.
#ifndef PERCPU_BASE_CPU_MASK_H
#define PERCPU_BASE_CPU_MASK_H

#include <bit>
#include <cstddef>
#include <cstdint>

#include "base/ids.h"

namespace percpu {

// What this library can handle; the largest numbers that Linux can be configured for.
inline constexpr size_t kMaxCpus = 8192;
inline constexpr size_t kMaxNodes = 1024;

template <class IdType, size_t len_bits>
struct IdMask {
  static constexpr size_t kLenBits = len_bits;
  static constexpr size_t kWords = len_bits / 64;
  static_assert(len_bits % 64 == 0);

  uint64_t words[kWords] = {};

  // Ids outside [0, kLenBits) are in no set, and cannot be added.
  static constexpr bool in_range(IdType id) { return id.valid() && id.index() < kLenBits; }
  constexpr bool has(IdType id) const { return in_range(id) && (words[id.index() / 64] >> (id.index() % 64) & 1) != 0; }
  constexpr void add(IdType id) {
    if (in_range(id)) words[id.index() / 64] |= uint64_t{1} << (id.index() % 64);
  }
  constexpr void remove(IdType id) {
    if (in_range(id)) words[id.index() / 64] &= ~(uint64_t{1} << (id.index() % 64));
  }
  constexpr size_t count() const {
    size_t sum = 0;
    for (uint64_t word : words) sum += static_cast<size_t>(std::popcount(word));
    return sum;
  }
  constexpr bool empty() const { return !first().valid(); }

  // The lowest id in the set that is not below `from`; an invalid id if there is none. To walk a set:
  //   for (CpuId cpu = mask.first(); cpu.valid(); cpu = mask.after(cpu))
  constexpr IdType at_or_after(IdType from) const {
    if (!in_range(from)) return {};
    size_t word = from.index() / 64;
    uint64_t bits = words[word] & (~uint64_t{0} << (from.index() % 64));
    while (bits == 0) {
      if (++word == kWords) return {};
      bits = words[word];
    }
    return {static_cast<int32_t>(word * 64 + static_cast<size_t>(std::countr_zero(bits)))};
  }
  constexpr IdType first() const { return at_or_after({0}); }
  constexpr IdType after(IdType id) const { return at_or_after({id.value + 1}); }
  // The highest id in the set, an invalid one if it is empty.
  constexpr IdType last() const {
    for (size_t word = kWords; word-- > 0;) {
      if (words[word] != 0)
        return {static_cast<int32_t>(word * 64 + 63 - static_cast<size_t>(std::countl_zero(words[word])))};
    }
    return {};
  }

  constexpr bool has_all(const IdMask& other) const {
    for (size_t i = 0; i < kWords; ++i) {
      if ((other.words[i] & ~words[i]) != 0) return false;
    }
    return true;
  }
  constexpr IdMask& operator|=(const IdMask& other) {
    for (size_t i = 0; i < kWords; ++i) words[i] |= other.words[i];
    return *this;
  }
  constexpr IdMask& operator&=(const IdMask& other) {
    for (size_t i = 0; i < kWords; ++i) words[i] &= other.words[i];
    return *this;
  }
  constexpr bool operator==(const IdMask&) const = default;
};

using CpuMask = IdMask<CpuId, kMaxCpus>;
using NodeMask = IdMask<NodeId, kMaxNodes>;

}  // namespace percpu

#endif  // PERCPU_BASE_CPU_MASK_H
