/* SPDX-License-Identifier: MIT */
/*
 * A library as many are: its constructor installs fork handlers that take a lock, which its threads hold while they allocate.
 * Linked to the program, it is initialised before the preload. See fork_program.c.
 */
#include <pthread.h>
#include <stdlib.h>

void fork_library_work(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void take(void) { pthread_mutex_lock(&lock); }
static void give(void) { pthread_mutex_unlock(&lock); }

__attribute__((constructor)) static void install(void) { pthread_atfork(take, give, give); }

void fork_library_work(void) {
  void *blocks[40];
  take();
  for (size_t i = 0; i < 40; i++) blocks[i] = malloc(i % 2 == 0 ? 20000 + i * 300 : 8 + i * 16);
  for (size_t i = 0; i < 40; i++) free(blocks[i]);
  give();
}
