// SPDX-License-Identifier: MIT
//
// Whether a test runs under what it was told to run under.
#ifndef PERCPU_TESTS_AS_TOLD_H
#define PERCPU_TESTS_AS_TOLD_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Ends the process where our preload is not there: the dynamic linker only warns of one that it cannot load, and the test would pass
// under another malloc.
static inline void expect_preload(void) {
  FILE *const maps = fopen("/proc/self/maps", "re");
  char line[4096];
  int found = 0;
  while (maps != NULL && !found && fgets(line, sizeof line, maps) != NULL) found = strstr(line, "libpercpu_preload") != NULL;
  if (maps != NULL) (void)fclose(maps);
  if (found) return;
  (void)fprintf(stderr, "expected to run under libpercpu_preload, found another malloc\n");
  exit(1);
}

// The same of a test that runs without the preload, too: where LD_PRELOAD names it.
static inline void expect_preload_as_told(void) {
  const char *const told = getenv("LD_PRELOAD");
  if (told != NULL && strstr(told, "libpercpu_preload") != NULL) expect_preload();
}

#endif  // PERCPU_TESTS_AS_TOLD_H
