// SPDX-License-Identifier: MIT
#ifndef PERCPU_TESTS_PRELOAD_ADDRESS_SPACE_H
#define PERCPU_TESTS_PRELOAD_ADDRESS_SPACE_H

#include <doctest/doctest.h>

#include <stdio.h>
#include <unistd.h>

// How much address space this process has taken.
inline size_t address_space_bytes() {
  size_t pages = 0;
  FILE* statm = fopen("/proc/self/statm", "r");
  REQUIRE(statm != nullptr);
  REQUIRE(fscanf(statm, "%zu", &pages) == 1);
  fclose(statm);
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

#endif  // PERCPU_TESTS_PRELOAD_ADDRESS_SPACE_H
