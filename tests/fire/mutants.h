/* SPDX-License-Identifier: MIT */
/*
 * Sequences with one fault each, made of the parts that the right ones are made of. All but the last add and return the
 * sum; the last pushes a node and returns the stop word.
 */
#ifndef PERCPU_TESTS_FIRE_MUTANTS_H
#define PERCPU_TESTS_FIRE_MUTANTS_H

#include <percpu.h>

#if PERCPU_HAVE_SEQUENCES

#if defined(__x86_64__)
#define MUTANT_LOAD "movq " PERCPU_SEQ_COPY_ ",%[sum]\n\t"
#define MUTANT_ADD_UP "addq %[v],%[sum]\n\t"
#define MUTANT_STORE "movq %[sum]," PERCPU_SEQ_COPY_ "\n\t"
#define MUTANT_PUSH "movq (%[handle],%[at]),%[sum]\n\tmovq %[sum],(%[v])\n\tmovq %[v],(%[handle],%[at])"
#define MUTANT_ARM "leaq 3b(%%rip),%[at]\n\tmovq %[at],%%fs:8(%[area])\n\t"
#define MUTANT_FIND "movl %%fs:4(%[area]),%k[at]\n\tmovq (%[table],%[at],8),%[at]\n\t"
#define MUTANT_SIGNATURE ".byte 0x0f,0xb9,0x3d\n\t.long 0x53053053\n"
#define MUTANT_JUMP "jmp "
#elif defined(__aarch64__)
#define MUTANT_LOAD "ldr %[sum]," PERCPU_SEQ_COPY_ "\n\t"
#define MUTANT_ADD_UP "add %[sum],%[sum],%[v]\n\t"
#define MUTANT_STORE "str %[sum]," PERCPU_SEQ_COPY_ "\n\t"
#define MUTANT_PUSH "add %[at],%[handle],%[at]\n\tldr %[sum],[%[at]]\n\tstr %[sum],[%[v]]\n\tstr %[v],[%[at]]"
#define MUTANT_ARM "adrp %[at],3b\n\tadd %[at],%[at],:lo12:3b\n\tstr %[at],[%[area],#8]\n\t"
#define MUTANT_FIND "ldr %w[at],[%[area],#4]\n\tldr %[at],[%[table],%[at],lsl #3]\n\t"
#define MUTANT_SIGNATURE ".inst 0xd428bc00\n"
#define MUTANT_JUMP "b "
#endif

#define MUTANT(name, body)                                                                    \
  static inline __attribute__((noinline, unused)) uint64_t name(const uintptr_t *table, void *handle, uint64_t v) { \
    uintptr_t at;                                                                             \
    uint64_t sum;                                                                             \
    __asm__ __volatile__(body                                                                 \
                         : PERCPU_SEQ_OUT_, [sum] "=&r"(sum)                                  \
                         : PERCPU_SEQ_IN_, [v] "r"(v)                                         \
                         : PERCPU_SEQ_CLOBBER_);                                              \
    return sum;                                                                               \
  }

/* A sequence with an end, a beginning and a place to begin again of its own. */
#define MUTANT_DESCRIPTOR(begin, end)                                                            \
  ".pushsection __rseq_cs,\"aw?\"\n\t.balign 32\n3:\t.long 0,0\n\t.quad " begin "," end "-" begin ",4f\n\t.popsection\n\t"
#define MUTANT_ABORT(again) \
  ".pushsection __rseq_failure,\"ax?\"\n\t" MUTANT_SIGNATURE "4:\t" MUTANT_JUMP again "\n\t.popsection"

/* The store is followed by one more instruction: stopped there, it adds twice. */
MUTANT(commit_not_last, PERCPU_SEQ_ENTER_ MUTANT_LOAD MUTANT_ADD_UP MUTANT_STORE "nop" PERCPU_SEQ_LEAVE_)

/* The store lies behind the end: stopped there, it overwrites what happened meanwhile. */
MUTANT(end_before_commit, MUTANT_DESCRIPTOR("1f", "2f") "5:\t" MUTANT_ARM "1:\t" MUTANT_FIND MUTANT_LOAD MUTANT_ADD_UP
       "2:\t" MUTANT_STORE MUTANT_ABORT("5b"))

/* What is added to was loaded before: beginning again adds to an old value. */
MUTANT(begin_after_load, MUTANT_DESCRIPTOR("1f", "2f") MUTANT_FIND MUTANT_LOAD "5:\t" MUTANT_ARM "1:\t" MUTANT_FIND MUTANT_ADD_UP
       MUTANT_STORE "2:\t" MUTANT_ABORT("5b"))

/* It begins again behind the load of the CPU's number: on another CPU it works on the copy of the first. */
MUTANT(restart_in_the_middle, MUTANT_DESCRIPTOR("1f", "2f") MUTANT_ARM "1:\t" MUTANT_FIND "5:\t" MUTANT_LOAD MUTANT_ADD_UP
       MUTANT_STORE "2:\t" MUTANT_ABORT("5b"))

static inline __attribute__((noinline, unused)) uint64_t no_look_at_stop(const uintptr_t *table, void *handle, void *v) {
  uintptr_t at;
  uint64_t sum;
  __asm__ __volatile__(PERCPU_SEQ_ENTER_ MUTANT_PUSH PERCPU_SEQ_LEAVE_
                       : PERCPU_SEQ_OUT_, [sum] "=&r"(sum)
                       : PERCPU_SEQ_IN_, [v] "r"(v)
                       : PERCPU_SEQ_CLOBBER_);
  return 0;
}

#endif
#endif
