/* SPDX-License-Identifier: MIT */
/*
 * percpu/arch/aarch64.h - the restartable sequences, for 64-bit little-endian ARM
 *
 * The same functions and the same labels as in x86_64.h, which tells how a sequence works. No instruction here changes
 * memory and reads it at once, so each operation loads, computes, and commits by its last instruction, a store.
 *
 * Two things differ. The processor may do two loads in any order, so the stop word of a list is loaded with acquire
 * (ldar): what a drain did before it lowered the word is then seen. And a pair of registers is not stored as one (stp
 * may be cut in two by an interrupt before ARMv8.4): 16 bytes are committed by a store-exclusive of the pair, which is
 * all or nothing; where it stores nothing, the whole sequence is begun again.
 */
#ifndef PERCPU_ARCH_AARCH64_H
#define PERCPU_ARCH_AARCH64_H

/*
 * Compare-and-exchange of 16 aligned bytes that any thread may race with. Returns what was there. A mismatch writes
 * that back, since only an exclusive store that succeeds says that the two halves were read together.
 */
PERCPU_INLINE_ struct percpu_pair percpu_arch_cas16_(void *at, uint64_t was_low, uint64_t was_high, uint64_t low,
                                                     uint64_t high) {
  struct percpu_pair found;
  uint64_t new_low, new_high;
  uint32_t failed;
  __asm__ __volatile__("1:\tldaxp %[found_low],%[found_high],[%[at]]\n\t"
                       "cmp %[found_low],%[was_low]\n\t"
                       "ccmp %[found_high],%[was_high],#0,eq\n\t"
                       "csel %[new_low],%[low],%[found_low],eq\n\t"
                       "csel %[new_high],%[high],%[found_high],eq\n\t"
                       "stlxp %w[failed],%[new_low],%[new_high],[%[at]]\n\t"
                       "cbnz %w[failed],1b\n\t"
                       "dmb ish"
                       : [found_low] "=&r"(found.low), [found_high] "=&r"(found.high), [new_low] "=&r"(new_low),
                         [new_high] "=&r"(new_high), [failed] "=&r"(failed)
                       : [at] "r"(at), [was_low] "r"(was_low), [was_high] "r"(was_high), [low] "r"(low),
                         [high] "r"(high)
                       : "memory", "cc");
  return found;
}

/* Reads 16 aligned bytes whole, by storing back what was read: the memory must be writable. */
PERCPU_INLINE_ struct percpu_pair percpu_arch_load16_(const volatile void *at) {
  return percpu_arch_cas16_((void *)(uintptr_t)at, 0, 0, 0, 0);
}

#if PERCPU_HAVE_SEQUENCES

/*
 * Read anew by each operation. Compilers take it for the same in all of a function, and keep it in a register across calls: there a
 * user-level thread that goes on in another kernel thread would work on the first one's area.
 */
PERCPU_INLINE_ char *percpu_arch_thread_pointer_(void) {
  char *pointer;
  __asm__ __volatile__("mrs %0,tpidr_el0" : "=r"(pointer));
  return pointer;
}

/* The thread's struct rseq. */
PERCPU_INLINE_ char *percpu_arch_area_(void) {
  return percpu_arch_thread_pointer_() + __rseq_offset;
}

/* What the thread has in percpu_thread_. How far that is from the thread pointer is the same in all threads. */
PERCPU_INLINE_ const uintptr_t *percpu_arch_offset_(void) {
  uintptr_t at;
  __asm__("adrp %0,:gottprel:percpu_thread_\n\tldr %0,[%0,:gottprel_lo12:percpu_thread_]" : "=r"(at));
  return ((const struct percpu_thread_state *)(const void *)(percpu_arch_thread_pointer_() + at))->offset;
}

/* The number of the CPU that we run on, or did a moment ago. */
PERCPU_INLINE_ uint32_t percpu_arch_cpu_(void) {
  uint32_t cpu;
  __asm__ __volatile__("ldr %w[cpu],[%[area],#4]" : [cpu] "=r"(cpu) : [area] "r"(percpu_arch_area_()));
  return cpu;
}

#if PERCPU_OPS_UNLOADABLE
#define PERCPU_SEQ_FORGET_ "str xzr,[%[area],#8]\n\t"
#else
#define PERCPU_SEQ_FORGET_ ""
#endif

#define PERCPU_SEQ_ENTER_                            \
  PERCPU_SEQ_DESCRIPTOR_                             \
  "5:\tadrp %[at],3b\n\t"                            \
  "add %[at],%[at],:lo12:3b\n\t"                     \
  "str %[at],[%[area],#8]\n"                         \
  "1:\t" PERCPU_OPS_INJECT(1)                        \
  "ldr %w[at],[%[area],#4]\n\t" PERCPU_OPS_INJECT(2) \
  "ldr %[at],[%[table],%[at],lsl #3]\n\t" PERCPU_OPS_INJECT(3)

#define PERCPU_SEQ_LEAVE_ \
  "\n2:\t" PERCPU_SEQ_FORGET_ PERCPU_SEQ_ABORT_
/* Behind the section's other code, and not in a section of its own: beyond 128 MiB the linker would change x16 on the way back. */
#define PERCPU_SEQ_ABORT_                \
  ".subsection 1\n\t"                    \
  ".inst 0xd428bc00\n" /* brk #0x45e0 */ \
  "4:\t" PERCPU_OPS_INJECT_ABORT         \
  "b 5b\n\t"                             \
  ".previous"

#define PERCPU_SEQ_OUT_ [at] "=&r"(at)
#define PERCPU_SEQ_IN_ [area] "r"(percpu_arch_area_()), [table] "r"(table), [handle] "r"(handle)
#define PERCPU_SEQ_CLOBBER_ "memory", "cc" PERCPU_OPS_INJECT_CLOBBER
#define PERCPU_SEQ_COPY_ "[%[handle],%[at]]"

/* Load, compute, store. */
#define PERCPU_SEQ_RMW_(name, op, n, U, ld, st, m)                                                           \
  PERCPU_INLINE_ void percpu_seq_##name##_##n##_(const uintptr_t *table, const volatile void *handle, U v) { \
    uintptr_t at;                                                                                            \
    U word;                                                                                                  \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         ld " %" m "[word]," PERCPU_SEQ_COPY_ "\n\t" PERCPU_OPS_INJECT(4)                    \
                         op " %" m "[word],%" m "[word],%" m "[v]\n\t" PERCPU_OPS_INJECT(5)                  \
                         st " %" m "[word]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                              \
                         : PERCPU_SEQ_OUT_, [word] "=&r"(word)                                               \
                         : PERCPU_SEQ_IN_, [v] "r"(v)                                                        \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
  }

/* The sequences of one size. n: bytes; U: the unsigned type; ld, st: load and store; m: the modifier of a register;
 * ext: what brings an operand to the width that a load of this size gives. */
#define PERCPU_SEQ_WORD_(n, U, ld, st, m, ext)                                                               \
  PERCPU_SEQ_RMW_(add, "add", n, U, ld, st, m)                                                               \
  PERCPU_SEQ_RMW_(band, "and", n, U, ld, st, m)                                                              \
  PERCPU_SEQ_RMW_(bor, "orr", n, U, ld, st, m)                                                               \
  PERCPU_INLINE_ void percpu_seq_mov_##n##_(const uintptr_t *table, const volatile void *handle, U v) {      \
    uintptr_t at;                                                                                            \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_ st " %" m "[v]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_               \
                         : PERCPU_SEQ_OUT_                                                                   \
                         : PERCPU_SEQ_IN_, [v] "rZ"(v)                                                       \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_read_##n##_(const uintptr_t *table, const volatile void *handle) {      \
    uintptr_t at;                                                                                            \
    U found;                                                                                                 \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_ ld " %" m "[found]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_           \
                         : PERCPU_SEQ_OUT_, [found] "=&r"(found)                                             \
                         : PERCPU_SEQ_IN_                                                                    \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return found;                                                                                            \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_add_return_##n##_(const uintptr_t *table, const volatile void *handle,  \
                                                       U v) {                                                \
    uintptr_t at;                                                                                            \
    U sum;                                                                                                   \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         ld " %" m "[sum]," PERCPU_SEQ_COPY_ "\n\t" PERCPU_OPS_INJECT(4)                     \
                         "add %" m "[sum],%" m "[sum],%" m "[v]\n\t" PERCPU_OPS_INJECT(5)                    \
                         st " %" m "[sum]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                               \
                         : PERCPU_SEQ_OUT_, [sum] "=&r"(sum)                                                 \
                         : PERCPU_SEQ_IN_, [v] "r"(v)                                                        \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return sum;                                                                                              \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_xchg_##n##_(const uintptr_t *table, const volatile void *handle, U v) { \
    uintptr_t at;                                                                                            \
    U found;                                                                                                 \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         ld " %" m "[found]," PERCPU_SEQ_COPY_ "\n\t" PERCPU_OPS_INJECT(4)                   \
                         st " %" m "[v]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                                 \
                         : PERCPU_SEQ_OUT_, [found] "=&r"(found)                                             \
                         : PERCPU_SEQ_IN_, [v] "rZ"(v)                                                       \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return found;                                                                                            \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_cmpxchg_##n##_(const uintptr_t *table, const volatile void *handle,     \
                                                    U was, U v) {                                            \
    uintptr_t at;                                                                                            \
    U found;                                                                                                 \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         ld " %" m "[found]," PERCPU_SEQ_COPY_ "\n\t" PERCPU_OPS_INJECT(4)                   \
                         "cmp %" m "[found],%" m "[was]" ext "\n\t"                                          \
                         "b.ne 2f\n\t" PERCPU_OPS_INJECT(5)                                                  \
                         st " %" m "[v]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                                 \
                         : PERCPU_SEQ_OUT_, [found] "=&r"(found)                                             \
                         : PERCPU_SEQ_IN_, [was] "r"(was), [v] "rZ"(v)                                       \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return found;                                                                                            \
  }

PERCPU_SEQ_WORD_(1, uint8_t, "ldrb", "strb", "w", ",uxtb")
PERCPU_SEQ_WORD_(2, uint16_t, "ldrh", "strh", "w", ",uxth")
PERCPU_SEQ_WORD_(4, uint32_t, "ldr", "str", "w", "")
PERCPU_SEQ_WORD_(8, uint64_t, "ldr", "str", "x", "")

/* Adds to a float or a double; returns the sum. */
#define PERCPU_SEQ_FADD_(n, T, m)                                                                     \
  PERCPU_INLINE_ T percpu_seq_fadd_##n##_(const uintptr_t *table, const volatile void *handle, T v) { \
    uintptr_t at;                                                                                     \
    T sum;                                                                                            \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                            \
                         "ldr %" m "[sum]," PERCPU_SEQ_COPY_ "\n\t" PERCPU_OPS_INJECT(4)              \
                         "fadd %" m "[sum],%" m "[sum],%" m "[v]\n\t" PERCPU_OPS_INJECT(5)            \
                         "str %" m "[sum]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                        \
                         : PERCPU_SEQ_OUT_, [sum] "=&w"(sum)                                          \
                         : PERCPU_SEQ_IN_, [v] "w"(v)                                                 \
                         : PERCPU_SEQ_CLOBBER_);                                                      \
    return sum;                                                                                       \
  }
PERCPU_SEQ_FADD_(4, float, "s")
PERCPU_SEQ_FADD_(8, double, "d")

/*
 * Compare-and-exchange of 16 aligned bytes, returning what was there. The exclusive store is the commit and the end of
 * the sequence. If it stored nothing (another CPU read the copy just then, or an interrupt came), all begins again; a
 * mismatch jumps over that, with the registers as a success leaves them.
 */
PERCPU_INLINE_ struct percpu_pair percpu_seq_cas16_(const uintptr_t *table, const volatile void *handle,
                                                    uint64_t was_low, uint64_t was_high, uint64_t low, uint64_t high) {
  uintptr_t at;
  struct percpu_pair found;
  uint32_t failed;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "add %[at],%[handle],%[at]\n\t"
                       "mov %w[failed],#0\n\t" PERCPU_OPS_INJECT(4)
                       "ldxp %[found_low],%[found_high],[%[at]]\n\t"
                       "cmp %[found_low],%[was_low]\n\t"
                       "ccmp %[found_high],%[was_high],#0,eq\n\t"
                       "b.ne 2f\n\t"
                       "stxp %w[failed],%[low],%[high],[%[at]]\n"
                       "2:\tcbnz %w[failed],5b\n\t" PERCPU_SEQ_FORGET_ PERCPU_SEQ_ABORT_
                       : PERCPU_SEQ_OUT_, [found_low] "=&r"(found.low), [found_high] "=&r"(found.high),
                         [failed] "=&r"(failed)
                       : PERCPU_SEQ_IN_, [was_low] "r"(was_low), [was_high] "r"(was_high), [low] "r"(low),
                         [high] "r"(high)
                       : PERCPU_SEQ_CLOBBER_);
  return found;
}

/* Two loads in one sequence: nothing on this CPU comes between them. */
PERCPU_INLINE_ struct percpu_pair percpu_seq_read16_(const uintptr_t *table, const volatile void *handle) {
  uintptr_t at;
  struct percpu_pair found;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "add %[at],%[handle],%[at]\n\t" PERCPU_OPS_INJECT(4)
                       "ldp %[low],%[high],[%[at]]" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [low] "=&r"(found.low), [high] "=&r"(found.high)
                       : PERCPU_SEQ_IN_
                       : PERCPU_SEQ_CLOBBER_);
  return found;
}

/* The list of percpu/list.h; see x86_64.h. Returns 0 if the node was pushed, else the stop word. */
PERCPU_INLINE_ uint64_t percpu_seq_push_(const uintptr_t *table, const volatile void *handle, void *node) {
  uintptr_t at;
  uint64_t stop;
  void *head;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "add %[at],%[handle],%[at]\n\t"
                       "add %[head],%[at],#8\n\t" PERCPU_OPS_INJECT(4)
                       "ldar %[stop],[%[head]]\n\t" PERCPU_OPS_INJECT(5)
                       "cbnz %[stop],2f\n\t"
                       "ldr %[head],[%[at]]\n\t" PERCPU_OPS_INJECT(6)
                       "str %[head],[%[node]]\n\t" PERCPU_OPS_INJECT(7)
                       "str %[node],[%[at]]" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [stop] "=&r"(stop), [head] "=&r"(head)
                       : PERCPU_SEQ_IN_, [node] "r"(node)
                       : PERCPU_SEQ_CLOBBER_);
  return stop;
}

/* Returns the node, or NULL if the list is empty or the stop word set. */
PERCPU_INLINE_ void *percpu_seq_pop_(const uintptr_t *table, const volatile void *handle) {
  uintptr_t at;
  void *node, *next;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "add %[at],%[handle],%[at]\n\t"
                       "add %[next],%[at],#8\n\t" PERCPU_OPS_INJECT(4)
                       "ldar %[next],[%[next]]\n\t"
                       "mov %[node],#0\n\t" PERCPU_OPS_INJECT(5)
                       "cbnz %[next],2f\n\t"
                       "ldr %[node],[%[at]]\n\t" PERCPU_OPS_INJECT(6)
                       "cbz %[node],2f\n\t"
                       "ldr %[next],[%[node]]\n\t" PERCPU_OPS_INJECT(7)
                       "str %[next],[%[at]]" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [node] "=&r"(node), [next] "=&r"(next)
                       : PERCPU_SEQ_IN_
                       : PERCPU_SEQ_CLOBBER_);
  return node;
}

/* The stack of percpu/stack.h; see x86_64.h. The limit is loaded with acquire, as the list's stop word is. */
PERCPU_INLINE_ int percpu_seq_stack_push_(const uintptr_t *table, const volatile void *handle, uint64_t value) {
  uintptr_t at, slot;
  uint64_t word;
  uint32_t count, limit;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "add %[at],%[handle],%[at]\n\t"
                       "add %[slot],%[at],#8\n\t" PERCPU_OPS_INJECT(4)
                       "ldar %w[limit],[%[slot]]\n\t" PERCPU_OPS_INJECT(5)
                       "ldr %[word],[%[at]]\n\t" PERCPU_OPS_INJECT(6)
                       "and %w[count],%w[word],#0xffff\n\t"
                       "cmp %w[count],%w[limit]\n\t"
                       "b.hs 2f\n\t"
                       "add %[slot],%[at],%w[count],uxtw #3\n\t" PERCPU_OPS_INJECT(7)
                       "str %[value],[%[slot],#16]\n\t"
                       "add %[word],%[word],#1\n\t" PERCPU_OPS_INJECT(8)
                       "str %[word],[%[at]]" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [count] "=&r"(count), [limit] "=&r"(limit), [slot] "=&r"(slot), [word] "=&r"(word)
                       : PERCPU_SEQ_IN_, [value] "r"(value)
                       : PERCPU_SEQ_CLOBBER_);
  return count < limit;
}

PERCPU_INLINE_ int percpu_seq_stack_pop_(const uintptr_t *table, const volatile void *handle, uint64_t *value) {
  uintptr_t at;
  uint64_t top, word;
  uint32_t count, limit;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "add %[at],%[handle],%[at]\n\t"
                       "add %[top],%[at],#8\n\t" PERCPU_OPS_INJECT(4)
                       "ldar %w[limit],[%[top]]\n\t" PERCPU_OPS_INJECT(5)
                       "ldr %[word],[%[at]]\n\t" PERCPU_OPS_INJECT(6)
                       "and %w[count],%w[word],#0xffff\n\t"
                       "sub %w[count],%w[count],#1\n\t"
                       "mov %[top],#0xffff\n\t"
                       "add %[word],%[word],%[top]\n\t"
                       "mov %[top],#0\n\t"
                       "cmp %w[count],%w[limit]\n\t"
                       "b.hs 2f\n\t"
                       "add %[top],%[at],%w[count],uxtw #3\n\t" PERCPU_OPS_INJECT(7)
                       "ldr %[top],[%[top],#16]\n\t" PERCPU_OPS_INJECT(8)
                       "str %[word],[%[at]]" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [count] "=&r"(count), [limit] "=&r"(limit), [top] "=&r"(top), [word] "=&r"(word)
                       : PERCPU_SEQ_IN_
                       : PERCPU_SEQ_CLOBBER_);
  *value = top;
  return count < limit;
}

#endif /* PERCPU_HAVE_SEQUENCES */

#endif /* PERCPU_ARCH_AARCH64_H */
