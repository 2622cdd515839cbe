/* SPDX-License-Identifier: MIT */
/*
 * The main thread ends by pthread_exit(), and the process with its last thread: with status 0, and what was registered with atexit() is
 * called, whatever the library has in the background. Prints what that says.
 *
 * usage: main_ends [blind]      blind: there is no descriptor left, so that nobody can look into /proc
 */
#include <percpu.h>

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../as_told.h"

static int worked, blind;

/* It runs as in a thread of the program's: with signals as the main thread had them, and room on the stack. */
static void say(void) {
  sigset_t blocked;
  volatile char room[1 << 20];
  for (size_t i = 0; i < sizeof room; i += 4096) room[i] = 1;
  if (pthread_sigmask(SIG_SETMASK, NULL, &blocked) != 0 || sigismember(&blocked, SIGTERM) != 0 || !worked) _exit(2);
  printf("at exit: the last thread has worked\n");
}

/* In the child of a thread that is not the main one, that thread is. */
static void *child_ends(void *unused) {
  nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
  return unused;
}
static void fork_and_end(void) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(600);
    worked = 1;
    percpu_free(percpu_alloc(8, 8));
    percpu_free(percpu_alloc(8, 8));
    pthread_t thread;
    if (pthread_create(&thread, NULL, child_ends, NULL) != 0) _exit(3);
    pthread_exit(NULL);
  }
  int status = -1;
  if (waitpid(child, &status, 0) != child || status != 0) _exit(4);
}

static void *work(void *counter) {
  nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL); /* the main thread has ended long since */
  if (blind) { /* not before: pthread_exit() itself loads a library */
    const struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_NOFILE, &none) != 0) _exit(5);
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
  }
  percpu_inc((long *)counter);
  percpu_free(counter);
  if (!blind) fork_and_end();
  /* Whether there is a balance thread or not. */
  for (int i = 0; i < 1000; i++) percpu_free(percpu_alloc(8, 8));
  worked = 1;
  return NULL;
}

int main(int argc, char **argv) {
  expect_preload_as_told();
  alarm(600); /* bounds a hang */
  blind = argc > 1 && strcmp(argv[1], "blind") == 0;
  long *counter = percpu_alloc(sizeof *counter, sizeof *counter);
  /* Front caches that hold something start the balance thread. */
  percpu_free(percpu_alloc(8, 8));
  percpu_free(percpu_alloc(8, 8));
  pthread_t thread;
  if (counter == NULL || atexit(say) != 0 || pthread_create(&thread, NULL, work, counter) != 0) return 1;
  pthread_exit(NULL);
}
