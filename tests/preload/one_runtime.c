/* SPDX-License-Identifier: MIT
 *
 * A program that is linked with libpercpu, the shared library or the archive, under the preload: both use the same one, so there is one
 * balance thread when both have asked for theirs.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <percpu.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *what, long found) {
  fprintf(stderr, "one_runtime: %s, found %ld\n", what, found);
  return 1;
}

static long nr_threads(void) {
  long count = 0;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *task; tasks != NULL && (task = readdir(tasks)) != NULL;) count += task->d_name[0] != '.';
  if (tasks != NULL) closedir(tasks);
  return count;
}

/* Areas wait in front caches only once this library's balance thread is there to look after them. */
static int balance_thread_serves(void) {
  struct percpu_stats stats;
  percpu_free(percpu_alloc(64, 8));
  percpu_stats_read(&stats, sizeof stats);
  return stats.nr_cached != 0;
}

static void *work(void *argument) {
  for (int i = 0; i < 10000; i++) {
    percpu_add((long *)argument, 1);
    free(malloc(100));
  }
  return NULL;
}

int main(void) {
  if (dlsym(RTLD_DEFAULT, "mallctl") == NULL) return fail("expected to run under the preload, and its mallctl", 0);
  long *hits = percpu_alloc(sizeof *hits, sizeof *hits);
  if (hits == NULL) return fail("expected a counter", 0);
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) {
    if (pthread_create(&threads[i], NULL, work, hits) != 0) return 1;
  }
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  const long sum = percpu_sum(hits);
  if (sum != 40000) return fail("expected a sum of 40000", sum);

  /* The preload asked for its thread when the first of ours was created. Ended ones may be seen for a moment. */
  int tries = 0;
  while (!balance_thread_serves() && ++tries < 600000) usleep(1000);
  for (tries = 0; nr_threads() != 2 && ++tries < 600000;) usleep(1000);
  if (nr_threads() != 2) return fail("expected this thread and one balance thread", nr_threads());
  if (!balance_thread_serves()) return fail("expected a balance thread that serves", 0);
  puts("one_runtime: one");
  return 0;
}
