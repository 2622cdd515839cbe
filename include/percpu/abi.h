/* SPDX-License-Identifier: MIT */
/*
 * percpu/abi.h - what compiled programs and the library agree on
 *
 * The operations of percpu/ops.h are inlined into their callers. This file holds what such inlined code touches in the library: a
 * table for each pool, a thread-local word, slow-path functions (percpu/static.h has those of static variables); and what the preload asks
 * of it. It is part of the ABI: struct percpu_view and struct percpu_thread_state stay as they are, since a program that is not
 * position-independent has a copy of the default pool's (a copy relocation). Programs do not use these names directly; percpu.h wraps
 * them.
 *
 *   copy      the memory behind a handle for one CPU, or for the threads of one group that run without rseq
 *   copy id   0 .. nr_cpu_ids-1: the copy of that CPU; nr_cpu_ids .. nr_copies-1: the extra copies, one a group
 *
 *   address(copy) = (char *)handle + offset[copy]            (modulo 2^64)
 *
 * offset[id] is 0 where no copy exists (a hole in the CPU numbers): the result is then the handle itself, which is
 * mapped to no memory, so that using it faults at once.
 */
#ifndef PERCPU_ABI_H
#define PERCPU_ABI_H

#ifndef __LP64__
#error "percpu.h needs a 64-bit target: expected x86-64 or arm64 (not -m32, not -mx32)"
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * How to reach the copies of one pool. Filled in once, before the pool's first handle exists, and constant from then
 * on; reading it needs no ordering beyond what brought the handle to the reader, by acquire: offsets are not reached through the
 * handle, so on arm64 a dependency on it (rcu_dereference, memory_order_consume) does not order them. Every percpu_pool_t
 * begins with one.
 */
struct percpu_view {
  const uintptr_t *offset; /* nr_copies entries */
  uint32_t nr_cpu_ids;     /* highest possible CPU number + 1 */
  uint32_t nr_copies;      /* nr_cpu_ids + the number of extra copies */
};

/* The default pool's view; all zero until the default pool exists. */
extern struct percpu_view percpu_default_view_;

/*
 * Per thread. `offset` is NULL until the library has made sure that the kernel restarts this thread's sequences (rseq is
 * registered for it), and stays NULL where that is not so; then it is the default pool's `offset`, all zero until that pool
 * exists. Zeroed thread-local memory therefore means "ask first", which is right for a thread made by a raw clone. Only the
 * thread itself writes it.
 */
struct percpu_thread_state {
  const uintptr_t *offset;
};
extern __thread struct percpu_thread_state percpu_thread_ __attribute__((tls_model("initial-exec")));

/*
 * Called where percpu_thread_.offset is NULL. Finds out about the calling thread: the first time by two system calls or a few
 * more, from then on by none (a vfork child, which must not come here, would leave its answer to its parent's thread). Returns 1 if
 * it may run sequences from now on (percpu_thread_.offset is set), 0 if it must use percpu_shared_copy_(). Async-signal-safe.
 * Preserves errno.
 */
int percpu_thread_attach_(void);

/*
 * The copy that the calling thread, which has no rseq, operates on with atomic instructions: the extra copy of the group
 * it runs in where the process has rseq, the copy of the CPU it runs on where the whole process has none.
 * Async-signal-safe. Preserves errno.
 */
void *percpu_shared_copy_(const struct percpu_view *view, const void *handle);

/*
 * For the preload. The NUMA node that the memory of this CPU's copies comes from, whether the CPU is there yet or not: its own,
 * or the nearest that has memory. -1 for a CPU that is not possible.
 */
int percpu_memory_node_(unsigned cpu);

/*
 * For the preload. The highest possible CPU number + 1, as percpu_nr_cpu_ids() says, but without making the default pool: a
 * program that nobody rebuilt will not use it. 0 with errno where the machine cannot be looked at.
 */
unsigned percpu_machine_cpus_(void);

/* For the preload. Whether the kernel knows the calling thread's rseq area, as percpu_thread_attach_() says, but without making
 * the default pool. Async-signal-safe. Preserves errno. */
int percpu_thread_registered_(void);

/*
 * For the preload. The balance thread calls job(context) whenever it wakes, and again after a fifth of a second while that
 * returns nonzero; it holds none of the library's locks then. Once a process, before the thread is started.
 */
void percpu_balance_job_(int (*job)(void *), void *context);

/* Starts the balance thread if it does not run. Returns 1 if it runs, 0 if it may not (balance:sync or off, the process ends)
 * or cannot. Not async-signal-safe: creates a thread. */
int percpu_balance_start_(void);

/* Whether the address lies in the library's own code: what its threads begin with. */
int percpu_own_code_(const void *address);

/*
 * For the preload, when anybody installs fork handlers. Installs the library's, if they are not there. Returns 1; 0 where it is the
 * library that is just installing them, or where they cannot be installed.
 */
int percpu_watch_forks_(void);

/*
 * For the preload: what the library's fork handlers do, for who has locks of its own that come behind the library's. They may be called
 * beside these handlers, which then do nothing: of prepares and resumes the outermost count. prepare() takes one more lock, by lock(),
 * before the library's, but waits for grace periods without it; it may give it back by unlock() and take it again. The caller gives
 * it back in the end.
 */
void percpu_fork_prepare_(void (*lock)(void), void (*unlock)(void));
void percpu_fork_parent_(void);
void percpu_fork_child_(void);

/* Wakes the balance thread. Returns 1; 0 where there is none, any more or yet. Async-signal-safe. */
int percpu_balance_wake_(void);

#ifdef __cplusplus
}
#endif

#endif /* PERCPU_ABI_H */
