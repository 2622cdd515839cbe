// SPDX-License-Identifier: MIT
//
// A program that enters a sandbox, after it began, which refuses membarrier and sched_setaffinity: the CPUs' caches can be fenced no
// more. free() leaves errno as it was all the same, and forks say once what they go without.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 4096, ROUNDS = 8, FORKS = 3 };

static int enter_sandbox(void) {
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sched_setaffinity, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static void *wait_for_end(void *argument) {
  (void)argument;
  for (;;) pause();
  return NULL;
}

static int nr_lines_with(int file, const char *words) {
  static char text[65536];
  const ssize_t got = pread(file, text, sizeof text - 1, 0);
  text[got > 0 ? got : 0] = '\0';
  int count = 0;
  for (const char *at = text; (at = strstr(at, words)) != NULL; at++) count++;
  return count;
}

int main(void) {
  static void *volatile blocks[BLOCKS];
  int nr_wrong = 0;
  if (!enter_sandbox()) {
    puts("sandboxed: skipped, no seccomp filter can be set");
    return 77;
  }
  for (int i = 0; i < BLOCKS; i++) blocks[i] = malloc(64 + (size_t)(i % 64) * 400);
  for (int i = 0; i < BLOCKS; i++) free(blocks[i]);
  // Without threads of its own a program ticks when it frees: that looks after caches which nobody used lately.
  for (int i = 0; i < ROUNDS; i++) {
    void *volatile block = malloc(100000);
    usleep(230000);
    errno = 4711;
    free(block);
    if (errno != 4711) {
      printf("errno behind free: expected 4711, found %d\n", errno);
      nr_wrong++;
    }
  }
  pthread_t thread;
  if (pthread_create(&thread, NULL, wait_for_end, NULL) != 0) return 1;
  const int file = memfd_create("stderr", MFD_CLOEXEC);
  const int saved = dup(2);
  dup2(file, 2);
  for (int i = 0; i < FORKS; i++) {
    const pid_t child = fork();
    if (child == 0) _exit(0);
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) nr_wrong++;
  }
  dup2(saved, 2);
  const int lines = nr_lines_with(file, "fork: the CPUs' caches cannot be fenced");
  if (lines != 1) {
    printf("%d forks: expected one line about their fence, found %d\n", FORKS, lines);
    nr_wrong++;
  }
  return nr_wrong == 0 ? 0 : 1;
}
