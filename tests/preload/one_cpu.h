// SPDX-License-Identifier: MIT
//
// Keeps the calling thread on the CPU where it is, so that all it does is done to one CPU's caches.
#ifndef PERCPU_TESTS_PRELOAD_ONE_CPU_H
#define PERCPU_TESTS_PRELOAD_ONE_CPU_H

#include <sched.h>

// False and errno where it cannot.
inline bool stay_on_this_cpu() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<unsigned>(sched_getcpu()), &one);
  return sched_setaffinity(0, sizeof one, &one) == 0;
}

#endif  // PERCPU_TESTS_PRELOAD_ONE_CPU_H
