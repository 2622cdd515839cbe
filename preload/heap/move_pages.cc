// SPDX-License-Identifier: MIT
#include "preload/heap/move_pages.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "os/file.h"
#include "os/pages.h"
#include "preload/heap/mappings.h"
#include "preload/heap/window.h"

namespace percpu::heap {
namespace {

constexpr size_t kCopyBytes = size_t{1} << 20;

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4  // Linux 5.7; headers before glibc 2.32 do not have it
#endif

// Whether mremap leaves the old addresses open, as MREMAP_DONTUNMAP asks: tried once, when there is something to move. qemu's
// user mode takes them for unmapped, and then gives their memory back no more though it says so, and calloc() counts on that.
bool moves_leave_addresses_open(const System& system) {
  enum : int { kUnknown, kYes, kNo };
  static int known = kUnknown;
  if (int found = __atomic_load_n(&known, __ATOMIC_RELAXED); found != kUnknown) return found == kYes;
  int found = kNo;
  const intptr_t from = system.mmap(0, kPageBytes, PROT_READ | PROT_WRITE, 0);
  if (from < 0) return false;
  const intptr_t to = system.mremap(static_cast<uintptr_t>(from), kPageBytes, kPageBytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
  if (to >= 0) {
    volatile char* byte = reinterpret_cast<volatile char*>(from);
    *byte = 1;
    if (system.madvise(static_cast<uintptr_t>(from), kPageBytes, MADV_DONTNEED) == 0 && *byte == 0) found = kYes;
    (void)system.munmap(static_cast<uintptr_t>(to), kPageBytes);
  }
  (void)system.munmap(static_cast<uintptr_t>(from), kPageBytes);
  __atomic_store_n(&known, found, __ATOMIC_RELAXED);
  return found == kYes;
}

// Moves pages whose addresses are one mapping to addresses that the kernel chooses, and those to `to`; the old ones stay open,
// empty. In two steps, since mremap takes away what lies at fixed addresses first, and then finds that it cannot move: other
// threads' mmap might get the hole before we could close it. The first step leaves everything as it is where it fails, and
// what the second is given is one mapping.
// False: nothing was done.
bool move_mapping(const System& system, uintptr_t from, uintptr_t to, size_t bytes, bool may_look) {
  look_at_mappings(system, may_look);
  if (!may_make_mappings() || !moves_leave_addresses_open(system)) return false;
  const intptr_t between = system.mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
  if (between < 0) return false;
  if (remap_to(static_cast<uintptr_t>(between), bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) < 0) {
    // No memory in the kernel. What was at the target may be gone already, and another thread's mapping in its place.
    const intptr_t again = system.mmap(to, bytes, PROT_READ | PROT_WRITE, MAP_NORESERVE | MAP_FIXED_NOREPLACE);
    if (again < 0 && (again != -EEXIST || !goes_on_outside(system, to, bytes)))
      fatal("realloc: no mapping for %zu bytes that were to move", bytes);
    memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(between), bytes);
    (void)system.munmap(static_cast<uintptr_t>(between), bytes);
  }
  return true;
}

}  // namespace

bool goes_on_outside(const System& system, uintptr_t start, size_t bytes) {
  for (const char* path : kOwnMaps) {
    Lines maps(system, path);
    while (char* line = maps.next()) {
      const uintptr_t begin = strtoul(line, &line, 16);
      const uintptr_t end = *line == '-' ? strtoul(line + 1, nullptr, 16) : 0;
      if (begin <= start && start < end) return begin < start || end > start + bytes;
    }
  }
  return false;
}

bool move_pages(const System& system, uintptr_t from, uintptr_t to, size_t bytes, bool may_look) {
  if (move_mapping(system, from, to, bytes, may_look)) return true;
  if (bytes > kCopyBytes) {
    const size_t half = round_up(bytes / 2, system_page_bytes());
    const bool emptied = move_pages(system, from, to, half, may_look);
    return move_pages(system, from + half, to + half, bytes - half, may_look) && emptied;
  }
  memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  return depopulate(system, {from, bytes}) == 0;
}

}  // namespace percpu::heap
