/* SPDX-License-Identifier: MIT */
/*
 * percpu/arch/select.h - whether code compiled here may use restartable sequences, and whose
 *
 * PERCPU_NO_RSEQ, defined by the user or below, makes every operation of this translation unit an atomic one on a
 * shared copy. That is right beside modules that use sequences, only slower. It is chosen by itself
 *   - under ThreadSanitizer, which sees nothing of what assembly does;
 *   - without glibc 2.35 or later, which registers rseq for every thread;
 *   - on a processor that percpu/arch has no sequences for.
 *
 * PERCPU_OPS_UNLOADABLE is 1 in code that dlclose() may unmap, that is, compiled for a shared object. Such code leaves
 * no descriptor behind in rseq_cs, since the kernel would read it after it is gone. Defining it to 0 saves that store
 * in a library that is never unloaded.
 *
 * PERCPU_OPS_INJECT(point), PERCPU_OPS_INJECT_ABORT: assembly that a test puts at every point inside every sequence and
 * into the abort handler; points are numbered from 1 in each sequence. It may change flags, memory of its own, and the
 * registers that PERCPU_OPS_INJECT_CLOBBER names (`, "x16"`), and makes no system call.
 */
#ifndef PERCPU_ARCH_SELECT_H
#define PERCPU_ARCH_SELECT_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h> /* __GLIBC_PREREQ */

#include <percpu/abi.h>

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define PERCPU_UNDER_TSAN 1
#endif
#if __has_feature(address_sanitizer)
#define PERCPU_UNDER_ASAN 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define PERCPU_UNDER_TSAN 1
#endif
#ifdef __SANITIZE_ADDRESS__
#define PERCPU_UNDER_ASAN 1
#endif

#ifndef PERCPU_NO_RSEQ
#if defined(PERCPU_UNDER_TSAN)
#define PERCPU_NO_RSEQ 1
#elif !defined(__GLIBC__) || !defined(__GLIBC_PREREQ)
#define PERCPU_NO_RSEQ 1
#elif !__GLIBC_PREREQ(2, 35)
#define PERCPU_NO_RSEQ 1
#elif !(defined(__x86_64__) && !defined(__ILP32__) && defined(__SSE2__)) && \
    !(defined(__aarch64__) && !defined(__ILP32__) && defined(__AARCH64EL__))
#define PERCPU_NO_RSEQ 1
#endif
#endif

#ifdef PERCPU_NO_RSEQ
#define PERCPU_HAVE_SEQUENCES 0
#else
#define PERCPU_HAVE_SEQUENCES 1
#endif

#ifndef PERCPU_OPS_UNLOADABLE
#if defined(__PIC__) && !defined(__PIE__)
#define PERCPU_OPS_UNLOADABLE 1
#else
#define PERCPU_OPS_UNLOADABLE 0
#endif
#endif

#ifndef PERCPU_OPS_INJECT
#define PERCPU_OPS_INJECT(point) ""
#endif
#ifndef PERCPU_OPS_INJECT_ABORT
#define PERCPU_OPS_INJECT_ABORT ""
#endif
#ifndef PERCPU_OPS_INJECT_CLOBBER
#define PERCPU_OPS_INJECT_CLOBBER
#endif

/* How the header's functions are defined: those of the fast path vanish into their callers, the slow ones stay out. */
#define PERCPU_INLINE_ static inline __attribute__((__always_inline__, __unused__))
#define PERCPU_COLD_ static __attribute__((__noinline__, __cold__, __unused__))
#define PERCPU_LIKELY_(x) __builtin_expect(!!(x), 1)

/* Integers that may alias whatever the caller keeps in his copies. */
typedef uint8_t percpu_u1_ __attribute__((__may_alias__));
typedef uint16_t percpu_u2_ __attribute__((__may_alias__));
typedef uint32_t percpu_u4_ __attribute__((__may_alias__));
typedef uint64_t percpu_u8_ __attribute__((__may_alias__));

/* What percpu_cmpxchg16() works on. */
struct percpu_pair {
  uint64_t low;
  uint64_t high;
} __attribute__((__aligned__(16)));

#if PERCPU_HAVE_SEQUENCES && !defined(_SYS_RSEQ_H) /* glibc's <sys/rseq.h> */
#ifdef __cplusplus
extern "C" {
#endif
/* glibc: the thread's struct rseq, as an offset from the thread pointer. Constant once the program runs. */
extern const ptrdiff_t __rseq_offset;
#ifdef __cplusplus
}
#endif
#endif

/*
 * The descriptor of a sequence, on all processors, the preload's sequences too: it goes from label 1 to label 2, and is aborted to
 * label 4. Its own address is label 3.
 */
#define PERCPU_SEQ_DESCRIPTOR_                   \
  ".pushsection __rseq_cs,\"aw?\"\n\t"           \
  ".balign 32\n"                                 \
  "3:\t.long 0,0\n\t"                            \
  ".quad 1f,2f-1f,4f\n\t"                        \
  ".popsection\n\t"                              \
  ".pushsection __rseq_cs_ptr_array,\"aw?\"\n\t" \
  ".quad 3b\n\t"                                 \
  ".popsection\n"

#if defined(__x86_64__) && !defined(__ILP32__) && defined(__SSE2__)
#include <percpu/arch/x86_64.h>
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#include <percpu/arch/aarch64.h>
#else
#define PERCPU_ARCH_GENERIC_16_ 1
#endif
#include <percpu/arch/generic.h>

#endif /* PERCPU_ARCH_SELECT_H */
