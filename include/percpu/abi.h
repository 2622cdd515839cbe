/* SPDX-License-Identifier: MIT */
/*
 * percpu/abi.h - what compiled programs and the library agree on
 *
 * The operations of percpu/ops.h are inlined into their callers. This file holds what such inlined code touches in the library: a
 * table for each pool, a thread-local word, slow-path functions (percpu/static.h has those of static variables). It is part of the ABI:
 * struct percpu_view and struct percpu_thread_state stay as they are, since a program that is not position-independent has a copy of
 * the default pool's (a copy relocation). Programs do not use these names directly; percpu.h wraps them.
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
extern __thread struct percpu_thread_state percpu_thread_ __attribute__((__tls_model__("initial-exec")));

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

#ifdef __cplusplus
}
#endif

#endif /* PERCPU_ABI_H */
