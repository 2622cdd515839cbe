/* SPDX-License-Identifier: MIT */
/*
 * The dynamic linker's lock of its list of modules, which dl_iterate_phdr() holds while it calls the program back: who is called
 * so may use the library, whatever others are doing in it; and a child of a fork that was made meanwhile, in which nobody will ever
 * give that lock back, may use static variables once there is a pool.
 *
 *   linker_lock first|static|info|fork <a library of late.c>
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <percpu.h>

#include "check.h"
#include "late.h"

PERCPU_DEFINE_STATIC(long, own) = 7;
PERCPU_DEFINE_STATIC(long, other) = 8;

static const char *mode;
static int inside = 0; /* the callback */
static int going = 0;  /* the main thread into the library; with "fork": it has forked */

static int called_back(struct dl_phdr_info *info, size_t bytes, void *nothing) {
  (void)info, (void)bytes, (void)nothing;
  say(&inside);
  wait_for(&going);
  if (strcmp(mode, "fork") == 0) return 1;
  nap(200); /* until the main thread waits for the linker, if it does */
  if (strcmp(mode, "info") == 0) {
    struct percpu_address found;
    CHECK(percpu_address_info(percpu_ptr(percpu_static(own), 0), &found) == 1);
    CHECK((found.flags & PERCPU_INFO_STATIC) != 0);
  } else {
    CHECK(*percpu_ptr(percpu_static(other), 0) == 8);
  }
  return 1;
}

static void *iterate(void *nothing) {
  dl_iterate_phdr(called_back, nothing);
  return NULL;
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  mode = argv[1];
  alarm(kHangSeconds);
  if (strcmp(mode, "first") != 0) percpu_inc(percpu_static(own));
  void *library = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
  CHECK(library != NULL);
  late_face_function face;
  *(void **)(&face) = dlsym(library, "late_face");
  CHECK(face != NULL);

  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, iterate, NULL) == 0);
  wait_for(&inside);
  if (strcmp(mode, "fork") == 0) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(kHangSeconds);
      _exit(*percpu_ptr(face()->count(), 0) == LATE_VALUE && *percpu_ptr(percpu_static(other), 0) == 8 ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    say(&going);
  } else {
    say(&going);
    CHECK(*percpu_ptr(face()->count(), 0) == LATE_VALUE); /* makes the pool, with "first"; else makes room for the library's */
  }
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(*percpu_ptr(percpu_static(other), 0) == 8);
  CHECK(dlclose(library) == 0);
  return 0;
}
