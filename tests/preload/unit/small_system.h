// SPDX-License-Identifier: MIT
//
// The kernel's System, but that it grants mappings of 1 GiB at most, so that each test can have a window of its own; and
// that it writes down what is said of memory, and can be told to refuse.
#ifndef PERCPU_TESTS_PRELOAD_SMALL_SYSTEM_H
#define PERCPU_TESTS_PRELOAD_SMALL_SYSTEM_H

#include <errno.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "os/system.h"

namespace percpu::heap {

struct SmallSystem {
  struct Said {
    uintptr_t start = 0;
    size_t bytes = 0;
    int what = 0;  // the advice, or the node
  };
  static inline std::vector<Said> advices;
  static inline std::vector<Said> binds;
  static inline size_t largest_open = SIZE_MAX;  // larger mprotects fail; the tables are opened by 64 KiB
  static inline int opens_left = -1;  // mprotects that succeed yet; negative: all
  static inline bool keeps_pages = false;  // MADV_DONTNEED fails
  static inline bool loses_pages = false;  // a mapping that is to take another one's place takes that away, and fails

  static const System& system() {
    advices.clear();
    binds.clear();
    opens_left = -1;
    largest_open = SIZE_MAX;
    keeps_pages = loses_pages = false;
    static System small = real_system();
    small.mmap = [](uintptr_t address, size_t bytes, int protection, int flags) -> intptr_t {
      if (bytes > (size_t{1} << 30) + (size_t{2} << 20)) return -ENOMEM;
      if (loses_pages && (flags & MAP_FIXED) != 0) {
        (void)real_system().munmap(address, bytes);
        return -ENOMEM;
      }
      if ((flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == 0) address = 0;  // some kernels follow no hint where there is just room enough
      return real_system().mmap(address, bytes, protection, flags);
    };
    small.mprotect = [](uintptr_t address, size_t bytes, int protection) {
      if (opens_left == 0 || bytes > largest_open) return -ENOMEM;
      if (opens_left > 0) opens_left--;
      return real_system().mprotect(address, bytes, protection);
    };
    small.madvise = [](uintptr_t address, size_t bytes, int advice) {
      advices.push_back({address, bytes, advice});
      if (keeps_pages) return -ENOMEM;
      return real_system().madvise(address, bytes, advice);
    };
    small.mbind = [](uintptr_t address, size_t bytes, int, const uint64_t* nodes, size_t, unsigned) {
      binds.push_back({address, bytes, static_cast<int>(__builtin_ctzl(nodes[0]))});
      return 0;
    };
    return small;
  }
};

}  // namespace percpu::heap

#endif  // PERCPU_TESTS_PRELOAD_SMALL_SYSTEM_H
