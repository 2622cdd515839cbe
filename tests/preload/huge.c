/* SPDX-License-Identifier: MIT
 *
 * Under the preload: what is backed by huge pages, as the kernel says (AnonHugePages). Ends with 77 where the system has none.
 *
 *   huge auto|on|off      as PERCPU_CONF's thp says
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../as_told.h"

enum { kMiB = 1 << 20 };

static size_t kib(const char *name) {
  FILE *file = fopen("/proc/self/smaps_rollup", "r");
  char line[256];
  size_t sum = 0;
  while (file != NULL && fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, name, strlen(name)) == 0) sum = strtoul(line + strlen(name), NULL, 10);
  }
  if (file != NULL) fclose(file);
  return sum;
}

static int failed = 0;
static void expect(int right, const char *what) {
  if (right) return;
  printf("huge: %s: found %zu KiB in huge pages of %zu KiB\n", what, kib("AnonHugePages:"), kib("Rss:"));
  failed = 1;
}

enum { kBlocks = 200 * 1024, kSize = 1000 };
static void *blocks[kBlocks];

static void fill(int from, int to) {
  for (int i = from; i < to; i++) memset(blocks[i] = malloc(kSize), 1, kSize);
}

int main(int argc, char **argv) {
  expect_preload_as_told();
  char setting[128] = "";
  FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "r");
  if (argc != 2 || file == NULL || fgets(setting, sizeof setting, file) == NULL || strstr(setting, "[never]") != NULL) return 77;
  fclose(file);
  const int always = strstr(setting, "[always]") != NULL;
  const int off = strcmp(argv[1], "off") == 0;
  const int large = strcmp(argv[1], "on") == 0 || (always && !off);

  /* A small program has none. */
  fill(0, kBlocks / 10);
  expect(kib("AnonHugePages:") == 0, "a heap of 20 MiB must have no huge pages");

  fill(kBlocks / 10, kBlocks);
  const size_t full = kib("Rss:");
  const size_t huge = kib("AnonHugePages:");
  expect(off ? huge == 0 : huge > 100 * 1024, off ? "thp:off must have none" : "of 200 MiB of small blocks more than half must be huge");
  expect(full < 235 * 1024, "the heap must not be larger than its blocks and a region");

  /* A large block that is hardly used: backed by huge pages only where that was asked for. */
  char *table = malloc(64 * kMiB);
  for (int i = 0; i < 64; i++) table[(size_t)i * kMiB] = 1;
  const size_t with_table = kib("Rss:");
  expect(large ? kib("AnonHugePages:") > huge + 32 * 1024 : with_table < full + 4 * 1024, "a sparse block");
  free(table);

  /* Sparse regions go back, and stay so. */
  for (int i = 0; i < kBlocks; i++) {
    if (i % 64 != 0) free(blocks[i]);
  }
  malloc_trim(0);
  expect(kib("AnonHugePages:") < 20 * 1024, "regions of which little is used must not be huge");
  expect(kib("Rss:") < full / 2, "what is free must go back");
  for (int i = 0; i < kBlocks; i += 64) free(blocks[i]);
  malloc_trim(0);
  expect(kib("AnonHugePages:") == 0, "an empty heap must have no huge pages");
  expect(kib("Rss:") < 16 * 1024, "an empty heap must be small");

  /* And again, from what was given back (which the kernel makes huge when it likes: it has page tables for it now). */
  fill(0, kBlocks);
  expect(!off || kib("AnonHugePages:") == 0, "thp:off must have none the second time either");
  expect(kib("Rss:") < 235 * 1024, "the second time it must not be larger");
  if (!failed) printf("huge: %s: %zu KiB of %zu KiB huge\n", argv[1], kib("AnonHugePages:"), kib("Rss:"));
  return failed;
}
