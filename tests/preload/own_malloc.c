/* SPDX-License-Identifier: MIT */
/* A program with its own malloc, of which it has what glibc's manual asks for and no more: libc's other functions go by that. */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../as_told.h"

static _Alignas(16) unsigned char memory[1 << 22];
static size_t used;

void *malloc(size_t bytes) {
  const size_t needed = (bytes + 15) / 16 * 16 + 16;
  if (needed < bytes || sizeof memory - used < needed) return NULL;
  unsigned char *block = memory + used + 16;
  memcpy(block - 16, &bytes, sizeof bytes);
  used += needed;
  return block;
}

void free(void *block) { (void)block; }

void *calloc(size_t count, size_t bytes) { return malloc(count * bytes); }

void *realloc(void *block, size_t bytes) {
  void *other = malloc(bytes);
  size_t old = 0;
  if (block != NULL) memcpy(&old, (unsigned char *)block - 16, sizeof old);
  if (other != NULL && block != NULL) memcpy(other, block, old < bytes ? old : bytes);
  return other;
}

static int is_own(const void *block) { return (uintptr_t)block - (uintptr_t)memory < sizeof memory; }

int main(void) {
  expect_preload_as_told();
  char *block = malloc(10);
  if (!is_own(block)) return 1;
  strcpy(block, "content");
  block = reallocarray(block, 100, 7);
  if (!is_own(block) || strcmp(block, "content") != 0) return 2;
  if (!is_own(reallocarray(NULL, 3, 5))) return 3;
  volatile size_t half = SIZE_MAX / 2;
  errno = 0;
  if (reallocarray(block, half, 3) != NULL || errno != ENOMEM) return 4;
  free(block);
  return 0;
}
