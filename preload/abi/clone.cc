// SPDX-License-Identifier: MIT
//
// clone(), for children that share the caller's memory and its thread-local words too (CLONE_VM without CLONE_SETTLS). The
// kernel has registered no rseq for such a child, as for that of a vfork (vfork.S): it must stay away from the CPUs' caches.
// With CLONE_VFORK the caller sleeps meanwhile, and takes its caches back; without, both go on with the same words, so the
// caller stays away from them too, from now on. To every lock the two are one thread then: only one of them may allocate at a time.
#include <percpu/abi.h>
#include <sched.h>
#include <stdarg.h>
#include <sys/types.h>

#include "preload/abi/export.h"
#include "preload/heap/cache_table.h"
#include "preload/heap/heap.h"
#include "preload/pin/pin.h"
#include "preload/pin/placement.h"

PRELOAD_EXPORT int clone(int (*run)(void*), void* stack, int flags, void* argument, ...) noexcept {
  va_list rest;
  va_start(rest, argument);
  pid_t* const parent_tid = va_arg(rest, pid_t*);
  void* const tls = va_arg(rest, void*);
  pid_t* const child_tid = va_arg(rest, pid_t*);
  va_end(rest);
  const auto next = percpu::heap::pin_next().clone;
  if ((flags & CLONE_VM) == 0 || (flags & CLONE_SETTLS) != 0)
    return next(run, stack, flags, argument, parent_tid, tls, child_tid);
  const uintptr_t* const offset = percpu_thread_.offset;
  const uint32_t in_vfork = percpu::heap::in_vfork_word;
  const pid_t own_mask = percpu::heap::own_mask_word;
  percpu::heap::in_vfork_word = 1;  // first: a signal handler that allocates here attaches nothing
  percpu_thread_.offset = nullptr;
  // Not the address of the rseq area: what a handler interrupted here may have passed the limits already.
  percpu::heap::ThreadCaches& caches = percpu::heap::thread_caches;
  caches.malloc_limit = caches.free_limit = caches.unchecked_limit = 0;
  const int child = next(run, stack, flags, argument, parent_tid, tls, child_tid);
  if (child < 0 || (flags & CLONE_VFORK) != 0) {
    percpu::heap::in_vfork_word = in_vfork;  // the caches come back with the next call
    percpu_thread_.offset = offset;
    percpu::heap::own_mask_word = own_mask;
  }
  return child;
}

// libc's second name.
PRELOAD_EXPORT int __clone(int (*)(void*), void*, int, void*, ...) noexcept __attribute__((alias("clone")));
