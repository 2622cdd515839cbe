/* SPDX-License-Identifier: MIT */
/*
 * percpu/ops.h - operations on this CPU's copy
 *
 * A handle p of type T * (from percpu_alloc(), percpu_static(), ...) stands for one T on each CPU. An operation works
 * on the copy of the CPU that executes it, and is indivisible towards everything else that this CPU runs: other
 * threads, signal handlers, a migration in the middle. What each of them does, with c for this CPU's copy:
 *
 *   T    percpu_read(p)              { return *c; }
 *   void percpu_write(p, v)          { *c = v; }
 *   void percpu_add(p, v)            { *c += v; }
 *   void percpu_sub(p, v)            { *c -= v; }
 *   void percpu_inc(p)               { *c += 1; }
 *   void percpu_dec(p)               { *c -= 1; }
 *   void percpu_and(p, v)            { *c &= v; }
 *   void percpu_or(p, v)             { *c |= v; }
 *   T    percpu_add_return(p, v)     { return *c += v; }
 *   T    percpu_xchg(p, v)           { T was = *c; *c = v; return was; }
 *   T    percpu_cmpxchg(p, old, v)   { T was = *c; if (was == old) *c = v; return was; }
 *   bool percpu_try_cmpxchg(p, e, v) { T was = *c; if (was == *e) { *c = v; return true; } *e = was; return false; }
 *   bool percpu_cmpxchg16(p, e, v)   the same for T = struct percpu_pair, 16 bytes aligned to 16; v is a struct
 *   struct percpu_pair percpu_read16(p)
 *
 * p is the handle of a live area of that pool, or points into one (&stats->bytes, table + 3), at an element of type T that
 * lies in it whole and is aligned to its size. What happens with anything else is undefined: with a handle that was freed, one
 * of another pool, NULL. Mostly it is a fault at once, but not always: a freed area's memory may still be there, or be
 * another's by now. (percpu_ptr(NULL, cpu) is not NULL either: a handle is moved by the distance to the copy, whatever it is.)
 *
 * The same with a pool first, percpu_pool_add(pool, p, v) and so on, for a handle of that pool; the plain ones are for
 * handles of the default pool. Lists: percpu/list.h. Addresses, sums and iteration: percpu/copies.h.
 *
 * Types: T has 1, 2, 4 or 8 bytes. read, write, xchg and the compare-and-exchanges take integers, bool, enumerations,
 * pointers, float and double (comparing bytes, so that -0.0 is not 0.0); add, sub, inc, dec and add_return take
 * integers (wrapping around, signed ones too), float and double; and, or take integers and bool. T may be volatile, and
 * const for read. Anything else is refused when compiling.
 *
 * Values are converted to T before anything else, as by assignment: percpu_add(p, -1) on a uint64_t subtracts one.
 * Arguments are evaluated once; a handle of a variably modified type (int (*)[n], in C) by percpu_ptr(), percpu_this_ptr() and
 * percpu_for_each_copy() more often, for its type.
 *
 * Order: an operation does not order the caller's other memory accesses as other CPUs see them; the compiler moves none
 * across it. Threads that find each other's data by way of one copy see it complete, as they would on one CPU.
 *
 * Other CPUs: a copy may be read from anywhere (percpu_ptr(), percpu_sum()), each element of up to 8 bytes being whole.
 * It may be changed from elsewhere only as docs/ops.md tells (percpu_fence(), percpu_list_drain()).
 *
 * Context: any thread, any signal handler (once the handle exists), the child of a fork(), before main() and after exit()
 * began. No operation fails, allocates, locks, or makes a system call in a thread that has rseq, but for the thread's
 * first one, which asks the kernel whether it has. errno is left alone. A thread without rseq uses a copy that it shares
 * with others of its kind (docs/ops.md): all sums are right, only the speed differs. A child made by vfork() must not use
 * operations.
 */
#ifndef PERCPU_OPS_H
#define PERCPU_OPS_H

#ifndef __cplusplus
#include <stdbool.h>
#endif

#include <percpu/words.h>

#include <percpu/copies.h>
#include <percpu/list.h>

PERCPU_INLINE_ bool percpu_pair_cmpxchg_(const struct percpu_view *view, struct percpu_pair *p,
                                         struct percpu_pair *expected, struct percpu_pair v) {
  const uint64_t low = expected->low, high = expected->high;
  const struct percpu_pair found = percpu_cas16_(view, p, low, high, v.low, v.high);
  if (found.low == low && found.high == high) return true;
  *expected = found;
  return false;
}

/* 16 bytes of this CPU's copy. */
PERCPU_INLINE_ struct percpu_pair percpu_read16(const struct percpu_pair *p) {
  return percpu_read16_(NULL, p);
}
PERCPU_INLINE_ struct percpu_pair percpu_pool_read16(const struct percpu_pool *pool,
                                                     const struct percpu_pair *p) {
  return percpu_read16_(percpu_pool_view_(pool), p);
}
PERCPU_INLINE_ bool percpu_cmpxchg16(struct percpu_pair *p, struct percpu_pair *expected, struct percpu_pair v) {
  return percpu_pair_cmpxchg_(NULL, p, expected, v);
}
PERCPU_INLINE_ bool percpu_pool_cmpxchg16(const struct percpu_pool *pool, struct percpu_pair *p,
                                          struct percpu_pair *expected, struct percpu_pair v) {
  return percpu_pair_cmpxchg_(percpu_pool_view_(pool), p, expected, v);
}

/*
 * Another CPU's pair, given its address (percpu_ptr()), as one of the values that it had: whole on x86-64 processors with
 * AVX and on aarch64; on older x86-64 ones call percpu_fence() first and keep that CPU from changing it.
 */
PERCPU_INLINE_ struct percpu_pair percpu_load16(const struct percpu_pair *copy) {
  return percpu_arch_load16_(copy);
}

#ifdef __cplusplus
#include <percpu/ops_cxx.h>
#else
#include <percpu/ops_c.h>
#endif

#endif /* PERCPU_OPS_H */
