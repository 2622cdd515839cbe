/* SPDX-License-Identifier: MIT */
/*
 * A program's life with libpercpu, twice: the first time some system call may fail (tests/faults/syscall_faults.cc), so that an
 * allocation, a pool, a thread or a child that is refused is fine, but nothing else is. The second time, behind getppid(),
 * everything must work. Counts are exact both times. After each, what is in use is compared with a run without faults
 * (scenario.h); after the second, so are chunks, pages, open files, address space and memory.
 */
#include <percpu.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scenario.h"

PERCPU_DEFINE(long, begun) = 5;

enum { kAreas = 120, kThreads = 3, kEvents = 1000 };

/* What must not block may find no populated memory, or a lock held, at any time. */
static void *taken_at_once(void *handle) {
  EXPECT(handle != NULL || errno == ENOMEM || errno == EAGAIN);
  return handle;
}

static void areas(percpu_pool_t *pool) {
  void *handle[kAreas];
  for (size_t i = 0; i < kAreas; ++i) {
    const size_t size = i % 7 == 0 ? 9000 : 8 + 24 * (i % 20);
    handle[i] = i % 5 == 0 ? taken_at_once(percpu_pool_alloc(pool, size, 8, PERCPU_ATOMIC | PERCPU_NOWARN))
                           : taken(percpu_pool_alloc(pool, size, 8, PERCPU_NOWARN));
    if (handle[i] == NULL) continue;
    EXPECT(percpu_pool_alloc_size(pool, handle[i]) == size);
    unsigned char *copy;
    percpu_pool_for_each_copy(pool, copy, (unsigned char *)handle[i]) {
      for (size_t at = 0; at < size; at += 1 + size / 40) EXPECT(copy[at] == 0);
      memset(copy, 0xa5, size);
    }
  }
  for (size_t i = 0; i < kAreas; ++i) {
    if (i % 11 == 0) percpu_pool_free_rcu(pool, handle[i]);
    else percpu_pool_free(pool, handle[i]);
  }
}

static uint64_t *events;

static void *count(void *argument) {
  (void)argument;
  for (int i = 0; i < kEvents; ++i) percpu_inc(events);
  return NULL;
}

static void counting(void) {
  const uint64_t before = percpu_sum(events);
  pthread_t thread[kThreads];
  pthread_attr_t small;
  EXPECT(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, STACK_BYTES) == 0);
  int made = 0;
  for (int i = 0; i < kThreads; ++i) {
    const int result = pthread_create(&thread[made], &small, count, NULL);
    EXPECT(result == 0 || may_refuse);
    made += result == 0;
  }
  for (int i = 0; i < made; ++i) EXPECT(pthread_join(thread[i], NULL) == 0);
  pthread_attr_destroy(&small);
  EXPECT(percpu_sum(events) == before + (uint64_t)made * kEvents);
}

static void child(void) {
  const pid_t pid = fork();
  if (pid < 0) {
    EXPECT(may_refuse);
  } else if (pid == 0) {
    areas(percpu_pool_default());
    counting();
    percpu_balance();
    percpu_pool_check(percpu_pool_default());
    _exit(0);
  } else {
    int status = -1;
    EXPECT(waitpid(pid, &status, 0) == pid && status == 0);
  }
}

static void another_pool(void) {
  struct percpu_pool_attr attr = {.struct_bytes = sizeof attr, .name = "another", .nr_cpus = 8, .unit_size = 32 << 10};
  percpu_pool_t *pool = taken(percpu_pool_create(&attr));
  if (pool == NULL) return;
  areas(pool);
  percpu_pool_balance(pool);
  percpu_pool_check(pool);
  EXPECT(percpu_pool_destroy(pool) == 0);
}

static void life(void) {
  areas(percpu_pool_default());
  counting();
  another_pool();
  long *begun_at = percpu_static(begun);
  percpu_add(begun_at, 2);
  child();
  percpu_fence(PERCPU_ALL_CPUS);
  percpu_balance();
  percpu_pool_check(percpu_pool_default());
}

/* What percpu_free_rcu() was given goes back behind a grace period, by the balance thread where there is one. */
static struct percpu_stats stats_at_rest(void) {
  struct percpu_stats stats;
  for (int tries = 0; tries < 60000; ++tries) {
    EXPECT(percpu_balance() == 0 && percpu_stats_read(&stats, sizeof stats) == 0);
    if (stats.nr_live != 1 || stats.live_bytes == percpu_alloc_size(events)) break;
    usleep(10000);
  }
  return stats;
}

/* Counts are the same in each run. */
static struct percpu_stats hold_areas(const char *areas, const char *bytes, const char *cached) {
  const struct percpu_stats stats = stats_at_rest();
  hold((struct held){.name = areas, .found = (long)stats.nr_live});
  hold((struct held){.name = bytes, .found = (long)stats.live_bytes});
  hold((struct held){.name = cached, .found = (long)stats.nr_cached});
  return stats;
}

/*
 * Of the chunks without an area one stays, and up to a quarter of its pages with it; which of them the balance thread gave back or
 * made anew is a matter of time.
 */
static void hold_chunks(const struct percpu_stats *stats) {
  const long quarter = (long)(stats->unit_bytes / stats->page_bytes / 4);
  hold((struct held){.name = "chunks", .found = (long)stats->nr_chunks, .less = ANY_LESS});
  hold((struct held){"populated pages", (long)stats->populated_pages, ANY_LESS, quarter, 1});
}

/* argv[1]: what is left behind on purpose (scenario.h), or "area". */
int main(int argc, char **argv) {
  const char *left = argc > 1 ? argv[1] : NULL;
  for (int tries = 0; events == NULL && tries < 3; ++tries) events = taken(percpu_alloc_flags(sizeof *events, 8, PERCPU_NOWARN));
  EXPECT(events != NULL);
  life();
  (void)getppid();
  may_refuse = 0;
  nr_cpus_seen = (long)percpu_nr_cpu_ids();
  if (leaks(left, "area")) EXPECT(percpu_alloc(4, 4) != NULL);
  leak_the_usual(left);
  const long begun_before = percpu_sum(percpu_static(begun));
  (void)hold_areas("areas after the first life", "bytes of areas after the first life", "cached areas after the first life");
  life();
  EXPECT(percpu_sum(percpu_static(begun)) == begun_before + 2);
  const struct percpu_stats stats = hold_areas("areas", "bytes of areas", "cached areas");
  hold_chunks(&stats);
  hold_the_usual();
  percpu_free(events);
  expect_nothing_left();
  return 0;
}
