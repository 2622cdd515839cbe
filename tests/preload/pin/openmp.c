/* SPDX-License-Identifier: MIT
 *
 * OpenMP that begins in a thread of the program's own. Writes whether that thread was held to one CPU before, how many CPUs OpenMP finds
 * there, how many threads it would take, and how many its first parallel region has. (LLVM's sets the thread's mask as it begins: so
 * nothing is said about afterwards.)
 */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* By what the kernel says of the calling thread. */
static int held_to_one(void) {
  char line[4096];
  int bits = -1;
  FILE *file = fopen("/proc/thread-self/status", "r");
  if (file == NULL) abort();
  while (bits < 0 && fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, "Cpus_allowed:", 13) != 0) continue;
    bits = 0;
    for (const char *digit = line + 13; *digit != 0; digit++) {
      const char text[2] = {*digit, 0};
      bits += __builtin_popcountl(strtoul(text, NULL, 16));
    }
  }
  fclose(file);
  return bits == 1;
}

static void *work(void *unused) {
  int team = 0;
  const int before = held_to_one();
  const int procs = omp_get_num_procs();
  const int most = omp_get_max_threads();
#pragma omp parallel reduction(+ : team)
  team++;
  printf("%d %d %d %d\n", before, procs, most, team);
  return unused;
}

int main(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, work, NULL) != 0) abort();
  pthread_join(thread, NULL);
  return 0;
}
