/* SPDX-License-Identifier: MIT */
/*
 * The library's face: the lines with a comment are those that its users are told, word for word, but for the number of a CPU
 * that this machine has. Includes nothing but what they include.
 */
#include <percpu.h>

PERCPU_DEFINE(long, requests) = 5;                              /* static: 5 on every CPU */

int main(void) {
  uint64_t *hits = percpu_alloc(sizeof *hits, alignof(uint64_t)); /* a handle, zero on every CPU */
  percpu_add(hits, 1);                                            /* this CPU's copy, a few instructions */
  uint64_t total = percpu_sum(hits);                              /* over all possible CPUs */
  uint64_t on3 = *percpu_ptr(hits, CPU_THREE);                    /* CPU 3's copy */
  percpu_free(hits);

  percpu_inc(percpu_static(requests));                            /* the handle of a static variable */

  unsigned possible = 0;
  for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) possible += percpu_cpu_possible(cpu) != 0;
  if (total != 1 || on3 > 1) return 1;
  if (percpu_sum(percpu_static(requests)) != 5 * (long)possible + 1) return 2;
  return requests == 5 ? 0 : 3;
}
