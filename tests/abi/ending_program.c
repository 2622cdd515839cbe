/* SPDX-License-Identifier: MIT */
/*
 * What ends, and what begins again:
 *   ending_program closed LIBRARY    the library is closed: its last destructors count before its variables are given back, and opened
 *                                    again it begins anew
 *   ending_program forked LIBRARY    a thread forks while the main thread is in exit(): the child is a process as any other
 */
#define _GNU_SOURCE
#include <percpu.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "ending.h"

static const char *library;

/* Of areas that live or wait for a grace period. */
static uint64_t live_bytes(percpu_pool_t *pool) {
  struct percpu_stats stats;
  CHECK(percpu_pool_stats_read(pool, &stats, sizeof stats) == 0);
  return stats.live_bytes;
}

/* Opens the library, uses it, closes it. Returns what it counted to. */
static long use_once(void) {
  void *opened = dlopen(library, RTLD_NOW);
  if (opened == NULL) fprintf(stderr, "%s\n", dlerror());
  CHECK(opened != NULL);
  ending_use_function *use;
  *(void **)&use = dlsym(opened, "ending_use");
  CHECK(use != NULL);
  struct ending_seen seen = {0, 0};
  const long count = use(&seen);
  dlclose(opened);
  /* Sums are over copies of 5, and of 7, each. */
  CHECK((count - 1) % 5 == 0 && seen.count == count + 1);
  CHECK(seen.late == (count - 1) / 5 * 7 + 100);
  return count;
}

static void closed(void) {
  percpu_pool_t *pool = percpu_pool_default();
  CHECK(pool != NULL);
  const uint64_t before = live_bytes(pool);
  const long first = use_once();
  for (int i = 0; i < 5; i++) {
    CHECK(use_once() == first);
    CHECK(live_bytes(pool) == before);
  }
}

static int exits, over;

static void wait_in_exit(void) {
  say(&exits);
  wait_for(&over);
}

static void child(void) {
  alarm(kHangSeconds);
  closed();
  percpu_pool_t *pool = percpu_pool_create(NULL);
  CHECK(pool != NULL);
  void *area = percpu_pool_alloc(pool, 8, 8, 0);
  CHECK(area != NULL && live_bytes(pool) != 0);
  percpu_pool_free_rcu(pool, area);
  while (live_bytes(pool) != 0) nap(10);
  CHECK(percpu_pool_destroy(pool) == 0);
}

static void *fork_in_exit(void *argument) {
  wait_for(&exits);
  const pid_t pid = fork();
  if (pid == 0) {
    child();
    _exit(0);
  }
  int status = 1;
  if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
    fprintf(stderr, "expected a child that ends well, found status %d\n", status);
    _exit(1);
  }
  say(&over);
  return argument;
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  library = argv[2];
  alarm(2 * kHangSeconds);
  if (strcmp(argv[1], "closed") == 0) {
    closed();
    return 0;
  }
  /* Before the first use, which installs the library's own: the handlers of exit() run in the opposite order. */
  CHECK(atexit(wait_in_exit) == 0);
  CHECK(percpu_pool_default() != NULL);
  percpu_free(percpu_alloc(8, 8));
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, fork_in_exit, NULL) == 0);
  return 0;
}
