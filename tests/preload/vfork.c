/* SPDX-License-Identifier: MIT
 *
 * A child on its parent's memory and thread-local words stays away from the CPUs' caches, by whichever of libc's names it was made; the
 * parent has them again afterwards. It has no rseq of its own, so what it did to a cache another CPU could do at the same time.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/rseq.h>
#include <sys/wait.h>
#include <unistd.h>

/* libc's second names, which no header has. */
pid_t __vfork(void) __attribute__((returns_twice));
int __clone(int (*run)(void *), void *stack, int flags, void *argument, ...);

enum { BLOCKS = 32, SIZE = 200, ROUNDS = 20, STACK = 256 * 1024 };

static void *volatile freed_by_child[BLOCKS];
static void *volatile taken_by_child[BLOCKS];
static char stack[STACK] __attribute__((aligned(16)));

/* Frees and takes blocks, more than a cache would hold back, or give, at once. */
static int use_heap(void *unused) {
  (void)unused;
  const size_t before = mallinfo2().fsmblks;
  for (int i = 0; i < BLOCKS; i++) free(freed_by_child[i]);
  if (mallinfo2().fsmblks != before) _exit(1);
  for (int i = 0; i < BLOCKS; i++) taken_by_child[i] = malloc(SIZE);
  _exit(mallinfo2().fsmblks == before ? 0 : 2);
}

/* Whether what this thread frees waits in its CPU's cache. */
static int has_caches(void) {
  static void *volatile blocks[BLOCKS];
  for (int i = 0; i < BLOCKS; i++) blocks[i] = malloc(SIZE);
  const size_t before = mallinfo2().fsmblks;
  for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
  return mallinfo2().fsmblks > before;
}

static const char *const kWays[] = {"vfork", "__vfork", "clone", "__clone"};

static pid_t make_child(int way) {
  const int flags = CLONE_VM | CLONE_VFORK | SIGCHLD;
  pid_t child = -1;
  switch (way) {
    case 0:
      child = vfork();
      break;
    case 1:
      child = __vfork();
      break;
    case 2: return clone(use_heap, stack + STACK, flags, NULL);
    default: return __clone(use_heap, stack + STACK, flags, NULL);
  }
  if (child == 0) use_heap(NULL);
  return child;
}

int main(void) {
  if (__rseq_size == 0) {
    puts("vfork: skipped, there is no rseq");
    return 77;
  }
  for (int round = 0; round < ROUNDS; round++) {
    for (int way = 0; way < 4; way++) {
      if (!has_caches()) {
        printf("%s, round %d: expected the parent's caches, found that it has none\n", kWays[way], round);
        return 1;
      }
      for (int i = 0; i < BLOCKS; i++) freed_by_child[i] = malloc(SIZE);
      const pid_t child = make_child(way);
      int status = -1;
      if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        printf("%s, round %d: expected a child that leaves the caches as they are, found status %#x\n", kWays[way], round, status);
        return 1;
      }
      for (int i = 0; i < BLOCKS; i++) free(taken_by_child[i]);
    }
  }
  return has_caches() ? 0 : 1;
}
