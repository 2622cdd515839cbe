/* SPDX-License-Identifier: MIT
 *
 * A signal handler that allocates, at each instruction of a malloc of a thread that the caches do not know yet (after vfork, which
 * makes it forget them, as at a thread's first call): the handler makes it known, and the call that it interrupted goes on with what it had
 * read before. Each block has to be of the size that it is otherwise.
 *
 * Steps by the processor's trap flag, so on x86-64 only.
 */
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)

enum { TRAP_FLAG = 0x100, STEPS = 60 };

static volatile int nr_steps;
static volatile int stop_at;

static void on_trap(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)info;
  if (++nr_steps != stop_at) return;
  void *const block = malloc(100);
  memset(block, 1, 100);
  free(block);
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~(long long)TRAP_FLAG;
}

/* The thread forgets its caches. */
static void forget_caches(void) {
  const pid_t child = vfork();
  if (child == 0) _exit(0);
  if (child < 0 || waitpid(child, NULL, 0) != child) abort();
}

__attribute__((noinline)) static void *stepped_malloc(size_t size) {
  __asm__ volatile("pushfq\n\torq %0, (%%rsp)\n\tpopfq" ::"i"(TRAP_FLAG) : "memory", "cc");
  void *const block = malloc(size);
  __asm__ volatile("pushfq\n\tandq %0, (%%rsp)\n\tpopfq" ::"i"(~TRAP_FLAG) : "memory", "cc");
  return block;
}

int main(void) {
  static const size_t kSizes[] = {8, 100, 896, 897, 1000, 1024, 1025, 2000, 32768, 32769};
  struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
  if (sigaction(SIGTRAP, &action, NULL) != 0) return 1;
  int interrupted = 0;
  for (size_t s = 0; s < sizeof kSizes / sizeof kSizes[0]; s++) {
    void *const usual = malloc(kSizes[s]);
    const size_t usual_bytes = malloc_usable_size(usual);
    for (stop_at = 1; stop_at <= STEPS; stop_at++) {
      forget_caches();
      nr_steps = 0;
      unsigned char *const block = stepped_malloc(kSizes[s]);
      interrupted += nr_steps >= stop_at;
      if (block == NULL || malloc_usable_size(block) != usual_bytes) {
        fprintf(stderr, "attached_midway: expected a block of %zu bytes when malloc(%zu) is interrupted at its instruction %d, found %zu\n",
                usual_bytes, kSizes[s], stop_at, block == NULL ? 0 : malloc_usable_size(block));
        return 1;
      }
      memset(block, 0xa5, usual_bytes);
      free(block);
    }
    free(usual);
  }
  /* The way out of a thread without caches is longer than that. */
  if (interrupted < (int)(sizeof kSizes / sizeof kSizes[0]) * STEPS / 2) {
    fprintf(stderr, "attached_midway: expected to be interrupted, found %d times\n", interrupted);
    return 1;
  }
  return 0;
}

#else

int main(void) { return 77; }

#endif
