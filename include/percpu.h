/* SPDX-License-Identifier: MIT */
/*
 * percpu.h - memory with one copy for every CPU
 *
 * percpu_alloc() returns a handle. A handle names an area; it is not an address: no memory is mapped there, so that a
 * program that dereferences one faults at once. Each possible CPU has its own zero-filled copy of the area, on its own
 * NUMA node, in memory that no other CPU's copies share a cache line with.
 *
 *   uint64_t *hits = percpu_alloc(sizeof *hits, alignof(uint64_t));   a handle, zero on every CPU
 *   percpu_add(hits, 1);                                              this CPU's copy, a few instructions, no lock
 *   uint64_t total = percpu_sum(hits);                                over all copies
 *   uint64_t on3 = *percpu_ptr(hits, 3);                              CPU 3's copy
 *   percpu_free(hits);
 *
 *   PERCPU_DEFINE(long, requests) = 5;                                a static variable: 5 on every CPU
 *   percpu_inc(percpu_static(requests));                              the handle of a static variable
 *
 * This file:           allocation, pools, accounting, questions and statistics: functions of libpercpu
 * percpu/ops.h:        the operations on a copy: inlined into the caller
 * percpu/static.h:     static per-CPU variables
 * percpu/abi.h:        what inlined code and the library agree on
 * percpu.hpp:          the same for C++: percpu::ptr<T>, percpu::counter, ...
 *
 * How to read the comments. Sizes are in bytes unless they say otherwise. A function that returns a pointer returns NULL
 * on failure, one that returns an int returns -1, and errno says why; errno is left alone on success. "Thread-safe":
 * any threads may call it at the same time. "Signal-safe": it may be called from a signal handler, whatever that handler
 * interrupted; where it makes the default pool, only once there is one. "Fork-safe": the child of a fork() may use it, even
 * where other threads of the parent were inside it. (fork() itself is not for a signal handler that interrupted this library;
 * posix_spawn() and _Fork() are. And what makes the default pool hangs in a child that was forked while another thread
 * was in a dl_iterate_phdr() of its own, or at certain moments of dlopen() and dlclose(): such a child has the dynamic
 * linker's lock as it was. Once there is a pool, nothing waits for that lock. Areas that a thread is just freeing or
 * allocating while another one forks, up to a few dozen that wait on its CPU among them, may be lost in the child: they
 * count as live there.) A child made by vfork() shares the parent's memory but not its rseq registration, and must call
 * nothing of this library. A promise that a comment does not name does not hold: a function that does not say "signal-
 * safe" is not. What makes the default pool, where there is none yet, may fail with ENOMEM and then says so; and with
 * EDEADLK where it is called by what that uses itself: a malloc of the program's that counts here, say, called by
 * libnuma. (Such a malloc's program makes the pool before it has threads: one may hold that malloc's lock and wait for
 * who makes the pool, and wants it.)
 *
 * Core dumps, gcore's too, have the copies in them; what is only reserved they leave out.
 *
 * Configuration: the environment variable PERCPU_CONF holds "key:value,key:value". It is read once, by the first call that
 * looks at the machine: one that makes a pool, or percpu_fence(). An unknown key or a bad value is then reported on stderr,
 * with the list of keys, and the default is used. The keys are in docs/configuration.md; PERCPU_CONF=help:yes prints them.
 */
#ifndef PERCPU_H
#define PERCPU_H

#ifndef __cplusplus
#include <stdalign.h> /* alignof, for the second argument of percpu_alloc() */
#endif
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <percpu/abi.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PERCPU_VERSION_MAJOR 0
#define PERCPU_VERSION_MINOR 1
#define PERCPU_VERSION_PATCH 0

/* The version of the library that is linked, "major.minor.patch". Thread-, signal- and fork-safe. */
const char *percpu_version(void);

/* ------------------------------------------------------------------------------------------------ allocation ---- */

/* Flags of an allocation; 0 is the ordinary kind. */
enum {
  /* Never blocks and makes no system call but a futex wake: uses only memory that is populated already. */
  PERCPU_ATOMIC = 1u << 0,
  /* From the reserved part of the first chunk, without falling back when that is full; ordinary memory where the pool
     has no reserved part. */
  PERCPU_RESERVED = 1u << 1,
  /* Charge the allocation to the thread's current accounting domain (percpu_domain_set()). */
  PERCPU_ACCOUNT = 1u << 2,
  /* Do not log a failure. Else one line on stderr tells of it: of an illegal request (EINVAL) each time, of others the
     first ten, over all pools (PERCPU_CONF=warnings:N). */
  PERCPU_NOWARN = 1u << 3,
};

/*
 * Allocates an area of `size` bytes in the copy of every CPU, aligned to `align` bytes, zero-filled in each.
 *
 * size   1 .. percpu_max_alloc(); rounded up to a multiple of 4
 * align  a power of two up to the page size; below 4 it counts as 4. Copies of different CPUs never share a cache line,
 *        areas of one CPU may
 *
 * Returns the handle, or NULL with errno
 *   EINVAL  size 0 or above the largest allocation, align not a power of two or above the page size, unknown flags
 *   ENOMEM  no memory, or no address space, or a limit of the pool or of the accounting domain; or there is no default pool,
 *           and none can be made
 *   EAGAIN  PERCPU_ATOMIC only: a lock was held, by the code that the calling signal handler interrupted or for too
 *           long by another thread; or there is no pool yet
 *
 * percpu_alloc(size, align) is percpu_alloc_flags(size, align, 0).
 * Makes the default pool if there is none, before it looks at size and align; with PERCPU_ATOMIC it does not.
 * Thread-safe. Fork-safe. Signal-safe only with PERCPU_ATOMIC. A cancellation point: no.
 */
void *percpu_alloc(size_t size, size_t align) __attribute__((__warn_unused_result__));
void *percpu_alloc_flags(size_t size, size_t align, unsigned flags) __attribute__((__warn_unused_result__));

/*
 * Frees an area. NULL is fine. A handle that is not the start of a live area of the default pool (never allocated, inside
 * an area, freed before, another pool's) stops the program with one line on stderr that names the handle and says what
 * was found there. Preserves errno. Thread-, signal- and fork-safe.
 */
void percpu_free(void *handle);

/*
 * Frees an area once every reader that is inside rcu_read_lock() of liburcu's bp flavour now has left it. Returns at
 * once; the balance thread waits, whatever the balance mode, and is started by the call where it does not run yet. The
 * handle is invalid for others as soon as readers cannot reach it any more, and is checked at the call as percpu_free()
 * does. From the call on the area is not live: percpu_alloc_size() says 0, and the statistics count it as freed (nr_frees,
 * nr_live); its bytes (live_bytes) and its charge to a domain end when its memory is given back. May be called inside a read
 * section. Preserves errno. Thread-safe; not signal-safe.
 *
 * Fork-safe: areas that wait when a process forks are freed in both, but for one case. A fork waits until nobody is inside a grace
 * period, five seconds at most; where one is still in progress then, or the forking thread itself is inside rcu_read_lock(), the
 * child's copy of liburcu may hold a lock for ever, so the child stays out of it and keeps what waits, and all that is passed here.
 * A program whose other threads may be inside rcu_read_lock() when it forks, and whose child goes on, brackets the fork by
 * urcu_bp_before_fork() and its twins, as liburcu asks: else the child's grace periods wait for readers that it does not have.
 */
void percpu_free_rcu(void *handle);

/*
 * The size in bytes of the area behind a handle: what was asked for, rounded up to 4. 0 with errno EINVAL where the
 * handle is not the start of a live area of the default pool. Takes no lock. Thread-, signal- and fork-safe.
 */
size_t percpu_alloc_size(const void *handle);

/* The largest `size` that percpu_alloc() takes, bytes. Makes the default pool if there is none; 0 with errno ENOMEM where that
   fails. Thread-, fork-safe. */
size_t percpu_max_alloc(void);

/* ----------------------------------------------------------------------------------------------- CPUs, copies ---- */

/*
 * The highest possible CPU number + 1. CPU numbers may have holes and exceed the number of CPUs that the process may run
 * on. Makes the default pool if there is none; 0 with errno where that fails. Thread- and fork-safe; signal-safe once there is one.
 */
unsigned percpu_nr_cpu_ids(void);

/* 1 if the machine can ever have this CPU, else 0. Makes the default pool if there is none; 0 where that fails. Thread- and fork-safe;
   signal-safe once there is one. */
int percpu_cpu_possible(unsigned cpu);

/*
 * 1 if the calling thread's operations run as restartable sequences (rseq), 0 if they use atomic instructions on a copy
 * shared with others. (Of the thread: code compiled with PERCPU_NO_RSEQ, or with -fsanitize=thread, has no sequences.) Needs
 * no pool. Thread-, signal- and fork-safe.
 */
int percpu_thread_has_rseq(void);

#define PERCPU_ALL_CPUS (-1)

/*
 * Waits until no thread of this process is inside an operation that began on `cpu` (or on any CPU: PERCPU_ALL_CPUS)
 * before the call: sequences in flight there are restarted, and what they committed is visible to the caller; what the
 * caller wrote before is visible to sequences that begin after. For one who must see, or change, another CPU's copy: set
 * a word that the operations read, fence, do the work, clear the word.
 *
 * Returns 0, or -1 with errno
 *   EINVAL  not a possible CPU
 *   ENOSYS  membarrier's rseq command is not to be had, and the thread could not be moved to that CPU instead
 *   ENOMEM  the first use of the library, and no memory for what it reads of the machine
 * Uses membarrier(2), MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ. Costs microseconds. Thread- and fork-safe;
 * signal-safe once there is a pool, or percpu_fence() was called.
 */
#ifndef PERCPU_LIST_H /* which needs it, too, and was included first */
int percpu_fence(int cpu);
#endif

/* ------------------------------------------------------------------------------------------------------ pools ---- */

/*
 * A pool is an allocator of its own: own chunks, limits, statistics and balancer work. percpu_alloc() and the plain
 * operations serve the default pool, which is made at first use from PERCPU_CONF. Handles of one pool mean nothing to
 * another: use percpu_pool_free(), percpu_pool_add(), ... with them.
 *
 * A pool that a program creates takes 64 to 90 GiB of address space, the more the fewer CPUs there are, as long as there is so
 * much: a process has room for some 1,400 of them, and for more where max_bytes, or PERCPU_CONF=window:..., makes them smaller
 * (docs/configuration.md; the default pool takes more). On two CPUs it begins with about 100 KiB of memory. No pool holds more
 * than 16 GiB a CPU: 2^32 times 4 bytes.
 *
 * Where a function below gets NULL for a pool it fails with EINVAL; percpu_pool_free() and percpu_pool_free_rcu() of a handle
 * then stop the program with one line that names it, and the inlined operations must not be given NULL. What happens with
 * anything else that is no pool, or is one that was destroyed, is undefined: percpu_pool_destroy() alone finds out.
 */
typedef struct percpu_pool percpu_pool_t;

/* How a pool's balance work is done. */
enum percpu_balance_mode {
  PERCPU_BALANCE_DEFAULT = 0, /* as PERCPU_CONF says */
  PERCPU_BALANCE_THREAD,      /* by the background thread, one a process */
  PERCPU_BALANCE_SYNC,        /* at the end of the call that found it due */
  PERCPU_BALANCE_OFF,         /* only by percpu_pool_balance() */
};

/* How a pool's first chunk is backed. */
enum percpu_first_chunk {
  PERCPU_FIRST_DEFAULT = 0, /* as PERCPU_CONF says */
  PERCPU_FIRST_AUTO,        /* embed where huge pages can be had and would be half used, else page */
  PERCPU_FIRST_EMBED,       /* the units of a group share huge pages (of 2 MiB, or what the system says) */
  PERCPU_FIRST_PAGE,        /* page by page */
};

/* What a pool is made of. Zero means the default, which PERCPU_CONF may change. Set struct_bytes to sizeof. */
struct percpu_pool_attr {
  size_t struct_bytes;    /* sizeof(struct percpu_pool_attr): says which members the caller knows. A longer struct, of a later
                             version, is taken if all that this version does not know is zero, else it is EINVAL */
  const char *name;       /* for reports, at most 31 bytes, control characters becoming "?"; NULL: "pool" */
  size_t unit_size;       /* bytes a CPU in one chunk: 32 KiB .. 1 GiB, rounded up to whole pages. Larger where the parts of
                             the first chunk need more; and with embed, so that units of the same size fill whole huge pages */
  size_t reserved_size;   /* the reserved part of the first chunk, bytes, a multiple of 4, at most 256 MiB; none by default */
  size_t dynamic_size;    /* the dynamic part of the first chunk, bytes, 20 KiB .. 256 MiB. A large one makes the units larger,
                             and with them the default of max_alloc */
  size_t max_alloc;       /* the largest allocation, bytes, 4 .. unit_size, rounded down to a multiple of 4; by default a unit,
                             as large as it became */
  size_t max_bytes;       /* the most that the pool's chunks may hold, bytes a CPU, at least unit_size; the first chunk is
                             made in any case, and where it takes all of it, is all; no limit by default */
  unsigned nr_cpus;       /* lay out for this many CPUs, 0 .. nr_cpus-1, at most 8192, where that is more than the machine has
                             (the others' copies cost address space, and memory only where written): for tests, benchmarks */
  enum percpu_balance_mode balance;
  enum percpu_first_chunk first_chunk;
  unsigned reserved;      /* zero */
};

/*
 * Makes a pool; attr NULL: all defaults. Returns NULL with errno EINVAL (a member out of range; one line on stderr says
 * which) or ENOMEM. Thread-, fork-safe.
 */
percpu_pool_t *percpu_pool_create(const struct percpu_pool_attr *attr) __attribute__((__warn_unused_result__));

/*
 * Destroys a pool that has no live areas left. Returns 0, or -1 with errno, and then nothing happened: EBUSY where it has some,
 * or is the default pool; EDEADLK inside rcu_read_lock(), since it waits for a grace period. What is no pool, or one no more,
 * stops the program with one line. The caller makes sure that nobody else uses the pool. Thread-, fork-safe; a child that keeps
 * what waits for a grace period (percpu_free_rcu()) keeps the pool's memory, too.
 */
int percpu_pool_destroy(percpu_pool_t *pool);

/* The default pool, made if there is none yet; NULL with errno ENOMEM where that fails. Thread-, fork-safe. */
percpu_pool_t *percpu_pool_default(void);

/* As the functions without "pool", for any pool: same results, errors and promises. */
void *percpu_pool_alloc(percpu_pool_t *pool, size_t size, size_t align, unsigned flags)
    __attribute__((__warn_unused_result__));
void percpu_pool_free(percpu_pool_t *pool, void *handle);
void percpu_pool_free_rcu(percpu_pool_t *pool, void *handle);
size_t percpu_pool_alloc_size(percpu_pool_t *pool, const void *handle);
size_t percpu_pool_max_alloc(percpu_pool_t *pool);

/*
 * Does one round of balance work now, in the calling thread: gives wholly free chunks and empty pages back, and tops up
 * the pages kept ready for PERCPU_ATOMIC. Returns 0, also where memory was short; or -1 with errno EINVAL where the pool is
 * NULL. percpu_balance() does it for the default pool, which it makes if there is none; -1 with errno ENOMEM where that fails.
 * May take milliseconds. Thread-, fork-safe.
 */
int percpu_pool_balance(percpu_pool_t *pool);
int percpu_balance(void);

/* ------------------------------------------------------------------------------------------------- accounting ---- */

/*
 * An accounting domain has a name, a limit, and perhaps a parent. An allocation with PERCPU_ACCOUNT is charged to the
 * thread's current domain and all its ancestors, before anything is taken. With size in bytes, rounded up to a multiple of 4:
 *
 *   charge = size * copies + 2 * size + size * 3 / 32, rounded up        the copies, the records, three maps
 *
 * where copies is struct percpu_stats.nr_copies: all possible CPUs, one that never ran too, and the extra copies. On a machine
 * of two CPUs and one node (three copies) 100,000 bytes are charged 509,375. Above a limit the allocation fails with ENOMEM and
 * nothing changed. (Until a charge that an ancestor refuses is taken back, others that would just fit may be refused, too.)
 *
 * Freeing uncharges the domain that was charged, whichever thread frees. What percpu_free_rcu() frees stays charged until the
 * grace period has ended and the area is given back. In a pool for more than eight possible CPUs an area of up to 256 bytes
 * stays charged until its copies have been zeroed in the background, but is uncharged before a charge would fail (before one
 * with PERCPU_ATOMIC only those that wait on the caller's CPU are). Areas in the first chunk carry no charge.
 *
 * From the first area on that is charged, every percpu_free() of its pool takes a longer way, for good, whether its area is charged
 * or not: a program that accounts for some areas and counts the nanoseconds of others makes a second pool.
 *
 * What is handed to the functions below as a domain and is none, or has no reference left of any kind, stops the program with
 * one line that names it.
 */
typedef struct percpu_domain percpu_domain_t;

#define PERCPU_NO_LIMIT SIZE_MAX

/*
 * Makes a domain. The caller holds one reference.
 * name         copied, at most 31 bytes; longer is EINVAL
 * limit_bytes  the most that may be charged to it and its descendants, or PERCPU_NO_LIMIT
 * parent       NULL for none
 * NULL with errno EINVAL (also where name is NULL), or ENOMEM (4,095 domains exist). Thread-, fork-safe.
 */
percpu_domain_t *percpu_domain_create(const char *name, size_t limit_bytes, percpu_domain_t *parent)
    __attribute__((__warn_unused_result__));

/*
 * Takes, and drops, a reference; NULL is fine. A domain lives as long as it has references, charged areas, or children: each
 * of those holds a reference of its own. Dropping one that you do not hold drops theirs: the domain may end while they use it, and
 * its place become another domain's. Only once none is left is that found, and stops the program.
 * Thread-, signal- and fork-safe.
 */
percpu_domain_t *percpu_domain_get(percpu_domain_t *domain);
void percpu_domain_put(percpu_domain_t *domain);

/*
 * Makes `domain` (NULL: none) the calling thread's current one and returns the one before. The thread borrows the
 * caller's reference: keep one for as long as the domain is current anywhere. Threads begin with none; a child of
 * fork() keeps the forking thread's. Neither fails. Thread-, signal- and fork-safe; a signal handler that sets one sets the one
 * before again.
 */
percpu_domain_t *percpu_domain_set(percpu_domain_t *domain);
percpu_domain_t *percpu_domain_current(void);

/* Stays as it is, in later versions too: what is filled here does not say how long it is. */
struct percpu_domain_stats {
  char name[32];
  size_t limit_bytes;
  size_t charged_bytes;      /* now, descendants included */
  size_t peak_charged_bytes; /* the most so far, as found after each charge */
  uint64_t nr_refused;       /* allocations that failed at this domain's limit */
};
/* Reads a domain's figures, each at its own moment. Neither is NULL. Thread-, signal- and fork-safe. */
void percpu_domain_read(const percpu_domain_t *domain, struct percpu_domain_stats *out);

/* Changes the limit. One below what is charged already only refuses new charges. `domain` is not NULL.
   Thread-, signal- and fork-safe. */
void percpu_domain_set_limit(percpu_domain_t *domain, size_t limit_bytes);

/* ---------------------------------------------------------------------------------------------------- questions ---- */

enum {
  PERCPU_INFO_LIVE = 1u << 0,     /* a live area is there */
  PERCPU_INFO_STATIC = 1u << 1,   /* part of a static variable's image */
  PERCPU_INFO_RESERVED = 1u << 2, /* that area is in the reserved part */
  PERCPU_INFO_EXTRA = 1u << 3,    /* in an extra copy, for threads without rseq */
  PERCPU_INFO_HANDLE = 1u << 4,   /* the address lies in the handle window: it is a handle, or inside one */
};

/* Stays as it is, in later versions too. */
struct percpu_address {
  percpu_pool_t *pool;
  void *handle;        /* of the area that holds the address; NULL where no area is live there */
  size_t area_bytes;   /* its size */
  size_t area_offset;  /* of the address within the area */
  int cpu;             /* whose copy; -1 for an extra copy, and for an address in the handle window */
  unsigned copy;       /* copy id (percpu/abi.h); struct percpu_view's nr_copies for an address in the handle window */
  unsigned chunk;      /* chunk number */
  size_t unit_offset;  /* of the address within the CPU's unit */
  unsigned flags;      /* PERCPU_INFO_* */
};

/*
 * Says what an ordinary address belongs to, in any pool. Returns 1 and fills `out` if it is per-CPU memory (or a
 * handle), 0 if not; `out` may be NULL, to ask only that. Waits for the lock of the pool's maps; where the address is a static
 * variable's, for who makes room for others (percpu_static()); while a pool is being destroyed, for who asks the same and began
 * before; and for no other. The answer is a snapshot: the area may be freed by another thread meanwhile. Thread-, fork-safe.
 */
int percpu_address_info(const void *address, struct percpu_address *out);

/*
 * The NUMA node whose memory backs the page of an address (any address, not a handle). -1 with errno ENOENT where no
 * page is there, EFAULT where nothing is mapped, ENOSYS where the kernel does not say. Does not fault the page in.
 * Thread-, signal- and fork-safe.
 */
int percpu_page_node(const void *address);

/* ---------------------------------------------------------------------------------------------------- statistics ---- */

struct percpu_stats {
  uint64_t nr_allocs, nr_frees, nr_live; /* areas; one that percpu_free_rcu() was given is freed at once */
  uint64_t nr_peak_live;                 /* the most areas at once; those in front caches count, too */
  uint64_t nr_cached;                    /* areas that wait in front caches, and on shelves behind them, to be allocated */
  uint64_t nr_failed;                                  /* allocations refused, illegal ones not counted */
  uint64_t live_bytes;                                 /* bytes of live areas, and of those that wait for a grace period, in
                                                          one copy */
  uint64_t min_request, max_request;                   /* bytes, rounded up to a multiple of 4; 0 before the first allocation */
  uint64_t nr_chunks, nr_peak_chunks;
  uint64_t populated_pages;       /* page offsets backed in the copies of all CPUs that may run us */
  uint64_t empty_populated_pages; /* those of them that hold no area */
  uint64_t populated_bytes;       /* populated_pages times page size times the number of such CPUs */
  uint64_t metadata_bytes;        /* of the pool's own state, resident */
  uint64_t unit_bytes, nr_cpus, nr_copies, nr_groups, page_bytes;
  /* what the balancer did */
  uint64_t nr_balance_rounds, nr_chunks_created, nr_chunks_destroyed, nr_pages_populated, nr_pages_depopulated;
};

struct percpu_chunk_stats {
  uint64_t chunk; /* its number; the first chunk is 0, and so is its reserved part, a row of its own (PERCPU_CHUNK_RESERVED) */
  uint64_t nr_live, live_bytes, largest_live, median_live, smallest_live;
  uint64_t populated_pages, empty_populated_pages;
  uint64_t first_free;    /* byte offset of the first free fragment */
  uint64_t free_bytes;
  uint64_t largest_run;   /* the largest free run, bytes */
  uint64_t fragment_sum;  /* bytes in free runs before the last area */
  uint64_t fragment_max;  /* the largest of these */
  uint32_t slot;
  uint32_t flags;         /* PERCPU_CHUNK_* */
};
enum {
  PERCPU_CHUNK_FIRST = 1u << 0,
  PERCPU_CHUNK_RESERVED = 1u << 1,
  PERCPU_CHUNK_ISOLATED = 1u << 2,
};

/*
 * Reads a pool's statistics. They are exact, and agree with each other, where no thread allocates or frees meanwhile; areas that
 * one does may be counted as live or as freed, nr_live and live_bytes be off by what is under way. `struct_bytes` is sizeof *out:
 * says which members the caller knows; bytes behind those that this version knows become 0. Returns 0, or -1 with errno EINVAL
 * where `pool` or `out` is NULL, or struct_bytes 0 or above 4,096. percpu_stats_read() is for the default pool, which it makes if
 * there is none; -1 with errno ENOMEM where that fails. Thread-, fork-safe.
 */
int percpu_pool_stats_read(percpu_pool_t *pool, struct percpu_stats *out, size_t struct_bytes);
int percpu_stats_read(struct percpu_stats *out, size_t struct_bytes);

/*
 * Reads the statistics of the chunks into `out`, up to `max` rows of `struct_bytes` each (bytes behind those that this version
 * knows become 0): a row for the first chunk's reserved part, where it has one, then a row for each chunk. Returns how many
 * rows there are, which may be more than `max`: nr_chunks, or one more. 0 with errno EINVAL where `pool` is NULL, or, with a
 * `max` above 0, `out` is NULL or struct_bytes is 0 or above 4,096. Thread-, fork-safe.
 */
size_t percpu_pool_chunks(percpu_pool_t *pool, struct percpu_chunk_stats *out, size_t max, size_t struct_bytes);

enum percpu_report_kind {
  PERCPU_REPORT_LAYOUT = 0, /* the sizes, the groups, each group's CPUs in unit order */
  PERCPU_REPORT_TEXT,       /* the statistics, a line each, then a line a chunk */
  PERCPU_REPORT_JSON,       /* the statistics and chunks as one JSON object */
};

/*
 * Writes a report into `buffer`, as snprintf does: at most `bytes` bytes with the final NUL; returns the length that the
 * whole report has. Each call tells of its own moment: a second one, into a buffer of the length that the first said, may
 * need a few bytes more. 0 with errno EINVAL, and an empty text, where the pool is NULL or there is no such kind, or the buffer
 * is NULL and `bytes` is not 0.
 * percpu_report() tells of the default pool, which it makes if there is none (0 with errno ENOMEM where that fails); nothing
 * else is allocated. Thread-, fork-safe.
 */
size_t percpu_pool_report(percpu_pool_t *pool, enum percpu_report_kind what, char *buffer, size_t bytes);
size_t percpu_report(enum percpu_report_kind what, char *buffer, size_t bytes);

/*
 * Recomputes every count and hint of a pool from its bitmaps and stops the program, with one line that says what was
 * expected and what was found, at the first that is wrong. Returns 0. For tests; holds the pool's locks for long.
 * Thread-, fork-safe.
 */
int percpu_pool_check(percpu_pool_t *pool);

#ifdef __cplusplus
}
#endif

#include <percpu/ops.h>
#include <percpu/static.h>

#endif /* PERCPU_H */
