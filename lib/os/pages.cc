// SPDX-License-Identifier: MIT
#include "os/pages.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>

#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "base/cpu_mask.h"
#include "os/file.h"

// Newer than the headers of the oldest libc that this builds with.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif

namespace percpu {

namespace {

constexpr int kNoAccess = PROT_NONE;
constexpr int kReserveFlags = MAP_NORESERVE;

bool retryable(int error) { return error == -EINTR || error == -EAGAIN; }

// mmap of a large range fails by the lock limit under mlockall(MCL_FUTURE), although it is to be unlocked at once. One
// page is let through, and a mapping that is not locked may grow without limit.
// at: 0, or where it is to be, which takes nobody's place: a mapping that may not move grows where it is, or not at all.
intptr_t reserve_unlocked(const System& system, uintptr_t at, size_t size_bytes) {
  const size_t page = page_size_bytes();
  intptr_t small = system.mmap(at, page, kNoAccess, kReserveFlags | (at != 0 ? MAP_FIXED_NOREPLACE : 0));
  if (small < 0) return small;
  uintptr_t address = static_cast<uintptr_t>(small);
  intptr_t grown = system.munlock(address, page);
  if (grown == 0) grown = system.mremap(address, page, size_bytes, at != 0 ? 0 : MREMAP_MAYMOVE);
  if (grown < 0) static_cast<void>(system.munmap(address, page));
  return grown;
}

// Gives back what lies before and behind the aligned part. `whole` becomes what is left.
int trim(const System& system, PageRange* whole, PageRange kept) {
  if (kept.start > whole->start) {
    const int error = system.munmap(whole->start, kept.start - whole->start);
    if (error != 0) return error;
    *whole = {kept.start, whole->end() - kept.start};
  }
  if (whole->end() > kept.end()) {
    const int error = system.munmap(kept.end(), whole->end() - kept.end());
    if (error != 0) return error;
    *whole = kept;
  }
  return 0;
}

// The last part of a reservation, and of its renewal: not locked, not dumped, no huge pages. None is worth failing for: what
// stayed locked would be backed when it is opened, which open_range() prevents by itself; the rest costs memory or disk.
int set_reservation_properties(const System& system, PageRange range) {
  int unlocked = system.munlock(range.start, range.size_bytes);
  int hidden = system.madvise(range.start, range.size_bytes, MADV_DONTDUMP);
  int small = system.madvise(range.start, range.size_bytes, MADV_NOHUGEPAGE);
  if (small == -EINVAL) small = 0;  // a kernel that has none
  return unlocked != 0 ? unlocked : hidden != 0 ? hidden : small;
}

// Touches one word of each page from inside the kernel, which reports what would be a signal here.
int populate_by_touching(const System& system, PageRange range) {
  const size_t page = page_size_bytes();
  for (uintptr_t at = range.start; at < range.end(); at += page) {
    int error = 0;
    for (int tries = 0; tries < kMaxRetries; ++tries) {
      error = system.touch_word(at);
      if (!retryable(error)) break;
    }
    if (error != 0) return error;
  }
  return 0;
}

// Where move_pages is forbidden. get_mempolicy backs a page that is not there, so this looks first; a page that goes away
// in between comes back as zeroes on the node that the answer names.
int node_by_policy(const System& system, uintptr_t page_start, NodeId* node) {
  unsigned char resident = 0;
  int error = system.mincore(page_start, page_size_bytes(), &resident);
  if (error != 0) return error == -ENOMEM ? -EFAULT : error;
  if ((resident & 1) == 0) return -ENOENT;
  int found = -1;
  error = system.get_mempolicy(&found, nullptr, 0, page_start, MPOL_F_NODE | MPOL_F_ADDR);
  if (error != 0) return error;
  *node = NodeId{found};
  return 0;
}

}  // namespace

int reserve(const System& system, size_t size_bytes, size_t align_bytes, PageRange* range) {
  const size_t page = page_size_bytes();
  PERCPU_CHECK(size_bytes > 0 && size_bytes % page == 0, "a reservation must be whole pages, found %zu bytes", size_bytes);
  PERCPU_CHECK(align_bytes >= page && (align_bytes & (align_bytes - 1)) == 0,
               "an alignment must be a power of two of at least a page, found %zu", align_bytes);
  size_t with_slack = size_bytes + (align_bytes - page);
  if (with_slack < size_bytes) return -ENOMEM;
  intptr_t address = system.mmap(0, with_slack, kNoAccess, kReserveFlags);
  if (address == -EAGAIN) address = reserve_unlocked(system, 0, with_slack);
  if (address < 0) return static_cast<int>(address);
  PageRange whole{static_cast<uintptr_t>(address), with_slack};
  PageRange kept{round_up(whole.start, align_bytes), size_bytes};
  int error = trim(system, &whole, kept);
  if (error != 0) {
    static_cast<void>(system.munmap(whole.start, whole.size_bytes));
    return error;
  }
  static_cast<void>(set_reservation_properties(system, kept));
  *range = kept;
  return 0;
}

// Kernels before 4.17 do not know the flag, and take the address as a hint; those from 6.7 to 6.12 follow no hint where a gap is no
// larger than what is wanted.
int reserve_at(const System& system, PageRange range) {
  intptr_t address = system.mmap(range.start, range.size_bytes, kNoAccess, kReserveFlags | MAP_FIXED_NOREPLACE);
  if (address == -EAGAIN) address = reserve_unlocked(system, range.start, range.size_bytes);
  if (address < 0) return static_cast<int>(address);
  if (static_cast<uintptr_t>(address) != range.start) {
    static_cast<void>(system.munmap(static_cast<uintptr_t>(address), range.size_bytes));
    return -EEXIST;
  }
  static_cast<void>(set_reservation_properties(system, range));
  return 0;
}

int unreserve(const System& system, PageRange range) { return system.munmap(range.start, range.size_bytes); }

namespace {

int bind_with(const System& system, PageRange range, NodeId node, unsigned flags) {
  if (!node.valid()) return 0;
  NodeMask nodes;
  if (!NodeMask::in_range(node)) return -EINVAL;
  nodes.add(node);
  return system.mbind(range.start, range.size_bytes, MPOL_PREFERRED, nodes.words, NodeMask::kLenBits, flags);
}

}  // namespace

int bind(const System& system, PageRange range, NodeId node) { return bind_with(system, range, node, 0); }

namespace {

// Whether all pages that are there lie on the node; false, too, where that cannot be told, or where so many are there that moving them is
// no more work than asking.
bool lies_on(const System& system, PageRange range, NodeId node) {
  constexpr size_t kPagesAtOnce = 512;
  constexpr uint32_t kMostAsked = 256;
  unsigned char resident[kPagesAtOnce];
  const size_t page = page_size_bytes();
  uint32_t asked = 0;
  for (uintptr_t at = range.start; at < range.end();) {
    const size_t left_pages = (range.end() - at) / page;
    const size_t now_pages = left_pages < kPagesAtOnce ? left_pages : kPagesAtOnce;
    if (system.mincore(at, now_pages * page, resident) != 0) return false;
    for (size_t i = 0; i < now_pages; ++i) {
      if ((resident[i] & 1) == 0) continue;
      NodeId found;
      const int error = asked++ < kMostAsked ? node_of(system, at + i * page, &found) : -E2BIG;
      if (error != -ENOENT && (error != 0 || found != node)) return false;
    }
    at += now_pages * page;
  }
  return true;
}

}  // namespace

int bind_and_move(const System& system, PageRange range, NodeId node) {
  const int error = bind(system, range, node);
  if (error != 0 || !node.valid() || lies_on(system, range, node)) return error;
  return bind_with(system, range, node, MPOL_MF_MOVE);
}

int open_range(const System& system, PageRange range) {
  static_cast<void>(system.munlock(range.start, range.size_bytes));
  return system.mprotect(range.start, range.size_bytes, PROT_READ | PROT_WRITE);
}

int open_dumped(const System& system, PageRange range) {
  const int result = open_range(system, range);
  if (result == 0) static_cast<void>(system.madvise(range.start, range.size_bytes, MADV_DODUMP));
  return result;
}

int reserve_open(const System& system, size_t size_bytes, PageRange* range) {
  int result = reserve(system, size_bytes, page_size_bytes(), range);
  if (result != 0) return result;
  result = open_range(system, *range);
  if (result != 0) (void)unreserve(system, *range);
  return result;
}

bool strict_overcommit(const System& system) {
  char text[16];
  return read_beginning(system, "/proc/sys/vm/overcommit_memory", text, sizeof text) > 0 && text[0] == '2';
}

namespace {

// EINVAL: the kernel does not know the advice, or the range is not as it takes it. EPERM and ENOSYS are a sandbox's answer to
// advice that it does not know.
bool unknown_advice(int error) { return error == -EINVAL || error == -EPERM || error == -ENOSYS; }

}  // namespace

int populate(const System& system, PageRange range) {
  int error = 0;
  for (int tries = 0; tries < kMaxRetries; ++tries) {
    error = system.madvise(range.start, range.size_bytes, MADV_POPULATE_WRITE);
    if (!retryable(error)) break;
  }
  // Touching tells whether the advice is unknown or the range not writable.
  return unknown_advice(error) ? populate_by_touching(system, range) : error;
}

int depopulate(const System& system, PageRange range) {
  int error = system.madvise(range.start, range.size_bytes, MADV_DONTNEED);
  if (error != -EINVAL) return error;
  error = system.madvise(range.start, range.size_bytes, MADV_DONTNEED_LOCKED);
  if (!unknown_advice(error)) return error;
  error = system.munlock(range.start, range.size_bytes);
  return error != 0 ? error : system.madvise(range.start, range.size_bytes, MADV_DONTNEED);
}

int retire(const System& system, PageRange range, NodeId node) {
  intptr_t address = system.mmap(range.start, range.size_bytes, kNoAccess, kReserveFlags | MAP_FIXED);
  if (address < 0) {
    // Refused before anything was changed, as a rule. If the old mapping is gone already, this tells.
    int error = depopulate(system, range);
    return error == 0 ? kOnlyDepopulated : error;
  }
  int properties = set_reservation_properties(system, range);
  int placed = bind(system, range, node);
  return properties == 0 && placed == 0 ? kRetired : kRetiredUnplaced;
}

// "always [madvise] never": the one in brackets.
HugePages huge_pages(const System& system) {
  char text[128];
  if (read_beginning(system, "/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text) <= 0) return HugePages::kNever;
  if (std::strstr(text, "[always]") != nullptr) return HugePages::kAlways;
  return std::strstr(text, "[madvise]") != nullptr ? HugePages::kAdvised : HugePages::kNever;
}

int advise_huge(const System& system, PageRange range, bool on) {
  return system.madvise(range.start, range.size_bytes, on ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

int resident_pages(const System& system, PageRange range, size_t* pages) {
  constexpr size_t kPagesAtOnce = 512;
  unsigned char resident[kPagesAtOnce];
  const size_t page = page_size_bytes();
  size_t sum = 0;
  for (uintptr_t at = range.start; at < range.end();) {
    size_t left_pages = (range.end() - at) / page;
    size_t now_pages = left_pages < kPagesAtOnce ? left_pages : kPagesAtOnce;
    int error = system.mincore(at, now_pages * page, resident);
    if (error != 0) return error;
    for (size_t i = 0; i < now_pages; ++i) sum += resident[i] & 1;
    at += now_pages * page;
  }
  *pages = sum;
  return 0;
}

int node_of(const System& system, uintptr_t address, NodeId* node) {
  const size_t page = page_size_bytes();
  uintptr_t page_start = round_down(address, page);
  int status = -ENOENT;
  int error = system.query_page(page_start, &status);
  if (error == -EPERM || error == -ENOSYS) return node_by_policy(system, page_start, node);
  if (error != 0) return error;
  if (status >= 0) {
    *node = NodeId{status};
    return 0;
  }
  if (status != -EFAULT) return status;
  // EFAULT is also the answer for the shared zero page, which backs what was only read.
  unsigned char resident = 0;
  return system.mincore(page_start, page, &resident) == 0 ? -ENOENT : -EFAULT;
}

}  // namespace percpu
