// SPDX-License-Identifier: MIT
//
// What the fast paths of malloc and free read, and their restartable sequences.
//
// Each CPU's copy of the caches' area holds a stack of free blocks for each lane: a head, all heads side by side, and its
// slots somewhere behind them.
//
//   head     top   where the next block goes; changed by sequences on that CPU, or by who has closed the CPU
//            end   top may go so far; changed by who holds the CPU's lock
//   slots    kZeroSlots that are 0, then the blocks' addresses: a pop that finds 0 says empty, and the upper two entries, which
//            a push compares, are always there
//
// The table says where each CPU's copy is, so a CPU is *closed* by letting its entries point to the closed copy, whose heads
// all say empty and full (top is end, below it a 0), and fencing it: sequences that had read the entry before were restarted,
// and find the closed copy. Whoever closed it may then change the stacks as it likes, and opens it again by the entry.
//
// Where a processor may do loads in any order (arm64): the entry that opens a CPU is stored with release, and a sequence has all that it
// loads or stores of a stack by the address that it loaded there (entry, head, top, slot, each from the one before). No processor goes
// to an address before it has it, so whoever finds the CPU open finds its stacks as they were left; none of these loads need be an
// acquire. The fence is a full barrier on both sides: what sequences had committed is seen by who asked for it, with all that their
// threads had done to the blocks before. Between threads of one CPU the processor's own order is enough, as with all that is per CPU.
// An end that is raised says nothing of other memory: what lies in slots above top is never looked at.
//
// What a thread may use is in its own words, ThreadCaches, all 0 until the kernel is known to have registered rseq for just this
// thread (CpuCache::attach()), and in the child of a vfork (vfork.S). A limit of 0 refuses every size and every address, so
// the comparison that malloc and free make anyway tells such a thread from the others.
//
// Three things about time, as measured on virtual machines, the first on a Xeon with AMX, the others on an AMD EPYC of family 26:
//
// - Tops are pointers, loaded and stored by plain 8-byte moves: free finds its stack by what it loads at the block's page, a
//   chain of loads that begins with the block that malloc popped. The next malloc would have to wait for the end of that chain,
//   were it not that processors guess which store such a load reads from. They do so for pointers, not for 32-bit counts,
//   counts that index, or an add to memory.
// - The thread's rseq area is reached by its address, not by its offset from fs: loads of it through fs take 2.5 cycles more
//   for a pair of malloc and free on the EPYC (11.1 against 13.6, where two empty functions take 9.0).
// - Of what is left, the checks take one cycle, the load of the CPU's number one, and the store of the descriptor none.
#ifndef PERCPU_PRELOAD_HEAP_CACHE_TABLE_H
#define PERCPU_PRELOAD_HEAP_CACHE_TABLE_H

#include <percpu/arch/select.h>

#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "preload/heap/size_class.h"
#include "preload/heap/window.h"

namespace percpu::heap {

// The head of a stack.
struct StackHead {
  uint64_t* top;
  uint64_t* end;
};
// Entries of the page map hold kinds as offsets of heads in a copy.
static_assert(sizeof(StackHead) == size_t{1} << kKindShift);

constexpr size_t kZeroSlots = 2;

struct CacheTable {
  struct Kind {
    uint64_t inverse;     // that of the lane's class, see begins_block(). 0 for what is no lane: refuses every block
    uint64_t size_bytes;  // of its blocks
  };
  // A thread that lost its registration finds -1 or -2 for its CPU: these point to the closed copy.
  static constexpr size_t kNoCpu = 2;
  static constexpr size_t kEntries = kNoCpu + kMaxCpus;

  // By size, to kFine: where the head is among those of the CPU's node. One load, where an index by 8 bytes takes two
  // instructions more; a program uses few sizes, so what it costs in the caches are few lines.
  uint16_t home_head[ClassTable::kFine + 1];
  uint16_t coarse_head[ClassTable::kCoarseEntries];  // the same for larger sizes
  Kind kinds[kMaxKinds];
  uintptr_t homes[kEntries];   // of each CPU: the heads of its own node's lanes. malloc takes from these
  uintptr_t copies[kEntries];  // of each CPU: its copy, which begins with all heads. free gives to these
};

static_assert(sizeof(CacheTable) <= Window::kBeforeMapBytes);
// Entries of the page map hold kinds as offsets of these, too.
static_assert(sizeof(CacheTable::Kind) == size_t{1} << kKindShift);
static_assert(kMaxKinds * sizeof(StackHead) <= UINT16_MAX);

// What this thread may use, by the fast paths. Offsets are known to vfork.S.
struct ThreadCaches {
  size_t malloc_limit;          // sizes below it are served by home_head, others by coarse_head; 0: none
  uintptr_t free_limit;         // addresses at offsets below it in the window are served, and checked
  uintptr_t unchecked_limit;    // the same without the checks: only one of the two is not 0
  uintptr_t rseq;               // the thread's rseq area, from when a limit was set first: it stays
};

// Where everything is, from when the caches are open.
struct CachePlaces {
  uintptr_t window;
  const CacheTable* table;  // right before the page map
};

extern "C" {
extern __thread ThreadCaches thread_caches __attribute__((tls_model("initial-exec"), visibility("hidden")));
extern CachePlaces cache_places __attribute__((visibility("hidden")));
}

constexpr uintptr_t head_of_lane(uint32_t lane) { return uintptr_t{kKindLane + lane} << kKindShift; }

// ---- what is written for each processor (preload/arch) ---------------------------------------------------------------
//
// `head`: where the stack's head is among those that the CPU's entry points to. Requires, for each but find_block(): the thread is
// attached.
//
// All but that one are one sequence each, wherever they are inlined. It begins and ends as in percpu/arch, but for three things. Nothing is
// forgotten at the end, as the preload is never unloaded; the columns of CPUs have two entries before CPU 0; and the area is reached by
// its address.

// Takes a block off this CPU's stack whose head is there among those of its own node. Null: it is empty.
PRELOAD_HOT void* pop_home(const CacheTable* table, uintptr_t head);

// Puts a block on this CPU's stack whose head is there in a copy. kTwice: it is one of the upper two already.
enum class Pushed { kYes, kFull, kTwice };
PRELOAD_HOT Pushed push(const CacheTable* table, uintptr_t head, const void* block);
// The same without that check. False: the stack is full.
PRELOAD_HOT bool push_unchecked(const CacheTable* table, uintptr_t head, const void* block);

// What pop_many() and push_many() do. Requires: count is not 0.
PRELOAD_HOT uint64_t pop_up_to(const CacheTable* table, uintptr_t head, uint64_t* blocks, uint64_t count);
PRELOAD_HOT uint64_t push_up_to(const CacheTable* table, uintptr_t head, const uint64_t* blocks, uint64_t count);

// Where the head of the stack is for the block that begins at this offset in the window: what find_head() and begins_block() say, in
// the fewest instructions. False: none begins there.
// Entries change only while no block is there; for what is no block they may say anything.
PRELOAD_HOT bool find_block(const CacheTable* table, uintptr_t offset, uintptr_t* head);

// ---- for the ways that are not fast, of any lane's stack (cpu_cache.cc)

// As push().
Pushed push_lane(uint32_t lane, uint64_t block);
// Take off as many of `count` blocks as the stack holds, the topmost first, and put on as many as it has room for, the last on
// top. They return how many that were. Entries of blocks[] behind those that pop_many() took hold anything: an aborted sequence
// may have written them. push_many() does not look whether a block is there already.
uint32_t pop_many(uint32_t lane, uint64_t* blocks, uint32_t count);
uint32_t push_many(uint32_t lane, const uint64_t* blocks, uint32_t count);

// What the page map says of the page with this offset in the window: where the head of its blocks' stack is in a copy.
PRELOAD_HOT uintptr_t find_head(const CacheTable* table, uintptr_t offset) {
  const uintptr_t map = reinterpret_cast<uintptr_t>(table) + Window::kBeforeMapBytes;
  return __atomic_load_n(&reinterpret_cast<const PageEntry*>(map)[offset >> kPageShift].shifted_kind, __ATOMIC_RELAXED);
}

}  // namespace percpu::heap

#if defined(__x86_64__)
#include "preload/arch/x86_64.h"
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#include "preload/arch/aarch64.h"
#else
#error "the preload's sequences are written for x86-64 and arm64"
#endif

#endif  // PERCPU_PRELOAD_HEAP_CACHE_TABLE_H
