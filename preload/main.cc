// SPDX-License-Identifier: MIT
//
// When the preload begins, forks and ends. malloc() itself needs none of it: it works from its first call.
#include <pthread.h>
#include <stdlib.h>

#include "base/check.h"
#include "base/text.h"
#include "preload/heap.h"

namespace {

using percpu::heap::heap;

void at_fork_prepare() { heap.fork_prepare(); }
void at_fork_parent() { heap.fork_parent(); }
void at_fork_child() { heap.fork_child(); }

// libpercpu's constructors have run, as it is a dependency. Handlers installed this early prepare last, when those of the
// program have allocated what they need.
__attribute__((constructor(102))) void start() {
  heap.start();
  if (pthread_atfork(at_fork_prepare, at_fork_parent, at_fork_child) != 0)
    percpu::report("fork handlers cannot be installed: a fork while other threads allocate may hang");
}

__attribute__((destructor)) void finish() {
  if (heap.config().stats != percpu::HeapStats::kExit) return;
  char buffer[16 * 1024];
  percpu::Text text(buffer);
  heap.print_stats(text);
  percpu::report_raw(buffer, text.length_bytes());
}

}  // namespace
