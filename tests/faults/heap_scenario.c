/* SPDX-License-Identifier: MIT */
/*
 * A program's life with malloc, twice: the first time some system call may fail (tests/faults/syscall_faults.cc), so that a
 * null pointer with ENOMEM, a thread or a child that cannot be made are fine, but nothing else is. The second time, behind
 * getppid(), everything must work. After each, what is in use is compared with a run without faults (scenario.h); after the
 * second, so are open files, address space and memory.
 */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scenario.h"

static unsigned char mark_of(const void *block) { return (unsigned char)((uintptr_t)block >> 4 | 1); }

static void fill(void *block, size_t size) {
  if (block != NULL) memset(block, mark_of(block), size);
}

static void check(const void *block, size_t size) {
  const unsigned char *bytes = block;
  if (block == NULL) return;
  for (size_t i = 0; i < size; i += size > 64 ? size / 64 : 1) EXPECT(bytes[i] == mark_of(block));
}

static size_t size_of(size_t i) {
  static const size_t sizes[] = {1, 16, 24, 100, 500, 3000, 20000, 32768, 40000, 150000, 700000};
  return sizes[i % (sizeof sizes / sizeof *sizes)];
}

enum { kBlocks = 66 };

static void blocks(void) {
  void *block[kBlocks];
  for (size_t i = 0; i < kBlocks; ++i) fill(block[i] = taken(malloc(size_of(i))), size_of(i));
  for (size_t i = 0; i < kBlocks; i += 2) {
    check(block[i], size_of(i));
    free(block[i]);
    block[i] = taken(calloc(1, size_of(i)));
    for (size_t at = 0; block[i] != NULL && at < size_of(i); at += 1 + size_of(i) / 50)
      EXPECT(((unsigned char *)block[i])[at] == 0);
    fill(block[i], size_of(i));
  }
  for (size_t i = 0; i < kBlocks; ++i) {
    check(block[i], size_of(i));
    free(block[i]);
  }
}

static void growth(void) {
  size_t size = 10;
  unsigned char *bytes = taken(malloc(size));
  if (bytes == NULL) return;
  memset(bytes, 7, size);
  while (size < 2000000) {
    unsigned char *more = taken(realloc(bytes, size * 3));
    if (more == NULL) break;
    bytes = more;
    for (size_t i = 0; i < size; i += 1 + size / 100) EXPECT(bytes[i] == 7);
    memset(bytes + size, 7, size * 2);
    size *= 3;
  }
  free(bytes);
}

static void aligned(void) {
  for (size_t align = 16; align <= (size_t)4 << 20; align *= 8) {
    void *block = NULL;
    const int result = posix_memalign(&block, align, align / 2 + 100);
    EXPECT(result == 0 || (result == ENOMEM && may_refuse));
    if (result != 0) continue;
    EXPECT((uintptr_t)block % align == 0);
    fill(block, align / 2 + 100);
    check(block, align / 2 + 100);
    free(block);
  }
}

static void *work(void *argument) {
  (void)argument;
  blocks();
  return NULL;
}

static void threads(void) {
  pthread_t thread[3];
  pthread_attr_t small;
  EXPECT(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, STACK_BYTES) == 0);
  int made[3];
  for (int i = 0; i < 3; ++i) {
    const int result = pthread_create(&thread[i], &small, work, NULL);
    EXPECT(result == 0 || (may_refuse && (result == EAGAIN || result == ENOMEM || result == ENOSYS)));
    made[i] = result == 0;
  }
  for (int i = 0; i < 3; ++i)
    if (made[i]) EXPECT(pthread_join(thread[i], NULL) == 0);
  pthread_attr_destroy(&small);
}

static void child(void) {
  void *kept = taken(malloc(1000));
  fill(kept, 1000);
  const pid_t pid = fork();
  if (pid < 0) {
    EXPECT(may_refuse);
  } else if (pid == 0) {
    check(kept, 1000);
    free(kept);
    blocks();
    growth();
    threads();
    _exit(0);
  } else {
    int status = -1;
    EXPECT(waitpid(pid, &status, 0) == pid);
    EXPECT(status == 0);
  }
  check(kept, 1000);
  free(kept);
}

static void life(void) {
  blocks();
  growth();
  aligned();
  threads();
  child();
  malloc_trim(0);
  blocks();
  malloc_trim(0);
}

/*
 * What is in the program's hands is libc's and libnuma's: threads' tables, masks of CPUs and nodes. It is the same in each run, but
 * for some 500 bytes where a thread, or what libnuma asks for, is refused.
 */
enum { BLOCKS_SLACK = 1 << 10 };
static void hold_blocks(const char *name) {
  hold((struct held){name, (long)mallinfo2().uordblks, BLOCKS_SLACK, BLOCKS_SLACK, 0});
}

/* The library came with the preload; the program is not linked with it. */
static long cpus_seen(void) {
  unsigned (*const ask)(void) = (unsigned (*)(void))dlsym(RTLD_DEFAULT, "percpu_machine_cpus_");
  EXPECT(ask != NULL);
  return (long)ask();
}

/* argv[1]: what is left behind on purpose (scenario.h), or "block". */
int main(int argc, char **argv) {
  const char *left = argc > 1 ? argv[1] : NULL;
  life();
  (void)getppid();
  may_refuse = 0;
  nr_cpus_seen = cpus_seen();
  if (leaks(left, "block")) EXPECT(malloc(2 * BLOCKS_SLACK) != NULL);
  leak_the_usual(left);
  hold_blocks("bytes in use after the first life");
  life();
  hold_blocks("bytes in use after the second life");
  hold_the_usual();
  expect_nothing_left();
  return 0;
}
