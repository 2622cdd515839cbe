/* SPDX-License-Identifier: MIT */
/*
 * A malloc and a free that do nothing: there is one block of 64 bytes, and it is always free. In a shared library, as allocators are.
 */
#ifndef PERCPU_BENCH_MALLOC_NOTHING_H
#define PERCPU_BENCH_MALLOC_NOTHING_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

__attribute__((visibility("default"))) void *bench_nothing_malloc(size_t size);
__attribute__((visibility("default"))) void bench_nothing_free(void *block);

#ifdef __cplusplus
}
#endif

#endif
