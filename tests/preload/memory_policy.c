/* SPDX-License-Identifier: MIT
 *
 * Under a preload that sees three nodes: where the process was started with a memory policy, as numactl does, the heap has one node
 * and binds nothing. Sets a policy, and becomes itself anew.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/mempolicy.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void malloc_stats_print(void (*write)(void *, const char *), void *context, const char *options) __attribute__((weak));

struct text {
  char chars[1 << 16];
  size_t length;
};

static void take(void *context, const char *piece) {
  struct text *text = context;
  size_t length = strlen(piece);
  if (length > sizeof text->chars - 1 - text->length) length = sizeof text->chars - 1 - text->length;
  memcpy(text->chars + text->length, piece, length);
  text->length += length;
}

/* How many nodes the statistics tell of. */
static int nodes(void) {
  static struct text text;
  malloc_stats_print(take, &text, NULL);
  int count = 0;
  for (const char *at = text.chars; (at = strstr(at, "  node ")) != NULL; at++) count++;
  return count;
}

static int become(char **argv, int mode, unsigned long mask, char *expected) {
  if (syscall(SYS_set_mempolicy, mode, mask != 0 ? &mask : NULL, mask != 0 ? 8 * sizeof mask : 0) != 0) {
    printf("memory_policy: skipped, policies cannot be set: %s\n", strerror(errno));
    return 77;
  }
  char *arguments[] = {argv[0], expected, NULL};
  execv("/proc/self/exe", arguments);
  perror("memory_policy: expected to become itself anew");
  return 1;
}

int main(int argc, char **argv) {
  if (malloc_stats_print == NULL) return 2;
  if (argc == 1) return become(argv, MPOL_DEFAULT, 0, "3");
  const int expected = argv[1][0] - '0';
  const int found = nodes();
  if (found != expected) {
    fprintf(stderr, "memory_policy: expected %d nodes, found %d\n", expected, found);
    return 1;
  }
  if (expected == 3) return become(argv, MPOL_INTERLEAVE, 1, "1");
  puts("memory_policy: held");
  return 0;
}
