/* SPDX-License-Identifier: MIT */
/*
 * The first use of the library, with a malloc that gives nothing the n-th time, or from then on: for n from 1 until n is not reached,
 * each in a process of its own. There is a pool, or none and ENOMEM.
 */
#define _GNU_SOURCE
#include <percpu.h>

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);

static int nr_left = -1; /* calls until one is refused; below 0: none is */
static int for_good, nr_refused;

static int refuses(void) {
  if (nr_left < 0) return 0;
  if (nr_left != 0 && --nr_left != 0) return 0;
  if (!for_good) nr_left = -1;
  nr_refused++;
  return 1;
}

/* The library's thread is made in first use, too, and no earlier: of what allocates there is one at a time. */
void *malloc(size_t size) {
  if (!refuses()) return __libc_malloc(size);
  errno = ENOMEM;
  return NULL;
}
void *calloc(size_t count, size_t size) {
  if (!refuses()) return __libc_calloc(count, size);
  errno = ENOMEM;
  return NULL;
}

enum { kNotReached = 3 };

static void left_behind(void) { _exit(1); } /* nobody but main ends this process, and that by _exit() */

static void use_first(int n) {
  CHECK(atexit(left_behind) == 0);
  nr_left = n;
  errno = 0;
  percpu_pool_t *pool = percpu_pool_default();
  const int error = errno;
  nr_left = -1;
  if (pool == NULL) CHECK(error == ENOMEM);
  CHECK(percpu_pool_default() != NULL);
  percpu_free(percpu_alloc(8, 8));
  _exit(nr_refused == 0 ? kNotReached : 0);
}

int main(void) {
  for (for_good = 0; for_good < 2; for_good++) {
    for (int n = 1;; n++) {
      const pid_t child = fork();
      CHECK(child >= 0);
      if (child == 0) use_first(n);
      int status = 1;
      CHECK(waitpid(child, &status, 0) == child);
      if (WIFEXITED(status) && WEXITSTATUS(status) == kNotReached) break;
      if (status != 0) fprintf(stderr, "call %d%s: wait status %d\n", n, for_good ? " and all after it" : "", status);
      CHECK(status == 0);
      CHECK(n < 1000);
    }
  }
  return 0;
}
