// SPDX-License-Identifier: MIT
//
// The life of a range of pages, from address space to memory and back:
//
//   reserve ── bind ── open_range ── populate ⇄ depopulate ── retire ── unreserve
//   (addresses) (node)  (may fail:    (memory,              (as after
//                       commit charge) may fail)             reserve + bind)
//
// What each step costs the process. A VMA is a kernel's record of a run of addresses with the same properties (65530 a
// process by default, /proc/sys/vm/max_map_count); commit charge is what strict overcommit (vm.overcommit_memory=2) limits,
// and is not taken otherwise; RLIMIT_DATA counts what is open, RLIMIT_AS what is reserved.
//
//   reserve      +1 VMA, no charge, counts for RLIMIT_AS
//   bind         +2 VMAs at most, merged again with neighbours of the same node
//   open_range   +2 VMAs at most; adjacent opened ranges of one node merge. The whole range is charged
//   populate     nothing but the memory
//   depopulate   gives the memory back, keeps VMAs and charge
//   retire       gives back memory and charge; the VMAs merge with those around
//
// Every function: Returns 0 (or what its comment says), or -errno. Requires: ranges are whole pages. Context: any; no
// function here takes a lock or allocates, and all are async-signal-safe. errno is preserved.
#ifndef PERCPU_OS_PAGES_H
#define PERCPU_OS_PAGES_H

#include <cstddef>
#include <cstdint>

#include "base/ids.h"
#include "os/system.h"

namespace percpu {

struct PageRange {
  uintptr_t start = 0;
  size_t size_bytes = 0;

  constexpr uintptr_t end() const { return start + size_bytes; }
  constexpr bool operator==(const PageRange&) const = default;
};

// No node: memory comes from wherever the kernel likes.
inline constexpr NodeId kNoNode{};

// Takes address space: mapped to nothing, left out of core dumps, and not locked even under mlockall(MCL_FUTURE) (a
// locked range would be backed at once when it is opened). It takes no huge pages until advise_huge() allows them, also
// where the system gives them to everybody: populating one page must not back 512. Under MCL_FUTURE with a small RLIMIT_MEMLOCK the kernel
// refuses large mappings; then one page is mapped, unlocked, and grown to size.
// Requires: size_bytes > 0; align_bytes is a power of two, at least a page.
// Returns: 0 and the range. Errors: -ENOMEM (address space, RLIMIT_AS, VMAs), -EAGAIN (memory locks).
[[nodiscard]] int reserve(const System& system, size_t size_bytes, size_t align_bytes, PageRange* range);
// The same for these very addresses, where nobody has them. -EEXIST: somebody has.
[[nodiscard]] int reserve_at(const System& system, PageRange range);

// Gives the addresses back, with whatever backs them. It can fail where it cuts a mapping in two (-ENOMEM: VMAs).
[[nodiscard]] int unreserve(const System& system, PageRange range);

// Asks that pages of the range, backed from now on, come from `node` if it has memory left. kNoNode: makes no system call
// (what callers pass on a machine with one node).
// Errors: -EINVAL (a node without memory, or outside the cpuset), -EPERM and -ENOSYS (containers), -ENOMEM (VMAs). Memory
// then comes from anywhere: the caller goes on, and says so once.
[[nodiscard]] int bind(const System& system, PageRange range, NodeId node);
// The same, and pages that are there already and lie elsewhere are moved to the node (each if it can be). To move has the kernel gather
// pages from all CPUs of the machine (lru_add_drain_all() in its mm/swap.c), so where few are there, they are looked at first.
[[nodiscard]] int bind_and_move(const System& system, PageRange range, NodeId node);

// Makes the range readable and writable; it is zero, and backed by nothing yet. Unlocks it first: mlockall(MCL_CURRENT)
// may have locked the reservation meanwhile, and then this would back all of it.
// Errors: -ENOMEM (commit charge, RLIMIT_DATA, VMAs): then the range is as before.
[[nodiscard]] int open_range(const System& system, PageRange range);
// The same for what belongs to the program: it is in core dumps from now on, until it is retired.
[[nodiscard]] int open_dumped(const System& system, PageRange range);
// A new range of whole pages, open: reserve() and open_range(), or nothing at all.
[[nodiscard]] int reserve_open(const System& system, size_t size_bytes, PageRange* range);

// Whether the kernel counts every page that can be written to against a limit of the machine's, backed or not
// (vm.overcommit_memory=2).
[[nodiscard]] bool strict_overcommit(const System& system);

// Backs every page of the range, and keeps the content of those that are backed already, also while others write to them.
// Uses MADV_POPULATE_WRITE; where the kernel has none (before 5.14), touches page after page by a system call that
// reports a failure in place of raising a signal.
// Errors: -ENOMEM (no memory), -EFAULT (not open, or no memory), -EHWPOISON. Pages populated before the failure stay so.
[[nodiscard]] int populate(const System& system, PageRange range);

// Gives the memory back; the range reads as zero afterwards. Works on locked memory too (on kernels before 5.18 by
// unlocking it).
// Errors: -ENOMEM when part of the range is not mapped.
[[nodiscard]] int depopulate(const System& system, PageRange range);

// The three good outcomes of retire().
enum RetireResult : int {
  kRetired = 0,          // as after reserve() and bind()
  kRetiredUnplaced = 1,  // as after reserve(), but the node, or what else was said of the range, could not be restored
  kOnlyDepopulated = 2,  // no VMA or no lock limit left: the memory is given back; the range stays open and charged
};

// Puts the range back into the state after reserve() and bind(`node`), commit charge included: a fresh mapping takes its
// place, and is unlocked, left out of core dumps, without huge pages, and bound again.
// Returns: a RetireResult. Errors: -errno when the range could neither be replaced nor depopulated; if then part of it is
// no longer mapped (-ENOMEM), the addresses are lost to others and must not be used again.
[[nodiscard]] int retire(const System& system, PageRange range, NodeId node);

// To which mappings the kernel gives transparent huge pages (/sys/kernel/mm/transparent_hugepage/enabled). kNever where it does not say.
enum class HugePages : uint8_t { kNever, kAdvised, kAlways };
[[nodiscard]] HugePages huge_pages(const System& system);

// Allows or forbids huge pages in the range. Errors: -EINVAL where the kernel has none.
[[nodiscard]] int advise_huge(const System& system, PageRange range, bool on);

// How many pages of the range are backed by memory just now. For tests and reports.
// Errors: -ENOMEM when part of the range is not mapped.
[[nodiscard]] int resident_pages(const System& system, PageRange range, size_t* pages);

// The node whose memory backs the page at `address`. Asking backs no page (but, where the kernel forbids to ask about pages
// and its policies are asked instead, one that is given back at that very moment).
// Errors: -ENOENT when no page of its own is there (nor is the shared zero page one), -EFAULT when nothing is mapped
// there, -EPERM and -ENOSYS in containers that forbid to ask.
[[nodiscard]] int node_of(const System& system, uintptr_t address, NodeId* node);

}  // namespace percpu

#endif  // PERCPU_OS_PAGES_H
