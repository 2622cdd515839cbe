// SPDX-License-Identifier: MIT
//
// A malloc that is broken on purpose, to be preloaded: blocks of 64 bytes are all the same one. The patterns of bench/malloc must notice.
#include <stddef.h>

extern void *__libc_malloc(size_t size);
extern void __libc_free(void *pointer);
void *malloc(size_t size);
void free(void *pointer);

static _Alignas(16) char one[64];

void *malloc(size_t size) { return size == sizeof one ? one : __libc_malloc(size); }

void free(void *pointer) {
  if (pointer != one) __libc_free(pointer);
}
