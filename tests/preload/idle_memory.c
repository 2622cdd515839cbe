/* SPDX-License-Identifier: MIT
 *
 * What a program that hardly allocates pays: every process that a preload reaches has it, `true` too, and on a machine of many CPUs it
 * must not grow with their number. The program looks at itself under the preload, and once more without.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* 324 KiB more than with glibc's malloc, where it was written; the 216 KiB of two CPUs' empty stacks, or the first chunk of a pool
   that nobody asked for, would be above. */
enum { kMostKib = 400 };

static long anonymous_kib(void) {
  FILE *rollup = fopen("/proc/self/smaps_rollup", "r");
  char line[256];
  long kib = -1;
  while (rollup != NULL && fgets(line, sizeof line, rollup) != NULL) {
    if (sscanf(line, "Anonymous: %ld kB", &kib) == 1) break;
  }
  if (rollup != NULL) fclose(rollup);
  return kib;
}

int main(int argc, char **argv) {
  if (argc > 1) {
    printf("%ld\n", anonymous_kib());
    return 0;
  }
  const char *preload = getenv("LD_PRELOAD");
  if (preload == NULL) {
    fprintf(stderr, "idle_memory: expected the preload in LD_PRELOAD, found none\n");
    return 2;
  }
  long kib[2];
  for (int preloaded = 0; preloaded < 2; preloaded++) {
    int ends[2];
    if (pipe(ends) != 0) return 1;
    const pid_t child = fork();
    if (child == 0) {
      dup2(ends[1], STDOUT_FILENO);
      if (!preloaded) unsetenv("LD_PRELOAD");
      execl("/proc/self/exe", argv[0], "look", (char *)NULL);
      _exit(127);
    }
    close(ends[1]);
    FILE *answer = fdopen(ends[0], "r");
    int status = 0;
    if (answer == NULL || fscanf(answer, "%ld", &kib[preloaded]) != 1 || waitpid(child, &status, 0) != child || status != 0) return 1;
    fclose(answer);
  }
  printf("lab: %ld KiB of anonymous memory, %ld under the preload\n", kib[0], kib[1]);
  if (kib[0] < 0) return 77; /* a kernel without smaps_rollup */
  if (kib[1] == kib[0]) {
    fprintf(stderr, "expected more memory under the preload, found the same: was it loaded?\n");
    return 1;
  }
  if (kib[1] - kib[0] > kMostKib) {
    fprintf(stderr, "expected at most %d KiB more, found %ld\n", kMostKib, kib[1] - kib[0]);
    return 1;
  }
  return 0;
}
