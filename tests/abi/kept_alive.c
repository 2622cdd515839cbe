/* SPDX-License-Identifier: MIT */
/* Blocks that only per-CPU memory knows of, when the program ends: on a list, in a static variable, in a pool that is there and in one that
   comes after another went. */
#include <percpu.h>

#include <stdlib.h>

#include "check.h"

PERCPU_DEFINE_STATIC(char *, kept);

static void keep(percpu_pool_t *pool) {
  char **area = percpu_pool_alloc(pool, sizeof *area, sizeof *area, 0);
  CHECK(area != NULL);
  percpu_pool_write(pool, area, (char *)malloc(60));
}

int main(void) {
  struct percpu_list *list = percpu_alloc(sizeof *list, sizeof(void *));
  CHECK(list != NULL);
  for (int i = 0; i < 10; i++) percpu_list_push(list, malloc(100));
  percpu_write(percpu_static(kept), (char *)malloc(50));
  percpu_pool_t *first = percpu_pool_create(NULL);
  CHECK(first != NULL && percpu_pool_destroy(first) == 0);
  percpu_pool_t *second = percpu_pool_create(NULL);
  CHECK(second != NULL);
  keep(second);
  return 0;
}
