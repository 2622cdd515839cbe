/* SPDX-License-Identifier: MIT */
/* What the variants of values.c report. */
#ifndef PERCPU_TESTS_OPS_VALUES_H
#define PERCPU_TESTS_OPS_VALUES_H

#ifdef __cplusplus
extern "C" {
#endif

struct values_result {
  unsigned long nr_checks, nr_failures;
  char first[400]; /* the first failure */
};

#ifdef VALUES_NAME
void VALUES_NAME(struct values_result *into);
#endif

#ifdef __cplusplus
}
#endif

#endif
