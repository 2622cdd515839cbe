/* SPDX-License-Identifier: MIT */
/*
 * Forks while another thread
 *   allocates, opens   is a reader for whom a grace period waits, and then allocates, or opens a file
 *   flushes            has the lock of stdio's list of files, and uses the library for the first time
 * and nobody waits for the thread that forks: the fork is over when the other one is, and the child's grace periods work.
 *
 *   rcu_fork allocates|opens|flushes
 */
#include <percpu.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <urcu-bp.h>

#include "../abi/check.h"
#include "../as_told.h"
#include "../balance_thread.h"

static int reads, forks;
static int opens;

static void *reader(void *unused) {
  urcu_bp_read_lock();
  say(&reads);
  wait_for(&forks);
  nap(300); /* by now the fork waits, or will not */
  if (opens) {
    FILE *file = fopen("/dev/null", "w");
    CHECK(file != NULL);
    fclose(file);
  } else {
    void *blocks[200];
    for (size_t i = 0; i < 200; i++) blocks[i] = malloc(20000 + i * 300);
    for (size_t i = 0; i < 200; i++) free(blocks[i]);
  }
  urcu_bp_read_unlock();
  return unused;
}

/* Of areas that live or wait for a grace period. */
static unsigned long live_bytes(percpu_pool_t *pool) {
  struct percpu_stats stats;
  CHECK(percpu_pool_stats_read(pool, &stats, sizeof stats) == 0);
  return (unsigned long)stats.live_bytes;
}

static void child(void) {
  alarm(kHangSeconds);
  percpu_pool_t *pool = percpu_pool_create(NULL);
  CHECK(pool != NULL);
  percpu_pool_free_rcu(pool, percpu_pool_alloc(pool, 8, 8, 0));
  while (live_bytes(pool) != 0) nap(10); /* for ever, where the fork gave up waiting for a grace period */
  _exit(0);
}

static ssize_t use_first(void *cookie, const char *text, size_t bytes) {
  (void)cookie, (void)text;
  say(&reads);
  wait_for(&forks);
  nap(300);
  CHECK(percpu_pool_default() != NULL);
  return (ssize_t)bytes;
}

static void *flush_all(void *unused) {
  fflush(NULL);
  return unused;
}

/* Forks while the other thread is where it was to come to. */
static void fork_beside(pthread_t thread) {
  say(&forks);
  const pid_t pid = fork();
  if (pid == 0) child();
  int status = 1;
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  CHECK(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv) {
  expect_preload_as_told();
  CHECK(argc == 2);
  alarm(kHangSeconds);
  pthread_t thread;
  if (strcmp(argv[1], "flushes") == 0) {
    FILE *file = fopencookie(NULL, "w", (cookie_io_functions_t){.write = use_first});
    CHECK(file != NULL && fputs("x", file) >= 0);
    CHECK(pthread_create(&thread, NULL, flush_all, NULL) == 0);
    wait_for(&reads);
  } else {
    opens = strcmp(argv[1], "opens") == 0;
    CHECK(pthread_create(&thread, NULL, reader, NULL) == 0);
    wait_for(&reads);
    percpu_free_rcu(percpu_alloc(8, 8));
    await_grace_period(); /* without one the fork would not wait */
  }
  fork_beside(thread);
  return 0;
}
