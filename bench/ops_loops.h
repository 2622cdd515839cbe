/* SPDX-License-Identifier: MIT */
/*
 * The loops that bench/ops.cc times: eight counters in turn, n times, each in one way of counting. Ours are compiled
 * twice, for the program and for a shared library, so that both are the same but for how they were compiled.
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
  uint64_t *handle[kOpsCounters]; /* eight areas */
  double *reals;        /* eight in one area */
  percpu_pool_t *pool;
  uint64_t *in_pool;    /* eight in one area of the pool */
  struct percpu_pair *pairs;
  struct percpu_list *list;
  struct ops_shard *own;    /* one for each thread */
  struct ops_shard *shared; /* one for all threads */
  struct ops_shard *shards; /* kOpsMaxCpus */
};

struct ops_loop {
  const char *name;
  void (*in_loop)(const struct ops_areas *areas, size_t n);
  void (*called)(const struct ops_areas *areas, size_t n);
  void (*beside_work)(const struct ops_areas *areas, size_t n);
};

/*
 * LOOP(name, step) defines a loop over eight counters that does `step` with i and areas; and one that calls a function
 * which does it, as code that counts among other things is compiled: there the addresses are not kept in registers from
 * one step to the next; and a loop that also hashes, a chain of some five cycles. ROW(name) is the row in a table; the last
 * row of a table has no name.
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
  }                                                                                             \
  static __attribute__((noinline)) void works_##name(const struct ops_areas *given, size_t n) { \
    const struct ops_areas local = *given, *const areas = &local;                               \
    uint64_t hash = n;                                                                          \
    (void)areas;                                                                                \
    for (size_t i = 0; i < n; ++i) {                                                            \
      hash = (hash ^ hash >> 31) * 0x9e3779b97f4a7c15;                                          \
      step;                                                                                     \
    }                                                                                           \
    __asm__ __volatile__("" : : "r"(hash));                                                     \
  }
#define ROW(name) {#name, loop_##name, calls_##name, works_##name}
#define AT (i & (kOpsCounters - 1))
/* Keeps the compiler from making one increment of many; our operations do so by themselves. */
#define BARRIER() __asm__ __volatile__("" ::: "memory")

/* The same loops compiled for a program, and for a shared library. */
extern const struct ops_loop ops_loops_of_program[];
extern const struct ops_loop ops_loops_of_library[] __attribute__((visibility("default")));
/* Other people's ways of counting: liburcu's; librseq's and RocksDB's where they are installed. */
extern const struct ops_loop ops_loops_of_liburcu[];
extern const struct ops_loop ops_loops_of_librseq[];
extern const struct ops_loop ops_loops_of_rocksdb[];

#ifdef __cplusplus
}
#endif

#endif
