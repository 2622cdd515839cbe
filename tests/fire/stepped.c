/* SPDX-License-Identifier: MIT */
/* What stepped.py runs under gdb: counts to 1000, and says whether the sum is right. */
#include <percpu.h>

#include <stdio.h>

static uint64_t *hits;

__attribute__((noinline)) void hit(void);
void hit(void) {
  percpu_add(hits, 1);
}

int main(void) {
  hits = percpu_alloc(sizeof *hits, alignof(uint64_t));
  if (hits == NULL) return 2;
  for (int i = 0; i < 1000; ++i) hit();
  printf("sum %llu\n", (unsigned long long)percpu_sum(hits));
  return percpu_sum(hits) == 1000 ? 0 : 1;
}
