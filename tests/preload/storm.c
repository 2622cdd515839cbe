/* SPDX-License-Identifier: MIT
 *
 * Under the preload: threads that allocate, grow, free each other's blocks, are signalled and migrate, while the process
 * forks and its children do the same. Each block carries a pattern of its own, checked before it is freed: a block that two own, or
 * that lost its content, is seen.
 *
 *   storm OPERATIONS FORKS [SEED [CHILD-THREADS]]
 * OPERATIONS of a thread between two forks; SEED 0: one that changes; CHILD-THREADS 0: children make no thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../as_told.h"

enum { kThreads = 6, kShared = 4096, kOwn = 256 };

struct block {
  uint64_t tag;
  size_t size;
};

static _Atomic(struct block *) shared[kShared];
static atomic_int stop;
static atomic_long signals;
static long operations;

static void on_signal(int number) {
  (void)number;
  atomic_fetch_add_explicit(&signals, 1, memory_order_relaxed);
}

static uint64_t next(uint64_t *seed) {
  *seed ^= *seed << 13;
  *seed ^= *seed >> 7;
  *seed ^= *seed << 17;
  return *seed;
}

static size_t some_size(uint64_t *seed) {
  const uint64_t r = next(seed);
  if (r % 64 == 0) return 40000 + next(seed) % 400000;
  if (r % 8 == 0) return sizeof(struct block) + next(seed) % 30000;
  return sizeof(struct block) + next(seed) % 600;
}

/* The bytes at both ends that are written and looked at, behind the head. */
enum { kEnd = 200 };

static void fill(struct block *b, size_t size, uint64_t tag) {
  unsigned char *bytes = (unsigned char *)(b + 1);
  const size_t length = size - sizeof *b, end = length < kEnd ? length : kEnd;
  b->tag = tag;
  b->size = size;
  memset(bytes, (int)(tag & 0xff), end);
  memset(bytes + length - end, (int)(tag & 0xff), end);
}

/* `kept`: as many of the block's bytes as there still are. */
static void check_kept(const struct block *b, size_t kept) {
  const unsigned char *bytes = (const unsigned char *)(b + 1);
  const size_t length = b->size - sizeof *b;
  for (size_t i = 0; i < kept - sizeof *b; i = i + 1 == kEnd && length > 2 * kEnd ? length - kEnd : i + 1) {
    if (bytes[i] == (unsigned char)(b->tag & 0xff)) continue;
    fprintf(stderr, "storm: block %p of %zu bytes: byte %zu is %u, expected %u\n", (const void *)b, b->size, i, bytes[i],
            (unsigned)(b->tag & 0xff));
    abort();
  }
}

static void check(const struct block *b) {
  check_kept(b, b->size);
  if (malloc_usable_size((void *)(uintptr_t)b) < b->size) abort();
}

static struct block *make(uint64_t *seed) {
  const size_t size = some_size(seed);
  struct block *b = NULL;
  switch (next(seed) % 4) {
    case 0: b = calloc(1, size); break;
    case 1:
      if (posix_memalign((void **)&b, (size_t)16 << next(seed) % 9, size) != 0) abort();
      break;
    default: b = malloc(size);
  }
  if (b == NULL) abort();
  fill(b, size, next(seed));
  return b;
}

static void work(uint64_t *seed, long rounds) {
  struct block *own[kOwn] = {0};
  for (long i = 0; i < rounds && !stop; i++) {
    const unsigned k = next(seed) % kOwn;
    if (own[k] != NULL) {
      check(own[k]);
      if (next(seed) % 8 == 0) {
        const size_t size = some_size(seed);
        const struct block head = *own[k];
        own[k] = realloc(own[k], size);
        if (own[k] == NULL || own[k]->tag != head.tag || own[k]->size != head.size) abort();
        check_kept(own[k], head.size < size ? head.size : size);
        fill(own[k], size, next(seed));
        continue;
      }
      /* Half of them are freed by whoever finds them. */
      struct block *old = own[k];
      if (next(seed) % 2 == 0) old = atomic_exchange(&shared[next(seed) % kShared], old);
      if (old != NULL) {
        check(old);
        free(old);
      }
    }
    own[k] = make(seed);
  }
  for (unsigned k = 0; k < kOwn; k++) free(own[k]);
}

static void *thread_main(void *argument) {
  uint64_t seed = (uint64_t)(uintptr_t)argument;
  while (!stop) work(&seed, operations);
  return NULL;
}

int main(int argc, char **argv) {
  expect_preload_as_told();
  const int forks = argc > 2 ? atoi(argv[2]) : 50;
  const uint64_t told_seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 0;
  const uint64_t first_seed = told_seed != 0 ? told_seed : (uint64_t)getpid() * 2654435761u + 1;
  const bool child_threads = argc <= 4 || atoi(argv[4]) != 0;
  uint64_t seed = first_seed;
  operations = argc > 1 ? atol(argv[1]) : 2000;
  printf("storm: seed %llu\n", (unsigned long long)first_seed);
  fflush(stdout);
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);
  pthread_t threads[kThreads];
  for (uintptr_t i = 0; i < kThreads; i++) {
    if (pthread_create(&threads[i], NULL, thread_main, (void *)(first_seed + 77 * (i + 1))) != 0) abort();
  }
  for (int i = 0; i < forks; i++) {
    for (int k = 0; k < kThreads; k++) pthread_kill(threads[k], SIGUSR1);
    const pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
      /* What the parent's threads shared, the child owns too; then it works with a thread of its own. */
      for (int k = 0; k < kShared; k++) {
        struct block *b = shared[k];
        if (b == NULL) continue;
        check(b);
        free(b);
      }
      memset(shared, 0, sizeof shared);
      work(&seed, 500);
      pthread_t thread;
      operations = 200;
      if (child_threads && pthread_create(&thread, NULL, thread_main, (void *)(uintptr_t)(seed | 1)) != 0) abort();
      work(&seed, 500);
      stop = 1;
      if (child_threads) pthread_join(thread, NULL);
      _exit(0);
    }
    int status = 0;
    if (waitpid(child, &status, 0) != child) abort();
    if (status != 0) {
      fprintf(stderr, "storm: child %d of seed %llu ended with status 0x%x\n", i, (unsigned long long)first_seed, status);
      return 1;
    }
    work(&seed, operations);
    if (i % 10 == 0) malloc_trim(0);
  }
  stop = 1;
  for (int i = 0; i < kThreads; i++) pthread_join(threads[i], NULL);
  for (int k = 0; k < kShared; k++) {
    if (shared[k] == NULL) continue;
    check(shared[k]);
    free(shared[k]);
  }
  printf("storm: %d forks, %ld signals, all blocks intact\n", forks, (long)signals);
  return 0;
}
