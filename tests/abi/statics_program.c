/* SPDX-License-Identifier: MIT */
/*
 * Static per-CPU variables over the shipped library: those of the program, of a shared library that it links, and of ones
 * that it opens and closes. Compiled as C and as C++, with and without PIE.
 *
 *   statics_program <plugin> <the same again under another name> <one too large for the reserved part> <one in C++>
 */
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <percpu.h>

#include "check.h"
#include "linked.h"
#include "plugin.h"

PERCPU_DEFINE(long, own) = 7;
PERCPU_DEFINE_STATIC(char[3], text) = {'a', 'b', 0};

/* What a constructor that runs before the library's (if it has any) finds. */
static long early_own = 0;
static uint64_t early_linked = 0;
__attribute__((constructor(101))) static void early(void) {
  percpu_inc(percpu_static(own));
  early_own = percpu_sum(percpu_static(own));
  early_linked = percpu_sum(percpu_static(linked_count));
}

static unsigned nr_possible(void) {
  unsigned possible = 0;
  for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) possible += percpu_cpu_possible(cpu) != 0;
  return possible;
}

static uint64_t nr_live(void) {
  struct percpu_stats stats;
  CHECK(percpu_stats_read(&stats, sizeof stats) == 0);
  return stats.nr_live;
}

static size_t resident_kib(void) {
  size_t pages = 0, total = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  CHECK(file != NULL && fscanf(file, "%zu %zu", &total, &pages) == 2);
  fclose(file);
  return pages * (size_t)sysconf(_SC_PAGESIZE) / 1024;
}

static unsigned flags_of(void *handle) {
  struct percpu_address info;
  CHECK(percpu_address_info(percpu_ptr((char *)handle, 0), &info) == 1);
  CHECK((info.flags & PERCPU_INFO_STATIC) != 0);
  return info.flags;
}

struct opened {
  void *library;
  const struct plugin_calls *face;
};

static struct opened open_plugin(const char *path, int mode) {
  struct opened opened;
  plugin_face_function face;
  opened.library = dlopen(path, mode);
  if (opened.library == NULL) fprintf(stderr, "%s\n", dlerror());
  CHECK(opened.library != NULL);
  *(void **)(&face) = dlsym(opened.library, "plugin_face");
  CHECK(face != NULL);
  opened.face = face();
  return opened;
}

/* Its variables are as new, and work. */
static void use_new(const struct plugin_calls *face) {
  const unsigned possible = nr_possible();
  CHECK(percpu_sum(face->count()) == 1);
  for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) {
    if (!percpu_cpu_possible(cpu)) continue;
    const int *table = percpu_ptr(face->table(), cpu);
    for (unsigned i = 0; i < face->table_words; i++) CHECK(table[i] == (i < 3 ? (int)i + 1 : 0));
  }
  CHECK(face->sum_of_fives() == 5 * (long)possible);
  face->work(100);
  percpu_add(face->count(), 10);
  CHECK(percpu_sum(face->count()) == 111);
  percpu_add(face->table() + face->table_words - 1, 4);
  CHECK((long)percpu_sum(face->table() + face->table_words - 1) == 4 + (face->table_words == 3 ? 3 * (long)possible : 0));
}

static void own_and_linked(void) {
  const unsigned possible = nr_possible();
  CHECK(early_own == 7 * (long)possible + 1);
  CHECK(percpu_sum(percpu_static(own)) == early_own);
  CHECK(strcmp(*percpu_ptr(percpu_static(text), 0), "ab") == 0);
  CHECK(linked_count_at_start == 3 * (uint64_t)possible + 1);
  CHECK(early_linked == linked_count_at_start);
  /* The program and the library mean the same variable, wherever the linker put the cell. */
  CHECK(percpu_static(linked_count) == linked_count_handle());
  linked_work(50);
  percpu_add(percpu_static(linked_count), 5);
  CHECK(percpu_sum(percpu_static(linked_count)) == linked_count_at_start + 55);
  CHECK(percpu_sum(&percpu_static(linked_both)->first) == 10 * possible);
  CHECK(percpu_sum(&percpu_static(linked_both)->second) == 20 * possible + 100);
  CHECK((flags_of(percpu_static(own)) & PERCPU_INFO_RESERVED) == 0);
}

/* TSan keeps memory of its own for each module that ever was there. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif
#ifdef UNDER_TSAN
static const int resident_is_ours = 0;
#else
static const int resident_is_ours = 1;
#endif

static void open_and_close(const char *path, int reserved) {
  struct opened first = open_plugin(path, RTLD_NOW | RTLD_LOCAL);
  CHECK(((flags_of(first.face->count()) & PERCPU_INFO_RESERVED) != 0) == reserved);
  use_new(first.face);
  CHECK(dlclose(first.library) == 0);

  const uint64_t live = nr_live();
  size_t resident = 0;
  for (int i = 0; i < 1000; i++) {
    struct opened again = open_plugin(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(nr_live() == live + 1);
    use_new(again.face); /* begins anew each time */
    CHECK(dlclose(again.library) == 0);
    if (i == 100) resident = resident_kib();
  }
  CHECK(nr_live() == live);
  CHECK(!resident_is_ours || resident_kib() < resident + 1024);
  CHECK(percpu_pool_check(percpu_pool_default()) == 0);
}

/* Two libraries that define variables of the same names, known to all: the later one uses the earlier one's cells. */
static void twins(const char *path, const char *other_path) {
  struct opened one = open_plugin(path, RTLD_NOW | RTLD_GLOBAL);
  use_new(one.face);
  for (int i = 0; i < 10; i++) {
    const uint64_t before = percpu_sum(one.face->count());
    struct opened other = open_plugin(other_path, RTLD_NOW | RTLD_GLOBAL);
    other.face->work(10);
    CHECK(dlclose(other.library) == 0);
    CHECK(percpu_sum(one.face->count()) >= before);
    one.face->work(10);
    flags_of(one.face->count()); /* still static */
    CHECK(one.face->sum_of_fives() == 5 * (long)nr_possible());
  }
  /* Nobody was given its memory meanwhile. */
  const uint64_t before = percpu_sum(one.face->count());
  struct opened third = open_plugin(other_path, RTLD_NOW | RTLD_LOCAL);
  void *areas[500];
  for (int i = 0; i < 500; i++) {
    areas[i] = percpu_alloc_flags(64, 8, PERCPU_RESERVED | PERCPU_NOWARN);
    if (areas[i] == NULL) areas[i] = percpu_alloc(64, 8);
    uint64_t *copy;
    percpu_for_each_copy(copy, (uint64_t *)areas[i]) memset(copy, 0xff, 64);
  }
  CHECK(percpu_sum(one.face->count()) <= before + 1); /* + 1: the third one's constructor may count here */
  for (int i = 0; i < 500; i++) percpu_free(areas[i]);
  CHECK(dlclose(third.library) == 0);
  CHECK(dlclose(one.library) == 0);
  CHECK(percpu_pool_check(percpu_pool_default()) == 0);
}

/* As many libraries as files can be copied, open at once: when the reserved part is full, other memory serves. */
static void many_at_once(const char *path) {
  enum { kMany = 24 };
  struct opened many[kMany];
  char name[kMany][64];
  int reserved = 0;
  const uint64_t live = nr_live();
  for (int i = 0; i < kMany; i++) {
    char command[2048]; /* gcc for arm64 believes that a name may be as long as all of them */
    snprintf(name[i], sizeof name[i], "/tmp/percpu-test-%d-%d.so", (int)getpid(), i);
    snprintf(command, sizeof command, "cp '%s' '%s'", path, name[i]);
    CHECK(system(command) == 0);
    many[i] = open_plugin(name[i], RTLD_NOW | RTLD_LOCAL);
    unlink(name[i]);
    reserved += (flags_of(many[i].face->count()) & PERCPU_INFO_RESERVED) != 0;
    use_new(many[i].face);
  }
  CHECK(reserved > 0 && reserved < kMany);
  for (int i = 0; i < kMany; i++) CHECK(percpu_sum(many[i].face->count()) == 111);
  for (int i = 0; i < kMany; i++) CHECK(dlclose(many[i].library) == 0);
  CHECK(nr_live() == live);
  CHECK(percpu_pool_check(percpu_pool_default()) == 0);
}

static void over_a_fork(const char *path) {
  struct opened plugin = open_plugin(path, RTLD_NOW | RTLD_LOCAL);
  use_new(plugin.face);
  const pid_t child = fork();
  if (child == 0) {
    CHECK(percpu_sum(plugin.face->count()) == 111);
    plugin.face->work(1);
    CHECK(percpu_sum(plugin.face->count()) == 112);
    CHECK(dlclose(plugin.library) == 0);
    plugin = open_plugin(path, RTLD_NOW | RTLD_LOCAL);
    use_new(plugin.face);
    exit(0); /* with the library open */
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(percpu_sum(plugin.face->count()) == 111);
  CHECK(dlclose(plugin.library) == 0);
}

/* The variable of an opened library is nobody's to free. */
static void not_to_be_freed(const char *path) {
  struct opened plugin = open_plugin(path, RTLD_NOW | RTLD_LOCAL);
  for (int grace = 0; grace < 2; grace++) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
      struct percpu_address info;
      dup2(ends[1], STDERR_FILENO);
      if (percpu_address_info(percpu_ptr((char *)plugin.face->count(), 0), &info) != 1) _exit(2);
      (grace ? percpu_free_rcu : percpu_free)(info.handle); /* where its library's variables begin */
      _exit(3);
    }
    close(ends[1]);
    char line[512] = "";
    CHECK(read(ends[0], line, sizeof line - 1) > 0);
    close(ends[0]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK(strstr(line, "a static per-CPU variable") != NULL);
    CHECK(strchr(line, '\n') == line + strlen(line) - 1);
  }
  use_new(plugin.face);
  CHECK(dlclose(plugin.library) == 0);
}

int main(int argc, char **argv) {
  CHECK(argc == 5);
  own_and_linked();
  open_and_close(argv[1], 1);
  open_and_close(argv[3], 0);
  open_and_close(argv[4], 1);
  twins(argv[1], argv[2]);
  many_at_once(argv[1]);
  over_a_fork(argv[1]);
  not_to_be_freed(argv[1]);
  not_to_be_freed(argv[3]);
  CHECK(percpu_sum(percpu_static(own)) == early_own);
  return 0;
}
