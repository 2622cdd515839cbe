/* SPDX-License-Identifier: MIT */
/*
 * percpu/words.h - from an operation on some bytes to a sequence or to an atomic instruction
 *
 * Each operation of percpu/ops.h exists here once for each size, untyped: percpu_add_8_(view, handle, v) and so on; and
 * percpu_word_add_(view, size, handle, v), which picks the size. `view` is NULL for the default pool.
 *
 *   table = percpu_table_(view)        may this thread run sequences, and where are the copies?
 *   table:  percpu_seq_add_8_()        percpu/arch/<processor>.h
 *   NULL:   percpu_add_slow_8_()       out of line: asks the library about the thread, then either the sequence after
 *                                      all, or percpu_atomic_add_8_() on a shared copy (percpu/arch/generic.h)
 *
 * Locking: none. Everything here may be called from a signal handler once the pool of the handle exists.
 */
#ifndef PERCPU_WORDS_H
#define PERCPU_WORDS_H

#include <percpu/arch/select.h>

/* Stands for a pool in the operations: its view, or NULL for the default pool. */
PERCPU_INLINE_ const struct percpu_view *percpu_view_or_default_(const struct percpu_view *view) {
  return view != NULL ? view : &percpu_default_view_;
}

/* A percpu_pool_t begins with its view. */
struct percpu_pool;
PERCPU_INLINE_ const struct percpu_view *percpu_pool_view_(const struct percpu_pool *pool) {
  if (pool == NULL) __builtin_unreachable();
  return (const struct percpu_view *)(const void *)pool;
}

/* The offsets by copy id if the calling thread may run sequences, else NULL. */
PERCPU_INLINE_ const uintptr_t *percpu_table_(const struct percpu_view *view) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_arch_offset_();
  if (view != NULL && table != NULL) {
    table = view->offset;
    if (table == NULL) __builtin_unreachable();
  }
  return table;
#else
  (void)view;
  return NULL;
#endif
}

/* As percpu_table_(); of a thread that is not known yet the library is asked first. */
PERCPU_INLINE_ const uintptr_t *percpu_attached_table_(const struct percpu_view *view) {
#if PERCPU_HAVE_SEQUENCES
  const uintptr_t *table = percpu_table_(view);
  if (table != NULL) return table;
  return percpu_thread_attach_() ? percpu_view_or_default_(view)->offset : NULL;
#else
  (void)view;
  return NULL;
#endif
}

PERCPU_INLINE_ void *percpu_shared_(const struct percpu_view *view, const volatile void *handle) {
  return percpu_shared_copy_(percpu_view_or_default_(view), (const void *)(uintptr_t)handle);
}

/*
 * AddressSanitizer sees nothing of a sequence either. So its builds touch the copy once before it, in C: that reports
 * an area that the program poisoned (the library poisons none), a misaligned handle where -fsanitize=alignment is on, and
 * a handle that was dereferenced by mistake at the line of its use.
 */
#if PERCPU_HAVE_SEQUENCES && defined(PERCPU_UNDER_ASAN)
#define PERCPU_CHECK_(n)                                                                         \
  PERCPU_INLINE_ void percpu_check_##n##_(const uintptr_t *table, const volatile void *handle) { \
    (void)*(const volatile percpu_u##n##_ *)((uintptr_t)handle + table[percpu_arch_cpu_()]);     \
  }
#else
#define PERCPU_CHECK_(n)                                                                         \
  PERCPU_INLINE_ void percpu_check_##n##_(const uintptr_t *table, const volatile void *handle) { \
    (void)table;                                                                                 \
    (void)handle;                                                                                \
  }
#endif
PERCPU_CHECK_(1)
PERCPU_CHECK_(2)
PERCPU_CHECK_(4)
PERCPU_CHECK_(8)
#define percpu_check_16_ percpu_check_8_

/*
 * One operation of one size. name, n: as in percpu_seq_<name>_<n>_(); result: its type; params: what it takes besides
 * view and handle, each with a comma before it; args: the same as arguments.
 */
#define PERCPU_STRIP_(...) __VA_ARGS__
#define PERCPU_GIVE_uint64_t(value) return value
#define PERCPU_GIVE_float(value) return value
#define PERCPU_GIVE_double(value) return value
typedef struct percpu_pair percpu_pair_;
#define PERCPU_GIVE_percpu_pair_(value) return value
#define PERCPU_GIVE_void(call) \
  do {                         \
    call;                      \
    return;                    \
  } while (0)
#if PERCPU_HAVE_SEQUENCES
#define PERCPU_TRY_SEQUENCE_(table_of, check, name, n, result, args)                 \
  const uintptr_t *table = table_of(view);                                           \
  if (PERCPU_LIKELY_(table != NULL)) {                                               \
    check(table, handle);                                                            \
    PERCPU_GIVE_##result(percpu_seq_##name##n##_(table, handle PERCPU_STRIP_ args)); \
  }
#else
#define PERCPU_TRY_SEQUENCE_(table_of, check, name, n, result, args)
#endif
#define PERCPU_OP_(name, n, check, result, params, args)                                               \
  PERCPU_COLD_ result percpu_##name##slow_##n##_(const volatile void *handle PERCPU_STRIP_ params,     \
                                                 const struct percpu_view *view) {                     \
    PERCPU_TRY_SEQUENCE_(percpu_attached_table_, check, name, n, result, args)                         \
    PERCPU_GIVE_##result(percpu_atomic_##name##n##_(percpu_shared_(view, handle) PERCPU_STRIP_ args)); \
  }                                                                                                    \
  PERCPU_INLINE_ result percpu_##name##n##_(const struct percpu_view *view,                            \
                                            const volatile void *handle PERCPU_STRIP_ params) {        \
    PERCPU_TRY_SEQUENCE_(percpu_table_, check, name, n, result, args)                                  \
    PERCPU_GIVE_##result(percpu_##name##slow_##n##_(handle PERCPU_STRIP_ args, view));                 \
  }

#define PERCPU_OPS_OF_SIZE_(n, U)                                           \
  PERCPU_OP_(read_, n, percpu_check_##n##_, uint64_t, (), ())               \
  PERCPU_OP_(mov_, n, percpu_check_##n##_, void, (, U v), (, v))            \
  PERCPU_OP_(add_, n, percpu_check_##n##_, void, (, U v), (, v))            \
  PERCPU_OP_(band_, n, percpu_check_##n##_, void, (, U v), (, v))           \
  PERCPU_OP_(bor_, n, percpu_check_##n##_, void, (, U v), (, v))            \
  PERCPU_OP_(add_return_, n, percpu_check_##n##_, uint64_t, (, U v), (, v)) \
  PERCPU_OP_(xchg_, n, percpu_check_##n##_, uint64_t, (, U v), (, v))       \
  PERCPU_OP_(cmpxchg_, n, percpu_check_##n##_, uint64_t, (, U was, U v), (, was, v))
PERCPU_OPS_OF_SIZE_(1, uint8_t)
PERCPU_OPS_OF_SIZE_(2, uint16_t)
PERCPU_OPS_OF_SIZE_(4, uint32_t)
PERCPU_OPS_OF_SIZE_(8, uint64_t)
PERCPU_OP_(fadd_, 4, percpu_check_4_, float, (, float v), (, v))
PERCPU_OP_(fadd_, 8, percpu_check_8_, double, (, double v), (, v))
PERCPU_OP_(read, 16, percpu_check_16_, percpu_pair_, (), ())
PERCPU_OP_(cas, 16, percpu_check_16_, percpu_pair_,
           (, uint64_t was_low, uint64_t was_high, uint64_t low, uint64_t high), (, was_low, was_high, low, high))

/* The size picks the operation; it is a constant wherever these are used. Values travel in 64 bits, the upper ones of a
 * smaller element being ignored on the way in and arbitrary on the way out. */
PERCPU_INLINE_ uint64_t percpu_word_read_(const struct percpu_view *view, size_t size, const volatile void *handle) {
  switch (size) {
    case 1: return percpu_read_1_(view, handle);
    case 2: return percpu_read_2_(view, handle);
    case 4: return percpu_read_4_(view, handle);
    default: return percpu_read_8_(view, handle);
  }
}

#define PERCPU_WORD_VOID_(name)                                                          \
  PERCPU_INLINE_ void percpu_word_##name##_(const struct percpu_view *view, size_t size, \
                                            const volatile void *handle, uint64_t v) {   \
    switch (size) {                                                                      \
      case 1: percpu_##name##_1_(view, handle, (uint8_t)v); break;                       \
      case 2: percpu_##name##_2_(view, handle, (uint16_t)v); break;                      \
      case 4: percpu_##name##_4_(view, handle, (uint32_t)v); break;                      \
      default: percpu_##name##_8_(view, handle, v); break;                               \
    }                                                                                    \
  }
PERCPU_WORD_VOID_(mov)
PERCPU_WORD_VOID_(add)
PERCPU_WORD_VOID_(band)
PERCPU_WORD_VOID_(bor)

#define PERCPU_WORD_VALUE_(name)                                                             \
  PERCPU_INLINE_ uint64_t percpu_word_##name##_(const struct percpu_view *view, size_t size, \
                                                const volatile void *handle, uint64_t v) {   \
    switch (size) {                                                                          \
      case 1: return percpu_##name##_1_(view, handle, (uint8_t)v);                           \
      case 2: return percpu_##name##_2_(view, handle, (uint16_t)v);                          \
      case 4: return percpu_##name##_4_(view, handle, (uint32_t)v);                          \
      default: return percpu_##name##_8_(view, handle, v);                                   \
    }                                                                                        \
  }
PERCPU_WORD_VALUE_(add_return)
PERCPU_WORD_VALUE_(xchg)

PERCPU_INLINE_ uint64_t percpu_word_cmpxchg_(const struct percpu_view *view, size_t size, const volatile void *handle,
                                             uint64_t was, uint64_t v) {
  switch (size) {
    case 1: return percpu_cmpxchg_1_(view, handle, (uint8_t)was, (uint8_t)v);
    case 2: return percpu_cmpxchg_2_(view, handle, (uint16_t)was, (uint16_t)v);
    case 4: return percpu_cmpxchg_4_(view, handle, (uint32_t)was, (uint32_t)v);
    default: return percpu_cmpxchg_8_(view, handle, was, v);
  }
}

/* The additions of floating numbers, in the form that the integers have. */
#define PERCPU_WORD_FADD_(n, T)                                                                \
  PERCPU_INLINE_ void percpu_word_fadd_##n##_(const struct percpu_view *view, size_t size,     \
                                              const volatile void *handle, T v) {              \
    (void)size;                                                                                \
    percpu_fadd_##n##_(view, handle, v);                                                       \
  }                                                                                            \
  PERCPU_INLINE_ T percpu_word_fadd_return_##n##_(const struct percpu_view *view, size_t size, \
                                                  const volatile void *handle, T v) {          \
    (void)size;                                                                                \
    return percpu_fadd_##n##_(view, handle, v);                                                \
  }
PERCPU_WORD_FADD_(4, float)
PERCPU_WORD_FADD_(8, double)

/* The bytes of a value of at most 8 bytes as a number, and back. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define PERCPU_BITS_AT_(size) (8 - (size))
#define PERCPU_PLACED_(bits, size) ((bits) << (64 - 8 * (size)))
#else
#define PERCPU_BITS_AT_(size) 0
#define PERCPU_PLACED_(bits, size) (bits)
#endif
PERCPU_INLINE_ uint64_t percpu_bits_(const volatile void *value, size_t size) {
  uint64_t bits = 0;
  __builtin_memcpy((char *)&bits + PERCPU_BITS_AT_(size), (const void *)(uintptr_t)value, size);
  return bits;
}
PERCPU_INLINE_ void percpu_from_bits_(void *value, uint64_t bits, size_t size) {
  __builtin_memcpy(value, (const char *)&bits + PERCPU_BITS_AT_(size), size);
}

/* As percpu_word_cmpxchg_() on *expected, which takes what was found if that is something else. */
PERCPU_INLINE_ int percpu_word_try_cmpxchg_(const struct percpu_view *view, size_t size, const volatile void *handle,
                                            void *expected, uint64_t v) {
  uint64_t was = percpu_bits_(expected, size);
  uint64_t found = percpu_word_cmpxchg_(view, size, handle, was, v);
  int same;
  switch (size) {
    case 1: same = (uint8_t)found == (uint8_t)was; break;
    case 2: same = (uint16_t)found == (uint16_t)was; break;
    case 4: same = (uint32_t)found == (uint32_t)was; break;
    default: same = found == was; break;
  }
  if (same) return 1;
  percpu_from_bits_(expected, found, size);
  return 0;
}

#endif /* PERCPU_WORDS_H */
