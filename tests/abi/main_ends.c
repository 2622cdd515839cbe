/* SPDX-License-Identifier: MIT */
/*
 * The main thread ends by pthread_exit(), and the process with its last thread: with status 0, and what was registered with atexit() is
 * called, whatever the library has in the background. Prints what that says.
 */
#include <percpu.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int worked;

static void say(void) { printf("at exit: %s\n", worked ? "the last thread has worked" : "too early"); }

static void *work(void *counter) {
  nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* the main thread has ended long since */
  percpu_inc((long *)counter);
  percpu_free(counter);
  worked = 1;
  return NULL;
}

int main(void) {
  alarm(120); /* bounds a hang */
  long *counter = percpu_alloc(sizeof *counter, sizeof *counter);
  /* Front caches that hold something start the balance thread. */
  percpu_free(percpu_alloc(8, 8));
  percpu_free(percpu_alloc(8, 8));
  pthread_t thread;
  if (counter == NULL || atexit(say) != 0 || pthread_create(&thread, NULL, work, counter) != 0) return 1;
  pthread_exit(NULL);
}
