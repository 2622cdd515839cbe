/* SPDX-License-Identifier: MIT */
/*
 * percpu/copies.h - the copies behind a handle: their addresses, their sum, and walking over them
 *
 *   T *percpu_ptr(p, cpu)              CPU cpu's copy. NULL if cpu is no CPU number (negative, too large); for a hole in
 *                                      the CPU numbers an address that faults when it is used.
 *   T *percpu_this_ptr(p)              the copy of the CPU that we run on now, or the one that this thread shares if it
 *                                      has no rseq. Stays a valid address, but may be another CPU's copy at once.
 *   percpu_sum(p)                      the sum over all copies, extra ones included, of a number T: in 64 bits with T's
 *                                      sign (wrapping around), or as a double. An 8-byte T gives a T.
 *   void percpu_sum_n(p, n, out)       out[i] = the sum of the i-th elements, 0 <= i < n, for areas of n elements: 8-byte
 *                                      integers or doubles. Much faster than n single sums.
 *   percpu_for_each_possible_cpu(cpu)  a loop header: cpu, a variable of the caller's, takes each possible CPU's number;
 *                                      none before the default pool exists (percpu_nr_cpu_ids() makes it)
 *   percpu_for_each_copy(c, p)         a loop header: c, a T * of the caller's, takes the address of each copy
 *
 * The same with a pool first: percpu_pool_ptr(pool, p, cpu), percpu_pool_for_each_copy(pool, c, p) and so on.
 *
 * Reading while others count: each element is read once and whole, and sums what was there at that moment; there is no
 * moment at which all copies had the values that were read. Doubles are added in the order of the copy ids.
 *
 * Context: any thread, any signal handler, the child of a fork(). Touches the copies of CPUs that never ran, whose memory
 * then may be backed.
 */
#ifndef PERCPU_COPIES_H
#define PERCPU_COPIES_H

#include <percpu/words.h>

PERCPU_INLINE_ void *percpu_copy_at_(const volatile void *handle, uintptr_t offset) {
  return (void *)((uintptr_t)handle + offset);
}

PERCPU_INLINE_ void *percpu_copy_of_cpu_(const struct percpu_view *view, const volatile void *handle, size_t cpu) {
  view = percpu_view_or_default_(view);
  return cpu < view->nr_cpu_ids ? percpu_copy_at_(handle, view->offset[cpu]) : NULL;
}

PERCPU_COLD_ void *percpu_this_copy_slow_(const struct percpu_view *view, const volatile void *handle) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_attached_table_(view);
  if (table != NULL) return percpu_copy_at_(handle, table[percpu_arch_cpu_()]);
#endif
  return percpu_shared_(view, handle);
}

PERCPU_INLINE_ void *percpu_this_copy_(const struct percpu_view *view, const volatile void *handle) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_table_(view);
  if (PERCPU_LIKELY_(table != NULL)) return percpu_copy_at_(handle, table[percpu_arch_cpu_()]);
#endif
  return percpu_this_copy_slow_(view, handle);
}

/* A walk over all copies of one area, or over the possible CPUs. */
struct percpu_walk_ {
  const struct percpu_view *view;
  const volatile void *handle;
  uint32_t next; /* copy id, or CPU */
  uint32_t nr_cpu_ids;
};

PERCPU_INLINE_ struct percpu_walk_ percpu_walk_begin_(const struct percpu_view *view, const volatile void *handle) {
  struct percpu_walk_ walk;
  walk.view = percpu_view_or_default_(view);
  walk.handle = handle;
  walk.next = 0;
  /* With acquire: where there is no handle, nothing else says that the default view is complete. */
  walk.nr_cpu_ids = __atomic_load_n(&walk.view->nr_cpu_ids, __ATOMIC_ACQUIRE);
  return walk;
}

/* The next copy, or NULL after the last. */
PERCPU_INLINE_ void *percpu_walk_next_(struct percpu_walk_ *walk) {
  while (walk->next < walk->view->nr_copies) {
    uintptr_t offset = walk->view->offset[walk->next++];
    if (offset != 0) return percpu_copy_at_(walk->handle, offset);
  }
  return NULL;
}

/* The next possible CPU, or nr_cpu_ids after the last. */
PERCPU_INLINE_ uint32_t percpu_walk_cpu_(struct percpu_walk_ *walk) {
  while (walk->next < walk->nr_cpu_ids && walk->view->offset[walk->next] == 0) ++walk->next;
  return walk->next++;
}

#define PERCPU_WALK_NAME_2_(id) percpu_walk_##id
#define PERCPU_WALK_NAME_(id) PERCPU_WALK_NAME_2_(id)
#define PERCPU_FOR_EACH_COPY_(view, c, p, id)                                     \
  for (struct percpu_walk_ PERCPU_WALK_NAME_(id) = percpu_walk_begin_(view, (p)); \
       ((c) = (__typeof__(&*(p)))percpu_walk_next_(&PERCPU_WALK_NAME_(id))) != NULL;)
#define PERCPU_FOR_EACH_CPU_(of, cpu, id)                                                    \
  for (struct percpu_walk_ PERCPU_WALK_NAME_(id) = percpu_walk_begin_(of, NULL);             \
       ((cpu) = (__typeof__(cpu))percpu_walk_cpu_(&PERCPU_WALK_NAME_(id))),                  \
       PERCPU_WALK_NAME_(id).next <= PERCPU_WALK_NAME_(id).nr_cpu_ids;)
#define percpu_for_each_possible_cpu(cpu) PERCPU_FOR_EACH_CPU_((const struct percpu_view *)0, cpu, __COUNTER__)
#define percpu_pool_for_each_possible_cpu(pool, cpu) PERCPU_FOR_EACH_CPU_(percpu_pool_view_(pool), cpu, __COUNTER__)
#define percpu_for_each_copy(c, p) PERCPU_FOR_EACH_COPY_((const struct percpu_view *)0, c, p, __COUNTER__)
#define percpu_pool_for_each_copy(pool, c, p) PERCPU_FOR_EACH_COPY_(percpu_pool_view_(pool), c, p, __COUNTER__)

/* One element, read once, sign- or zero-extended to 64 bits. */
PERCPU_INLINE_ uint64_t percpu_load_integer_(const void *copy, size_t size, int is_signed) {
  uint64_t raw;
  switch (size) {
    case 1:
      raw = __atomic_load_n((const percpu_u1_ *)copy, __ATOMIC_RELAXED);
      return is_signed ? (uint64_t)(int64_t)(int8_t)raw : raw;
    case 2:
      raw = __atomic_load_n((const percpu_u2_ *)copy, __ATOMIC_RELAXED);
      return is_signed ? (uint64_t)(int64_t)(int16_t)raw : raw;
    case 4:
      raw = __atomic_load_n((const percpu_u4_ *)copy, __ATOMIC_RELAXED);
      return is_signed ? (uint64_t)(int64_t)(int32_t)raw : raw;
    default: return __atomic_load_n((const percpu_u8_ *)copy, __ATOMIC_RELAXED);
  }
}

PERCPU_INLINE_ double percpu_load_real_(const void *copy, size_t size) {
  double wide;
  float narrow;
  uint64_t raw = percpu_load_integer_(copy, size, 0);
  uint32_t raw_narrow = (uint32_t)raw;
  if (size == 8) {
    __builtin_memcpy(&wide, &raw, sizeof wide);
    return wide;
  }
  __builtin_memcpy(&narrow, &raw_narrow, sizeof narrow);
  return (double)narrow;
}

PERCPU_INLINE_ uint64_t percpu_sum_integer_(const struct percpu_view *view, size_t size, int is_signed,
                                            const volatile void *handle) {
  struct percpu_walk_ walk = percpu_walk_begin_(view, handle);
  uint64_t sum = 0;
  const void *copy;
  while ((copy = percpu_walk_next_(&walk)) != NULL) sum += percpu_load_integer_(copy, size, is_signed);
  return sum;
}

PERCPU_INLINE_ double percpu_sum_real_(const struct percpu_view *view, size_t size, int is_signed,
                                       const volatile void *handle) {
  struct percpu_walk_ walk = percpu_walk_begin_(view, handle);
  double sum = 0;
  const void *copy;
  (void)is_signed;
  while ((copy = percpu_walk_next_(&walk)) != NULL) sum += percpu_load_real_(copy, size);
  return sum;
}

/*
 * Sums of vectors. The copies are read 16 bytes at a time by volatile vector loads: a relaxed atomic load of each
 * element would say the same, but keeps compilers from using vectors (measured: see bench/ops.cc). Each element is
 * aligned to its 8 bytes, so no processor with such vectors tears it, and `volatile` keeps the compiler from reading it
 * twice. Four copies are added at once, in a tile of `out` that stays in the first-level cache, so that what counts is
 * the reading.
 */
#define PERCPU_SUM_TILE_ ((size_t)1024)

#ifdef PERCPU_UNDER_TSAN
#define PERCPU_SUM_PAIRS_(V, rows)
#else
#define PERCPU_SUM_PAIRS_(V, rows) \
  for (; i + 2 <= n; i += 2) *(V *)(out + i) = *(V *)(out + i) + rows(V, i);
#endif
#define PERCPU_SUM_ROW_(V, r, i) (*(const volatile V *)(row[r] + (i)))
#define PERCPU_SUM_ONE_ROW_(V, i) PERCPU_SUM_ROW_(V, 0, i)
#define PERCPU_SUM_FOUR_ROWS_(V, i) \
  PERCPU_SUM_ROW_(V, 0, i) + PERCPU_SUM_ROW_(V, 1, i) + PERCPU_SUM_ROW_(V, 2, i) + PERCPU_SUM_ROW_(V, 3, i)

/* name: integer or real; T: the element; load: reads one. */
#define PERCPU_SUM_N_FUNCTIONS_(name, T, load)                                                                      \
  typedef T percpu_pair_##name##_ __attribute__((__vector_size__(16), __aligned__(8), __may_alias__));              \
  typedef T percpu_elem_##name##_ __attribute__((__may_alias__));                                                   \
  static inline __attribute__((__unused__)) void percpu_sum_row_##name##_(                                          \
      const percpu_elem_##name##_ *const *row, size_t n, percpu_elem_##name##_ *out) {                              \
    size_t i = 0;                                                                                                   \
    PERCPU_SUM_PAIRS_(percpu_pair_##name##_, PERCPU_SUM_ONE_ROW_)                                                   \
    for (; i < n; ++i) out[i] += load(row[0] + i);                                                                  \
  }                                                                                                                 \
  static inline __attribute__((__unused__)) void percpu_sum_four_rows_##name##_(                                    \
      const percpu_elem_##name##_ *const *row, size_t n, percpu_elem_##name##_ *out) {                              \
    size_t i = 0;                                                                                                   \
    PERCPU_SUM_PAIRS_(percpu_pair_##name##_, PERCPU_SUM_FOUR_ROWS_)                                                 \
    for (; i < n; ++i) out[i] = out[i] + load(row[0] + i) + load(row[1] + i) + load(row[2] + i) + load(row[3] + i); \
  }                                                                                                                 \
  static __attribute__((__unused__)) void percpu_sum_n_##name##_(                                                   \
      const struct percpu_view *view, const volatile void *handle, size_t n, void *result) {                        \
    const percpu_elem_##name##_ *row[4];                                                                            \
    size_t i, tile;                                                                                                 \
    for (i = 0; i < n; i += tile) {                                                                                 \
      percpu_elem_##name##_ *out = (percpu_elem_##name##_ *)result + i;                                             \
      struct percpu_walk_ walk = percpu_walk_begin_(view, (const volatile percpu_elem_##name##_ *)handle + i);      \
      int rows = 0;                                                                                                 \
      const void *copy;                                                                                             \
      tile = n - i < PERCPU_SUM_TILE_ ? n - i : PERCPU_SUM_TILE_;                                                   \
      __builtin_memset((void *)out, 0, tile * sizeof *out);                                                         \
      while ((copy = percpu_walk_next_(&walk)) != NULL) {                                                           \
        row[rows++] = (const percpu_elem_##name##_ *)copy;                                                          \
        if (rows < 4) continue;                                                                                     \
        percpu_sum_four_rows_##name##_(row, tile, out);                                                             \
        rows = 0;                                                                                                   \
      }                                                                                                             \
      for (int r = 0; r < rows; ++r) percpu_sum_row_##name##_(row + r, tile, out);                                  \
    }                                                                                                               \
  }

PERCPU_INLINE_ uint64_t percpu_load_u8_(const void *copy) {
  return percpu_load_integer_(copy, 8, 0);
}
PERCPU_INLINE_ double percpu_load_f8_(const void *copy) {
  return percpu_load_real_(copy, 8);
}
PERCPU_SUM_N_FUNCTIONS_(integer, uint64_t, percpu_load_u8_)
PERCPU_SUM_N_FUNCTIONS_(real, double, percpu_load_f8_)

#endif /* PERCPU_COPIES_H */
