/* SPDX-License-Identifier: MIT */
/* The program of headers.sh; also compiled as C++. */
#include <stdio.h>

#include "fixture.h"
#include "headers_use.h"

#ifdef __cplusplus
extern "C"
#endif
    uint64_t
    headers_use_elsewhere(const struct headers_areas *a);

int main(void) {
  struct headers_areas a;
  uint64_t here, elsewhere;
  fixture_pin(fixture_next_cpu(-1));
  a.word = (uint64_t *)fixture_alloc(8, 8);
  a.byte = (uint8_t *)fixture_alloc(1, 1);
  a.half = (int16_t *)fixture_alloc(2, 2);
  a.unit = (uint32_t *)fixture_alloc(4, 4);
  a.real = (double *)fixture_alloc(8, 8);
  a.small_real = (float *)fixture_alloc(4, 4);
  a.pointer = (void **)fixture_alloc(8, 8);
  a.choice = (enum headers_enum *)fixture_alloc(4, 4);
  a.pair = (struct percpu_pair *)fixture_alloc(16, 16);
  a.list = (struct percpu_list *)fixture_alloc(16, 16);
  here = headers_use(&a);
  elsewhere = headers_use_elsewhere(&a);
  if (here == 14 && elsewhere == 15) return 0;
  fprintf(stderr, "expected 14 and 15, found %llu and %llu\n", (unsigned long long)here, (unsigned long long)elsewhere);
  return 1;
}
