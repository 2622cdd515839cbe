/* SPDX-License-Identifier: MIT
   Whether the kernel ends a program that leaves the rules of rseq, as it says it does (/sys/kernel/debug/rseq/debug, Linux 6.19 and
   newer): a child makes a system call inside of a sequence. Where the kernel does not check, that does no harm. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave_the_rules(void) {
  struct rseq *area = (void *)((char *)__builtin_thread_pointer() + __rseq_offset);
#if defined __x86_64__
  long number = SYS_sched_yield;
  __asm__ volatile(
      ".pushsection .data.rel.ro.rseq_checked, \"aw\"\n\t"
      ".balign 32\n"
      "1: .long 0, 0\n\t"
      ".quad 2f, 3f - 2f, 4f\n\t"
      ".popsection\n\t"
      "leaq 1b(%%rip), %%rcx\n\t"
      "movq %%rcx, %[cs]\n"
      "2: syscall\n\t"
      "nop\n" /* so that it returns into the sequence */
      "3: jmp 5f\n\t"
      ".byte 0x0f, 0xb9, 0x3d\n\t"
      ".long 0x53053053\n"
      "4: nop\n"
      "5:"
      : "+a"(number), [cs] "=m"(area->rseq_cs)
      :
      : "rcx", "r11", "memory", "cc");
#elif defined __aarch64__
  register long number __asm__("x8") = SYS_sched_yield;
  register long result __asm__("x0");
  __asm__ volatile(
      ".pushsection .data.rel.ro.rseq_checked, \"aw\"\n\t"
      ".balign 32\n"
      "1: .word 0, 0\n\t"
      ".quad 2f, 3f - 2f, 4f\n\t"
      ".popsection\n\t"
      "adrp x9, 1b\n\t"
      "add x9, x9, :lo12:1b\n\t"
      "str x9, %[cs]\n"
      "2: svc 0\n\t"
      "nop\n"
      "3: b 5f\n\t"
      ".inst 0xd428bc00\n"
      "4: nop\n"
      "5:"
      : "=r"(result), [cs] "=m"(area->rseq_cs)
      : "r"(number)
      : "x9", "memory", "cc");
#endif
}

int main(void) {
  int checks = 0;
  FILE *file = fopen("/sys/kernel/debug/rseq/debug", "r");
  if (file != NULL) {
    const int first = fgetc(file);
    checks = first == '1' || first == 'Y';
    fclose(file);
  }
  struct utsname kernel;
  unsigned major = 0, minor = 0;
  if (uname(&kernel) != 0 || sscanf(kernel.release, "%u.%u", &major, &minor) < 1) return 1;
  if (!checks && (major > 6 || (major == 6 && minor >= 19))) {
    printf("expected Linux %s to check, found that it does not (/sys/kernel/debug/rseq/debug)\n", kernel.release);
    return 1;
  }
  if (__rseq_size == 0) {
    printf("expected a thread with rseq, found none\n");
    return 1;
  }
  const pid_t child = fork();
  if (child == 0) {
    leave_the_rules();
    _exit(0);
  }
  int status = 0;
  if (child < 0 || waitpid(child, &status, 0) != child) {
    perror("fork");
    return 1;
  }
  const int killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
  const int good = checks ? killed : WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (!good) printf("a system call inside of a sequence: expected %s, found status 0x%x\n", checks ? "SIGSEGV" : "no harm", status);
  printf("lab: %s\n", checks ? "a system call inside of a sequence is the end of the program" : "this kernel does not check");
  return good ? 0 : 1;
}
