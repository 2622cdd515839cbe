// SPDX-License-Identifier: MIT
//
// librseq's mempool for bench/alloc_subjects.h. A pool grows by ranges of a stride, 64 KiB a CPU: as many as any row needs.
#include <rseq/mempool.h>

#include <stddef.h>

void *librseq_pool_create(size_t item_bytes, int units);
void librseq_pool_destroy(void *pool);
void *librseq_take(void *pool);
void librseq_give(void *item);
void *librseq_copy(void *item, int unit);

void *librseq_pool_create(size_t item_bytes, int units) {
  struct rseq_mempool_attr *attr = rseq_mempool_attr_create();
  struct rseq_mempool *pool = NULL;
  if (attr == NULL) return NULL;
  if (rseq_mempool_attr_set_percpu(attr, RSEQ_MEMPOOL_STRIDE, units) == 0 &&
      rseq_mempool_attr_set_max_nr_ranges(attr, 0) == 0)
    pool = rseq_mempool_create("bench", item_bytes, attr);
  rseq_mempool_attr_destroy(attr);
  return pool;
}

void librseq_pool_destroy(void *pool) {
  rseq_mempool_destroy(pool);
}

void *librseq_take(void *pool) {
  return (void *)rseq_mempool_percpu_zmalloc(pool);
}

void librseq_give(void *item) {
  rseq_mempool_percpu_free(item);
}

void *librseq_copy(void *item, int unit) {
  return rseq_percpu_ptr((char *)item, unit);
}
