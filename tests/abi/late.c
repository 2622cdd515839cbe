/* SPDX-License-Identifier: MIT */
#include "late.h"

#include <percpu.h>

static long target;
PERCPU_DEFINE_STATIC(long, late_count) = LATE_VALUE;
PERCPU_DEFINE_STATIC(long *, late_pointer) = &target;

#ifdef LATE_DEP
int late_dep(void);
#endif
#ifdef LATE_MISSING
int late_missing(void); /* there is none: the library cannot be loaded */
#endif

static long *count(void) {
#ifdef LATE_DEP
  (void)late_dep();
#endif
#ifdef LATE_MISSING
  (void)late_missing();
#endif
  return percpu_static(late_count);
}
static long **pointer(void) { return percpu_static(late_pointer); }

__attribute__((visibility("default"))) const struct late_calls *late_face(void);

const struct late_calls *late_face(void) {
  static const struct late_calls face = {count, pointer, &target};
  return &face;
}
