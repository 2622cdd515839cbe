/* SPDX-License-Identifier: MIT */
/* A program among interposers.c: blocks of all sizes, growing ones, threads, masks, memory that goes back. Writes a line. */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../as_told.h"

static void *work(void *unused) {
  void *blocks[200];
  for (int round = 0; round < 20; round++) {
    for (size_t i = 0; i < 200; i++) {
      blocks[i] = malloc(i * i * 11 + 1);
      if (blocks[i] == NULL) abort();
      memset(blocks[i], 1, i * i * 11 + 1);
    }
    for (size_t i = 0; i < 200; i++) free(blocks[i]);
  }
  cpu_set_t mask;
  if (sched_getaffinity(0, sizeof mask, &mask) != 0 || sched_setaffinity(0, sizeof mask, &mask) != 0) abort();
  return unused;
}

int main(void) {
  expect_preload_as_told();
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) {
    if (pthread_create(&threads[i], NULL, work, NULL) != 0) abort();
  }
  char *grown = NULL;
  for (size_t bytes = 1000; bytes < 30000000; bytes = bytes * 5 / 4) {
    grown = realloc(grown, bytes);
    if (grown == NULL) abort();
    grown[bytes - 1] = 1;
  }
  free(grown);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  malloc_trim(0);
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  puts("well");
  return 0;
}
