// SPDX-License-Identifier: MIT
//
// What the fast paths of malloc and free read, and their restartable sequences.
//
// Each CPU's copy of the caches' area holds a stack of free blocks for each lane: a head, all heads side by side, and its
// slots somewhere behind them.
//
//   head     top   where the next block goes; changed by sequences on that CPU, or by who has closed the CPU
//            end   top may go so far; changed by who holds the CPU's lock
//   slots    one that is 0, then the blocks' addresses: a pop that finds 0 says empty
//
// The table says where each CPU's copy is, so a CPU is *closed* by letting its entries point to the closed copy, whose heads
// all say empty and full (top is end, below it a 0), and fencing it: sequences that had read the entry before were restarted,
// and find the closed copy. Whoever closed it may then change the stacks as it likes, and opens it again by the entry.
//
// A thread uses the table through its own pointer to it, which is null until the kernel is known to have registered rseq for
// just this thread (CpuCache::attach()), and in the child of a vfork (vfork.S).
//
// Tops are pointers, loaded and stored by plain 8-byte moves, for a reason: free finds its stack by what it loads at the
// block's page, a chain of loads that begins with the block that malloc popped. The next malloc would have to wait for the
// end of that chain, were it not that processors guess which store such a load reads from. The Xeon that this was measured on (AMX,
// 2 CPUs of a virtual machine) does so for pointers (1.6 ns
// for a pair of sequences), not for 32-bit counts, counts that index, or an add to memory (4.4 to 8 ns).
#ifndef PERCPU_PRELOAD_CACHE_TABLE_H
#define PERCPU_PRELOAD_CACHE_TABLE_H

#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "preload/size_class.h"

namespace percpu::heap {

// The head of a stack.
struct StackHead {
  uint64_t* top;
  uint64_t* end;
};
// Entries of the page map hold kinds as offsets of heads in a copy.
static_assert(sizeof(StackHead) == size_t{1} << kKindShift);

struct CacheTable {
  struct Kind {
    uint64_t inverse;     // that of the lane's class, see begins_block(). 0 for what is no lane: refuses every block
    uint64_t size_bytes;  // of its blocks
  };
  // A thread that lost its registration finds -1 or -2 for its CPU: these point to the closed copy.
  static constexpr size_t kNoCpu = 2;
  static constexpr size_t kEntries = kNoCpu + kMaxCpus;

  uintptr_t rseq_offset;  // of a thread's rseq area, from its thread pointer
  // What Window knows, beside the rest of what free() reads.
  uintptr_t window;
  size_t window_bytes;
  const PageEntry* page_map;
  uint32_t home_head[ClassTable::kEntries];  // by size (ClassTable::index): where the head is among those of the CPU's node
  Kind kinds[kMaxKinds];
  uintptr_t homes[kEntries];   // of each CPU: the heads of its own node's lanes. malloc takes from these
  uintptr_t copies[kEntries];  // of each CPU: its copy, which begins with all heads. free gives to these
};

extern "C" {
// This thread's way to the caches; null: it has none, or is not known yet.
extern __thread const CacheTable* thread_caches __attribute__((tls_model("initial-exec"), visibility("hidden")));
}

#if defined(__x86_64__)

// The beginning and the end of a sequence: see percpu/arch/x86_64.h, from which these differ in two ways. Nothing is
// forgotten at the end, as the preload is never unloaded; and the columns of CPUs have two entries before CPU 0.
// [at] becomes the head's address; [top] is first the CPU, then the head's top.
#define PRELOAD_SEQ_BEGIN_                                                \
  ".pushsection __rseq_cs,\"aw?\"\n\t"                                    \
  ".balign 32\n"                                                          \
  "3:\t.long 0,0\n\t"                                                    \
  ".quad 1f,2f-1f,4f\n\t"                                                \
  ".popsection\n\t"                                                      \
  ".pushsection __rseq_cs_ptr_array,\"aw?\"\n\t"                          \
  ".quad 3b\n\t"                                                         \
  ".popsection\n"                                                        \
  "5:\tleaq 3b(%%rip),%[top]\n\t"                                        \
  "movq %[top],%%fs:8(%[area])\n\t"                                      \
  "movl %[head],%k[at]\n"                                                \
  "1:\tmovslq %%fs:4(%[area]),%[top]\n\t"                                \
  "addq %c[column](%[table],%[top],8),%[at]\n\t"                         \
  "movq (%[at]),%[top]\n\t"
#define PRELOAD_SEQ_END_                                                  \
  "\n2:\n\t"                                                             \
  ".pushsection __rseq_failure,\"ax?\"\n\t"                               \
  ".byte 0x0f,0xb9,0x3d\n\t" /* ud1 sig(%rip),%edi */                    \
  ".long 0x53053053\n"                                                   \
  "4:\tjmp 5b\n\t"                                                       \
  ".popsection"
#define PRELOAD_SEQ_IN_(table, head_of, column_of)                        \
  [area] "r"((table)->rseq_offset), [table] "r"(table), [head] "rm"(head_of), \
      [column] "i"(offsetof(CacheTable, column_of) + CacheTable::kNoCpu * sizeof(uintptr_t))

#define PRELOAD_POP_                                                      \
  PRELOAD_SEQ_BEGIN_                                                      \
  "movq -8(%[top]),%[block]\n\t"                                         \
  "testq %[block],%[block]\n\t"                                          \
  "je %l[empty]\n\t"                                                     \
  "subq $8,%[top]\n\t"                                                   \
  "movq %[top],(%[at])" PRELOAD_SEQ_END_

// Takes a block off this CPU's stack for the size, of its own node. Null: it is empty.
PRELOAD_HOT void* pop_home(const CacheTable* table, size_t size_index) {
  uintptr_t at, top;
  void* block;
  asm volatile goto(PRELOAD_POP_
                    : [at] "=&r"(at), [top] "=&r"(top), [block] "=&r"(block)
                    : PRELOAD_SEQ_IN_(table, table->home_head[size_index], homes)
                    : "memory", "cc"
                    : empty);
  if (block == nullptr) __builtin_unreachable();
  return block;
empty:
  return nullptr;
}

// The same of any lane's stack.
inline void* pop_lane(const CacheTable* table, uint32_t lane) {
  uintptr_t at, top;
  void* block;
  asm volatile goto(PRELOAD_POP_
                    : [at] "=&r"(at), [top] "=&r"(top), [block] "=&r"(block)
                    : PRELOAD_SEQ_IN_(table, (kKindLane + lane) << kKindShift, copies)
                    : "memory", "cc"
                    : empty);
  return block;
empty:
  return nullptr;
}

// Whether a block begins at this offset in the window, by the entry of its page: what begins_block() says, in the fewest
// instructions. *head: where the head of the block's stack is in a copy.
// Entries change only while no block is there; for what is no block they may say anything.
PRELOAD_HOT bool find_block(const CacheTable* table, uintptr_t offset, uint32_t* head) {
  uintptr_t kind, in_span = offset;
  asm volatile goto("movl 4(%[map],%[page],8),%k[kind]\n\t"
                    "subl (%[map],%[page],8),%k[in_span]\n\t"
                    "movslq %k[in_span],%[in_span]\n\t"
                    "imulq %c[inverse](%[table],%[kind]),%[in_span]\n\t"
                    "cmpq %c[inverse](%[table],%[kind]),%[in_span]\n\t"
                    "jae %l[none]"
                    : [kind] "=&r"(kind), [in_span] "+&r"(in_span)
                    : [map] "r"(table->page_map), [page] "r"(offset >> kPageShift), [table] "r"(table),
                      [inverse] "i"(offsetof(CacheTable, kinds) + offsetof(CacheTable::Kind, inverse))
                    : "memory", "cc"
                    : none);
  *head = static_cast<uint32_t>(kind);
  return true;
none:
  return false;
}

enum class Pushed { kYes, kFull, kTwice };

// Puts a block on this CPU's stack whose head is there in a copy. kTwice: it lies on top already.
PRELOAD_HOT Pushed push(const CacheTable* table, uint32_t head, const void* block) {
  uintptr_t at, top;
  asm volatile goto(PRELOAD_SEQ_BEGIN_
                    "cmpq 8(%[at]),%[top]\n\t"
                    "jae %l[full]\n\t"
                    "cmpq %[block],-8(%[top])\n\t"
                    "je %l[twice]\n\t"
                    "movq %[block],(%[top])\n\t"
                    "addq $8,%[top]\n\t"
                    "movq %[top],(%[at])" PRELOAD_SEQ_END_
                    : [at] "=&r"(at), [top] "=&r"(top)
                    : PRELOAD_SEQ_IN_(table, head, copies), [block] "r"(block)
                    : "memory", "cc"
                    : full, twice);
  return Pushed::kYes;
full:
  return Pushed::kFull;
twice:
  return Pushed::kTwice;
}

PRELOAD_HOT Pushed push_lane(const CacheTable* table, uint32_t lane, uint64_t block) {
  return push(table, (kKindLane + lane) << kKindShift, reinterpret_cast<void*>(block));
}

#else
#error "the preload's sequences are written for x86-64 only"
#endif

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_CACHE_TABLE_H
