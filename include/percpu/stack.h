/* SPDX-License-Identifier: MIT */
/*
 * percpu/stack.h - a bounded stack of 8-byte values on each CPU
 *
 * Internal: the library's front caches are made of it. percpu.h does not include it, push and pop want a view
 * and not a pool, and any of it may change. Programs take percpu/list.h.
 *
 * What a cache of objects is made of: free objects of one kind, those of this CPU only, last in, first out. A stack is
 * an array inside the CPU's copy, so what happens to the objects cannot harm it.
 *
 *   offset 0   word    bits 0 to 15: count, how many values are on it; bits 16 to 63: nr_pops, how many were taken off it, ever;
 *                      changed by sequences only, or by who has stopped it
 *   offset 8   limit   how many it takes, at most 65535; 0: stopped, or not there
 *   offset 16  slots   8 bytes each, as many as the largest limit
 *
 *   push: if (count >= limit) fail; slot[count] = value; count += 1                      (commit: word += 1)
 *   pop:  if (count - 1 >= limit) fail; value = slot[count - 1]; count -= 1, nr_pops += 1    (commit: word += 65535)
 *
 * (Unsigned: 0 - 1 is large. 65535 is 65536 - 1: one commit changes both.)
 *
 * Another CPU's stack is emptied by who stops it first: limit = 0; percpu_fence(cpu); now no sequence changes it, since
 * those that had read the old limit were aborted and begin by reading the new one; take the values, count = 0 (nr_pops stays),
 * and set the limit again. Only one at a time may do so: limits are the business of the stack's owner. (Explored to the end, with
 * mutants: tests/model/protocols_test.cc.)
 *
 * nr_pops begins anew after 2^48 pops: a quarter of a year of nothing else, on one CPU, from one stack.
 *
 * A limit must not be lowered, but to 0, while values are above it: pop would not find them.
 *
 * Context: any thread, any signal handler. A thread without rseq gets "fail" from both: it has another way to go.
 */
#ifndef PERCPU_STACK_H
#define PERCPU_STACK_H

#include <percpu/words.h>

/* The head of a stack; the slots follow it. The layout is known to percpu/arch. */
struct percpu_stack {
  uint64_t word;
  uint32_t limit;
  uint32_t unused_;
};

/* The size of a stack that takes `limit` values, bytes. */
#define PERCPU_STACK_BYTES(limit) (sizeof(struct percpu_stack) + (limit) * sizeof(uint64_t))

/* How many values a copy holds, and how many were taken off it: of a stack that was stopped, or for those who only look. */
PERCPU_INLINE_ uint32_t percpu_stack_count(const struct percpu_stack *copy) {
  return (uint32_t)(__atomic_load_n(&copy->word, __ATOMIC_RELAXED) & 0xffff);
}
PERCPU_INLINE_ uint64_t percpu_stack_nr_pops(const struct percpu_stack *copy) {
  return __atomic_load_n(&copy->word, __ATOMIC_RELAXED) >> 16;
}
/* Of a stack that was stopped. The number of pops stays. Others may look at the word meanwhile. */
PERCPU_INLINE_ void percpu_stack_set_count(struct percpu_stack *copy, uint32_t count) {
  __atomic_store_n(&copy->word, (copy->word & ~(uint64_t)0xffff) | count, __ATOMIC_RELAXED);
}

/* The slots of one copy: of a stack that was stopped, or for those who only look. */
PERCPU_INLINE_ uint64_t *percpu_stack_slots(struct percpu_stack *copy) {
  return (uint64_t *)(void *)(copy + 1);
}

/* Puts `value` on this CPU's stack. Returns 1; 0 where it is full, stopped, or the thread has no rseq. `view` is a pool's
 * (percpu/abi.h). */
PERCPU_INLINE_ int percpu_stack_push_(const struct percpu_view *view, const struct percpu_stack *handle,
                                      uint64_t value) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_table_(view);
  if (PERCPU_LIKELY_(table != NULL)) return percpu_seq_stack_push_(table, handle, value);
#else
  (void)view, (void)handle, (void)value;
#endif
  return 0;
}

/* Takes the value that was put on this CPU's stack last into *value. Returns 1; 0 where it is empty, stopped, or the
 * thread has no rseq: *value means nothing then. */
PERCPU_INLINE_ int percpu_stack_pop_(const struct percpu_view *view, const struct percpu_stack *handle,
                                     uint64_t *value) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_table_(view);
  if (PERCPU_LIKELY_(table != NULL)) return percpu_seq_stack_pop_(table, handle, value);
#else
  (void)view, (void)handle, (void)value;
#endif
  return 0;
}

#endif /* PERCPU_STACK_H */
