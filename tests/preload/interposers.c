/* SPDX-License-Identifier: MIT */
/*
 * Functions in front of libc's, as tracers and libfaketime have them: each allocates, frees, and looks for a name that does not exist,
 * which makes libc free its message about the last one. A malloc that calls them has itself called, half way.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static __thread int inside;

static void work(void) {
  if (inside) return;
  inside = 1;
  for (size_t bytes = 100; bytes < 1 << 20; bytes *= 4) {
    void *volatile block = malloc(bytes);
    free(block);
  }
  (void)dlsym(RTLD_NEXT, "no_such_name");
  inside = 0;
}

/* Overlays and profilers have a dlsym() of their own. What libc's finds it finds for whoever called that: here, always this library. */
__attribute__((visibility("default"))) void *dlsym(void *handle, const char *name) {
  static void *(*real)(void *, const char *);
  static const char *const versions[] = {"GLIBC_2.34", "GLIBC_2.17", "GLIBC_2.2.5"};
  for (size_t i = 0; real == NULL && i < sizeof versions / sizeof *versions; i++) *(void **)&real = dlvsym(RTLD_NEXT, "dlsym", versions[i]);
  void *found = real(handle, name);
  __asm__ volatile("" : "+r"(found)); /* no call at the end, which would be the caller's */
  return found;
}

#define IN_FRONT(result, name, parameters, arguments)                            \
  __attribute__((visibility("default"))) result name parameters {                \
    static result(*next) parameters;                                             \
    if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, #name);                 \
    work();                                                                      \
    return next arguments;                                                       \
  }

IN_FRONT(int, clock_gettime, (clockid_t clock, struct timespec *now), (clock, now))
IN_FRONT(void *, mmap, (void *at, size_t bytes, int access, int flags, int file, off_t offset), (at, bytes, access, flags, file, offset))
IN_FRONT(int, munmap, (void *at, size_t bytes), (at, bytes))
IN_FRONT(int, mprotect, (void *at, size_t bytes, int access), (at, bytes, access))
IN_FRONT(int, madvise, (void *at, size_t bytes, int advice), (at, bytes, advice))
IN_FRONT(int, getrlimit, (__rlimit_resource_t resource, struct rlimit *limit), (resource, limit))
IN_FRONT(pid_t, getpid, (void), ())
/* As a tracer of threads has it: it asks where the thread was. */
__attribute__((visibility("default"))) int sched_setaffinity(pid_t thread, size_t bytes, const cpu_set_t *mask) {
  static int (*next)(pid_t, size_t, const cpu_set_t *);
  if (next == NULL) *(void **)&next = dlsym(RTLD_NEXT, "sched_setaffinity");
  cpu_set_t before;
  work();
  return sched_getaffinity(thread, sizeof before, &before) != 0 ? -1 : next(thread, bytes, mask);
}

IN_FRONT(long, sysconf, (int name), (name))
