// SPDX-License-Identifier: MIT
//
// The system calls of the slow paths, as a table of functions: what needs the kernel is handed a `const System&`, so that
// a test can make the n-th call fail (tests/unit/os/faulty_system.h). The fast paths and the locks do not go through it.
//
// Every function returns a result that is not negative, or -errno; none of them changes errno. None is a cancellation
// point, unlike the libc functions of the same names: a thread that is cancelled inside the library would leave it locked.
// All are async-signal-safe but start_thread and join_thread.
//
// Addresses are numbers (uintptr_t) here and above: most of them name memory that is not mapped yet, or never.
#ifndef PERCPU_OS_SYSTEM_H
#define PERCPU_OS_SYSTEM_H

#include <pthread.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <ctime>

namespace percpu {

struct System {
  // Memory. mmap makes private anonymous mappings only (`flags` are added to that) and returns the address.
  intptr_t (*mmap)(uintptr_t address, size_t size_bytes, int protection, int flags);
  int (*munmap)(uintptr_t address, size_t size_bytes);
  intptr_t (*mremap)(uintptr_t address, size_t old_size_bytes, size_t new_size_bytes, int flags);
  int (*mprotect)(uintptr_t address, size_t size_bytes, int protection);
  int (*madvise)(uintptr_t address, size_t size_bytes, int advice);
  int (*munlock)(uintptr_t address, size_t size_bytes);
  int (*mincore)(uintptr_t address, size_t size_bytes, unsigned char* pages);
  int (*mbind)(uintptr_t address, size_t size_bytes, int mode, const uint64_t* nodes, size_t nodes_len_bits, unsigned flags);
  int (*get_mempolicy)(int* mode, uint64_t* nodes, size_t nodes_len_bits, uintptr_t address, unsigned flags);
  // Asks for the node of one page (move_pages without a target). *status: the node, or -errno for this page.
  int (*query_page)(uintptr_t address, int* status);
  // Adds 0 to the word at `address`, atomically and inside the kernel (FUTEX_WAKE_OP): faults the page in for writing and
  // keeps what it holds, whoever uses it meanwhile; -EFAULT or -ENOMEM in place of a signal.
  int (*touch_word)(uintptr_t address);

  // CPUs. sched_getaffinity returns the size of the kernel's mask in bytes; thread 0 is the calling one.
  int (*sched_getaffinity)(pid_t thread, size_t mask_bytes, void* mask);
  int (*sched_setaffinity)(pid_t thread, size_t mask_bytes, const void* mask);
  int (*getcpu)(unsigned* cpu, unsigned* node);
  int (*membarrier)(int command, unsigned flags, int cpu);
  int (*rseq)(void* area, uint32_t len_bytes, int flags, uint32_t signature);

  // Sleeping, on words that are not shared with another process. Without a timeout (relative) it is endless.
  // futex_wait: 0 woken (or for no reason), -EAGAIN the word differs, -EINTR a signal, -ETIMEDOUT.
  // futex_wake: how many were woken.
  int (*futex_wait)(const uint32_t* word, uint32_t expected, const timespec* timeout);
  int (*futex_wake)(const uint32_t* word, int how_many);

  // Files: open is for reading only, close-on-exec.
  int (*open)(const char* path);
  ssize_t (*read)(int file, void* buffer, size_t size_bytes);
  int (*close)(int file);

  // Threads. start_thread makes a joinable thread with all signals blocked and a small stack. Both call into libc, which allocates.
  int (*start_thread)(pthread_t* thread, void* (*run)(void*), void* argument);
  int (*join_thread)(pthread_t thread);
};

// The kernel's own. Constant-initialised: usable before any constructor has run.
const System& real_system();

// The functions by which real_system() changes mappings: those of libc's names that the program sees, at first.
struct MappingCalls {
  void* (*mmap)(void* address, size_t size_bytes, int protection, int flags, int file, off_t offset);
  int (*munmap)(void* address, size_t size_bytes);
  void* (*mremap)(void* address, size_t old_size_bytes, size_t new_size_bytes, int flags, ...);
  int (*mprotect)(void* address, size_t size_bytes, int protection);
  int (*madvise)(void* address, size_t size_bytes, int advice);
};
// From now on these; null: none, but the kernel itself. For a malloc: what the program sees may allocate. `calls` stay.
void use_mapping_calls(const MappingCalls* calls);

// mremap with MREMAP_FIXED to an address: no test makes it fail. Returns the address, or -errno.
intptr_t remap_to(uintptr_t address, size_t old_size_bytes, size_t new_size_bytes, int flags, uintptr_t to);

// The page size of this machine. Async-signal-safe.
size_t page_size_bytes();

// How many system calls in a row may answer "try again" before that counts as a failure.
inline constexpr int kMaxRetries = 16;

}  // namespace percpu

#endif  // PERCPU_OS_SYSTEM_H
