// SPDX-License-Identifier: MIT
//
// System calls without libc: programs and their tools put functions of their own in front of libc's syscall(), mmap() and others, and
// these may allocate. Elsewhere than on x86-64 and arm64 it is libc's syscall() all the same.
#ifndef PERCPU_BASE_RAW_SYSCALL_H
#define PERCPU_BASE_RAW_SYSCALL_H

#include <sys/syscall.h>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <unistd.h>

#include "base/errno_kept.h"
#endif

namespace percpu {

// Returns what the kernel does: -errno on failure. Keeps errno; no cancellation point. Context: any.
inline long raw_syscall(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
#if defined(__x86_64__)
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result = number;
  __asm__ volatile("syscall" : "+a"(result) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#else
  const ErrnoKept errno_kept;
  const long result = syscall(number, a, b, c, d, e, f);
  return result == -1 ? -errno : result;
#endif
}

// Whether the calling thread is its process's first one: a child of fork or vfork always is.
inline bool is_main_thread() { return raw_syscall(SYS_gettid) == raw_syscall(SYS_getpid); }

}  // namespace percpu

#endif  // PERCPU_BASE_RAW_SYSCALL_H
