/* SPDX-License-Identifier: MIT
 *
 * Threads that take buffers, write them, pass them on, and give back what they were passed, while another trims the cache and prints
 * what it does.
 *
 *   exchange [THREADS [ROUNDS]]        4 threads and 200,000 rounds each, unless told otherwise
 *
 * Ends with 0 if no buffer was lost or had two owners at once.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "buffers.h"

static struct buffers *cache;
static size_t rounds = 200000;
static atomic_size_t working, wrong;

/* Where one thread leaves a buffer for whoever comes next. */
enum { kPlaces = 64 };
static _Atomic(uint64_t *) places[kPlaces];

static void check(uint64_t *buffer) {
  const size_t words = BUFFER_BYTES / sizeof *buffer;
  if (buffer[1] != ~buffer[0] || buffer[words - 1] != buffer[0]) atomic_fetch_add(&wrong, 1);
  memset(buffer, 0, BUFFER_BYTES); /* who still believed it to be theirs would find that */
  buffers_give(cache, buffer);
}

static void check_place(size_t place, uint64_t *next) {
  uint64_t *left = atomic_exchange(&places[place], next);
  if (left != NULL) check(left);
}

/* So that lists fill up and run dry. */
static void collect_all(void) {
  for (size_t i = 0; i < kPlaces; i++) check_place(i, NULL);
}

static void *work(void *argument) {
  uint64_t seed = (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15u | 1;
  for (size_t round = 0; round < rounds; round++) {
    uint64_t *buffer = buffers_take(cache);
    if (buffer == NULL) abort();
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    buffer[0] = seed;
    buffer[1] = ~seed;
    buffer[BUFFER_BYTES / sizeof *buffer - 1] = seed;
    check_place((seed >> 32) % kPlaces, buffer);
    if (round % 1000 == 0) collect_all();
  }
  atomic_fetch_sub(&working, 1);
  return NULL;
}

static void print(const char *when) {
  struct buffers_stats stats;
  buffers_read(cache, &stats);
  printf("%s: %" PRIu64 " taken from a list, %" PRIu64 " from malloc, %" PRIu64 " given back, %" PRIu64 " trimmed\n", when, stats.hits,
         stats.misses, stats.given, stats.trimmed);
}

static size_t number(const char *text, size_t most) {
  char *end = NULL;
  errno = 0;
  const unsigned long value = strtoul(text, &end, 10);
  if (errno != 0 || *text < '0' || *text > '9' || *end != '\0' || value == 0 || value > most) {
    fprintf(stderr, "exchange: expected a number from 1 to %zu, found %s\n", most, text);
    exit(2);
  }
  return value;
}

int main(int argc, char **argv) {
  enum { kMaxThreads = 1000 };
  static pthread_t threads[kMaxThreads];
  if (argc > 3) {
    fprintf(stderr, "usage: exchange [THREADS [ROUNDS]]\n");
    return 2;
  }
  const size_t nr_threads = argc > 1 ? number(argv[1], kMaxThreads) : 4;
  if (argc > 2) rounds = number(argv[2], 1000000000);
  cache = buffers_create();
  if (cache == NULL) {
    perror("exchange: buffers_create");
    return 1;
  }
  atomic_store(&working, nr_threads);
  for (size_t i = 0; i < nr_threads; i++) {
    if (pthread_create(&threads[i], NULL, work, (void *)(i + 1)) != 0) abort();
  }
  int refused = 0;
  while (atomic_load(&working) != 0) {
    if (buffers_trim(cache, 16) != 0 && refused++ == 0) perror("exchange: buffers_trim"); /* it goes on without */
    nanosleep(&(struct timespec){0, 1000000}, NULL);
  }
  print("while they worked");
  for (size_t i = 0; i < nr_threads; i++) pthread_join(threads[i], NULL);
  collect_all();
  print("at the end");
  struct buffers_stats stats;
  buffers_read(cache, &stats);
  buffers_destroy(cache);
  const uint64_t taken = (uint64_t)nr_threads * rounds;
  if (stats.hits + stats.misses != taken || stats.given != taken || atomic_load(&wrong) != 0) {
    printf("expected %" PRIu64 " buffers taken and as many given back, each by one owner; found %" PRIu64 ", %" PRIu64 ", and %zu wrong\n",
           taken, stats.hits + stats.misses, stats.given, atomic_load(&wrong));
    return 1;
  }
  return 0;
}
