/* SPDX-License-Identifier: MIT
 *
 * rpmalloc's functions by their twins in the standard library, as far as those of its tests call them that rpmalloc.py runs.
 */
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include <rpmalloc.h>

void *rpmalloc(size_t size) { return malloc(size); }
void *rpcalloc(size_t count, size_t size) { return calloc(count, size); }
void *rpzalloc(size_t size) { return calloc(1, size); }
void *rprealloc(void *p, size_t size) { return realloc(p, size); }
void rpfree(void *p) { free(p); }
size_t rpmalloc_usable_size(void *p) { return malloc_usable_size(p); }
void *rpaligned_alloc(size_t alignment, size_t size) { return alignment != 0 ? memalign(alignment, size) : malloc(size); }

/* Its twin is made of three. What must not move cannot be asked for: it fails, as it may. */
void *rpaligned_realloc(void *p, size_t alignment, size_t size, size_t old_size, unsigned int flags) {
  const size_t usable = malloc_usable_size(p);
  const size_t kept = old_size != 0 && old_size < usable ? old_size : usable;
  void *moved;
  if (flags & RPMALLOC_GROW_OR_FAIL) return NULL;
  moved = rpaligned_alloc(alignment, size);
  if (moved == NULL) return NULL;
  if (p != NULL) memcpy(moved, p, kept < size ? kept : size);
  free(p);
  return moved;
}

/* Where it begins and ends is the standard malloc's own matter. */
int rpmalloc_initialize(rpmalloc_interface_t *interface) {
  (void)interface;
  return 0;
}
int rpmalloc_initialize_config(rpmalloc_interface_t *interface, rpmalloc_config_t *config) {
  (void)interface, (void)config;
  return 0;
}
void rpmalloc_finalize(void) {}
void rpmalloc_thread_initialize(void) {}
void rpmalloc_thread_finalize(void) {}
