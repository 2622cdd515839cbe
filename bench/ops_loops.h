/* SPDX-License-Identifier: MIT */
/*
 * The loops that bench/ops.cc times: eight counters in turn, n times, each in one way of counting. Included by a source
 * file of the program and by one of a shared library, so that both are the same but for how they were compiled.
 */
#ifndef PERCPU_BENCH_OPS_LOOPS_H
#define PERCPU_BENCH_OPS_LOOPS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stddef.h>
#include <stdint.h>

#include <percpu.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { kOpsCounters = 8, kOpsMaxCpus = 1024 };

struct ops_shard {
  uint64_t count[kOpsCounters];
} __attribute__((aligned(128)));

/* What the loops work on; set up by the program. */
struct ops_areas {
  uint64_t *counters;   /* eight in one area */
  double *reals;        /* eight in one area */
  percpu_pool_t *pool;
  uint64_t *in_pool;    /* eight in one area of the pool */
  struct percpu_pair *pairs;
  struct percpu_list *list;
  struct ops_shard *shared; /* one, for atomics */
  struct ops_shard *shards; /* kOpsMaxCpus */
};

struct ops_loop {
  const char *name;
  void (*in_loop)(const struct ops_areas *areas, size_t n);
  void (*called)(const struct ops_areas *areas, size_t n);
};

/* The same loops compiled for a program, and for a shared library; the last has no name. */
extern const struct ops_loop ops_loops_of_program[];
extern const struct ops_loop ops_loops_of_library[] __attribute__((visibility("default")));

#ifdef __cplusplus
}
#endif

#endif
