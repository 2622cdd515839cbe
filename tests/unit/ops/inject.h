/* SPDX-License-Identifier: MIT */
/*
 * Fills the hooks of percpu/arch for a test: a thread that arms a point stops there, inside the sequence, and spins
 * until the kernel takes it away, so many times as it has armed; if nobody takes it away it gives up after some
 * seconds. The abort handler counts. To be included before anything of percpu/.
 *
 * Locking: all but inject_reached belong to their thread; that goes from it to the one that disturbs.
 */
#ifndef PERCPU_TESTS_OPS_INJECT_H
#define PERCPU_TESTS_OPS_INJECT_H

#include <stdint.h>

/* Spins of one stop. On arm64 what one mov can load: 16 bits, shifted by 0 or 16. */
#ifndef INJECT_SPINS
#if defined(__x86_64__)
#define INJECT_SPINS 100000000
#else
#define INJECT_SPINS 0x6000000
#endif
#endif
#define INJECT_STRING_(x) #x
#define INJECT_STRING(x) INJECT_STRING_(x)

#ifdef __cplusplus
extern "C" {
#endif
/* The point to stop at, and how many times more; the spins that a stop has left. */
extern __thread struct inject_state {
  uint32_t point, times, spins;
} inject __attribute__((tls_model("local-exec")));
/* How often this thread's sequences were aborted. */
extern __thread uint64_t inject_aborts __attribute__((tls_model("local-exec")));
/* How often the thread under test has stopped. */
extern uint32_t inject_reached __attribute__((visibility("hidden")));
#ifdef __cplusplus
}
#endif

/* Defines these, in one file of a C++ program. */
#define INJECT_DEFINE                                                       \
  extern "C" {                                                              \
  __thread inject_state inject __attribute__((tls_model("local-exec")));    \
  __thread uint64_t inject_aborts __attribute__((tls_model("local-exec"))); \
  uint32_t inject_reached;                                                  \
  }

#if defined(__x86_64__)
#define PERCPU_OPS_INJECT(point)                                  \
  "cmpl $" #point ",%%fs:inject@tpoff\n\t"                        \
  "jne 9f\n\t"                                                    \
  "cmpl $0,%%fs:inject@tpoff+4\n\t"                               \
  "je 9f\n\t"                                                     \
  "decl %%fs:inject@tpoff+4\n\t"                                  \
  "movl $" INJECT_STRING(INJECT_SPINS) ",%%fs:inject@tpoff+8\n\t" \
  "incl inject_reached(%%rip)\n"                                  \
  "8:\tpause\n\t"                                                 \
  "decl %%fs:inject@tpoff+8\n\t"                                  \
  "jnz 8b\n"                                                      \
  "9:\t"
#define PERCPU_OPS_INJECT_ABORT "incq %%fs:inject_aborts@tpoff\n\t"
#elif defined(__aarch64__)
#define PERCPU_OPS_INJECT_CLOBBER , "x16", "x17"
#define PERCPU_OPS_INJECT(point)                \
  "mrs x16,tpidr_el0\n\t"                       \
  "add x16,x16,#:tprel_hi12:inject,lsl #12\n\t" \
  "add x16,x16,#:tprel_lo12_nc:inject\n\t"      \
  "ldr w17,[x16]\n\t"                           \
  "sub w17,w17,#" #point "\n\t"                 \
  "cbnz w17,9f\n\t"                             \
  "ldr w17,[x16,#4]\n\t"                        \
  "cbz w17,9f\n\t"                              \
  "sub w17,w17,#1\n\t"                          \
  "str w17,[x16,#4]\n\t"                        \
  "adrp x16,inject_reached\n\t"                 \
  "ldr w17,[x16,:lo12:inject_reached]\n\t"      \
  "add w17,w17,#1\n\t"                          \
  "str w17,[x16,:lo12:inject_reached]\n\t"      \
  "mov w16,#" INJECT_STRING(INJECT_SPINS) "\n"  \
  "8:\tyield\n\t"                               \
  "sub w16,w16,#1\n\t"                          \
  "cbnz w16,8b\n"                               \
  "9:\t"
#define PERCPU_OPS_INJECT_ABORT                        \
  "mrs x16,tpidr_el0\n\t"                              \
  "add x16,x16,#:tprel_hi12:inject_aborts,lsl #12\n\t" \
  "add x16,x16,#:tprel_lo12_nc:inject_aborts\n\t"      \
  "ldr x17,[x16]\n\t"                                  \
  "add x17,x17,#1\n\t"                                 \
  "str x17,[x16]\n\t"
#endif

#endif
