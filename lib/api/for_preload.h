// SPDX-License-Identifier: MIT
//
// What the preload asks of the library beyond percpu.h. Exported, in a version node of its own (libpercpu.map); not installed, and no
// part of the ABI: the two are of one release.
#ifndef PERCPU_API_FOR_PRELOAD_H
#define PERCPU_API_FOR_PRELOAD_H

#include <percpu.h>

extern "C" {

// The NUMA node that the memory of this CPU's copies comes from, whether the CPU is there yet or not: its own,
// or the nearest that has memory. -1 for a CPU that is not possible.
int percpu_memory_node_(unsigned cpu);

// The highest possible CPU number + 1, as percpu_nr_cpu_ids() says, but without making the default pool: a
// program that nobody rebuilt will not use it. 0 with errno where the machine cannot be looked at.
unsigned percpu_machine_cpus_();
// How many of these the process may run on; 0 where the machine cannot be looked at.
unsigned percpu_allowed_cpus_();

// A pool of one area of size_bytes on every CPU, whole pages, that lives as long as the pool: its handle is *area. It is zero, and
// nothing backs it: a page of a copy is memory, on the CPU's own node, once somebody writes there. NULL with errno, as
// percpu_pool_create(); percpu_pool_destroy() ends it.
percpu_pool_t* percpu_pool_create_bare_(const char* name, size_t size_bytes, void** area);

// Whether the kernel knows the calling thread's rseq area, as percpu_thread_attach_() says, but without making
// the default pool. Async-signal-safe. Preserves errno.
int percpu_thread_registered_();

// The balance thread calls job(context) whenever it wakes, and again after a fifth of a second while that
// returns nonzero; it holds none of the library's locks then. Once a process, before the thread is started.
void percpu_balance_job_(int (*job)(void*), void* context);

// Starts the balance thread if it does not run. Returns 1 if it runs, 0 if it may not (balance:sync or off, the process ends)
// or cannot. Not async-signal-safe: creates a thread.
int percpu_balance_start_();

// Whether the address lies in the library's own code: what its threads begin with.
int percpu_own_code_(const void* address);

// Called before anybody installs fork handlers: installs the library's first, if they are not there. Returns 1; 0 where it is the
// library that is just installing them, or where they cannot be installed.
int percpu_watch_forks_();

// What the library's fork handlers do, for a caller whose own locks come after the library's. They may be called
// beside these handlers, which then do nothing: of prepares and resumes the outermost count. prepare() takes one more lock, by lock(),
// before the library's, but waits for grace periods without it; it may give it back by unlock() and take it again. The caller gives
// it back in the end. signals_blocked: whether the program had blocked all signals when the fork began, which tells a program that called
// urcu_bp_before_fork().
void percpu_fork_prepare_(void (*lock)(), void (*unlock)(), int signals_blocked);
void percpu_fork_parent_();
void percpu_fork_child_();

// The calling thread, the process's main one, is about to end by the system call. Returns 1 where no other is left but the balance thread:
// then the caller ends the process. Context: in the thread that began the process, or in the one that a fork left.
int percpu_main_leaves_();

// Wakes the balance thread if it runs. Returns 0 where the caller has to do its work itself; 1 where the thread runs, is starting, or the
// process exits and nobody needs it any more. Async-signal-safe.
int percpu_balance_wake_();

}  // extern "C"

#endif  // PERCPU_API_FOR_PRELOAD_H
