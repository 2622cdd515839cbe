/* SPDX-License-Identifier: MIT
 *
 * Forks at the worst moments, under the preload.
 *
 *   forks handler    a program of one thread forks in a signal handler, whatever that interrupted: malloc(), free(), malloc_trim(),
 *                    another fork
 *   forks stdio      threads allocate while they hold locks of stdio, others flush all files, and others fork
 *
 * A hang is ended by SIGALRM.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../as_told.h"

enum { kForks = 400, kBlocks = 200, kLargest = 70000, kHangSeconds = 600 };

static void fail(const char *what) {
  const char *const parts[] = {"forks: ", what, "\n"};
  for (int i = 0; i < 3; i++) {
    if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0) break;
  }
  _exit(1);
}

/* Forks; the child does what `child` says, which must leave it well. */
static void fork_and_wait(void (*child)(void)) {
  const pid_t pid = fork();
  if (pid < 0) fail("fork() failed");
  if (pid == 0) {
    child();
    _exit(0);
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
  }
  if (status != 0) fail("a child ended badly");
}

static void nothing(void) {}

static void allocate(void) {
  for (size_t size = 1; size < kLargest; size *= 2) {
    char *block = malloc(size);
    if (block == NULL) fail("a child has no memory");
    memset(block, 1, size);
    free(block);
  }
}

/* ---- in a handler -------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t forks;

/* The child of a handler may call what is safe in a handler only. */
static void fork_now(int number) {
  (void)number;
  fork_and_wait(nothing);
  forks++;
}

static void handler(void) {
  struct sigaction action = {.sa_handler = fork_now, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);
  const pid_t parent = getpid();
  const pid_t sender = fork();
  if (sender < 0) fail("fork() failed");
  while (sender == 0) {
    usleep(200);
    if (getppid() != parent || kill(parent, SIGUSR1) != 0) _exit(0);
  }
  unsigned char *blocks[kBlocks] = {0};
  unsigned seed = 1;
  for (unsigned i = 0; forks < kForks; i++) {
    const unsigned at = (unsigned)rand_r(&seed) % kBlocks;
    const size_t size = 1 + (size_t)rand_r(&seed) % kLargest;
    if (blocks[at] != NULL && blocks[at][0] != (unsigned char)at) fail("a block was changed");
    free(blocks[at]);
    blocks[at] = malloc(size);
    if (blocks[at] == NULL) fail("no memory");
    blocks[at][0] = (unsigned char)at;
    /* The time between two signals is to be spent where the heap holds its locks. */
    if (i % 16 == 0) malloc_trim(0);
    if (i % 256 == 0) fork_and_wait(nothing);
  }
  kill(sender, SIGKILL);
  while (waitpid(sender, NULL, 0) < 0) {
  }
  for (int i = 0; i < kBlocks; i++) free(blocks[i]);
}

/* ---- among those who use stdio --------------------------------------------------------------------------------------------- */

static atomic_int stop;

static void *read_lines(void *unused) {
  (void)unused;
  char *text = malloc(kLargest);
  if (text == NULL) fail("no memory");
  memset(text, 'x', kLargest);
  text[kLargest - 1] = '\n';
  while (!stop) {
    FILE *file = fmemopen(text, kLargest, "r");
    if (file == NULL) fail("fmemopen() failed");
    char *line = NULL;
    size_t capacity = 0;
    if (getline(&line, &capacity, file) != kLargest) fail("getline() lost something");
    free(line);
    fclose(file);
  }
  free(text);
  return NULL;
}

static void *flush(void *unused) {
  (void)unused;
  while (!stop) fflush(NULL);
  return NULL;
}

static void stdio(void) {
  enum { kReaders = 4, kFlushers = 2 };
  pthread_t threads[kReaders + kFlushers];
  for (int i = 0; i < kReaders + kFlushers; i++) {
    if (pthread_create(&threads[i], NULL, i < kReaders ? read_lines : flush, NULL) != 0) fail("no thread");
  }
  for (int i = 0; i < kForks; i++) fork_and_wait(allocate);
  stop = 1;
  for (int i = 0; i < kReaders + kFlushers; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
  expect_preload_as_told();
  alarm(kHangSeconds);
  if (argc == 2 && strcmp(argv[1], "handler") == 0) {
    handler();
  } else if (argc == 2 && strcmp(argv[1], "stdio") == 0) {
    stdio();
  } else {
    fprintf(stderr, "usage: %s handler|stdio\n", argv[0]);
    return 2;
  }
  printf("good\n");
  return 0;
}
