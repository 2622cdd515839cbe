// SPDX-License-Identifier: MIT
//
// The library around fork, and when the process exits.
#include <pthread.h>

#include "api/library.h"
#include "os/fork_depth.h"

namespace percpu {
namespace {

// How often the fork handlers are installed and have run for the fork that this thread is about to make.
__thread ForkDepth fork_depth __attribute__((tls_model("initial-exec")));

// Whether this thread is in exit(), behind at_exit().
__thread bool exits_here __attribute__((tls_model("initial-exec")));

}  // namespace

// As early as can be: handlers that are installed later prepare before ours and resume after them. So their locks may be held
// around calls of the library, and they may call it themselves.
namespace {
__attribute__((constructor(101))) void watch_forks_early() { (void)library.watch_forks(); }
}  // namespace

// Two threads that come here at the same time may both install the handlers, and so may the child of a fork in between;
// fork_depth makes one of them.
int Library::watch_forks() {
  if (watches_forks_.load(std::memory_order_acquire) == Watch::kYes) return 0;
  watches_forks_.store(Watch::kBegun, std::memory_order_relaxed);
  const int error = pthread_atfork(at_fork_prepare, at_fork_parent, at_fork_child);
  watches_forks_.store(error == 0 ? Watch::kYes : Watch::kNo, std::memory_order_release);
  return -error;
}

bool Library::begin_watching_forks() {
  return watches_forks_.load(std::memory_order_acquire) != Watch::kBegun && watch_forks() == 0;
}

// Released in fork_parent() or fork_child().
void Library::fork_prepare(const OuterLock* outer, bool signals_blocked) PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  grace_.fork_prepare(outer, signals_blocked);
  ModuleImages::fork_prepare();  // not earlier: a thread that waits outside may be a reader that is waited for, or hold the outer lock
  statics_.lock_for_fork();
  balancer_.fork_prepare();
  for (Pool& pool : balancer_.pools()) pool.fork_stop();
  // fork copies pages one after the other: no sequence may change front caches meanwhile. Where there is no fence, a thread
  // that is in the middle of one right now may leave the child with an area in two places.
  if (!balancer_.pools().empty()) (void)fence_.all(system(), topology_.possible);
  for (Pool& pool : balancer_.pools()) pool.fork_prepare();
  accounting_.lock_for_fork();
}

void Library::fork_parent() PERCPU_NO_THREAD_SAFETY_ANALYSIS {  // taken in fork_prepare()
  accounting_.unlock_after_fork();
  for (Pool& pool : balancer_.pools()) pool.fork_parent();
  balancer_.fork_parent();
  statics_.unlock_after_fork();
  ModuleImages::fork_parent();
  grace_.fork_parent();
}

void Library::fork_child() PERCPU_NO_THREAD_SAFETY_ANALYSIS {  // taken in fork_prepare()
  ModuleImages::fork_child();
  // Another thread's exit() is not the child's. (That glibc has called at_exit() already, and will not again, does no harm: see prepare_now().)
  if (!exits_here) exiting_.store(false, std::memory_order_relaxed);
  grace_.fork_child();  // first: the others ask whether it is lost
  accounting_.unlock_after_fork();
  for (Pool& pool : balancer_.pools()) pool.fork_child();
  balancer_.fork_child(exiting());
  watch_main_thread();
  statics_.unlock_after_fork();
  prepared_.reset_after_fork_in_child();
  default_made_.reset_after_fork_in_child();
}

void Library::at_fork_prepare() {
  if (fork_depth.prepare()) library.fork_prepare(nullptr, fork_depth.all_were_blocked());
}
void Library::prepare_fork(const OuterLock& outer, bool signals_blocked) {
  if (fork_depth.prepare()) {
    library.fork_prepare(&outer, signals_blocked);
  } else {
    outer.lock();
  }
}
void Library::at_fork_parent() {
  if (!fork_depth.resume()) return;
  if (fork_depth.in_its_process()) {
    library.fork_parent();
  } else {
    library.fork_child();
  }
  fork_depth.done();
}
void Library::at_fork_child() {
  if (!fork_depth.resume()) return library.balancer_.note_process();
  library.fork_child();
  fork_depth.done();
}

// (A child of vfork that calls exit(), which it must not, does so in its parent's memory, where the thread goes on.)
void Library::at_exit() {
  if (library.balancer_.is_of_another_process()) return;
  exits_here = true;
  library.exiting_.store(true, std::memory_order_relaxed);
  library.balancer_.stop();
}

}  // namespace percpu
