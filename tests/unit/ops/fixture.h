/* SPDX-License-Identifier: MIT */
/*
 * A runtime for the operations, in place of libpercpu: a static arena with a deliberately odd layout, and the slow-path
 * functions of percpu/abi.h done the plain way. Tests of the operations need nothing else of the library.
 *
 *   copy ids   0 .. n-1   the machine's CPUs (n of them), their units in descending order and unevenly apart
 *              n          a hole
 *              n+1        a possible CPU that never runs
 *              n+2, n+3   the extra copies of two groups: the CPUs with even, and with odd numbers
 *
 * Handles lie in a window that is mapped to no memory. Copies are 1 MiB long; nothing is freed but all at once.
 */
#ifndef PERCPU_TESTS_OPS_FIXTURE_H
#define PERCPU_TESTS_OPS_FIXTURE_H

#include <stddef.h>

#include <percpu/ops.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A handle of the default pool, of zeroed memory in every copy; never NULL (the test ends where the arena is full). */
void *fixture_alloc(size_t size, size_t align);

/* A second pool, whose copies are elsewhere, and a handle of it. */
struct percpu_pool *fixture_pool(void);
void *fixture_pool_alloc(size_t size, size_t align);

/* Frees all that was allocated from both pools. No other thread may use any of it. */
void fixture_free_all(void);

/* The machine's CPUs. */
unsigned fixture_nr_cpus(void);

/* The CPU after this one that the process may use, -1 where there is none; after -1, the first. Offline ones are left out. */
int fixture_next_cpu(int cpu);

/* 1 if the C library registered rseq for the process's threads. */
int fixture_process_has_rseq(void);

/* Takes the calling thread's rseq away for good, as if the C library had never registered it. */
void fixture_leave_rseq(void);

/* Pins the calling thread to one CPU; -1: to all that the process may use. */
void fixture_pin(int cpu);

/* What rseq_cs of the calling thread holds; 0 for a thread without rseq. */
unsigned long fixture_rseq_cs(void);

/* Makes percpu_fence() fail with this errno; 0: work. */
void fixture_fail_fence(int error);

#ifdef __cplusplus
}
#endif

#endif
