/* SPDX-License-Identifier: MIT */
/* Beside binding_library.c: what it bound stays bound, and so do threads that inherit it. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stddef.h>

extern int binding_library_cpu;

static int is_bound(void) {
  cpu_set_t mask;
  return sched_getaffinity(0, sizeof mask, &mask) == 0 && CPU_COUNT(&mask) == 1 && CPU_ISSET((size_t)binding_library_cpu, &mask);
}
static void *look(void *unused) { return is_bound() ? unused : NULL; }

int main(void) {
  int here = 0;
  void *result = NULL;
  pthread_t thread;
  if (!is_bound()) return 1;
  if (pthread_create(&thread, NULL, look, &here) != 0 || pthread_join(thread, &result) != 0) return 2;
  return result == &here ? 0 : 3;
}
