/* SPDX-License-Identifier: MIT */
/* What the scenarios share: a check that ends the program with one line, and what a refusal may look like. */
#ifndef PERCPU_TESTS_FAULTS_SCENARIO_H
#define PERCPU_TESTS_FAULTS_SCENARIO_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

/* Memory of its own that it has in use, in KiB: what files back is not counted. (Not by statm, which is only near it.) */
static inline long memory_kib(void) {
  char text[4096] = {0};
  const int file = open("/proc/self/smaps_rollup", O_RDONLY);
  EXPECT(file >= 0 && read(file, text, sizeof text - 1) > 0);
  close(file);
  const char *line = strstr(text, "\nAnonymous:");
  EXPECT(line != NULL);
  return atol(line + strlen("\nAnonymous:"));
}

/*
 * Nothing is left behind by a call that failed: what is held after each life is compared with what it is where no call fails.
 * FAULTS_HELD names a file (tests/faults/syscall_faults.cc): with FAULTS_LEARN a run writes into it the least and the most that was
 * found; the others compare. What may differ, and why, is said where it is held.
 */
enum { STACK_BYTES = 256 << 10, HOLDS_MORE = 3, HOLDS_MEMORY = 4 /* exit statuses: the latter where it is memory alone */ };

struct held {
  const char *name;
  long found, less, more; /* how much less and more than in a run without faults is fine */
  int memory;             /* compared only where as many CPUs were seen as usual: each costs */
};
#define ANY_LESS (LONG_MAX / 2)
enum { MOST_HELD = 16 };
static struct held held[MOST_HELD];
static size_t nr_held;
static long nr_cpus_seen; /* where the kernel could not be asked, perhaps more than there are */

static inline void hold(struct held what) {
  EXPECT(nr_held < MOST_HELD);
  held[nr_held++] = what;
}

/* Whether this run compares. */
static inline int compares(void) { return getenv("FAULTS_HELD") != NULL && getenv("FAULTS_LEARN") == NULL; }

/*
 * Open files, address space, memory: at the end of the second life, when everything that can go back went.
 * The stacks that libc keeps of ended threads, of STACK_BYTES each, may be more or fewer; and the balance thread has one of the
 * usual size where it cannot have a small one: 8 MiB of address space. Of memory these are a few pages. What a pool keeps
 * populated differs by a quarter of a unit, which is not worth giving back: 32 KiB in each copy, of which two CPUs have three.
 */
enum { SPACE_SLACK_KIB = 9 << 10 };
static inline long memory_slack_kib(void) { return 32 + 48 * nr_cpus_seen; }

static inline void hold_the_usual(void) {
  hold((struct held){.name = "open files", .found = nr_open_files()});
  hold((struct held){"KiB of address space", address_space_kib(), ANY_LESS, SPACE_SLACK_KIB, 1});
  hold((struct held){"KiB of memory", memory_kib(), ANY_LESS, memory_slack_kib(), 1});
}

/* What the file has, and how it goes on. */
struct usual {
  long nr_cpus;
  struct {
    long least, most;
  } held[MOST_HELD];
};

/* The exit status; 0: everything is as usual. */
static inline int compare(const struct usual *usual) {
  int status = 0;
  for (size_t i = 0; i < nr_held; ++i) {
    const long least = usual->held[i].least - held[i].less;
    const long most = usual->held[i].most + held[i].more;
    if (held[i].memory && nr_cpus_seen != usual->nr_cpus) continue;
    if (held[i].found >= least && held[i].found <= most) continue;
    fprintf(stderr, "expected %ld to %ld %s, found %ld\n", least > 0 ? least : 0, most, held[i].name, held[i].found);
    if (status != HOLDS_MORE) status = held[i].memory ? HOLDS_MEMORY : HOLDS_MORE;
  }
  return status;
}

static inline void learn(struct usual *usual, int is_first) {
  usual->nr_cpus = nr_cpus_seen;
  for (size_t i = 0; i < nr_held; ++i) {
    if (is_first || held[i].found < usual->held[i].least) usual->held[i].least = held[i].found;
    if (is_first || held[i].found > usual->held[i].most) usual->held[i].most = held[i].found;
  }
}

/* The end of a scenario. */
static inline void expect_nothing_left(void) {
  const char *name = getenv("FAULTS_HELD");
  if (name == NULL) return;
  struct usual usual;
  const int file = open(name, O_RDWR);
  EXPECT(file >= 0);
  const ssize_t length = read(file, &usual, sizeof usual);
  if (compares()) {
    EXPECT(length == sizeof usual);
    const int status = compare(&usual);
    if (status != 0) _exit(status);
  } else {
    memset(&usual, 0, length == 0 ? sizeof usual : 0);
    learn(&usual, length == 0);
    EXPECT(pwrite(file, &usual, sizeof usual, 0) == sizeof usual);
  }
  close(file);
}

/*
 * Controls: what is left behind on purpose, where `what` is `kind`; not by the runs that the others are compared with. Of address
 * space and memory it is not much more than what may differ.
 */
static inline int leaks(const char *what, const char *kind) { return what != NULL && strcmp(what, kind) == 0 && compares(); }

static inline void leak_mapping(long kib, int protection) {
  const size_t bytes = (size_t)kib << 10;
  void *lost = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  EXPECT(lost != MAP_FAILED);
  if (protection != PROT_NONE) memset(lost, 1, bytes);
}

static inline void leak_the_usual(const char *what) {
  if (leaks(what, "file")) EXPECT(open("/dev/null", O_RDONLY) >= 0);
  if (leaks(what, "space")) leak_mapping(SPACE_SLACK_KIB + 2048, PROT_NONE);
  if (leaks(what, "memory")) leak_mapping(2 * memory_slack_kib(), PROT_READ | PROT_WRITE);
}

#endif
