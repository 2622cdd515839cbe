// SPDX-License-Identifier: MIT
//
// Starts a program and tells what it and all its descendants used: wall and CPU time, and peak resident memory. It is a program of
// its own because Linux counts what the parent held at the fork into a child's ru_maxrss: below a Python interpreter no peak under
// 15 MB could be seen. This one holds less than 1 MB.
//
//   bench_launch RESULT INTERVAL program arguments...
//
// RESULT is a file that gets one line of JSON at the end. INTERVAL in milliseconds, where it is not 0, is how often the proportional
// resident memory of all descendants together is read (smaps_rollup): the peak of a tree of processes; else the peak is that of the
// largest process. SIGTERM, SIGINT and SIGHUP are passed on. The status is the program's, 128 + N for signal N, 127 if it could not run.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t child;

static void pass_on(int number) {
  const int saved = errno;
  if (child > 0) kill(child, number);
  errno = saved;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

// The parent of a process; 0 when it is gone.
static int parent_of(int process) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", process);
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  const size_t length = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[length] = 0;
  const char *behind_name = strrchr(text, ')');
  int parent = 0;
  if (behind_name == NULL || sscanf(behind_name + 1, " %*c %d", &parent) != 1) return 0;
  return parent;
}

static long proportional_kib(int process) {
  char path[64], line[256];
  snprintf(path, sizeof path, "/proc/%d/smaps_rollup", process);
  FILE *file = fopen(path, "re");
  if (file == NULL) return 0;
  long kib = 0;
  while (fgets(line, sizeof line, file) != NULL && sscanf(line, "Pss: %ld", &kib) != 1) continue;
  fclose(file);
  return kib;
}

// All descendants' proportional memory. Descendants are found by their parents, from us downwards.
static long tree_kib(void) {
  enum { kMost = 4096 };
  static int processes[kMost], parents[kMost];
  static char ours[kMost];
  int count = 0;
  DIR *proc = opendir("/proc");
  if (proc == NULL) return 0;
  for (struct dirent *entry; (entry = readdir(proc)) != NULL && count < kMost;) {
    const int process = atoi(entry->d_name);
    if (process <= 0) continue;
    processes[count] = process;
    ours[count] = 0;
    parents[count++] = parent_of(process);
  }
  closedir(proc);
  const int self = (int)getpid();
  long kib = 0;
  for (int found = 1; found;) {
    found = 0;
    for (int i = 0; i < count; i++) {
      if (ours[i]) continue;
      int descends = parents[i] == self;
      for (int j = 0; j < count && !descends; j++) descends = ours[j] && processes[j] == parents[i];
      if (!descends) continue;
      ours[i] = 1;
      found = 1;
      kib += proportional_kib(processes[i]);
    }
  }
  return kib;
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: %s RESULT INTERVAL program arguments...\n", argv[0]);
    return 2;
  }
  const long interval = atol(argv[2]);
  // Descendants whose parent ends become ours, so that they are waited for and counted.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
  const int passed[] = {SIGTERM, SIGINT, SIGHUP};
  const double begin = seconds();
  child = fork();
  if (child < 0) {
    perror("fork");
    return 127;
  }
  if (child == 0) {
    const char *preload = getenv("BENCH_PRELOAD");
    if (preload != NULL) setenv("LD_PRELOAD", preload, 1);
    unsetenv("BENCH_PRELOAD");
    execvp(argv[3], argv + 3);
    perror(argv[3]);
    _exit(127);
  }
  for (size_t i = 0; i < sizeof passed / sizeof passed[0]; i++) sigaction(passed[i], &action, NULL);

  int status = 0, ended = 0;
  double end = begin;
  long peak_kib = 0, tree_peak_kib = 0;
  double cpu = 0;
  for (;;) {
    int one;
    struct rusage usage;
    const pid_t pid = wait4(-1, &one, interval > 0 ? WNOHANG : 0, &usage);
    if (pid < 0 && errno == ECHILD) break;
    if (pid < 0) continue;
    if (pid == 0) {
      const long kib = tree_kib();
      if (kib > tree_peak_kib) tree_peak_kib = kib;
      const struct timespec pause = {interval / 1000, interval % 1000 * 1000000};
      nanosleep(&pause, NULL);
      continue;
    }
    cpu += (double)usage.ru_utime.tv_sec + 1e-6 * (double)usage.ru_utime.tv_usec + (double)usage.ru_stime.tv_sec +
           1e-6 * (double)usage.ru_stime.tv_usec;
    if (usage.ru_maxrss > peak_kib) peak_kib = usage.ru_maxrss;
    if (pid == child) {
      status = one;
      ended = 1;
      end = seconds();
      child = 0;
    }
  }
  if (!ended) return 127;
  FILE *result = fopen(argv[1], "we");
  if (result == NULL) {
    perror(argv[1]);
    return 127;
  }
  fprintf(result, "{\"wall\": %.6f, \"cpu\": %.6f, \"peak\": %ld, \"tree_peak\": %ld}\n", end - begin, cpu, peak_kib * 1024,
          tree_peak_kib * 1024);
  fclose(result);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
