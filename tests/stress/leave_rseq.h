/* SPDX-License-Identifier: MIT */
/* Makes threads without rseq, for tests: C and C++. */
#ifndef PERCPU_TESTS_STRESS_LEAVE_RSEQ_H
#define PERCPU_TESTS_STRESS_LEAVE_RSEQ_H

#include <stdint.h>
#include <sys/auxv.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * Takes the calling thread's rseq away for good, as if the C library had never registered it. To be called before the
 * thread's first operation. Returns 0 (also where there was none), or -1 where the kernel refuses.
 */
static inline int leave_rseq(void) {
  char *area = (char *)__builtin_thread_pointer() + __rseq_offset;
  const unsigned feature = (unsigned)getauxval(27 /* AT_RSEQ_FEATURE_SIZE */);
  /* What C libraries register with: always 32 once; later the kernel's feature size, rounded up to the alignment. */
  const unsigned len[] = {32, (feature + 31) / 32 * 32, (feature + 63) / 64 * 64, feature, __rseq_size};
  if (__rseq_size == 0) return 0;
  for (unsigned i = 0; i < sizeof len / sizeof len[0]; ++i)
    if (syscall(SYS_rseq, area, len[i], RSEQ_FLAG_UNREGISTER, RSEQ_SIG) == 0) return 0;
  return -1;
}

#endif
