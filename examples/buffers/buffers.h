/* SPDX-License-Identifier: MIT */
/*
 * buffers.h - a cache of buffers with a free list for each CPU
 *
 * What a server does with the buffers of its connections: a thread takes one, uses it, and gives it back, perhaps on another CPU. Taken
 * and given is by one restartable sequence each, on the CPU that the thread runs on; malloc() is asked only where that CPU's list is
 * empty. buffers_trim() may take from every CPU's list while others use them.
 *
 * All functions are thread-safe. A buffer belongs to whoever took it, until it is given back.
 */
#ifndef BUFFERS_H
#define BUFFERS_H

#include <stddef.h>
#include <stdint.h>

enum { BUFFER_BYTES = 2000 };

struct buffers;

/* What a cache did, over all CPUs. Exact while nobody uses it; else each figure is one of some moment. */
struct buffers_stats {
  uint64_t hits;    /* taken from a list */
  uint64_t misses;  /* taken from malloc() */
  uint64_t given;   /* given back */
  uint64_t trimmed; /* freed by buffers_trim() */
};

/* Makes a cache; NULL with errno where there is no memory. */
struct buffers *buffers_create(void);
/* Frees what is on the lists, and the cache. All buffers have been given back, and nobody uses it any more. */
void buffers_destroy(struct buffers *cache);

/* A buffer of BUFFER_BYTES bytes with any content; NULL with errno ENOMEM. */
void *buffers_take(struct buffers *cache);
void buffers_give(struct buffers *cache, void *buffer);

/* Frees all but `keep` buffers of each CPU's list. 0, or -1 with errno where a CPU cannot be fenced: its list is as it was. */
int buffers_trim(struct buffers *cache, size_t keep);

void buffers_read(struct buffers *cache, struct buffers_stats *stats);

#endif
