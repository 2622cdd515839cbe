/* SPDX-License-Identifier: MIT */
/* See ops_loops.h. OPS_LOOPS is the name of the table that this file defines. */
#include "ops_loops.h"

static __thread uint64_t own[kOpsCounters] __attribute__((tls_model("initial-exec"), aligned(64)));

LOOP(thread_local, own[AT] += 1; BARRIER())
#if defined(OPS_IN_LIBRARY)
/* As a compiler does it in a library unless it is told otherwise: by a call that asks for the address. */
static __thread uint64_t asked_for[kOpsCounters] __attribute__((tls_model("global-dynamic"), aligned(64)));
LOOP(thread_local_global_dynamic, asked_for[AT] += 1; BARRIER())
#endif
#if defined(__x86_64__)
/* One instruction and no more: what an addition to memory costs at least. */
LOOP(one_instruction, __asm__ __volatile__("addq $1,%0" : "+m"(areas->own->count[AT])))
#endif
LOOP(percpu_add, percpu_add(areas->counters + AT, 1))
LOOP(percpu_add_by_handle, percpu_add(areas->handle[AT], 1))
LOOP(percpu_pool_add, percpu_pool_add(areas->pool, areas->in_pool + AT, 1))
/* Of the thread's own, and of all threads: the same as long as there is one. */
LOOP(atomic, __atomic_fetch_add(&areas->own->count[AT], 1, __ATOMIC_RELAXED))
LOOP(atomic_contended, __atomic_fetch_add(&areas->shared->count[AT], 1, __ATOMIC_RELAXED))
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

const struct ops_loop OPS_LOOPS[] = {
    ROW(thread_local),
#if defined(OPS_IN_LIBRARY)
    ROW(thread_local_global_dynamic),
#endif
#if defined(__x86_64__)
    ROW(one_instruction),
#endif
    ROW(percpu_add),
    ROW(percpu_add_by_handle),
    ROW(percpu_pool_add),
    ROW(atomic),
    ROW(atomic_contended),
    ROW(sched_getcpu),
    ROW(percpu_read),
    ROW(percpu_write),
    ROW(percpu_add_return),
    ROW(percpu_xchg),
    ROW(percpu_cmpxchg),
    ROW(percpu_add_double),
    ROW(percpu_cmpxchg16),
    ROW(percpu_list_pop_push),
    {NULL, NULL, NULL, NULL},
};
