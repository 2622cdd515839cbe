/* SPDX-License-Identifier: MIT
 *
 * A program that is linked with libpercpu, under the preload: there is one library, one balance thread, and the heap's pool
 * is beside the program's own.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <link.h>
#include <percpu.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fail(const char *what, long found) {
  fprintf(stderr, "one_runtime: %s, found %ld\n", what, found);
  return 1;
}

/* Objects that are, or hold, the library: each has its own static data. */
static int count_libraries(struct dl_phdr_info *info, size_t size, void *count) {
  (void)size;
  if (strstr(info->dlpi_name, "libpercpu.so") != NULL) ++*(long *)count;
  return 0;
}

static long threads_named(const char *name) {
  long count = 0;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *task; tasks != NULL && (task = readdir(tasks)) != NULL;) {
    char path[300];
    char text[32] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
    FILE *file = fopen(path, "r");
    if (file == NULL) continue;
    if (fgets(text, sizeof text, file) != NULL && strncmp(text, name, strlen(name)) == 0) count++;
    fclose(file);
  }
  if (tasks != NULL) closedir(tasks);
  return count;
}

static void *work(void *argument) {
  for (int i = 0; i < 10000; i++) {
    percpu_add((long *)argument, 1);
    free(malloc(100));
  }
  return NULL;
}

int main(void) {
  long *hits = percpu_alloc(sizeof *hits, sizeof *hits);
  if (hits == NULL) return fail("expected a counter", 0);
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) {
    if (pthread_create(&threads[i], NULL, work, hits) != 0) return 1;
  }
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  const long sum = percpu_sum(hits);
  if (sum != 40000) return fail("expected a sum of 40000", sum);
  (void)percpu_balance();

  long libraries = 0;
  dl_iterate_phdr(count_libraries, &libraries);
  if (libraries != 1) return fail("expected libpercpu once", libraries);
  /* What the preload calls is what the program calls. */
  void *preload = dlopen("libpercpu_preload.so", RTLD_LAZY | RTLD_NOLOAD);
  const char *path = getenv("LD_PRELOAD");
  if (preload == NULL && path != NULL) preload = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
  if (preload == NULL) return fail("expected to run under the preload", 0);
  if (dlsym(preload, "percpu_alloc") != dlsym(RTLD_DEFAULT, "percpu_alloc")) return fail("expected one percpu_alloc", 2);
  const long balancers = threads_named("percpu-");
  if (balancers > 1) return fail("expected one balance thread at most", balancers);
  puts("one_runtime: one");
  return 0;
}
