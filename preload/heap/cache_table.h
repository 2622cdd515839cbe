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
  Kind kinds[kMaxKinds];
  uintptr_t homes[kEntries];   // of each CPU: the heads of its own node's lanes. malloc takes from these
  uintptr_t copies[kEntries];  // of each CPU: its copy, which begins with all heads. free gives to these
};

static_assert(sizeof(CacheTable) <= Window::kBeforeMapBytes);
static_assert(kMaxKinds * sizeof(StackHead) <= UINT16_MAX);

// What this thread may use, by the fast paths. Offsets are known to vfork.S.
struct ThreadCaches {
  size_t malloc_limit;          // sizes below it are served
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

#if defined(__x86_64__)

// The beginning and the end of a sequence: see percpu/arch/x86_64.h, from which these differ in three ways. Nothing is
// forgotten at the end, as the preload is never unloaded; the columns of CPUs have two entries before CPU 0; and the area is
// reached by its address.
// [copy] becomes the CPU's heads, at which the stack's is at [head]; [top] is the head's top.
#define PRELOAD_HEAD_ "(%[copy],%[head])"
#define PRELOAD_SEQ_BEGIN_                                                \
  ".pushsection __rseq_cs,\"aw?\"\n\t"                                    \
  ".balign 32\n"                                                          \
  "3:\t.long 0,0\n\t"                                                    \
  ".quad 1f,2f-1f,4f\n\t"                                                \
  ".popsection\n\t"                                                      \
  ".pushsection __rseq_cs_ptr_array,\"aw?\"\n\t"                          \
  ".quad 3b\n\t"                                                         \
  ".popsection\n"                                                        \
  "5:\tleaq 3b(%%rip),%[copy]\n\t"                                       \
  "movq %[copy],8(%[area])\n"                                            \
  "1:\tmovslq 4(%[area]),%[copy]\n\t"                                    \
  "movq %c[column](%[table],%[copy],8),%[copy]\n\t"                      \
  "movq " PRELOAD_HEAD_ ",%[top]\n\t"
#define PRELOAD_SEQ_END_                                                  \
  "\n2:\n\t"                                                             \
  ".pushsection __rseq_failure,\"ax?\"\n\t"                               \
  ".byte 0x0f,0xb9,0x3d\n\t" /* ud1 sig(%rip),%edi */                    \
  ".long 0x53053053\n"                                                   \
  "4:\tjmp 5b\n\t"                                                       \
  ".popsection"
#define PRELOAD_SEQ_IN_(table_of, head_of, column_of)                     \
  [area] "r"(thread_caches.rseq), [table] "r"(table_of), [head] "r"(head_of), \
      [column] "i"(offsetof(CacheTable, column_of) + CacheTable::kNoCpu * sizeof(uintptr_t))

// Takes a block off this CPU's stack whose head is there among those of its own node. Null: it is empty.
// Requires, as all sequences: the thread is attached.
PRELOAD_HOT void* pop_home(const CacheTable* table, uintptr_t head) {
  uintptr_t copy, top;
  void* block;
  asm volatile goto(PRELOAD_SEQ_BEGIN_
                    "movq -8(%[top]),%[block]\n\t"
                    "testq %[block],%[block]\n\t"
                    "je %l[empty]\n\t"
                    "subq $8,%[top]\n\t"
                    "movq %[top]," PRELOAD_HEAD_ PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top), [block] "=&a"(block)
                    : PRELOAD_SEQ_IN_(table, head, homes)
                    : "memory", "cc"
                    : empty);
  if (block == nullptr) __builtin_unreachable();
  return block;
empty:
  return nullptr;
}

constexpr uintptr_t head_of_lane(uint32_t lane) { return uintptr_t{kKindLane + lane} << kKindShift; }

// For the ways that are not fast, of any lane's stack, one sequence each (cpu_cache.cc).
enum class Pushed { kYes, kFull, kTwice };
// As push(), below.
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

// The same, if a block begins at this offset: what begins_block() says, in the fewest instructions.
// Entries change only while no block is there; for what is no block they may say anything.
PRELOAD_HOT bool find_block(const CacheTable* table, uintptr_t offset, uintptr_t* head) {
  uintptr_t kind, in_span = offset;
  asm volatile goto("movl 4+%c[map](%[table],%[page],8),%k[kind]\n\t"
                    "subl %c[map](%[table],%[page],8),%k[in_span]\n\t"
                    "movslq %k[in_span],%[in_span]\n\t"
                    "imulq %c[inverse](%[table],%[kind]),%[in_span]\n\t"
                    "cmpq %c[inverse](%[table],%[kind]),%[in_span]\n\t"
                    "jae %l[none]"
                    : [kind] "=&r"(kind), [in_span] "+&r"(in_span)
                    : [page] "r"(offset >> kPageShift), [table] "r"(table), [map] "i"(Window::kBeforeMapBytes),
                      [inverse] "i"(offsetof(CacheTable, kinds) + offsetof(CacheTable::Kind, inverse))
                    : "memory", "cc"
                    : none);
  *head = kind;
  return true;
none:
  return false;
}

// Puts a block on this CPU's stack whose head is there in a copy. kTwice: it is one of the upper two already.
PRELOAD_HOT Pushed push(const CacheTable* table, uintptr_t head, const void* block) {
  uintptr_t copy, top;
  asm volatile goto(PRELOAD_SEQ_BEGIN_
                    "cmpq 8" PRELOAD_HEAD_ ",%[top]\n\t"
                    "jae %l[full]\n\t"
                    "cmpq %[block],-8(%[top])\n\t"
                    "je %l[twice]\n\t"
                    "cmpq %[block],-16(%[top])\n\t"
                    "je %l[twice]\n\t"
                    "movq %[block],(%[top])\n\t"
                    "addq $8,%[top]\n\t"
                    "movq %[top]," PRELOAD_HEAD_ PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top)
                    : PRELOAD_SEQ_IN_(table, head, copies), [block] "r"(block)
                    : "memory", "cc"
                    : full, twice);
  return Pushed::kYes;
full:
  return Pushed::kFull;
twice:
  return Pushed::kTwice;
}

// The same without that check. False: the stack is full.
PRELOAD_HOT bool push_unchecked(const CacheTable* table, uintptr_t head, const void* block) {
  uintptr_t copy, top;
  asm volatile goto(PRELOAD_SEQ_BEGIN_
                    "cmpq 8" PRELOAD_HEAD_ ",%[top]\n\t"
                    "jae %l[full]\n\t"
                    "movq %[block],(%[top])\n\t"
                    "addq $8,%[top]\n\t"
                    "movq %[top]," PRELOAD_HEAD_ PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top)
                    : PRELOAD_SEQ_IN_(table, head, copies), [block] "r"(block)
                    : "memory", "cc"
                    : full);
  return true;
full:
  return false;
}

#else
#error "the preload's sequences are written for x86-64 only"
#endif

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_CACHE_TABLE_H
