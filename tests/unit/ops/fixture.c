/* SPDX-License-Identifier: MIT */
/* See fixture.h. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "leave_rseq.h"

enum { kMaxCpus = 1024, kUnitBytes = 1 << 20 };

struct arena {
  struct percpu_view view; /* first, as in a percpu_pool_t */
  uintptr_t offset[kMaxCpus + 4];
  char *base, *window;
  size_t total, used;
};

struct percpu_view percpu_default_view_;
__thread struct percpu_thread_state percpu_thread_ __attribute__((tls_model("initial-exec"), used));

static struct arena arena[2];
static unsigned nr_cpus;
static int fence_error;

static void die(const char *what) {
  perror(what);
  abort();
}

static void lay_out(struct arena *a, size_t gap_bytes) {
  const unsigned ids = nr_cpus + 2, copies = ids + 2;
  size_t stride = kUnitBytes + gap_bytes, total = (size_t)(copies + 1) * (stride + 4096 * copies);
  char *base = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  a->window = mmap(NULL, kUnitBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED || a->window == MAP_FAILED) die("fixture: mmap");
  a->base = base;
  a->total = total;
  for (unsigned id = 0; id < copies; ++id) {
    size_t place = (copies - id) * stride + (size_t)id * id % 7 * 4096;
    if (id != nr_cpus) a->offset[id] = (uintptr_t)(base + place) - (uintptr_t)a->window;
  }
  a->view.offset = a->offset;
  a->view.nr_cpu_ids = ids;
  a->view.nr_copies = copies;
}

__attribute__((constructor)) static void set_up(void) {
  nr_cpus = (unsigned)sysconf(_SC_NPROCESSORS_CONF);
  if (nr_cpus > kMaxCpus) nr_cpus = kMaxCpus;
  lay_out(&arena[0], 3 * 4096);
  lay_out(&arena[1], 11 * 4096);
  percpu_default_view_ = arena[0].view;
  syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0);
}

static void *take(struct arena *a, size_t size, size_t align) {
  size_t at = (a->used + align - 1) / align * align;
  if (at + size > kUnitBytes) die("fixture: arena full");
  a->used = at + size;
  return a->window + at;
}

void *fixture_alloc(size_t size, size_t align) {
  return take(&arena[0], size, align);
}
struct percpu_pool *fixture_pool(void) {
  return (struct percpu_pool *)&arena[1];
}
void *fixture_pool_alloc(size_t size, size_t align) {
  return take(&arena[1], size, align);
}
void fixture_free_all(void) {
  for (struct arena *a = arena; a < arena + 2; ++a) {
    if (madvise(a->base, a->total, MADV_DONTNEED) != 0) die("fixture: madvise");
    a->used = 0;
  }
}
unsigned fixture_nr_cpus(void) {
  return nr_cpus;
}

static struct rseq *area(void) {
  return (struct rseq *)(void *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

int fixture_process_has_rseq(void) {
  return __rseq_size != 0;
}

void fixture_leave_rseq(void) {
  if (percpu_thread_.offset != NULL) die("fixture: the thread used sequences already");
  if (leave_rseq() != 0) die("fixture: rseq unregister");
}

/* All that the process may use. */
static cpu_set_t allowed;
static __attribute__((constructor)) void read_allowed(void) {
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) die("fixture: sched_getaffinity");
}

int fixture_next_cpu(int cpu) {
  while (++cpu < CPU_SETSIZE) {
    if (CPU_ISSET((unsigned)cpu, &allowed)) return cpu;
  }
  return -1;
}

void fixture_pin(int cpu) {
  cpu_set_t set = allowed;
  if (cpu >= 0) {
    CPU_ZERO(&set);
    CPU_SET((unsigned)cpu, &set);
  }
  if (sched_setaffinity(0, sizeof set, &set) != 0) die("fixture: sched_setaffinity");
}

unsigned long fixture_rseq_cs(void) {
  return __rseq_size == 0 ? 0 : (unsigned long)__atomic_load_n((uint64_t *)&area()->rseq_cs, __ATOMIC_RELAXED);
}

void fixture_fail_fence(int error) {
  fence_error = error;
}

int percpu_thread_attach_(void) {
  if (__rseq_size == 0 || (int)__atomic_load_n(&area()->cpu_id, __ATOMIC_RELAXED) < 0) return 0;
  percpu_thread_.offset = arena[0].offset;
  return 1;
}

void *percpu_shared_copy_(const struct percpu_view *view, const void *handle) {
  unsigned cpu = 0;
  const int saved = errno;
  syscall(SYS_getcpu, &cpu, NULL, NULL);
  errno = saved;
  if (__rseq_size != 0) cpu = view->nr_cpu_ids + cpu % 2;
  return (void *)((uintptr_t)handle + view->offset[cpu]);
}

int percpu_fence(int cpu) {
  if (fence_error != 0) {
    errno = fence_error;
    return -1;
  }
  if ((unsigned)cpu >= nr_cpus) return 0; /* a possible CPU that never runs */
  return (int)syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_FLAG_CPU, cpu);
}
