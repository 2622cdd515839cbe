/* SPDX-License-Identifier: MIT */
#include "linked.h"

PERCPU_DEFINE(uint64_t, linked_count) = 3;
PERCPU_DEFINE(struct linked_pair, linked_both) = {10, 20};
PERCPU_DEFINE_STATIC(int, own) = -1;

uint64_t linked_count_at_start = 0;

__attribute__((constructor(101))) static void loaded(void) {
  percpu_inc(percpu_static(linked_count));
  linked_count_at_start = percpu_sum(percpu_static(linked_count));
}

uint64_t *linked_count_handle(void) { return percpu_static(linked_count); }

void linked_work(unsigned times) {
  for (unsigned i = 0; i < times; i++) {
    percpu_inc(percpu_static(linked_count));
    percpu_add(&percpu_static(linked_both)->second, 2);
    percpu_dec(percpu_static(own));
  }
}
