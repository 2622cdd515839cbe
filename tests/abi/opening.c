/* SPDX-License-Identifier: MIT */
/*
 * The default pool is made while another thread is in the middle of dlopen() or dlclose(), when a library is listed that is not
 * relocated, will fail to load, or has run its destructors. Whatever is there afterwards has its initial values.
 *
 *   opening opening <a library of late.c> | failing <one that fails to load> <one that does not> | closing <one> <another>
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include <percpu.h>

#include "check.h"
#include "late.h"

static int in_linker = 0;
static int made = 0;

static void hook(void) {
  say(&in_linker);
  wait_for(&made);
}
void (*late_hook)(void);

static void *open_library(const char *path, const struct late_calls **calls) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return NULL;
  late_face_function face;
  *(void **)(&face) = dlsym(library, "late_face");
  CHECK(face != NULL);
  *calls = face();
  return library;
}

static void is_new(const struct late_calls *calls, long value) {
  for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) {
    if (!percpu_cpu_possible(cpu)) continue;
    CHECK(*percpu_ptr(calls->count(), cpu) == value);
    CHECK(*percpu_ptr(calls->pointer(), cpu) == calls->target);
  }
}

static char **arguments;

static void *work(void *nothing) {
  const struct late_calls *calls = NULL;
  if (strcmp(arguments[1], "opening") == 0) {
    late_hook = hook;
    CHECK(open_library(arguments[2], &calls) != NULL);
    is_new(calls, 5);
  } else if (strcmp(arguments[1], "failing") == 0) {
    late_hook = hook;
    CHECK(open_library(arguments[2], &calls) == NULL);
    CHECK(open_library(arguments[3], &calls) != NULL); /* where the other was, most likely */
    is_new(calls, 5);
  } else {
    void *library = open_library(arguments[2], &calls);
    CHECK(library != NULL);
    late_hook = hook;
    CHECK(dlclose(library) == 0);
    CHECK(open_library(arguments[3], &calls) != NULL);
    is_new(calls, 7);
  }
  CHECK(__atomic_load_n(&in_linker, __ATOMIC_ACQUIRE));
  return nothing;
}

int main(int argc, char **argv) {
  CHECK(argc >= 3);
  alarm(kHangSeconds);
  arguments = argv;
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
  wait_for(&in_linker);
  CHECK(percpu_nr_cpu_ids() > 0); /* makes the pool */
  say(&made);
  CHECK(pthread_join(thread, NULL) == 0);
  return 0;
}
