// SPDX-License-Identifier: MIT
#include "os/load.h"

#include <sys/syscall.h>

#include <percpu/arch/select.h>  // PERCPU_UNDER_ASAN and its like

#include "base/raw_syscall.h"

namespace percpu {
namespace {

constinit CpuMask at_load;

// Also that of the main thread where another one loads the library.
void look() {
  (void)raw_syscall(SYS_sched_getaffinity, raw_syscall(SYS_getpid), sizeof at_load.words, reinterpret_cast<long>(at_load.words));
}

}  // namespace

#if defined(PERCPU_UNDER_ASAN) || defined(PERCPU_UNDER_TSAN)

// What they insert cannot run where the resolver below does.
__attribute__((constructor(101))) static void look_early() { look(); }

const CpuMask& allowed_at_load() { return at_load; }

#else

// An indirect function, whose resolver the linker asks which function it is while it relocates: that is before all constructors, which
// run in an order that nobody can choose where libraries do not know of each other. Nothing may be relied on there: no function of
// another library, no thread-local word.
namespace {

const void* what_was_seen() { return &at_load; }

}  // namespace

extern "C" {
using Seen = const void*();
__attribute__((used, visibility("hidden"), no_stack_protector)) Seen* percpu_look_at_load() {
  look();
  return what_was_seen;
}
__attribute__((visibility("hidden"))) const void* percpu_seen_at_load() __attribute__((ifunc("percpu_look_at_load")));
}

const CpuMask& allowed_at_load() { return *static_cast<const CpuMask*>(percpu_seen_at_load()); }

#endif

}  // namespace percpu
