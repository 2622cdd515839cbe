/* SPDX-License-Identifier: MIT */
/* A shared library with per-CPU variables of its own, that the program links. */
#ifndef PERCPU_TESTS_ABI_LINKED_H
#define PERCPU_TESTS_ABI_LINKED_H

#include <percpu.h>

#ifdef __cplusplus
extern "C" {
#endif

struct linked_pair {
  uint64_t first, second;
};
PERCPU_DECLARE(uint64_t, linked_count);
PERCPU_DECLARE(struct linked_pair, linked_both);

uint64_t *linked_count_handle(void);
void linked_work(unsigned times);
/* What the library's constructor counted, and in how many of its own variables it found the initial value. */
extern uint64_t linked_count_at_start;

#ifdef __cplusplus
}
#endif

#endif /* PERCPU_TESTS_ABI_LINKED_H */
