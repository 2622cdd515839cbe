// SPDX-License-Identifier: MIT
#include "preload/heap/move_pages.h"

#include <errno.h>
#include <sys/mman.h>

#include <cstring>

#include "base/bits.h"
#include "base/check.h"
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
bool moves_leave_addresses_open() {
  enum : int { kUnknown, kYes, kNo };
  static int known = kUnknown;
  if (int found = __atomic_load_n(&known, __ATOMIC_RELAXED); found != kUnknown) return found == kYes;
  int found = kNo;
  void* const from = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (from == MAP_FAILED) return false;
  void* const to = mremap(from, kPageBytes, kPageBytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  if (to != MAP_FAILED) {
    volatile char* byte = static_cast<volatile char*>(from);
    *byte = 1;
    if (madvise(from, kPageBytes, MADV_DONTNEED) == 0 && *byte == 0) found = kYes;
    (void)munmap(to, kPageBytes);
  }
  (void)munmap(from, kPageBytes);
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
  if (!may_make_mappings() || !moves_leave_addresses_open()) return false;
  void* const between = mremap(reinterpret_cast<void*>(from), bytes, bytes, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, nullptr);
  if (between == MAP_FAILED) return false;
  void* const target = reinterpret_cast<void*>(to);
  if (mremap(between, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, target) == MAP_FAILED) {
    // No memory in the kernel. What is at the target may be gone already.
    void* const again = mmap(target, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (again == MAP_FAILED && errno != EEXIST) fatal("realloc: no mapping for %zu bytes that were to move", bytes);
    memcpy(target, between, bytes);
    (void)munmap(between, bytes);
  }
  return true;
}

}  // namespace

bool move_pages(const System& system, uintptr_t from, uintptr_t to, size_t bytes, bool may_look) {
  const int saved_errno = errno;
  const bool moved = move_mapping(system, from, to, bytes, may_look);
  errno = saved_errno;
  if (moved) return true;
  if (bytes > kCopyBytes) {
    const size_t half = round_up(bytes / 2, kPageBytes);
    const bool emptied = move_pages(system, from, to, half, may_look);
    return move_pages(system, from + half, to + half, bytes - half, may_look) && emptied;
  }
  memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  return depopulate(system, {from, bytes}) == 0;
}

}  // namespace percpu::heap
