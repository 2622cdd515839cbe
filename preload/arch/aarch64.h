// SPDX-License-Identifier: MIT
//
// What the preload has in assembly on 64-bit ARM: the sequences of cache_table.h, which tells what each does, and little else.
//
// No load of a sequence is an acquire, and none need be (cache_table.h). A pair is loaded by one instruction for the sake of their number:
// nothing asks that both are of one moment. A commit stores one register, so it is whole; pairs are not (percpu/arch/aarch64.h).
#ifndef PERCPU_PRELOAD_ARCH_AARCH64_H
#define PERCPU_PRELOAD_ARCH_AARCH64_H

// The function that the dynamic linker has bound the name to.
#define PRELOAD_LOAD_BOUND(name, into) __asm__("adrp %0,:got:" #name "\n\tldr %0,[%0,:got_lo12:" #name "]" : "=r"(into))

namespace percpu::heap {

// [copy] becomes the CPU's heads, at which the stack's is at [head].
#define PRELOAD_SEQ_BEGIN_             \
  PERCPU_SEQ_DESCRIPTOR_               \
  "5:\tadrp %[copy],3b\n\t"            \
  "add %[copy],%[copy],:lo12:3b\n\t"   \
  "str %[copy],[%[area],#8]\n"         \
  "1:\tldrsw %[copy],[%[area],#4]\n\t" \
  "ldr %[copy],[%[column],%[copy],lsl #3]\n\t"
// The same, and [copy] becomes the stack's head.
#define PRELOAD_SEQ_BEGIN_AT_HEAD_ PRELOAD_SEQ_BEGIN_ "add %[copy],%[copy],%[head]\n\t"
#define PRELOAD_SEQ_END_ "\n2:\n\t" PERCPU_SEQ_ABORT_
#define PRELOAD_SEQ_IN_(column_of) \
  [area] "r"(thread_caches.rseq), [column] "r"(&table->column_of[CacheTable::kNoCpu]), [head] "r"(head)

PRELOAD_HOT void* pop_home(const CacheTable* table, uintptr_t head) {
  uintptr_t copy, top;
  void* block;
  asm volatile goto(PRELOAD_SEQ_BEGIN_
                    "ldr %[top],[%[copy],%[head]]\n\t"
                    "ldr %[block],[%[top],#-8]!\n\t"
                    "cbz %[block],%l[empty]\n\t"
                    "str %[top],[%[copy],%[head]]" PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top), [block] "=&r"(block)
                    : PRELOAD_SEQ_IN_(homes)
                    : "memory", "cc"
                    : empty);
  if (block == nullptr) __builtin_unreachable();
  return block;
empty:
  return nullptr;
}

PRELOAD_HOT Pushed push(const CacheTable* table, uintptr_t head, const void* block) {
  uintptr_t copy, top, upper, second;
  asm volatile goto(PRELOAD_SEQ_BEGIN_AT_HEAD_
                    "ldp %[top],%[upper],[%[copy]]\n\t"
                    "cmp %[top],%[upper]\n\t"  // the end
                    "b.hs %l[full]\n\t"
                    "ldp %[second],%[upper],[%[top],#-16]\n\t"
                    "cmp %[upper],%[block]\n\t"
                    "ccmp %[second],%[block],#4,ne\n\t"  // #4: equal
                    "b.eq %l[twice]\n\t"
                    "str %[block],[%[top]],#8\n\t"
                    "str %[top],[%[copy]]" PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top), [upper] "=&r"(upper), [second] "=&r"(second)
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
  uintptr_t copy, top, end;
  asm volatile goto(PRELOAD_SEQ_BEGIN_AT_HEAD_
                    "ldp %[top],%[end],[%[copy]]\n\t"
                    "cmp %[top],%[end]\n\t"
                    "b.hs %l[full]\n\t"
                    "str %[block],[%[top]],#8\n\t"
                    "str %[top],[%[copy]]" PRELOAD_SEQ_END_
                    : [copy] "=&r"(copy), [top] "=&r"(top), [end] "=&r"(end)
                    : PRELOAD_SEQ_IN_(copies), [block] "r"(block)
                    : "memory", "cc"
                    : full);
  return true;
full:
  return false;
}

// [done] becomes how many were moved. `one` moves one of them, or jumps to 7 where none is left. Where none was, nothing is written
// to the stack: it may be that of the closed copy, which all CPUs have.
#define PRELOAD_MOVE_MANY_(one)                                                                              \
  asm volatile(PRELOAD_SEQ_BEGIN_AT_HEAD_                                                                    \
               "ldp %[top],%[end],[%[copy]]\n\t"                                                             \
               "mov %[done],#0\n"                                                                            \
               "6:\t" one                                                                                    \
               "add %[done],%[done],#1\n\t"                                                                  \
               "cmp %[done],%[count]\n\t"                                                                    \
               "b.lo 6b\n"                                                                                   \
               "7:\tcbz %[done],2f\n\t"                                                                      \
               "str %[top],[%[copy]]" PRELOAD_SEQ_END_                                                       \
               : [copy] "=&r"(copy), [top] "=&r"(top), [end] "=&r"(end), [block] "=&r"(block), [done] "=&r"(done) \
               : PRELOAD_SEQ_IN_(copies), [blocks] "r"(blocks), [count] "r"(count)                           \
               : "memory", "cc")

PRELOAD_HOT uint64_t pop_up_to(const CacheTable* table, uintptr_t head, uint64_t* blocks, uint64_t count) {
  uintptr_t copy, top, end;
  uint64_t block, done;
  PRELOAD_MOVE_MANY_("ldr %[block],[%[top],#-8]\n\t"
                     "cbz %[block],7f\n\t"
                     "str %[block],[%[blocks],%[done],lsl #3]\n\t"
                     "sub %[top],%[top],#8\n\t");
  return done;
}

PRELOAD_HOT uint64_t push_up_to(const CacheTable* table, uintptr_t head, const uint64_t* blocks, uint64_t count) {
  uintptr_t copy, top, end;
  uint64_t block, done;
  PRELOAD_MOVE_MANY_("cmp %[top],%[end]\n\t"
                     "b.hs 7f\n\t"
                     "ldr %[block],[%[blocks],%[done],lsl #3]\n\t"
                     "str %[block],[%[top]],#8\n\t");
  return done;
}

PRELOAD_HOT bool find_block(const CacheTable* table, uintptr_t offset, uintptr_t* head) {
  const uintptr_t map = reinterpret_cast<uintptr_t>(table) + Window::kBeforeMapBytes;
  const uintptr_t kind = find_head(table, offset);
  const PageEntry& entry = reinterpret_cast<const PageEntry*>(map)[offset >> kPageShift];
  const auto in_span = static_cast<int32_t>(static_cast<uint32_t>(offset) - __atomic_load_n(&entry.first_block, __ATOMIC_RELAXED));
  *head = kind;
  return begins_block(in_span, reinterpret_cast<const CacheTable::Kind*>(reinterpret_cast<uintptr_t>(table->kinds) + kind)->inverse);
}

#undef PRELOAD_SEQ_BEGIN_
#undef PRELOAD_SEQ_BEGIN_AT_HEAD_
#undef PRELOAD_SEQ_END_
#undef PRELOAD_SEQ_IN_
#undef PRELOAD_MOVE_MANY_

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_ARCH_AARCH64_H
