/* SPDX-License-Identifier: MIT */
/* Beside a library whose constructor binds the main thread before ours runs (../preload/pin/binding_library.c): other threads may run
   elsewhere all the same, and have their copies as ever. Whoever started this has the mask that it began with. */
#define _GNU_SOURCE
#include <percpu.h>

#include <sched.h>
#include <unistd.h>

#include "check.h"

extern int binding_library_cpu;

int main(void) {
  cpu_set_t initial, bound;
  CHECK(sched_getaffinity(getppid(), sizeof initial, &initial) == 0);
  CHECK(sched_getaffinity(0, sizeof bound, &bound) == 0);
  CHECK(CPU_COUNT(&bound) == 1 && CPU_ISSET((size_t)binding_library_cpu, &bound));
  struct percpu_stats stats;
  CHECK(percpu_stats_read(&stats, sizeof stats) == 0);
  CHECK(stats.populated_bytes / stats.page_bytes / stats.populated_pages == (size_t)CPU_COUNT(&initial));
  return 0;
}
