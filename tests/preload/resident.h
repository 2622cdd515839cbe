// SPDX-License-Identifier: MIT
#ifndef PERCPU_TESTS_PRELOAD_RESIDENT_H
#define PERCPU_TESTS_PRELOAD_RESIDENT_H

#include <doctest/doctest.h>

#include <stdio.h>
#include <unistd.h>

// How much memory of this process is backed.
inline int resident_kib() {
  FILE* file = fopen("/proc/self/statm", "r");
  long total = 0;
  long resident = 0;
  REQUIRE(fscanf(file, "%ld %ld", &total, &resident) == 2);
  fclose(file);
  return static_cast<int>(resident * sysconf(_SC_PAGESIZE) / 1024);
}

#endif  // PERCPU_TESTS_PRELOAD_RESIDENT_H
