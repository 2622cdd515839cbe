/* SPDX-License-Identifier: MIT */
/*
 * A function whose resolver (IFUNC) makes a system call by libc's syscall(): bound at once (-z now), it runs while the dynamic linker
 * relocates, and the preload, which is relocated last, cannot call anything yet. Three objects: the function, who calls it, a program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../as_told.h"

int preload_resolved_function(void);
int preload_calls_resolved(void);

#if defined(PROGRAM)
int main(void) {
  expect_preload_as_told();
  const int found = preload_calls_resolved();
  if (found != 1) {
    fprintf(stderr, "resolver: expected that the system calls answer (1), found %d\n", found);
    return 1;
  }
  /* And now that all is there, failures set errno. */
  errno = 0;
  if (syscall(-1L) != -1 || errno != ENOSYS) {
    fprintf(stderr, "resolver: expected ENOSYS, found %d\n", errno);
    return 1;
  }
  return 0;
}
#elif defined(RESOLVED)
int preload_calls_resolved(void) { return preload_resolved_function(); }
#else
static int answered(void) { return 1; }
static int refused(void) { return 2; }

__attribute__((used)) static int (*resolve(void))(void) {
  unsigned long mask[16];
  const long bytes = syscall(SYS_sched_getaffinity, 0L, sizeof mask, mask);
  const int good = syscall(SYS_getpid) > 0 && bytes > 0 && syscall(SYS_sched_setaffinity, 0L, bytes, mask) == 0 && syscall(-1L) == -1;
  return good ? answered : refused;
}
int preload_resolved_function(void) __attribute__((ifunc("resolve")));
#endif
