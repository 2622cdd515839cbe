/* SPDX-License-Identifier: MIT */
/* See ops_loops.h. OPS_LOOPS is the name of the table that this file defines. */
#include "ops_loops.h"

/* Keeps the compiler from making one increment of many; our operations do so by themselves. */
#define BARRIER() __asm__ __volatile__("" ::: "memory")

/*
 * A loop over eight counters that does `step` with i; and one that calls a function which does it, as code that counts
 * among other things is compiled: there the addresses are not kept in registers from one step to the next.
 */
#define LOOP(name, step)                                                                        \
  static __attribute__((noinline)) void loop_##name(const struct ops_areas *given, size_t n) {  \
    const struct ops_areas local = *given, *const areas = &local;                               \
    (void)areas;                                                                                \
    for (size_t i = 0; i < n; ++i) {                                                            \
      step;                                                                                     \
    }                                                                                           \
  }                                                                                             \
  static __attribute__((noinline)) void step_##name(const struct ops_areas *areas, size_t i) {  \
    (void)areas, (void)i;                                                                       \
    step;                                                                                       \
  }                                                                                             \
  static __attribute__((noinline)) void calls_##name(const struct ops_areas *areas, size_t n) { \
    for (size_t i = 0; i < n; ++i) step_##name(areas, i);                                       \
  }
#define AT (i & (kOpsCounters - 1))

static __thread uint64_t own[kOpsCounters] __attribute__((tls_model("initial-exec"), aligned(64)));

LOOP(thread_local, own[AT] += 1; BARRIER())
#if defined(__x86_64__)
/* One instruction and no more: what an addition to memory costs at least. */
LOOP(one_instruction, __asm__ __volatile__("addq $1,%0" : "+m"(areas->shared->count[AT])))
#endif
LOOP(percpu_add, percpu_add(areas->counters + AT, 1))
LOOP(percpu_pool_add, percpu_pool_add(areas->pool, areas->in_pool + AT, 1))
LOOP(atomic, __atomic_fetch_add(&areas->shared->count[AT], 1, __ATOMIC_RELAXED))
LOOP(sched_getcpu, __atomic_fetch_add(&areas->shards[sched_getcpu()].count[AT], 1, __ATOMIC_RELAXED))
LOOP(percpu_read, (void)percpu_read(areas->counters + AT))
LOOP(percpu_write, percpu_write(areas->counters + AT, i))
LOOP(percpu_add_return, (void)percpu_add_return(areas->counters + AT, 1))
LOOP(percpu_xchg, (void)percpu_xchg(areas->counters + AT, i))
LOOP(percpu_cmpxchg, (void)percpu_cmpxchg(areas->counters + AT, i, i))
LOOP(percpu_add_double, percpu_add(areas->reals + AT, 1))
LOOP(percpu_cmpxchg16, struct percpu_pair seen = percpu_read16(areas->pairs + AT);
     (void)percpu_cmpxchg16(areas->pairs + AT, &seen, seen))
LOOP(percpu_list_pop_push, percpu_list_push(areas->list, percpu_list_pop(areas->list)))

#define ROW(name) {#name, loop_##name, calls_##name}
const struct ops_loop OPS_LOOPS[] = {
    ROW(thread_local),
#if defined(__x86_64__)
    ROW(one_instruction),
#endif
    ROW(percpu_add),
    ROW(percpu_pool_add),
    ROW(atomic),
    ROW(sched_getcpu),
    ROW(percpu_read),
    ROW(percpu_write),
    ROW(percpu_add_return),
    ROW(percpu_xchg),
    ROW(percpu_cmpxchg),
    ROW(percpu_add_double),
    ROW(percpu_cmpxchg16),
    ROW(percpu_list_pop_push),
    {NULL, NULL, NULL},
};
