/* SPDX-License-Identifier: MIT */
/* As an OpenMP runtime with OMP_PROC_BIND does: its constructor, which runs before the preload's, binds the main thread to a CPU. With
   PIN_TEST_SYSTEM_CALL by system calls, as LLVM's does. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int binding_library_cpu = -1;

static int ask(cpu_set_t *mask) {
  if (getenv("PIN_TEST_SYSTEM_CALL") == NULL) return pthread_getaffinity_np(pthread_self(), sizeof *mask, mask);
  CPU_ZERO(mask);
  return syscall(SYS_sched_getaffinity, 0, sizeof *mask, mask) > 0 ? 0 : -1;
}

static int set(const cpu_set_t *mask) {
  if (getenv("PIN_TEST_SYSTEM_CALL") == NULL) return pthread_setaffinity_np(pthread_self(), sizeof *mask, mask);
  return (int)syscall(SYS_sched_setaffinity, 0, sizeof *mask, mask);
}

__attribute__((constructor)) static void bind(void) {
  cpu_set_t mask;
  if (ask(&mask) != 0) abort();
  int cpu = 0;
  while (!CPU_ISSET((size_t)cpu, &mask)) cpu++;
  CPU_ZERO(&mask);
  CPU_SET((size_t)cpu, &mask);
  if (set(&mask) != 0) abort();
  binding_library_cpu = cpu;
}
