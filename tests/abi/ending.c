/* SPDX-License-Identifier: MIT */
/*
 * A library whose last destructors count: one of the last priority that a program may ask for, which stands before the variables and so
 * among its equals runs after them, and uses one of them for the first time. See ending_program.c.
 */
#include <percpu.h>

#include "ending.h"

PERCPU_DECLARE(long, ending_count);
PERCPU_DECLARE(long, ending_late);

static struct ending_seen *seen;

__attribute__((destructor(101))) static void last(void) {
  if (seen == NULL) return;
  percpu_inc(percpu_static(ending_count));
  percpu_add(percpu_static(ending_late), 100);
  seen->count = percpu_sum(percpu_static(ending_count));
  seen->late = percpu_sum(percpu_static(ending_late));
}

PERCPU_DEFINE(long, ending_count) = 5;
PERCPU_DEFINE(long, ending_late) = 7;

__attribute__((visibility("default"))) long ending_use(struct ending_seen *see);

long ending_use(struct ending_seen *see) {
  seen = see;
  percpu_inc(percpu_static(ending_count));
  return percpu_sum(percpu_static(ending_count));
}
