/* SPDX-License-Identifier: MIT */
/* What the programs here share: a check that ends the program with one line, and flags that threads wait for. */
#ifndef PERCPU_TESTS_ABI_CHECK_H
#define PERCPU_TESTS_ABI_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);    \
      exit(1);                                                                    \
    }                                                                             \
  } while (0)

/* Bounds a hang, not a duration. */
enum { kHangSeconds = 600 };

static inline void nap(long milliseconds) {
  const struct timespec time = {0, milliseconds * 1000 * 1000};
  nanosleep(&time, NULL);
}
static inline void wait_for(const int *flag) {
  while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) == 0) nap(1);
}
static inline void say(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }

#endif /* PERCPU_TESTS_ABI_CHECK_H */
