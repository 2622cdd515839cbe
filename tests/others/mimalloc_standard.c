/* SPDX-License-Identifier: MIT
 *
 * mimalloc's functions by their twins in the standard library, as far as mimalloc's tests call them: what is tried is the malloc
 * that the program runs under. What has no twin (heaps of their own, memory that stays zeroed as it grows, an alignment somewhere
 * inside of the block) ends the check that called it; outside of checks it ends the program.
 */
#include "mimalloc_standard.h"

#include <malloc.h>
#include <stdlib.h>

#include <mimalloc.h>

jmp_buf check_left_out;
const char *check_open;
int checks_failed;

void check_ends(bool passed) {
  printf("%s: %s\n", passed ? "passed" : "FAILED", check_open);
  checks_failed += !passed;
  check_open = NULL;
}

static void no_twin(const char *function) {
  if (check_open != NULL) longjmp(check_left_out, 1);
  fprintf(stderr, "%s has no twin\n", function);
  abort();
}

/* The standard's own. */
void *mi_malloc(size_t size) { return malloc(size); }
void *mi_malloc_small(size_t size) { return malloc(size); }
void *mi_mallocn(size_t count, size_t size) { return reallocarray(NULL, count, size); }
void *mi_calloc(size_t count, size_t size) { return calloc(count, size); }
void *mi_zalloc(size_t size) { return calloc(1, size); }
void *mi_zalloc_small(size_t size) { return calloc(1, size); }
void *mi_realloc(void *p, size_t size) { return realloc(p, size); }
void *mi_reallocn(void *p, size_t count, size_t size) { return reallocarray(p, count, size); }
void *mi_reallocarray(void *p, size_t count, size_t size) { return reallocarray(p, count, size); }
void mi_free(void *p) { free(p); }
char *mi_strdup(const char *s) { return strdup(s); }
char *mi_realpath(const char *name, char *resolved) { return realpath(name, resolved); }
size_t mi_usable_size(const void *p) { return malloc_usable_size((void *)p); }
int mi_posix_memalign(void **p, size_t alignment, size_t size) { return posix_memalign(p, alignment, size); }
void *mi_memalign(size_t alignment, size_t size) { return memalign(alignment, size); }
void *mi_malloc_aligned(size_t size, size_t alignment) { return memalign(alignment, size); }
void *mi_new_n(size_t count, size_t size) { return reallocarray(NULL, count, size); }

/* The alignment only: a gigabyte that was never touched need not be filled to be seen aligned. */
void *mi_zalloc_aligned(size_t size, size_t alignment) { return memalign(alignment, size); }

void *mi_malloc_aligned_at(size_t size, size_t alignment, size_t offset) {
  if (offset % alignment != 0) no_twin(__func__);
  return memalign(alignment, size);
}

/* With the size that came out. */
void *mi_umalloc(size_t size, size_t *usable) {
  void *p = malloc(size);
  *usable = malloc_usable_size(p);
  return p;
}
void *mi_urealloc(void *p, size_t size, size_t *before, size_t *after) {
  *before = malloc_usable_size(p);
  p = realloc(p, size);
  *after = malloc_usable_size(p);
  return p;
}
void mi_ufree(void *p, size_t *usable) {
  *usable = malloc_usable_size(p);
  free(p);
}

/* What says nothing about memory. */
void mi_option_disable(mi_option_t option) { (void)option; }
void mi_stats_reset(void) {}
void mi_stats_print(void *out) { (void)out; }
int mi_version(void) { return MI_MALLOC_VERSION; }
bool mi_is_in_heap_region(const void *p) { return malloc_usable_size((void *)p) > 0; }
void *_expand(void *p, size_t size) { return malloc_usable_size(p) >= size ? p : NULL; }

/* Not in the standard library. */
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define NO_TWIN(type, name, ...) \
  type name(__VA_ARGS__) {       \
    no_twin(#name);              \
    return (type)0;              \
  }
NO_TWIN(void *, mi_rezalloc, void *p, size_t size)
NO_TWIN(void *, mi_recalloc, void *p, size_t count, size_t size)
NO_TWIN(void *, mi_calloc_aligned, size_t count, size_t size, size_t alignment)
NO_TWIN(void *, mi_rezalloc_aligned, void *p, size_t size, size_t alignment)
NO_TWIN(void *, mi_recalloc_aligned, void *p, size_t count, size_t size, size_t alignment)
NO_TWIN(mi_heap_t *, mi_heap_new, void)
NO_TWIN(void *, mi_heap_malloc, mi_heap_t *heap, size_t size)
NO_TWIN(void *, mi_heap_malloc_aligned, mi_heap_t *heap, size_t size, size_t alignment)
NO_TWIN(void *, mi_heap_alloc_new_n, mi_heap_t *heap, size_t count, size_t size)
NO_TWIN(bool, mi_heap_contains_block, mi_heap_t *heap, const void *p)
void mi_heap_delete(mi_heap_t *heap) { (void)heap; no_twin(__func__); }
void mi_heap_destroy(mi_heap_t *heap) { (void)heap; no_twin(__func__); }
