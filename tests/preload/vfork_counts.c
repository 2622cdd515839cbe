// SPDX-License-Identifier: MIT
//
// A child of vfork() that changes a per-CPU counter: it has no rseq, and what it finds out about itself is not its parent's, whose words it
// shares. The parent has its CPU's caches again, and its sequences.
#define _DEFAULT_SOURCE
#include <malloc.h>
#include <percpu.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/rseq.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 32, ROUNDS = 20 };

/* Whether what this thread frees waits in its CPU's cache. */
static int has_caches(void) {
  static void *volatile blocks[BLOCKS];
  for (int i = 0; i < BLOCKS; i++) blocks[i] = malloc(200);
  const size_t before = mallinfo2().fsmblks;
  for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
  return mallinfo2().fsmblks > before;
}

int main(void) {
  if (__rseq_size == 0) {
    puts("vfork_counts: skipped, there is no rseq");
    return 77;
  }
  long *hits = percpu_alloc(sizeof *hits, sizeof *hits);
  if (hits == NULL || !has_caches()) {
    puts("vfork_counts: expected a counter, and blocks that wait in caches");
    return 1;
  }
  for (int i = 0; i < ROUNDS; i++) {
    const pid_t child = vfork();
    if (child == 0) {
      percpu_inc(hits);
      void *volatile block = malloc(100);
      free(block);
      _exit(0);
    }
    int status = 1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
    if (!has_caches()) {
      printf("vfork_counts: round %d: expected the parent's caches, found that it has none any more\n", i);
      return 1;
    }
    percpu_inc(hits);
  }
  if (percpu_sum(hits) != 2 * ROUNDS) {
    printf("vfork_counts: expected %d events, found %ld\n", 2 * ROUNDS, percpu_sum(hits));
    return 1;
  }
  return 0;
}
