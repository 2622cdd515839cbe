/* SPDX-License-Identifier: MIT */
#include "buffers.h"

#include <errno.h>
#include <percpu.h>
#include <percpu/list.h>
#include <stdlib.h>

struct buffer {
  union {
    struct percpu_list_node node; /* while it is on a list */
    char bytes[BUFFER_BYTES];     /* while it is somebody's */
  };
};

/* What each CPU has: one area, so that what is changed together lies on one cache line. Zeroed memory is an empty list. */
struct each_cpu {
  struct percpu_list free;
  uint64_t hits, misses, given;
};

struct buffers {
  percpu_pool_t *pool;   /* its own: the cache's figures and limits are told apart from the program's */
  struct each_cpu *each; /* a handle, no address */
  uint64_t trimmed;
};

struct buffers *buffers_create(void) {
  const struct percpu_pool_attr attr = {.struct_bytes = sizeof attr, .name = "buffers", .max_bytes = 1 << 20};
  struct buffers *cache = calloc(1, sizeof *cache);
  if (cache == NULL) return NULL;
  cache->pool = percpu_pool_create(&attr);
  if (cache->pool != NULL) cache->each = percpu_pool_alloc(cache->pool, sizeof *cache->each, 64, 0);
  if (cache->each != NULL) return cache;
  const int error = errno;
  if (cache->pool != NULL) percpu_pool_destroy(cache->pool);
  free(cache);
  errno = error;
  return NULL;
}

/* The address of a member is one of the handle, too: handle + offset names the same bytes of every copy. */
void *buffers_take(struct buffers *cache) {
  struct percpu_list_node *node = percpu_pool_list_pop(cache->pool, &cache->each->free);
  if (node != NULL) {
    percpu_pool_inc(cache->pool, &cache->each->hits);
    return node;
  }
  struct buffer *fresh = malloc(sizeof *fresh);
  if (fresh != NULL) percpu_pool_inc(cache->pool, &cache->each->misses);
  return fresh;
}

void buffers_give(struct buffers *cache, void *buffer) {
  percpu_pool_inc(cache->pool, &cache->each->given);
  percpu_pool_list_push(cache->pool, &cache->each->free, &((struct buffer *)buffer)->node);
}

/* Copies are the CPUs and, behind them, those that threads without rseq share. A list is taken whole; what is kept goes back to the list
 * of the CPU that this runs on, of which nothing better is known than that it is in use. */
int buffers_trim(struct buffers *cache, size_t keep) {
  struct percpu_list_node *node;
  uint32_t copy = 0;
  for (; percpu_pool_list_drain(cache->pool, &cache->each->free, copy, &node) == 0; copy++) {
    size_t kept = 0;
    while (node != NULL) {
      struct percpu_list_node *const next = node->next;
      if (kept < keep) {
        percpu_pool_list_push(cache->pool, &cache->each->free, node);
        kept++;
      } else {
        free(node);
        __atomic_fetch_add(&cache->trimmed, 1, __ATOMIC_RELAXED);
      }
      node = next;
    }
  }
  return errno == EINVAL ? 0 : -1; /* EINVAL: there is no such copy, so that was all */
}

void buffers_read(struct buffers *cache, struct buffers_stats *stats) {
  stats->hits = percpu_pool_sum(cache->pool, &cache->each->hits);
  stats->misses = percpu_pool_sum(cache->pool, &cache->each->misses);
  stats->given = percpu_pool_sum(cache->pool, &cache->each->given);
  stats->trimmed = __atomic_load_n(&cache->trimmed, __ATOMIC_RELAXED);
}

/* Nobody else uses it, so no fence is needed: each copy is read where it lies. */
void buffers_destroy(struct buffers *cache) {
  struct each_cpu *copy;
  percpu_pool_for_each_copy(cache->pool, copy, cache->each) {
    struct percpu_list_node *node = copy->free.head;
    while (node != NULL) {
      struct percpu_list_node *const next = node->next;
      free(node);
      node = next;
    }
  }
  percpu_pool_free(cache->pool, cache->each);
  percpu_pool_destroy(cache->pool);
  free(cache);
}
