/* SPDX-License-Identifier: MIT */
#include "late.h"

#include <percpu.h>

static long target;
PERCPU_DEFINE_STATIC(long, late_count) = LATE_VALUE;
PERCPU_DEFINE_STATIC(long *, late_pointer) = &target;

static long *count(void) { return percpu_static(late_count); }
static long **pointer(void) { return percpu_static(late_pointer); }

__attribute__((visibility("default"))) const struct late_calls *late_face(void);

const struct late_calls *late_face(void) {
  static const struct late_calls face = {count, pointer, &target};
  return &face;
}
