/* SPDX-License-Identifier: MIT */
/* Forks again and again while two threads allocate under the lock of fork_library.c, which its fork handlers take. */
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../as_told.h"

void fork_library_work(void);

static int stop;

static void *work(void *unused) {
  while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) fork_library_work();
  return unused;
}

int main(void) {
  expect_preload_as_told();
  enum { kThreads = 2, kForks = 500 };
  pthread_t threads[kThreads];
  for (int i = 0; i < kThreads; i++) pthread_create(&threads[i], NULL, work, NULL);
  int failed = 0;
  for (int i = 0; i < kForks; i++) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(600);  // bounds a hang
      fork_library_work();
      _exit(0);
    }
    int status = 1;
    failed += child < 0 || waitpid(child, &status, 0) != child || status != 0;
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  for (int i = 0; i < kThreads; i++) pthread_join(threads[i], NULL);
  printf("%d forks, %d failed\n", kForks, failed);
  return failed != 0;
}
