/* SPDX-License-Identifier: MIT */
/* What the kernel says of the balance thread of this process. In C and C++; allocates nothing but for opendir(). */
#ifndef PERCPU_TESTS_BALANCE_THREAD_H
#define PERCPU_TESTS_BALANCE_THREAD_H

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* The beginning of /proc/self/task/TID/NAME, as text. Returns 1, or 0 where it cannot be read. */
static inline int read_of_task(int tid, const char *name, char *text, size_t size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/%s", tid, name);
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  const ssize_t got = read(file, text, size - 1);
  close(file);
  text[got > 0 ? got : 0] = 0;
  return got > 0;
}

/* Its number; 0 where there is none, or none yet: it gives itself its name. */
static inline pid_t balance_thread(void) {
  pid_t found = 0;
  DIR *tasks = opendir("/proc/self/task");
  if (tasks == NULL) abort();
  for (const struct dirent *task; found == 0 && (task = readdir(tasks)) != NULL;) {
    char name[32];
    const int tid = atoi(task->d_name); /* 0: "." and ".." */
    if (tid != 0 && read_of_task(tid, "comm", name, sizeof name) && strcmp(name, "percpu-balance\n") == 0) found = tid;
  }
  closedir(tasks);
  return found;
}

/* In which system call a thread is, and its fourth argument. Returns 1; 0: it runs; -1: the kernel does not say. */
static inline int system_call_of(pid_t tid, long *number, unsigned long *fourth) {
  char text[256];
  if (!read_of_task(tid, "syscall", text, sizeof text)) return -1;
  return sscanf(text, "%ld %*x %*x %*x %lx", number, fourth) == 2;
}

/* Waits until the balance thread waits for readers: between two looks at them liburcu sleeps in poll(). Where the kernel does not say
 * what it does, for half a second. */
static inline void await_grace_period(void) {
  for (;;) {
    const pid_t tid = balance_thread();
    long number = -1;
    unsigned long fourth = 0;
    const int told = tid != 0 ? system_call_of(tid, &number, &fourth) : 0;
#ifdef SYS_poll
    if (number == SYS_poll) return;
#endif
    if (number == SYS_ppoll) return;
    const struct timespec pause = {0, (told < 0 ? 500 : 1) * 1000L * 1000};
    nanosleep(&pause, NULL);
    if (told < 0) return;
  }
}

#endif /* PERCPU_TESTS_BALANCE_THREAD_H */
