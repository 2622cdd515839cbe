/* SPDX-License-Identifier: MIT */
/*
 * percpu/arch/x86_64.h - the restartable sequences, for x86-64
 *
 * Each percpu_seq_*() is one restartable sequence: the kernel moves a thread that is preempted, migrated or signalled
 * between the labels 1 and 2 to the label 4, from where it begins again. All registers but the program counter keep
 * what they had, so a sequence changes none that its restart needs.
 *
 *   3:  descriptor (section __rseq_cs): from 1, for 2-1 bytes, abort at 4
 *   5:  rseq_cs = 3               one store; it is the last instruction before 1
 *   1:  cpu   = cpu_id            the number of the CPU that executes this, as long as we are not moved to 4
 *       at    = table[cpu]
 *       ...                       reads, computes; may leave by a jump to 2
 *       commit                    one instruction that changes the copy; the last before 2
 *   2:  [rseq_cs = 0]             only in code that can be unloaded
 *   4:  goto 5                    (section __rseq_failure, behind the signature)
 *
 * Invariants: nothing is compared with the CPU number afterwards, since a thread that lost its CPU never gets to the
 * commit. The label numbers 1 to 5 belong to this file; PERCPU_OPS_INJECT may use 6 to 9. Flags are dead at each
 * injection point. Of the rseq area only rseq_cs is written.
 *
 * The syntax is that of AT&T: with -masm=intel it does not assemble.
 *
 * The `?` in the section flags puts descriptor and abort handler into the group (COMDAT) of the function that they
 * belong to, so that they are kept and thrown away together with it.
 */
#ifndef PERCPU_ARCH_X86_64_H
#define PERCPU_ARCH_X86_64_H

typedef long long percpu_vec16_ __attribute__((__vector_size__(16), __may_alias__));

/*
 * Compare-and-exchange of 16 aligned bytes that any thread may race with. Returns what was there. Needs cmpxchg16b,
 * that is, every x86-64 but the very first, and no compiler flag.
 */
PERCPU_INLINE_ struct percpu_pair percpu_arch_cas16_(void *at, uint64_t was_low, uint64_t was_high, uint64_t low,
                                                     uint64_t high) {
  struct percpu_pair found;
  __asm__ __volatile__("lock cmpxchg16b %[at]"
                       : [at] "+m"(*(percpu_vec16_ *)at), "=a"(found.low), "=d"(found.high)
                       : "1"(was_low), "2"(was_high), "b"(low), "c"(high)
                       : "memory", "cc");
  return found;
}

/* Reads 16 aligned bytes with one instruction: whole on every CPU that has AVX, whatever the encoding. */
PERCPU_INLINE_ struct percpu_pair percpu_arch_load16_(const volatile void *at) {
  percpu_vec16_ value;
  struct percpu_pair found;
  __asm__ __volatile__("movaps %[at],%[value]"
                       : [value] "=x"(value)
                       : [at] "m"(*(const volatile percpu_vec16_ *)at)
                       : "memory");
  __builtin_memcpy(&found, &value, sizeof found);
  return found;
}

#if PERCPU_HAVE_SEQUENCES

/*
 * Where the thread's struct rseq is, from the thread pointer. A constant, but compilers that reach it through a shared
 * object's offset table load it anew after each sequence; not so the result of an assembly that reads nothing.
 */
PERCPU_INLINE_ ptrdiff_t percpu_arch_area_(void) {
#if defined(__PIC__) && !defined(__PIE__)
  ptrdiff_t area;
  __asm__("movq __rseq_offset@GOTPCREL(%%rip),%[area]\n\t"
          "movq (%[area]),%[area]"
          : [area] "=r"(area));
  return area;
#else
  return __rseq_offset;
#endif
}

/* What the thread has in percpu_thread_: found anew by each operation, since the thread pointer is part of the address. */
PERCPU_INLINE_ const uintptr_t *percpu_arch_offset_(void) {
  return percpu_thread_.offset;
}

/* The number of the CPU that we run on, or did a moment ago. */
PERCPU_INLINE_ uint32_t percpu_arch_cpu_(void) {
  uint32_t cpu;
  __asm__ __volatile__("movl %%fs:4(%[area]),%[cpu]" : [cpu] "=r"(cpu) : [area] "r"(percpu_arch_area_()));
  return cpu;
}

#if PERCPU_OPS_UNLOADABLE
#define PERCPU_SEQ_FORGET_ "movq $0,%%fs:8(%[area])\n\t"
#else
#define PERCPU_SEQ_FORGET_ ""
#endif

/* The descriptor's address is stored at once in code that lies at a fixed place below 2 GiB, else by way of a register. */
#if !defined(__PIC__) && !defined(__PIE__) && defined(__code_model_small__)
#define PERCPU_SEQ_ARM_ "5:\tmovq $3b,%%fs:8(%[area])\n"
#else
#define PERCPU_SEQ_ARM_          \
  "5:\tleaq 3b(%%rip),%[at]\n\t" \
  "movq %[at],%%fs:8(%[area])\n"
#endif

#define PERCPU_SEQ_ENTER_                                \
  PERCPU_SEQ_DESCRIPTOR_                                 \
  PERCPU_SEQ_ARM_                                        \
  "1:\t" PERCPU_OPS_INJECT(1)                            \
  "movl %%fs:4(%[area]),%k[at]\n\t" PERCPU_OPS_INJECT(2) \
  "movq (%[table],%[at],8),%[at]\n\t" PERCPU_OPS_INJECT(3)

#define PERCPU_SEQ_LEAVE_ \
  "\n2:\t" PERCPU_SEQ_FORGET_ PERCPU_SEQ_ABORT_
#define PERCPU_SEQ_ABORT_                             \
  ".pushsection __rseq_failure,\"ax?\"\n\t"           \
  ".byte 0x0f,0xb9,0x3d\n\t" /* ud1 sig(%rip),%edi */ \
  ".long 0x53053053\n"                                \
  "4:\t" PERCPU_OPS_INJECT_ABORT                      \
  "jmp 5b\n\t"                                        \
  ".popsection"

/* Operands of every sequence. `at` is first the descriptor's address, where that needs a register, then the CPU number,
 * then the copy's offset. */
#define PERCPU_SEQ_OUT_ [at] "=&r"(at)
#define PERCPU_SEQ_IN_ [area] "r"(percpu_arch_area_()), [table] "r"(table), [handle] "r"(handle)
#define PERCPU_SEQ_CLOBBER_ "memory", "cc" PERCPU_OPS_INJECT_CLOBBER
#define PERCPU_SEQ_COPY_ "(%[handle],%[at])"

/* One instruction that reads, changes and writes the copy. */
#define PERCPU_SEQ_RMW_(name, op, n, U, s, m, imm)                                                           \
  PERCPU_INLINE_ void percpu_seq_##name##_##n##_(const uintptr_t *table, const volatile void *handle, U v) { \
    uintptr_t at;                                                                                            \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_ op s " %" m "[v]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_             \
                         : PERCPU_SEQ_OUT_                                                                   \
                         : PERCPU_SEQ_IN_, [v] imm(v)                                                        \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
  }

/*
 * The sequences of one size. n: bytes; U: the unsigned type; R: what it is loaded into; s, m: the suffix of an
 * instruction, the modifier of a register operand; load: a load that fills R; rs, rm: suffix and modifier of R; imm:
 * register or constant.
 */
#define PERCPU_SEQ_WORD_(n, U, R, s, m, load, rs, rm, imm)                                                   \
  PERCPU_SEQ_RMW_(add, "add", n, U, s, m, imm)                                                               \
  PERCPU_SEQ_RMW_(band, "and", n, U, s, m, imm)                                                              \
  PERCPU_SEQ_RMW_(bor, "or", n, U, s, m, imm)                                                                \
  PERCPU_SEQ_RMW_(mov, "mov", n, U, s, m, imm)                                                               \
  PERCPU_INLINE_ uint64_t percpu_seq_read_##n##_(const uintptr_t *table, const volatile void *handle) {      \
    uintptr_t at;                                                                                            \
    R found;                                                                                                 \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_ load " " PERCPU_SEQ_COPY_ ",%" rm "[found]" PERCPU_SEQ_LEAVE_     \
                         : PERCPU_SEQ_OUT_, [found] "=&r"(found)                                             \
                         : PERCPU_SEQ_IN_                                                                    \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return found;                                                                                            \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_add_return_##n##_(const uintptr_t *table, const volatile void *handle,  \
                                                       U v) {                                                \
    uintptr_t at;                                                                                            \
    R sum;                                                                                                   \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         "mov" rs " %" rm "[v],%" rm "[sum]\n\t" PERCPU_OPS_INJECT(4)                        \
                         "add" s " " PERCPU_SEQ_COPY_ ",%" m "[sum]\n\t" PERCPU_OPS_INJECT(5)                \
                         "mov" s " %" m "[sum]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                          \
                         : PERCPU_SEQ_OUT_, [sum] "=&r"(sum)                                                 \
                         : PERCPU_SEQ_IN_, [v] imm(v)                                                        \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return sum;                                                                                              \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_xchg_##n##_(const uintptr_t *table, const volatile void *handle, U v) { \
    uintptr_t at;                                                                                            \
    R found;                                                                                                 \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         load " " PERCPU_SEQ_COPY_ ",%" rm "[found]\n\t" PERCPU_OPS_INJECT(4)                \
                         "mov" s " %" m "[v]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                            \
                         : PERCPU_SEQ_OUT_, [found] "=&r"(found)                                             \
                         : PERCPU_SEQ_IN_, [v] imm(v)                                                        \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return found;                                                                                            \
  }                                                                                                          \
  PERCPU_INLINE_ uint64_t percpu_seq_cmpxchg_##n##_(const uintptr_t *table, const volatile void *handle,     \
                                                    U was, U v) {                                            \
    uintptr_t at;                                                                                            \
    R found;                                                                                                 \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_                                                                   \
                         load " " PERCPU_SEQ_COPY_ ",%" rm "[found]\n\t" PERCPU_OPS_INJECT(4)                \
                         "cmp" s " %" m "[was],%" m "[found]\n\t"                                            \
                         "jne 2f\n\t" PERCPU_OPS_INJECT(5)                                                   \
                         "mov" s " %" m "[v]," PERCPU_SEQ_COPY_ PERCPU_SEQ_LEAVE_                            \
                         : PERCPU_SEQ_OUT_, [found] "=&r"(found)                                             \
                         : PERCPU_SEQ_IN_, [was] imm(was), [v] imm(v)                                        \
                         : PERCPU_SEQ_CLOBBER_);                                                             \
    return found;                                                                                            \
  }

PERCPU_SEQ_WORD_(1, uint8_t, uint32_t, "b", "b", "movzbl", "l", "k", "ri")
PERCPU_SEQ_WORD_(2, uint16_t, uint32_t, "w", "w", "movzwl", "l", "k", "ri")
PERCPU_SEQ_WORD_(4, uint32_t, uint32_t, "l", "k", "movl", "l", "k", "ri")
PERCPU_SEQ_WORD_(8, uint64_t, uint64_t, "q", "q", "movq", "q", "q", "re")

/* Adds to a float or a double; returns the sum. */
#ifdef __AVX__
#define PERCPU_SEQ_FADD_ASM_(s) \
  "vadd" s " " PERCPU_SEQ_COPY_ ",%[v],%[sum]\n\t" PERCPU_OPS_INJECT(4) "vmov" s " %[sum]," PERCPU_SEQ_COPY_
#else
#define PERCPU_SEQ_FADD_ASM_(s)                                   \
  "movaps %[v],%[sum]\n\t" PERCPU_OPS_INJECT(4)                   \
  "add" s " " PERCPU_SEQ_COPY_ ",%[sum]\n\t" PERCPU_OPS_INJECT(5) \
  "mov" s " %[sum]," PERCPU_SEQ_COPY_
#endif
#define PERCPU_SEQ_FADD_(n, T, s)                                                                     \
  PERCPU_INLINE_ T percpu_seq_fadd_##n##_(const uintptr_t *table, const volatile void *handle, T v) { \
    uintptr_t at;                                                                                     \
    T sum;                                                                                            \
    __asm__ __volatile__(PERCPU_SEQ_ENTER_ PERCPU_SEQ_FADD_ASM_(s) PERCPU_SEQ_LEAVE_                  \
                         : PERCPU_SEQ_OUT_, [sum] "=&x"(sum)                                          \
                         : PERCPU_SEQ_IN_, [v] "x"(v)                                                 \
                         : PERCPU_SEQ_CLOBBER_);                                                      \
    return sum;                                                                                       \
  }
PERCPU_SEQ_FADD_(4, float, "ss")
PERCPU_SEQ_FADD_(8, double, "sd")

/*
 * Compare-and-exchange of 16 aligned bytes, returning what was there. It is committed by one aligned vector store: no
 * signal and no migration comes between the halves, and a reader on another CPU sees it whole where the processor has
 * AVX. (cmpxchg16b without lock would not promise that, and takes longer.)
 */
PERCPU_INLINE_ struct percpu_pair percpu_seq_cas16_(const uintptr_t *table, const volatile void *handle,
                                                    uint64_t was_low, uint64_t was_high, uint64_t low, uint64_t high) {
  uintptr_t at;
  struct percpu_pair found;
  percpu_vec16_ want, half;
  __asm__ __volatile__("movq %[low],%[want]\n\t"
                       "movq %[high],%[half]\n\t"
                       "punpcklqdq %[half],%[want]\n\t" PERCPU_SEQ_ENTER_
                       "movq (%[handle],%[at]),%[found_low]\n\t" PERCPU_OPS_INJECT(4)
                       "movq 8(%[handle],%[at]),%[found_high]\n\t" PERCPU_OPS_INJECT(5)
                       "cmpq %[was_low],%[found_low]\n\t"
                       "jne 2f\n\t" PERCPU_OPS_INJECT(6)
                       "cmpq %[was_high],%[found_high]\n\t"
                       "jne 2f\n\t" PERCPU_OPS_INJECT(7)
                       "movaps %[want],(%[handle],%[at])" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [found_low] "=&r"(found.low), [found_high] "=&r"(found.high),
                         [want] "=&x"(want), [half] "=&x"(half)
                       : PERCPU_SEQ_IN_, [was_low] "r"(was_low), [was_high] "r"(was_high), [low] "r"(low),
                         [high] "r"(high)
                       : PERCPU_SEQ_CLOBBER_);
  return found;
}

/* One instruction; what this CPU wrote is whole for it. */
PERCPU_INLINE_ struct percpu_pair percpu_seq_read16_(const uintptr_t *table, const volatile void *handle) {
  uintptr_t at;
  percpu_vec16_ value;
  struct percpu_pair found;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_ "movaps " PERCPU_SEQ_COPY_ ",%[value]" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [value] "=&x"(value)
                       : PERCPU_SEQ_IN_
                       : PERCPU_SEQ_CLOBBER_);
  __builtin_memcpy(&found, &value, sizeof found);
  return found;
}

/*
 * The list of percpu/list.h: the head at offset 0, the stop word at offset 8 of the copy; a node's next at its offset
 * 0. A node that is on the list of this CPU stays valid while the sequence runs: who takes it away from another CPU
 * sets the stop word and has every running sequence aborted first.
 */

/* Returns 0 if the node was pushed, else the stop word. */
PERCPU_INLINE_ uint64_t percpu_seq_push_(const uintptr_t *table, const volatile void *handle, void *node) {
  uintptr_t at;
  uint64_t stop;
  void *head;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "movq 8(%[handle],%[at]),%[stop]\n\t" PERCPU_OPS_INJECT(4)
                       "testq %[stop],%[stop]\n\t"
                       "jnz 2f\n\t" PERCPU_OPS_INJECT(5)
                       "movq (%[handle],%[at]),%[head]\n\t" PERCPU_OPS_INJECT(6)
                       "movq %[head],(%[node])\n\t" PERCPU_OPS_INJECT(7)
                       "movq %[node],(%[handle],%[at])" PERCPU_SEQ_LEAVE_
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
                       "xorl %k[node],%k[node]\n\t" PERCPU_OPS_INJECT(4)
                       "cmpq %[node],8(%[handle],%[at])\n\t"
                       "jne 2f\n\t" PERCPU_OPS_INJECT(5)
                       "movq (%[handle],%[at]),%[node]\n\t" PERCPU_OPS_INJECT(6)
                       "testq %[node],%[node]\n\t"
                       "jz 2f\n\t" PERCPU_OPS_INJECT(7)
                       "movq (%[node]),%[next]\n\t" PERCPU_OPS_INJECT(8)
                       "movq %[next],(%[handle],%[at])" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [node] "=&r"(node), [next] "=&r"(next)
                       : PERCPU_SEQ_IN_
                       : PERCPU_SEQ_CLOBBER_);
  return node;
}

/*
 * The stack of percpu/stack.h: 16-bit count at offset 0, 48-bit number of pops above it, 32-bit limit at offset 8, 8-byte
 * slots from offset 16. One comparison says "full" and "stopped" to a push, "empty" and "stopped" to a pop, since the
 * count that a pop would leave wraps around. Returns whether it was done.
 */
PERCPU_INLINE_ int percpu_seq_stack_push_(const uintptr_t *table, const volatile void *handle, uint64_t value) {
  uintptr_t at;
  uint64_t count;
  uint32_t limit;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "addq %[handle],%[at]\n\t" PERCPU_OPS_INJECT(4)
                       "movl 8(%[at]),%k[limit]\n\t" PERCPU_OPS_INJECT(5)
                       "movzwl (%[at]),%k[count]\n\t" PERCPU_OPS_INJECT(6)
                       "cmpl %k[limit],%k[count]\n\t"
                       "jae 2f\n\t" PERCPU_OPS_INJECT(7)
                       "movq %[value],16(%[at],%[count],8)\n\t" PERCPU_OPS_INJECT(8)
                       "incq (%[at])" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [count] "=&r"(count), [limit] "=&r"(limit)
                       : PERCPU_SEQ_IN_, [value] "r"(value)
                       : PERCPU_SEQ_CLOBBER_);
  return (uint32_t)count < limit;
}

PERCPU_INLINE_ int percpu_seq_stack_pop_(const uintptr_t *table, const volatile void *handle, uint64_t *value) {
  uintptr_t at;
  uint64_t count, top;
  uint32_t limit;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_
                       "addq %[handle],%[at]\n\t"
                       "xorl %k[top],%k[top]\n\t" PERCPU_OPS_INJECT(4)
                       "movl 8(%[at]),%k[limit]\n\t" PERCPU_OPS_INJECT(5)
                       "movzwl (%[at]),%k[count]\n\t" PERCPU_OPS_INJECT(6)
                       "decl %k[count]\n\t"
                       "cmpl %k[limit],%k[count]\n\t"
                       "jae 2f\n\t" PERCPU_OPS_INJECT(7)
                       "movq 16(%[at],%[count],8),%[top]\n\t" PERCPU_OPS_INJECT(8)
                       "addq $0xffff,(%[at])" PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [count] "=&r"(count), [limit] "=&r"(limit), [top] "=&r"(top)
                       : PERCPU_SEQ_IN_
                       : PERCPU_SEQ_CLOBBER_);
  *value = top;
  return (uint32_t)count < limit;
}

#endif /* PERCPU_HAVE_SEQUENCES */

#endif /* PERCPU_ARCH_X86_64_H */
