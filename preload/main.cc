// SPDX-License-Identifier: MIT
//
// When the preload begins, forks and ends. malloc() itself needs none of it: it works from its first call.
#include <dlfcn.h>
#include <errno.h>
#include <percpu/abi.h>
#include <signal.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/text.h"
#include "os/fork_depth.h"
#include "preload/heap.h"
#include "preload/pin/pin.h"

// The lock of stdio's list of files, recursive; exported by glibc, and in none of its headers.
extern "C" {
void _IO_list_lock(void);
void _IO_list_unlock(void);
void _IO_list_resetlock(void);
}

namespace {

using percpu::HeapStats;
using percpu::heap::heap;

// ---- forks -------------------------------------------------------------------------------------------------------------
//
// Others allocate while they hold locks of stdio (getline() does), and fork() takes that of all files after our handler: so ours
// takes it first, to have the same order. fork() gives the child a new one.
__thread percpu::ForkDepth fork_depth __attribute__((tls_model("initial-exec")));

void at_fork_prepare() {
  if (!fork_depth.prepare()) return;
  _IO_list_lock();
  heap.fork_prepare();
}
void at_fork_parent() {
  if (!fork_depth.resume()) return;
  heap.fork_parent();
  _IO_list_unlock();
}
void at_fork_child() {
  if (fork_depth.resume()) {
    heap.fork_child();
    _IO_list_resetlock();
  }
  percpu::heap::pin_fork_child();
}

// Handlers of fork prepare in the opposite order in which they were installed. Others may hold locks of their own around malloc, and
// wait for them in their handlers: so ours prepare last but for the library's, whose locks are taken under ours. Constructors that
// run before our own install handlers too, so it is not they that decide when: the first handler of anybody comes by here.
using RegisterFork = int (*)(void (*)(), void (*)(), void (*)(), void*);
extern "C" {
extern void* __dso_handle __attribute__((visibility("hidden")));
}
bool watches_forks = false;

int register_fork(void (*prepare)(), void (*parent)(), void (*child)(), void* module) {
  static const auto next = reinterpret_cast<RegisterFork>(dlsym(RTLD_NEXT, "__register_atfork"));
  return next != nullptr ? next(prepare, parent, child, module) : ENOSYS;
}
int register_ours() { return register_fork(at_fork_prepare, at_fork_parent, at_fork_child, &__dso_handle); }

// ---- statistics --------------------------------------------------------------------------------------------------------

void print(bool json) {
  static char buffer[64 * 1024];  // of one printer at a time: the end of the process, or the balance thread
  percpu::Text text(buffer);
  if (json) {
    heap.print_json(text);
  } else {
    heap.print_stats(text);
  }
  percpu::report_raw(buffer, text.length_bytes());
}

volatile sig_atomic_t asked = 0;

void on_signal(int) {
  const int saved_errno = errno;
  asked = 1;
  percpu_balance_wake_();
  errno = saved_errno;
}

// SIGUSR2, if the program has not taken it before its libraries began (it may later).
void listen() {
  struct sigaction now {};
  if (sigaction(SIGUSR2, nullptr, &now) != 0 || now.sa_handler != SIG_DFL) return;
  now.sa_handler = on_signal;
  now.sa_flags = SA_RESTART;
  (void)sigaction(SIGUSR2, &now, nullptr);
  heap.begin_threads();
}

// What the balance thread does for the preload. Returns whether it is to look again soon.
int background(void*) {
  if (asked != 0) {
    asked = 0;
    print(false);
  }
  const bool placed = percpu::heap::pin_tick();
  return heap.tick() || placed ? 1 : 0;
}

// libpercpu's constructors have run, as it is a dependency.
__attribute__((constructor(102))) void start() {
  heap.start();
  percpu::heap::pin_start(heap.config());
  if (!watches_forks && register_ours() != 0)
    percpu::report("fork handlers cannot be installed: a fork while other threads allocate may hang");
  percpu_balance_job_(background, nullptr);
  if (heap.config().stats == HeapStats::kSignal) listen();
}

__attribute__((destructor)) void finish() {
  const HeapStats stats = heap.config().stats;
  if (stats == HeapStats::kExit || stats == HeapStats::kJson) print(stats == HeapStats::kJson);
}

}  // namespace

// What pthread_atfork() calls.
extern "C" __attribute__((visibility("default"))) int __register_atfork(void (*prepare)(), void (*parent)(), void (*child)(),
                                                                        void* module) {
  if (watches_forks) return register_fork(prepare, parent, child, module);
  watches_forks = true;
  const bool librarys_own = percpu_watch_forks_() == 0;
  const int result = librarys_own ? register_fork(prepare, parent, child, module) : 0;
  if (register_ours() != 0) percpu::report("fork handlers cannot be installed: a fork while other threads allocate may hang");
  return librarys_own ? result : register_fork(prepare, parent, child, module);
}
