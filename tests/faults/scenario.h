/* SPDX-License-Identifier: MIT */
/* What the scenarios share: a check that ends the program with one line, and what a refusal may look like. */
#ifndef PERCPU_TESTS_FAULTS_SCENARIO_H
#define PERCPU_TESTS_FAULTS_SCENARIO_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPECT(what)                                                                        \
  do {                                                                                      \
    if (!(what)) {                                                                          \
      fprintf(stderr, "%s:%d: expected %s (errno %d)\n", __FILE__, __LINE__, #what, errno); \
      _exit(1);                                                                             \
    }                                                                                       \
  } while (0)

/* Whether some system call may fail: in the first of a scenario's two lives. */
static int may_refuse = 1;

/* What was asked for, or a refusal that is one. */
static inline void *taken(void *what) {
  EXPECT(what != NULL || (may_refuse && errno == ENOMEM));
  return what;
}

/* The process's open files. */
static inline long nr_open_files(void) {
  const int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
  EXPECT(folder >= 0);
  long count = -3; /* ".", "..", and the folder itself */
  char entries[4096];
  for (long bytes; (bytes = syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0;) {
    unsigned short length = 0;
    for (long at = 0; at < bytes; at += length) {
      memcpy(&length, entries + at + 16, sizeof length);
      ++count;
    }
  }
  close(folder);
  return count;
}

/* The address space that it has taken, in KiB. */
static inline long address_space_kib(void) {
  char text[64] = {0};
  const int file = open("/proc/self/statm", O_RDONLY);
  EXPECT(file >= 0 && read(file, text, sizeof text - 1) > 0);
  close(file);
  return atol(text) * (sysconf(_SC_PAGESIZE) / 1024);
}

/*
 * Nothing is left behind by a call that failed: of open files and address space there is as much after both lives as where none did.
 * FAULTS_HELD names a file (tests/faults/syscall_faults.cc): who finds it empty is the one where none fails, and writes down what it has.
 * The stacks that libc keeps of ended threads, of STACK_BYTES each, may be more or fewer; and the balance thread has one of the usual size
 * where it cannot have a small one.
 */
enum { STACK_BYTES = 256 << 10, SLACK_KIB = 9 << 10, HOLDS_MORE = 3 /* exit status */ };
static inline void expect_nothing_left(void) {
  const char *name = getenv("FAULTS_HELD");
  if (name == NULL) return;
  const long files = nr_open_files();
  const long kib = address_space_kib();
  char text[64] = {0};
  const int file = open(name, O_RDWR);
  EXPECT(file >= 0);
  const ssize_t length = read(file, text, sizeof text - 1);
  if (length == 0) {
    const int bytes = snprintf(text, sizeof text, "%ld %ld", files, kib);
    EXPECT(write(file, text, (size_t)bytes) == bytes);
  } else {
    char *rest = NULL;
    const long usual_files = strtol(text, &rest, 10);
    const long usual_kib = strtol(rest, NULL, 10);
    if (files != usual_files || kib > usual_kib + SLACK_KIB) {
      fprintf(stderr, "expected %ld open files and at most %ld KiB of address space, found %ld and %ld\n", usual_files,
              usual_kib + SLACK_KIB, files, kib);
      _exit(HOLDS_MORE);
    }
  }
  close(file);
}

#endif
