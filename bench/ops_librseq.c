/* SPDX-License-Identifier: MIT */
/* librseq's addition to this CPU's counter: read the CPU number, try, and begin again where it was another CPU by then. */
#include "ops_loops.h"

#include <rseq/rseq.h>

static inline __attribute__((always_inline)) void add(struct ops_shard *shards, size_t i) {
  int cpu;
  do {
    cpu = (int)rseq_cpu_start();
  } while (rseq_load_add_store__ptr(RSEQ_MO_RELAXED, RSEQ_PERCPU_CPU_ID, (intptr_t *)&shards[cpu].count[AT], 1, cpu) != 0);
}

LOOP(librseq_add, add(areas->shards, i))

const struct ops_loop ops_loops_of_librseq[] = {
    ROW(librseq_add),
    {NULL, NULL, NULL, NULL},
};
