/* SPDX-License-Identifier: MIT
 *
 * Runs a program in a sandbox that refuses some system calls, as containers do.
 *
 *   refuse WHAT[,WHAT...] ERRNO PROGRAM [ARGUMENT...]
 *
 * WHAT   a system call by name (of those in the table below), or madvise:N: madvise with that advice
 * ERRNO  what it fails with: a number, or EPERM, ENOSYS, EINVAL
 *
 * A seccomp filter in the kernel's own form: one comparison for each WHAT.
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_rseq
#define SYS_rseq __NR_rseq
#endif

static const struct call {
  const char *name;
  uint32_t number;
} calls[] = {
    {"membarrier", SYS_membarrier}, {"mbind", SYS_mbind},         {"set_mempolicy", SYS_set_mempolicy},
    {"get_mempolicy", SYS_get_mempolicy}, {"move_pages", SYS_move_pages}, {"rseq", SYS_rseq},
    {"madvise", SYS_madvise},       {"mremap", SYS_mremap},       {"mincore", SYS_mincore},
    {"sched_setaffinity", SYS_sched_setaffinity}, {"sched_getaffinity", SYS_sched_getaffinity},
};

enum { kMaxInstructions = 128, kMaxWhats = 16 };

static struct sock_filter program[kMaxInstructions];
static unsigned short length;

static void add(uint16_t code, uint8_t if_true, uint8_t if_false, uint32_t value) {
  program[length++] = (struct sock_filter){code, if_true, if_false, value};
}

static void load(size_t offset) { add(BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset); }

static void refuse(uint32_t error) { add(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | error); }

/* Returns 0, or -1 where there is no such call. */
static int refuse_what(const char *what, uint32_t error) {
  const char *colon = strchr(what, ':');
  const size_t name_bytes = colon != NULL ? (size_t)(colon - what) : strlen(what);
  for (size_t i = 0; i < sizeof calls / sizeof calls[0]; ++i) {
    if (strlen(calls[i].name) != name_bytes || strncmp(calls[i].name, what, name_bytes) != 0) continue;
    load(offsetof(struct seccomp_data, nr));
    add(BPF_JMP | BPF_JEQ | BPF_K, 0, colon != NULL ? 3 : 1, calls[i].number);
    if (colon != NULL) {
      load(offsetof(struct seccomp_data, args[2])); /* the low half, on machines whose bytes are in that order */
      add(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)strtoul(colon + 1, NULL, 0));
    }
    refuse(error);
    return 0;
  }
  return -1;
}

static int error_number(const char *text) {
  if (strcmp(text, "EPERM") == 0) return EPERM;
  if (strcmp(text, "ENOSYS") == 0) return ENOSYS;
  if (strcmp(text, "EINVAL") == 0) return EINVAL;
  return atoi(text);
}

int main(int argc, char **argv) {
  if (argc < 4 || error_number(argv[2]) <= 0) {
    fprintf(stderr, "usage: refuse WHAT[,WHAT...] ERRNO PROGRAM [ARGUMENT...]\n");
    return 126;
  }
  int nr_whats = 0;
  for (const char *what = strtok(argv[1], ","); what != NULL; what = strtok(NULL, ",")) {
    if (++nr_whats > kMaxWhats || refuse_what(what, (uint32_t)error_number(argv[2])) != 0) {
      fprintf(stderr, "refuse: expected the name of a system call that it knows, found '%s'\n", what);
      return 126;
    }
  }
  add(BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW);
  const struct sock_fprog filter = {length, program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) {
    perror("refuse: the kernel takes no filter");
    return 126;
  }
  execvp(argv[3], argv + 3);
  perror(argv[3]);
  return 127;
}
