/* SPDX-License-Identifier: MIT */
/*
 * What libraries of late.c need: it calls the program while it is relocated, when they are listed and not relocated yet, and when it
 * is closed, when their destructors have run.
 */
#include <stddef.h>

extern void (*late_hook)(void);

static int nothing(void) { return 0; }
__attribute__((used)) static int (*choose(void))(void) {
  if (late_hook != NULL) late_hook();
  return nothing;
}
/* Static: it is for the relocation of this library, not of who calls it, to ask. */
static int chosen(void) __attribute__((ifunc("choose")));

int late_dep(void);
__attribute__((visibility("default"))) int late_dep(void) { return chosen(); }

__attribute__((destructor)) static void closing(void) {
  if (late_hook != NULL) late_hook();
}
