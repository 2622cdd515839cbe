/* SPDX-License-Identifier: MIT */
/* As an OpenMP runtime with OMP_PROC_BIND does: its constructor, which runs before the preload's, binds the main thread to a CPU. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

int binding_library_cpu = -1;

__attribute__((constructor)) static void bind(void) {
  cpu_set_t mask;
  if (pthread_getaffinity_np(pthread_self(), sizeof mask, &mask) != 0) abort();
  int cpu = 0;
  while (!CPU_ISSET((size_t)cpu, &mask)) cpu++;
  CPU_ZERO(&mask);
  CPU_SET((size_t)cpu, &mask);
  if (pthread_setaffinity_np(pthread_self(), sizeof mask, &mask) != 0) abort();
  binding_library_cpu = cpu;
}
