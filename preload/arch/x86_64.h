// SPDX-License-Identifier: MIT
//
// What the preload has in assembly on x86-64: the sequences of cache_table.h, which tells what each does, and little else.
#ifndef PERCPU_PRELOAD_ARCH_X86_64_H
#define PERCPU_PRELOAD_ARCH_X86_64_H

// The function that the dynamic linker has bound the name to.
#define PRELOAD_LOAD_BOUND(name, into) __asm__("mov " #name "@GOTPCREL(%%rip),%0" : "=r"(into))

namespace percpu::heap {

// [copy] becomes the CPU's heads, at which the stack's is at [head]; [top] is the head's top.
#define PRELOAD_HEAD_ "(%[copy],%[head])"
#define PRELOAD_SEQ_BEGIN_                          \
  PERCPU_SEQ_DESCRIPTOR_                            \
  "5:\tleaq 3b(%%rip),%[copy]\n\t"                  \
  "movq %[copy],8(%[area])\n"                       \
  "1:\tmovslq 4(%[area]),%[copy]\n\t"               \
  "movq %c[column](%[table],%[copy],8),%[copy]\n\t" \
  "movq " PRELOAD_HEAD_ ",%[top]\n\t"
#define PRELOAD_SEQ_END_ "\n2:\n\t" PERCPU_SEQ_ABORT_
#define PRELOAD_SEQ_IN_(column_of)                                        \
  [area] "r"(thread_caches.rseq), [table] "r"(table), [head] "r"(head),   \
      [column] "i"(offsetof(CacheTable, column_of) + CacheTable::kNoCpu * sizeof(uintptr_t))

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
                    : PRELOAD_SEQ_IN_(homes)
                    : "memory", "cc"
                    : empty);
  if (block == nullptr) __builtin_unreachable();
  return block;
empty:
  return nullptr;
}

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
                    : PRELOAD_SEQ_IN_(copies), [block] "r"(block)
                    : "memory", "cc"
                    : full, twice);
  return Pushed::kYes;
full:
  return Pushed::kFull;
twice:
  return Pushed::kTwice;
}

PRELOAD_HOT bool push_unchecked(const CacheTable* table, uintptr_t head, const void* block) {
  uintptr_t copy, top;
  asm volatile goto(PRELOAD_SEQ_BEGIN_
                    "cmpq 8" PRELOAD_HEAD_ ",%[top]\n\t"
                    "jae %l[full]\n\t"
                    "movq %[block],(%[top])\n\t"
                    "addq $8,%[top]\n\t"
                    "movq %[top]," PRELOAD_HEAD_ PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top)
                    : PRELOAD_SEQ_IN_(copies), [block] "r"(block)
                    : "memory", "cc"
                    : full);
  return true;
full:
  return false;
}

// [done] becomes how many were moved. `one` moves one of them, or jumps to 7 where none is left. Where none was, nothing is written
// to the stack: it may be that of the closed copy, which all CPUs have.
#define PRELOAD_MOVE_MANY_(one)                                                                                 \
  asm volatile(PRELOAD_SEQ_BEGIN_                                                                               \
               "xorl %k[done],%k[done]\n"                                                                       \
               "6:\t" one                                                                                       \
               "incq %[done]\n\t"                                                                               \
               "cmpq %[count],%[done]\n\t"                                                                      \
               "jb 6b\n"                                                                                        \
               "7:\ttestq %[done],%[done]\n\t"                                                                  \
               "je 2f\n\t"                                                                                      \
               "movq %[top]," PRELOAD_HEAD_ PRELOAD_SEQ_END_                                                    \
               : [copy] "=&r"(copy), [top] "=&r"(top), [block] "=&r"(block), [done] "=&r"(done)                 \
               : PRELOAD_SEQ_IN_(copies), [blocks] "r"(blocks), [count] "r"(count)                              \
               : "memory", "cc")

PRELOAD_HOT uint64_t pop_up_to(const CacheTable* table, uintptr_t head, uint64_t* blocks, uint64_t count) {
  uintptr_t copy, top;
  uint64_t block, done;
  PRELOAD_MOVE_MANY_("movq -8(%[top]),%[block]\n\t"
                     "testq %[block],%[block]\n\t"
                     "je 7f\n\t"
                     "movq %[block],(%[blocks],%[done],8)\n\t"
                     "subq $8,%[top]\n\t");
  return done;
}

PRELOAD_HOT uint64_t push_up_to(const CacheTable* table, uintptr_t head, const uint64_t* blocks, uint64_t count) {
  uintptr_t copy, top;
  uint64_t block, done;
  PRELOAD_MOVE_MANY_("cmpq 8" PRELOAD_HEAD_ ",%[top]\n\t"
                     "jae 7f\n\t"
                     "movq (%[blocks],%[done],8),%[block]\n\t"
                     "movq %[block],(%[top])\n\t"
                     "addq $8,%[top]\n\t");
  return done;
}

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

#undef PRELOAD_HEAD_
#undef PRELOAD_SEQ_BEGIN_
#undef PRELOAD_SEQ_END_
#undef PRELOAD_SEQ_IN_
#undef PRELOAD_MOVE_MANY_

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_ARCH_X86_64_H
