// SPDX-License-Identifier: MIT
//
// How much memory the process's control groups leave it: version 2 (memory.max and memory.high) and version 1
// (memory.limit_in_bytes). A limit of an ancestor holds for its descendants, so every level up to the mount's root is looked
// at: all of them by find(), those that have a limit by look().
//
// What a group uses includes its page cache, which the kernel drops before it fails anybody. So where little seems to be
// left, the inactive part of that, and half of the active one, count as left.
//
// Everything is read by plain system calls, into buffers on the stack: no file stays open, nothing is allocated. A process that
// has no file descriptor left cannot look: that says nothing of its limit, and is told apart from a file that is not there. Nor can one
// that had a limit and may not see its files any more (chroot, a sandbox): it has that limit still.
// Locking: none; its owner sees to it that one thread uses it at a time.
#ifndef PERCPU_PRELOAD_HEAP_MEMORY_LIMIT_H
#define PERCPU_PRELOAD_HEAP_MEMORY_LIMIT_H

#include <cstddef>
#include <cstdint>

#include "os/system.h"

namespace percpu::heap {

inline constexpr uint64_t kNoLimit = UINT64_MAX;

class MemoryLimit {
 public:
  constexpr MemoryLimit() = default;

  // Finds the groups that the process is in now, and their limits. Without any (or where they cannot be read) there is none.
  // False: they cannot be read just now, or not any more; what was found before stays.
  [[nodiscard]] bool find(const System& system);
  bool any() const { return nr_levels_ != 0; }

  // The level that leaves least.
  struct Room {
    uint64_t limit_bytes = kNoLimit;
    uint64_t left_bytes = kNoLimit;
  };
  // Reads what the groups use now. Where that could never be read, nothing is known of a limit. False: it cannot be read just now, or
  // not any more.
  [[nodiscard]] bool look(const System& system, Room* room);

  // The groups' directory, for reports; "" without one.
  const char* directory() const { return directory_; }

 private:
  static constexpr size_t kPathBytes = 512;
  static constexpr uint32_t kMaxLevels = 8;

  // An ancestor (or the group itself) that has a limit: the directory's first bytes are its path.
  struct Level {
    uint32_t path_bytes = 0;
    uint64_t limit_bytes = kNoLimit;
    bool usage_told = false;  // once
  };

  struct Look;
  const Level* level_of(const char* path, uint32_t path_bytes) const;
  void find_levels(Look& look, const MemoryLimit& before);
  bool find_directory(Look& look, bool was_found, size_t* mount_bytes);
  uint64_t number_in(Look& look, uint32_t path_bytes, const char* file, bool was_read) const;
  uint64_t page_cache(Look& look, uint32_t path_bytes) const;

  bool version_1_ = false;
  uint32_t nr_levels_ = 0;
  Level levels_[kMaxLevels] = {};
  char directory_[kPathBytes] = {};
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_MEMORY_LIMIT_H
