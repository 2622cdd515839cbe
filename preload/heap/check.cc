// SPDX-License-Identifier: MIT
#include "preload/heap/check.h"

#include <errno.h>

#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "os/pages.h"

namespace percpu::heap {

int Checker::open(const System& system) {
  PageRange range{};
  const size_t bytes = round_up(kMostBlocks * sizeof(Left), page_size_bytes());
  if (reserve_open(system, bytes, &range) != 0) return -ENOMEM;
  system_ = &system;
  __atomic_store_n(&quarantine_, reinterpret_cast<Left*>(range.start), __ATOMIC_RELEASE);  // zero is a valid Left
  return 0;
}

void Checker::lay_out(void* block, size_t block_bytes, size_t size_bytes) {
  memset(static_cast<char*>(block) + size_bytes, kCanary, block_bytes - size_bytes - kTrailerBytes);
  *trailer_of(block, block_bytes) = (kLive | size_bytes) ^ mixed(block);
}

size_t Checker::size_of(const void* block, size_t block_bytes, const char* what) const {
  const size_t size_bytes = size_in(__atomic_load_n(trailer_of(block, block_bytes), __ATOMIC_RELAXED), block, block_bytes, what);
  check_end(block, block_bytes, size_bytes, what);
  return size_bytes;
}

size_t Checker::size_in(uint64_t trailer, const void* block, size_t block_bytes, const char* what) {
  trailer ^= mixed(block);
  const size_t size_bytes = trailer & ~kStateMask;
  if ((trailer & kStateMask) == kFreed) fatal("%s(%p): the block of %zu bytes is free already (freed twice)", what, block, size_bytes);
  if ((trailer & kStateMask) != kLive || size_bytes > block_bytes - kTrailerBytes)
    fatal("%s(%p): the end of the block, of at most %zu bytes, was written over", what, block, block_bytes - kTrailerBytes);
  return size_bytes;
}

void Checker::check_end(const void* block, size_t block_bytes, size_t size_bytes, const char* what) {
  const unsigned char* bytes = static_cast<const unsigned char*>(block);
  for (size_t i = size_bytes; i < block_bytes - kTrailerBytes; ++i) {
    if (bytes[i] != kCanary)
      fatal("%s(%p): written over, %zu behind the end of the block of %zu bytes", what, block, i - size_bytes, size_bytes);
  }
}

void Checker::put(void* block, size_t block_bytes, const char* what) {
  uint64_t* const trailer = trailer_of(block, block_bytes);
  uint64_t live = __atomic_load_n(trailer, __ATOMIC_RELAXED);
  size_t size_bytes = 0;
  do {
    size_bytes = size_in(live, block, block_bytes, what);
  } while (!__atomic_compare_exchange_n(trailer, &live, live ^ kLive ^ kFreed, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  check_end(block, block_bytes, size_bytes, what);  // now that no other thread writes there
  const Ends ends = ends_of(block_bytes);
  char* const begin = static_cast<char*>(block);
  memset(begin, kPoison, ends.front_bytes);
  memset(begin + ends.behind_from, kPoison, block_bytes - kTrailerBytes - ends.behind_from);
  const uintptr_t page = page_size_bytes();
  const uintptr_t from = round_up(reinterpret_cast<uintptr_t>(begin) + ends.front_bytes, page);
  const uintptr_t to = round_down(reinterpret_cast<uintptr_t>(begin) + ends.behind_from, page);
  if (from < to) (void)depopulate(*system_, {from, to - from});
  HeapGuard guard(lock_);
  quarantine_[(first_ + nr_blocks_) % kMostBlocks] = {block, block_bytes};
  nr_blocks_++;
  bytes_ += block_bytes;
}

// Blocks are multiples of 8 bytes, at multiples of 8, and so are their ends.
void Checker::check_poison(const Left& left, size_t from, size_t to) const {
  const auto* bytes = static_cast<const unsigned char*>(left.block);
  const auto* words = static_cast<const uint64_t*>(left.block);
  for (size_t i = from / sizeof *words; i < to / sizeof *words; ++i) {
    if (words[i] == kPoison * (~uint64_t{0} / 255)) continue;
    size_t at = i * sizeof *words;
    while (bytes[at] == kPoison) at++;
    fatal("write after free: byte %zu of the freed block %p of %zu bytes", at, left.block,
          static_cast<size_t>((*trailer_of(left.block, left.block_bytes) ^ mixed(left.block)) & ~kStateMask));
  }
}

Checker::Left Checker::take(bool all) {
  Left left;
  {
    HeapGuard guard(lock_);
    if (nr_blocks_ == 0 || (!all && nr_blocks_ < kMostBlocks - kSlack && bytes_ <= kMostBytes)) return left;
    left = quarantine_[first_];
    first_ = (first_ + 1) % kMostBlocks;
    nr_blocks_--;
    bytes_ -= left.block_bytes;
  }
  const Ends ends = ends_of(left.block_bytes);
  check_poison(left, 0, ends.front_bytes);
  check_poison(left, ends.behind_from, left.block_bytes - kTrailerBytes);
  return left;
}

}  // namespace percpu::heap
