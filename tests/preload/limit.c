/* SPDX-License-Identifier: MIT
 *
 * Programs in miniature that need about as much memory as they are told, in ways that differ in what an allocator may
 * waste. Everything allocated is written to. Ends with 0, unless memory ran out first.
 *
 *   limit PATTERN MEBIBYTES
 *   limit                      lists the patterns, each with the least limit that it is to fit under when told 24 MiB
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include "../as_told.h"

static size_t total;

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static void *take(size_t size) {
  void *block = malloc(size);
  if (block == NULL) abort();
  memset(block, 1, size);
  return block;
}

/* Blocks of many small sizes until so many bytes are taken; returns how many. */
static size_t fill(void **blocks, size_t most, size_t bytes, size_t largest) {
  size_t count = 0;
  for (size_t sum = 0; sum < bytes && count < most; count++) {
    const size_t size = 16 + next() % largest;
    blocks[count] = take(size);
    sum += size;
  }
  return count;
}

enum { kMost = 4 << 20 };
static void **blocks;

/* Small blocks of all sizes, all freed; then the same memory as a mapping of the program's own. */
static void small_then_mapping(void) {
  size_t count = fill(blocks, kMost, total, 1000);
  while (count > 0) free(blocks[--count]);
  char *mapping = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) abort();
  memset(mapping, 1, total);
}

/* One large block after the other, each of half the memory, and larger than the one before. */
static void large(void) {
  for (size_t size = total / 4; size < total; size += total / 64) free(take(size));
}

/* A large block, then a mapping, then a large block. */
static void large_then_mapping(void) {
  for (int i = 0; i < 4; i++) {
    free(take(total));
    char *mapping = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) abort();
    memset(mapping, 1, total);
    munmap(mapping, total);
  }
}

/* The same of blocks, where no file descriptor is left to look at the limit by: from the beginning, or since it was known,
 * and for longer than it is believed. */
static void use_all_descriptors(void) {
  struct rlimit few = {64, 64};
  if (setrlimit(RLIMIT_NOFILE, &few) != 0) abort();
  while (open("/dev/null", O_RDONLY) >= 0) continue;
}

static void blocks_then_mapping(void) {
  for (int i = 0; i < 4; i++) {
    size_t count = 0;
    for (size_t sum = 0; sum < total; sum += 65536) blocks[count++] = take(65536 - 64);
    while (count > 0) free(blocks[--count]);
    char *mapping = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) abort();
    memset(mapping, 1, total);
    munmap(mapping, total);
  }
}

static void no_descriptors(void) {
  use_all_descriptors();
  blocks_then_mapping();
}

static void no_descriptors_later(void) {
  free(take(total / 2));
  use_all_descriptors();
  const struct timespec pause = {6, 0};
  nanosleep(&pause, NULL);
  blocks_then_mapping();
}

/* A block that grows. */
static void growing(void) {
  size_t size = 0;
  char *block = NULL;
  while (size < total) {
    const size_t step = 64 << 10;
    block = realloc(block, size + step);
    if (block == NULL) abort();
    memset(block + size, 1, step);
    size += step;
  }
  free(block);
}

/* Two that grow in turn, so that neither can do it in place. */
static void growing_together(void) {
  size_t size[2] = {0, 0};
  char *block[2] = {NULL, NULL};
  while (size[0] + size[1] < total) {
    for (int i = 0; i < 2; i++) {
      const size_t step = size[i] / 2 + 4096;
      block[i] = realloc(block[i], size[i] + step);
      if (block[i] == NULL) abort();
      memset(block[i] + size[i], 1, step);
      size[i] += step;
    }
  }
}

/* A set of blocks of small and middle sizes, one replaced by another all the time. */
static void churn(void) {
  size_t count = fill(blocks, kMost, total, 40000);
  for (size_t i = 0; i < 8 * count; i++) {
    void **block = &blocks[next() % count];
    free(*block);
    *block = take(16 + next() % 40000);
  }
}

/* Phases: in each, blocks of one size only. */
static void phases(void) {
  for (size_t size = 16; size <= 16384; size *= 2) {
    size_t count = 0;
    for (size_t sum = 0; sum < total; sum += size < 64 ? 64 : size) blocks[count++] = take(size);
    while (count > 0) free(blocks[--count]);
  }
}

/* Memory that is given back, and then a table that is large but hardly used. */
static void sparse(void) {
  free(take(total));
  char *table = calloc(64, total);
  if (table == NULL) abort();
  for (size_t i = 0; i < 64 * total; i += total) table[i] = 1;
}

/* Threads that allocate and end; what they leave is freed by the next. */
static void *thread_main(void *argument) {
  void ***kept = argument;
  void **old = *kept;
  for (size_t i = 0; old[i] != NULL; i++) free(old[i]);
  const size_t most = total / 64;
  void **mine = calloc(most, sizeof *mine);
  if (mine == NULL) abort();
  size_t sum = 0;
  for (size_t count = 0; sum < total / 4; count++) {
    const size_t size = 100 + (count * 7919) % 1000;
    mine[count] = take(size);
    sum += size;
  }
  free(old);
  *kept = mine;
  return NULL;
}

static void threads(void) {
  void **kept[4];
  for (int i = 0; i < 4; i++) kept[i] = calloc(1, sizeof *kept[i]);
  for (int round = 0; round < 4; round++) {
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
      if (pthread_create(&thread[i], NULL, thread_main, &kept[i]) != 0) abort();
    }
    for (int i = 0; i < 4; i++) pthread_join(thread[i], NULL);
  }
}

/* `limit`, in MiB: what the pattern needs at once of the 24 MiB that it is told, and what an allocator may add. */
static const struct {
  const char *name;
  void (*run)(void);
  int limit;
} patterns[] = {
    {"small_then_mapping", small_then_mapping, 54},
    {"large", large, 28},
    {"large_then_mapping", large_then_mapping, 30},
    {"no_descriptors", no_descriptors, 32},
    {"no_descriptors_later", no_descriptors_later, 32},
    {"growing", growing, 28},
    {"growing_together", growing_together, 40},
    {"churn", churn, 36},
    {"phases", phases, 37},
    {"sparse", sparse, 28},
    {"threads", threads, 54},
};

int main(int argc, char **argv) {
  expect_preload_as_told();
  if (argc != 3) {
    for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) printf("%s %d\n", patterns[i].name, patterns[i].limit);
    return 0;
  }
  total = (size_t)atol(argv[2]) << 20;
  /* Its own, so that it is no block. Only what is used of it is backed. */
  blocks = mmap(NULL, kMost * sizeof *blocks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (blocks == MAP_FAILED) return 2;
  for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
    if (strcmp(patterns[i].name, argv[1]) != 0) continue;
    patterns[i].run();
    return 0;
  }
  fprintf(stderr, "limit: expected a pattern (limit without arguments lists them), found %s\n", argv[1]);
  return 2;
}
