/* SPDX-License-Identifier: MIT */
/*
 * A program's life with malloc, twice: the first time some system call may fail (tests/faults/syscall_faults.cc), so that a
 * null pointer with ENOMEM, a thread or a child that cannot be made are fine, but nothing else is. The second time, behind
 * getppid(), everything must work, and as much must be in use as after the first.
 */
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

static size_t life(void) {
  blocks();
  growth();
  aligned();
  threads();
  child();
  malloc_trim(0);
  blocks();
  malloc_trim(0);
  return mallinfo2().uordblks;
}

int main(void) {
  const size_t before = life();
  (void)getppid();
  may_refuse = 0;
  const size_t after = life();
  /* Threads that begin leave something in libc; what the first life left, the second may have found and used. */
  if (after > before + 65536) {
    fprintf(stderr, "expected as much in use after the second life as after the first (%zu bytes), found %zu\n", before, after);
    return 1;
  }
  expect_nothing_left();
  return 0;
}
