// SPDX-License-Identifier: MIT
//
// PERCPU_CONF=check:full: finds what the usual checks cannot afford to. Nothing is cached then, and each block is laid out so:
//
//   | what was asked for | kCanary, at least 8 bytes, to the end of the block | trailer: 8 bytes |
//
// The trailer says what was asked for, mixed with the block's address. While the block is freed it says so instead, and all
// in front of it is kPoison; of a block of more than a MiB, which a program need not have touched everywhere, only the ends are, and the
// pages between go back to the system.
//
// A freed block waits in the quarantine, first in, first out, until kMostBytes or kMostBlocks of others came behind it; so
// long, freeing it again is told, and when it leaves, a write after free. Then it goes to the central list, where its bit
// says that it is free.
//
// What is told: every double free until the block is handed out again; a write behind the end, when the block is freed or
// grown; a write after free, when it leaves the quarantine; free_sized with another size.
//
// Locking: lock_ guards the quarantine. Fork: as the heap's other locks.
#ifndef PERCPU_PRELOAD_HEAP_CHECK_H
#define PERCPU_PRELOAD_HEAP_CHECK_H

#include <cstddef>
#include <cstdint>

#include "os/system.h"
#include "preload/heap/heap_lock.h"

namespace percpu::heap {

class Checker {
 public:
  constexpr Checker() = default;

  // Switches it on: once, from the constructor. 0 or -errno.
  [[nodiscard]] int open(const System& system);
  // What was stored before open() is seen by whoever finds it on.
  bool on() const { return __atomic_load_n(&quarantine_, __ATOMIC_ACQUIRE) != nullptr; }

  // How large the heap's block must be for one of that size. Requires: size_bytes <= PTRDIFF_MAX.
  static size_t padded(size_t size_bytes) { return size_bytes + kCanaryBytes + kTrailerBytes; }

  // Lays out a block that the heap gave.
  void lay_out(void* block, size_t block_bytes, size_t size_bytes);
  // What was asked for. Stops the program when the block is freed, or its end was written over. `what` names the function.
  size_t size_of(const void* block, size_t block_bytes, const char* what) const;

  // A block to be freed goes into quarantine: put(), then take() what comes out instead, which is checked, and the heap's
  // again. Null: nothing does. all: empties it. put() stops the program where size_of() does; of threads that free the same block at
  // once, one may.
  struct Left {
    void* block = nullptr;
    size_t block_bytes = 0;
  };
  void put(void* block, size_t block_bytes, const char* what) PERCPU_EXCLUDES(lock_);
  Left take(bool all) PERCPU_EXCLUDES(lock_);
  uint32_t nr_waiting() PERCPU_EXCLUDES(lock_) {
    HeapGuard guard(lock_);
    return nr_blocks_;
  }
  HeapLock& lock() PERCPU_RETURNS_LOCK(lock_) { return lock_; }

 private:
  static constexpr size_t kTrailerBytes = sizeof(uint64_t);
  static constexpr size_t kCanaryBytes = 8;
  static constexpr unsigned char kCanary = 0xca;
  static constexpr unsigned char kPoison = 0xf5;
  static constexpr uint32_t kMostBlocks = 64 * 1024;
  static constexpr uint32_t kSlack = 8 * 1024;  // for threads between put() and take()
  static constexpr size_t kMostBytes = size_t{32} << 20;
  // Of the trailer's upper bits, what tells a block of ours; a size never has these.
  static constexpr uint64_t kLive = uint64_t{0xa11e} << 48;
  static constexpr uint64_t kFreed = uint64_t{0xdead} << 48;
  static constexpr uint64_t kStateMask = uint64_t{0xffff} << 48;

  // What the two halves of size_of() look at.
  static size_t size_in(uint64_t trailer, const void* block, size_t block_bytes, const char* what);
  static void check_end(const void* block, size_t block_bytes, size_t size_bytes, const char* what);

  static uint64_t* trailer_of(const void* block, size_t block_bytes) {
    return reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(block) + block_bytes - kTrailerBytes);
  }
  static constexpr size_t kWholeBytes = size_t{1} << 20;  // a larger block is poisoned at its ends
  static constexpr size_t kEndBytes = size_t{64} << 10;

  // What is poisoned of a block.
  struct Ends {
    size_t front_bytes;  // from its begin
    size_t behind_from;  // to its trailer
  };
  static Ends ends_of(size_t block_bytes) {
    if (block_bytes <= kWholeBytes) return {block_bytes - kTrailerBytes, block_bytes - kTrailerBytes};
    return {kEndBytes, block_bytes - kEndBytes};
  }
  void check_poison(const Left& left, size_t from, size_t to) const;

  static uint64_t mixed(const void* block) { return reinterpret_cast<uintptr_t>(block) >> 3 & ~kStateMask; }

  HeapLock lock_;
  const System* system_ = nullptr;
  Left* quarantine_ = nullptr;
  uint32_t first_ PERCPU_GUARDED_BY(lock_) = 0;
  uint32_t nr_blocks_ PERCPU_GUARDED_BY(lock_) = 0;
  size_t bytes_ PERCPU_GUARDED_BY(lock_) = 0;
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_CHECK_H
