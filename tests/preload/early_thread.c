/* SPDX-License-Identifier: MIT */
/*
 * A library whose constructor, before the preload's, makes a thread and frees: the balance thread begins when there is nothing to do yet,
 * and has to hear of what comes. Two objects: that library, and a program that frees much at once and then only waits.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../as_told.h"

int preload_early_thread(void);

#if defined(PROGRAM)
int main(void) {
  expect_preload_as_told();
  static void *blocks[64];
  const size_t mebibyte = 1 << 20;
  if (!preload_early_thread()) return 2;
  for (size_t i = 0; i < 64; i++) blocks[i] = memset(malloc(mebibyte), 1, mebibyte);
  for (size_t i = 0; i < 64; i++) free(blocks[i]);
  for (int i = 0; i < 60000 && mallinfo2().keepcost >= mebibyte; i++) nanosleep(&(struct timespec){0, 10000000}, NULL);
  if (mallinfo2().keepcost < mebibyte) return 0;
  fprintf(stderr, "early_thread: expected less than 1 MiB in the end, found %zu\n", mallinfo2().keepcost);
  return 1;
}
#else
static int begun;

static void *run(void *unused) { return unused; }
__attribute__((constructor)) static void begin(void) {
  pthread_t thread;
  begun = pthread_create(&thread, NULL, run, NULL) == 0 && pthread_join(thread, NULL) == 0;
  free(malloc(100000));
}
int preload_early_thread(void) { return begun; }
#endif
