// SPDX-License-Identifier: MIT
//
// When the preload begins, forks and ends. malloc() itself needs none of it: it works from its first call.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <type_traits>

#include "api/for_preload.h"
#include "base/check.h"
#include "base/errno_kept.h"
#include "os/fork_depth.h"
#include "preload/heap/heap.h"
#include "preload/abi/new_delete.h"
#include "preload/abi/next.h"
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
// Three kinds of locks, in this order:
//   that of stdio's list of files: others allocate while they hold locks of stdio (getline() does), and fork() takes it after all handlers,
//   so ours takes it first. fork() gives the child a new one. Readers of RCU may wait for it, so the library takes it when nobody waits
//   for them on its behalf
//   the library's: it allocates while it holds some (a thread's stack)
//   the heap's, under which nobody waits for any of these
__thread percpu::ForkDepth fork_depth __attribute__((tls_model("initial-exec")));

void at_fork_prepare() {
  if (!fork_depth.prepare()) return;
  percpu_fork_prepare_(_IO_list_lock, _IO_list_unlock, fork_depth.all_were_blocked());
  heap.fork_prepare();
}
void resume_in_child() {
  percpu_fork_child_();
  heap.fork_child();
  _IO_list_resetlock();
}
void at_fork_parent() {
  if (!fork_depth.resume()) return;
  if (fork_depth.in_its_process()) {
    percpu_fork_parent_();
    heap.fork_parent();
    _IO_list_unlock();
  } else {
    resume_in_child();
  }
  fork_depth.done();
}
void at_fork_child() {
  const bool outermost = fork_depth.resume();
  if (outermost) resume_in_child();
  percpu::heap::pin_fork_child();
  if (outermost) fork_depth.done();
}

// Handlers of fork prepare in the opposite order in which they were installed. Others may hold locks of their own around malloc, and
// wait for them in their handlers: so ours prepare last but for the library's, which then find all done. Constructors that run before
// our own install handlers too, so it is not they that decide when: the first handler of anybody comes by here.
using RegisterFork = int (*)(void (*)(), void (*)(), void (*)(), void*);
extern "C" {
extern void* __dso_handle __attribute__((visibility("hidden")));
}
bool watches_forks = false;

int register_fork(void (*prepare)(), void (*parent)(), void (*child)(), void* module) {
  static const auto next = reinterpret_cast<RegisterFork>(percpu::next_function("__register_atfork"));
  return next != nullptr ? next(prepare, parent, child, module) : ENOSYS;
}
void register_ours() {
  if (register_fork(at_fork_prepare, at_fork_parent, at_fork_child, &__dso_handle) != 0)
    percpu::report("fork handlers cannot be installed: a fork while other threads allocate may hang");
}

// ---- statistics --------------------------------------------------------------------------------------------------------

// They go to stderr as it was when the program began. Programs close theirs before they end (coreutils do, to see whether all was
// written), and then descriptor 2 may be a file of the program's own. So while statistics are asked for, and only then, a
// duplicate is kept, high up, where it takes no number that the program counts on; and what is written to is looked at first.
constexpr rlim_t kHighFile = 500;

struct {
  bool known;
  int duplicate;  // negative: there is none
  dev_t device;
  ino_t inode;
} first_stderr;

void keep_stderr() {
  struct stat seen;
  if (fstat(STDERR_FILENO, &seen) != 0) return;
  rlimit most{};
  const bool low = getrlimit(RLIMIT_NOFILE, &most) == 0 && most.rlim_cur <= kHighFile;
  const int from = static_cast<int>(low ? most.rlim_cur / 2 : kHighFile);
  first_stderr = {true, fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, from), seen.st_dev, seen.st_ino};
}

// Negative: it is no longer open.
int find_stderr() {
  if (!first_stderr.known) return -1;
  for (const int file : {first_stderr.duplicate, STDERR_FILENO}) {
    struct stat seen;
    if (file < 0 || fstat(file, &seen) != 0) continue;
    if (seen.st_dev == first_stderr.device && seen.st_ino == first_stderr.inode) return file;
  }
  return -1;
}

void print(bool json) {
  int file = find_stderr();
  if (file < 0) return;
  const auto write = [](void* to, const char* chars, size_t len_bytes) {
    percpu::report_raw_to(*static_cast<const int*>(to), chars, len_bytes);
  };
  // Written at once where it fits: processes that share a stderr must not mix.
  static char buffer[size_t{64} << 10];
  percpu::heap::Pieces text(write, &file, buffer, sizeof buffer);
  if (json) {
    heap.print_json(text);
  } else {
    heap.print_stats(text);
  }
}

volatile sig_atomic_t asked = 0;

void on_signal(int) {
  const percpu::ErrnoKept errno_kept;
  asked = 1;
  (void)percpu_balance_wake_();
}

// The balance thread prints. A signal that came before it ran is not forgotten.
void begin_printer() {
  heap.begin_threads();
  if (asked != 0) (void)percpu_balance_wake_();
}

// A forked child has a handler, but no thread that prints.
void at_fork_child_begin_printer() {
  struct sigaction now {};
  if (sigaction(SIGUSR2, nullptr, &now) == 0 && now.sa_handler == on_signal) begin_printer();
}

// SIGUSR2, if the program has not taken it before its libraries began (it may later).
void listen() {
  struct sigaction now {};
  if (sigaction(SIGUSR2, nullptr, &now) != 0 || now.sa_handler != SIG_DFL) return;
  now.sa_handler = on_signal;
  now.sa_flags = SA_RESTART;
  (void)sigaction(SIGUSR2, &now, nullptr);
  begin_printer();
  // Behind our own handler, and the library's: in the child they have been through when the thread is made.
  if (register_fork(nullptr, nullptr, at_fork_child_begin_printer, &__dso_handle) != 0)
    percpu::report("fork handlers cannot be installed: with stats:signal forked children print nothing");
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

// From now on what changes mappings goes by libc's own functions, which libraries that must hear of it patch (UCX, for network cards);
// past those that tools put in front of them, which may allocate.
void use_mapping_calls_of_libc() {
  static percpu::MappingCalls found{};
  void* const libc = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
  if (libc == nullptr) return;
  const auto find = [libc](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(libc, name));
    return *function != nullptr;
  };
  const bool all = find("mmap", &found.mmap) && find("munmap", &found.munmap) && find("mremap", &found.mremap) &&
                   find("mprotect", &found.mprotect) && find("madvise", &found.madvise);
  (void)dlclose(libc);
  if (all) percpu::use_mapping_calls(&found);
}

// libpercpu's constructors have run, as it is a dependency.
__attribute__((constructor(102))) void start() {
  heap.start();
  use_mapping_calls_of_libc();
  percpu::heap::begin_forms();
  percpu::heap::pin_start(heap.config());
  if (!watches_forks) register_ours();
  percpu_balance_job_(background, nullptr);
  (void)percpu_balance_wake_();  // threads of earlier constructors may have started it, when there was nothing to do
  if (heap.config().stats != HeapStats::kNone) keep_stderr();
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
  register_ours();
  return librarys_own ? result : register_fork(prepare, parent, child, module);
}
