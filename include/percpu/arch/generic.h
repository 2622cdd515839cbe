/* SPDX-License-Identifier: MIT */
/*
 * percpu/arch/generic.h - the operations as atomic instructions, on a copy that several threads share
 *
 * percpu_atomic_*() are what a thread without rseq does to the copy that percpu_shared_copy_() gives it. No sequence
 * ever touches such a copy, so an atomic instruction is all that is needed.
 *
 * Invariants: all are sequentially consistent. On a CPU's own copy, operations of one thread after those of another are
 * ordered because one CPU executes both; threads that share a copy may be on different CPUs, and a pointer handed over
 * in it must still bring along what it points to. This is the slow path: the difference to weaker orders is lost in it.
 */
#ifndef PERCPU_ARCH_GENERIC_H
#define PERCPU_ARCH_GENERIC_H

#ifdef PERCPU_UNDER_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define PERCPU_ATOMIC_WORD_(n, U)                                                                          \
  PERCPU_INLINE_ uint64_t percpu_atomic_read_##n##_(void *copy) {                                          \
    return __atomic_load_n((percpu_u##n##_ *)copy, __ATOMIC_SEQ_CST);                                      \
  }                                                                                                        \
  PERCPU_INLINE_ void percpu_atomic_mov_##n##_(void *copy, U v) {                                          \
    __atomic_store_n((percpu_u##n##_ *)copy, v, __ATOMIC_SEQ_CST);                                         \
  }                                                                                                        \
  PERCPU_INLINE_ void percpu_atomic_add_##n##_(void *copy, U v) {                                          \
    __atomic_fetch_add((percpu_u##n##_ *)copy, v, __ATOMIC_SEQ_CST);                                       \
  }                                                                                                        \
  PERCPU_INLINE_ void percpu_atomic_band_##n##_(void *copy, U v) {                                         \
    __atomic_fetch_and((percpu_u##n##_ *)copy, v, __ATOMIC_SEQ_CST);                                       \
  }                                                                                                        \
  PERCPU_INLINE_ void percpu_atomic_bor_##n##_(void *copy, U v) {                                          \
    __atomic_fetch_or((percpu_u##n##_ *)copy, v, __ATOMIC_SEQ_CST);                                        \
  }                                                                                                        \
  PERCPU_INLINE_ uint64_t percpu_atomic_add_return_##n##_(void *copy, U v) {                               \
    return __atomic_add_fetch((percpu_u##n##_ *)copy, v, __ATOMIC_SEQ_CST);                                \
  }                                                                                                        \
  PERCPU_INLINE_ uint64_t percpu_atomic_xchg_##n##_(void *copy, U v) {                                     \
    return __atomic_exchange_n((percpu_u##n##_ *)copy, v, __ATOMIC_SEQ_CST);                               \
  }                                                                                                        \
  PERCPU_INLINE_ uint64_t percpu_atomic_cmpxchg_##n##_(void *copy, U was, U v) {                           \
    percpu_u##n##_ found = was;                                                                            \
    __atomic_compare_exchange_n((percpu_u##n##_ *)copy, &found, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    return found;                                                                                          \
  }

PERCPU_ATOMIC_WORD_(1, uint8_t)
PERCPU_ATOMIC_WORD_(2, uint16_t)
PERCPU_ATOMIC_WORD_(4, uint32_t)
PERCPU_ATOMIC_WORD_(8, uint64_t)

/* Adds to a float or a double; returns the sum. */
#define PERCPU_ATOMIC_FADD_(n, T)                                                                  \
  PERCPU_INLINE_ T percpu_atomic_fadd_##n##_(void *copy, T v) {                                    \
    percpu_u##n##_ was = __atomic_load_n((percpu_u##n##_ *)copy, __ATOMIC_RELAXED), want;          \
    T sum;                                                                                         \
    do {                                                                                           \
      __builtin_memcpy(&sum, &was, sizeof sum);                                                    \
      sum += v;                                                                                    \
      __builtin_memcpy(&want, &sum, sizeof want);                                                  \
    } while (!__atomic_compare_exchange_n((percpu_u##n##_ *)copy, &was, want, 1, __ATOMIC_SEQ_CST, \
                                          __ATOMIC_RELAXED));                                      \
    return sum;                                                                                    \
  }
PERCPU_ATOMIC_FADD_(4, float)
PERCPU_ATOMIC_FADD_(8, double)

#ifdef PERCPU_ARCH_GENERIC_16_
/* A processor unknown to percpu/arch: what the compiler has for 16 bytes, which may be a lock in libatomic. */
__extension__ typedef unsigned __int128 percpu_u16_ __attribute__((__may_alias__));
PERCPU_INLINE_ struct percpu_pair percpu_arch_cas16_(void *at, uint64_t was_low, uint64_t was_high, uint64_t low,
                                                     uint64_t high) {
  struct percpu_pair was, want;
  was.low = was_low;
  was.high = was_high;
  want.low = low;
  want.high = high;
  __atomic_compare_exchange((percpu_u16_ *)at, (percpu_u16_ *)&was, (percpu_u16_ *)&want, 0, __ATOMIC_SEQ_CST,
                            __ATOMIC_SEQ_CST);
  return was;
}
PERCPU_INLINE_ struct percpu_pair percpu_arch_load16_(const volatile void *at) {
  struct percpu_pair found;
  __atomic_load((const volatile percpu_u16_ *)at, (percpu_u16_ *)&found, __ATOMIC_SEQ_CST);
  return found;
}
#endif

/* As percpu_arch_cas16_(), and told to ThreadSanitizer, which does not see the instruction. */
PERCPU_INLINE_ struct percpu_pair percpu_atomic_cas16_(void *copy, uint64_t was_low, uint64_t was_high, uint64_t low,
                                                       uint64_t high) {
  struct percpu_pair found;
#ifdef PERCPU_UNDER_TSAN
  __tsan_release(copy);
#endif
  found = percpu_arch_cas16_(copy, was_low, was_high, low, high);
#ifdef PERCPU_UNDER_TSAN
  __tsan_acquire(copy);
#endif
  return found;
}

PERCPU_INLINE_ struct percpu_pair percpu_atomic_read16_(void *copy) {
  return percpu_atomic_cas16_(copy, 0, 0, 0, 0);
}

#endif /* PERCPU_ARCH_GENERIC_H */
