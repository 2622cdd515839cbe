/* SPDX-License-Identifier: MIT */
/* What the scenarios share: a check that ends the program with one line, and what a refusal may look like. */
#ifndef PERCPU_TESTS_FAULTS_SCENARIO_H
#define PERCPU_TESTS_FAULTS_SCENARIO_H

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#define EXPECT(what)                                                                        \
  do {                                                                                      \
    if (!(what)) {                                                                          \
      fprintf(stderr, "%s:%d: expected %s (errno %d)\n", __FILE__, __LINE__, #what, errno); \
      _exit(1);                                                                             \
    }                                                                                       \
  } while (0)

/* Whether some system call may fail: in the first of a scenario's two lives. */
static int may_refuse = 1;

/* What was asked for, or a refusal that is one. */
static inline void *taken(void *what) {
  EXPECT(what != NULL || (may_refuse && errno == ENOMEM));
  return what;
}

#endif
