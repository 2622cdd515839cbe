/* SPDX-License-Identifier: MIT */
/*
 * Each operation on each size and type at the edges of its values, against the same thing done to a plain variable.
 * Compiled several times, as C and (by values_cxx.cc) as C++, for the default pool and for another one, with and
 * without sequences, position-independent and not: values_test.cc has the list. VALUES_NAME is the name of what it
 * defines.
 *
 * The calling thread must be pinned, so that the copy that it works on stays the same.
 */
#include "values.h"

#include <float.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "fixture.h"

#ifdef VALUES_POOL
#define NEW(T) ((T *)fixture_pool_alloc(sizeof(T), sizeof(T)))
#define OP(name, ...) percpu_pool_##name(fixture_pool(), __VA_ARGS__)
#else
#define NEW(T) ((T *)fixture_alloc(sizeof(T), sizeof(T)))
#define OP(name, ...) percpu_##name(__VA_ARGS__)
#endif

#ifdef __cplusplus
#define Bool bool
#else
#define Bool _Bool
#endif

static struct values_result *result;

#define EXPECT(cond)                                                                                    \
  do {                                                                                                  \
    ++result->nr_checks;                                                                                \
    if (!(cond) && result->nr_failures++ == 0)                                                          \
      snprintf(result->first, sizeof result->first, "%s:%d (%s): %s", __FILE__, __LINE__, type, #cond); \
  } while (0)

#ifdef VALUES_POOL
#define FOR_EACH_COPY(c, p) percpu_pool_for_each_copy(fixture_pool(), c, p)
#else
#define FOR_EACH_COPY(c, p) percpu_for_each_copy(c, p)
#endif

/* What an operation on values of other types must do: convert as an assignment to T does. */
#define EXPECT_CONVERSION(T, p, value)          \
  do {                                          \
    T converted_ = (T)(value), model_ = 5;      \
    OP(write, p, 5);                            \
    OP(add, p, value);                          \
    model_ = (T)(model_ + converted_);          \
    EXPECT(OP(read, p) == model_);              \
    OP(sub, p, value);                          \
    EXPECT(OP(read, p) == 5);                   \
    EXPECT(OP(add_return, p, value) == model_); \
    OP(write, p, (T)-1);                        \
    OP(and, p, value);                          \
    EXPECT(OP(read, p) == converted_);          \
    OP(write, p, 0);                            \
    OP(or, p, value);                           \
    EXPECT(OP(read, p) == converted_);          \
  } while (0)

/* The copy holds `model`, every other copy is still zero, whatever way one looks. */
#define DEFINE_ONLY(name, E, T)                                                    \
  static __attribute__((noinline)) void only_##name(E *p, T model, int line) {     \
    const char *type = #E;                                                         \
    const E *copy;                                                                 \
    T sum = 0;                                                                     \
    FOR_EACH_COPY(copy, p) sum = (T)(sum + *copy);                                 \
    if (OP(read, p) == model && *OP(this_ptr, p) == model && sum == model) return; \
    printf("line %d\n", line);                                                     \
    EXPECT(!"the copy holds what it should, and the others are zero");             \
  }
#define EXPECT_ONLY(name, p, model) only_##name(p, model, __LINE__)

/* E: the element, T without its qualifiers; U: the unsigned one of its size, in which arithmetic wraps around. */
#define CHECK_INTEGER(name, E, T, U, MIN, MAX)                                                           \
  DEFINE_ONLY(name, E, T)                                                                                \
  static void check_##name(void) {                                                                       \
    const char *type = #E;                                                                               \
    const T edge[] = {0, 1, 2, (T)-1, (T)-2, MIN, (T)(MIN + 1), MAX, (T)(MAX - 1), (T)(MAX / 2 + 1), 85, \
                      (T)0x5555555555555555, (T)0x123456789abcdef0};                                     \
    const size_t n = sizeof edge / sizeof edge[0];                                                       \
    T *p = NEW(T);                                                                                       \
    size_t i, j, k;                                                                                      \
    EXPECT_ONLY(name, p, 0);                                                                             \
    for (i = 0; i < n; ++i)                                                                              \
      for (j = 0; j < n; ++j) {                                                                          \
        const T a = edge[i], b = edge[j];                                                                \
        T expected;                                                                                      \
        OP(write, p, a);                                                                                 \
        EXPECT_ONLY(name, p, a);                                                                         \
        OP(add, p, b);                                                                                   \
        EXPECT_ONLY(name, p, (T)((U)a + (U)b));                                                          \
        OP(write, p, a);                                                                                 \
        OP(sub, p, b);                                                                                   \
        EXPECT_ONLY(name, p, (T)((U)a - (U)b));                                                          \
        OP(write, p, a);                                                                                 \
        OP(inc, p);                                                                                      \
        EXPECT_ONLY(name, p, (T)((U)a + 1u));                                                            \
        OP(write, p, a);                                                                                 \
        OP(dec, p);                                                                                      \
        EXPECT_ONLY(name, p, (T)((U)a - 1u));                                                            \
        OP(write, p, a);                                                                                 \
        OP(and, p, b);                                                                                   \
        EXPECT_ONLY(name, p, (T)(a & b));                                                                \
        OP(write, p, a);                                                                                 \
        OP(or, p, b);                                                                                    \
        EXPECT_ONLY(name, p, (T)(a | b));                                                                \
        OP(write, p, a);                                                                                 \
        EXPECT(OP(add_return, p, b) == (T)((U)a + (U)b));                                                \
        EXPECT_ONLY(name, p, (T)((U)a + (U)b));                                                          \
        OP(write, p, a);                                                                                 \
        EXPECT(OP(xchg, p, b) == a);                                                                     \
        EXPECT_ONLY(name, p, b);                                                                         \
        for (k = 0; k < n; ++k) {                                                                        \
          const T old = edge[k];                                                                         \
          OP(write, p, a);                                                                               \
          EXPECT(OP(cmpxchg, p, old, b) == a);                                                           \
          EXPECT_ONLY(name, p, a == old ? b : a);                                                        \
          OP(write, p, a);                                                                               \
          expected = old;                                                                                \
          EXPECT(OP(try_cmpxchg, p, &expected, b) == (a == old));                                        \
          EXPECT(expected == (a == old ? old : a));                                                      \
          EXPECT_ONLY(name, p, a == old ? b : a);                                                        \
        }                                                                                                \
      }                                                                                                  \
    EXPECT_CONVERSION(T, p, -1);                                                                         \
    EXPECT_CONVERSION(T, p, 1u << 31);                                                                   \
    EXPECT_CONVERSION(T, p, 0x100000001LL);                                                              \
    EXPECT_CONVERSION(T, p, LLONG_MIN);                                                                  \
    EXPECT_CONVERSION(T, p, (signed char)-3);                                                            \
    EXPECT_CONVERSION(T, p, (Bool)1);                                                                    \
    OP(write, p, 0);                                                                                     \
    OP(add, p, 3.9);                                                                                     \
    EXPECT_ONLY(name, p, 3);                                                                             \
  }

CHECK_INTEGER(i8, int8_t, int8_t, uint8_t, INT8_MIN, INT8_MAX)
CHECK_INTEGER(u8, uint8_t, uint8_t, uint8_t, 0, UINT8_MAX)
CHECK_INTEGER(i16, int16_t, int16_t, uint16_t, INT16_MIN, INT16_MAX)
CHECK_INTEGER(u16, uint16_t, uint16_t, uint16_t, 0, UINT16_MAX)
CHECK_INTEGER(i32, int32_t, int32_t, uint32_t, INT32_MIN, INT32_MAX)
CHECK_INTEGER(u32, uint32_t, uint32_t, uint32_t, 0, UINT32_MAX)
CHECK_INTEGER(i64, int64_t, int64_t, uint64_t, INT64_MIN, INT64_MAX)
CHECK_INTEGER(u64, uint64_t, uint64_t, uint64_t, 0, UINT64_MAX)

CHECK_INTEGER(volatile_u32, volatile uint32_t, uint32_t, uint32_t, 0, UINT32_MAX)

static int same_bytes(const void *a, const void *b, size_t size) {
  return memcmp(a, b, size) == 0;
}

#define CHECK_REAL(T, TINY, HUGE_)                                                                   \
  static void check_##T(void) {                                                                      \
    const char *type = #T;                                                                           \
    const T edge[] = {0, (T)-0.0, 1, -1, (T)0.1, TINY, HUGE_, -HUGE_, (T)1e-30, (T)16777217};        \
    const size_t n = sizeof edge / sizeof edge[0];                                                   \
    T *p = NEW(T);                                                                                   \
    size_t i, j;                                                                                     \
    for (i = 0; i < n; ++i)                                                                          \
      for (j = 0; j < n; ++j) {                                                                      \
        const T a = edge[i], b = edge[j], sum = a + b, difference = a - b, up = a + 1, down = a - 1; \
        T got;                                                                                       \
        OP(write, p, a);                                                                             \
        got = OP(read, p);                                                                           \
        EXPECT(same_bytes(&got, &a, sizeof a));                                                      \
        OP(add, p, b);                                                                               \
        got = OP(read, p);                                                                           \
        EXPECT(same_bytes(&got, &sum, sizeof sum));                                                  \
        got = OP(xchg, p, a);                                                                        \
        EXPECT(same_bytes(&got, &sum, sizeof sum));                                                  \
        got = OP(add_return, p, b);                                                                  \
        EXPECT(same_bytes(&got, &sum, sizeof sum));                                                  \
        EXPECT(same_bytes(OP(this_ptr, p), &sum, sizeof sum));                                       \
        OP(write, p, a);                                                                             \
        OP(sub, p, b);                                                                               \
        EXPECT(same_bytes(OP(this_ptr, p), &difference, sizeof difference));                         \
        OP(write, p, a);                                                                             \
        OP(inc, p);                                                                                  \
        EXPECT(same_bytes(OP(this_ptr, p), &up, sizeof up));                                         \
        OP(write, p, a);                                                                             \
        OP(dec, p);                                                                                  \
        EXPECT(same_bytes(OP(this_ptr, p), &down, sizeof down));                                     \
        OP(write, p, a);                                                                             \
        got = b;                                                                                     \
        EXPECT(OP(try_cmpxchg, p, &got, 7) == (same_bytes(&a, &b, sizeof a) != 0));                  \
        EXPECT(same_bytes(&got, &a, sizeof a));                                                      \
        OP(write, p, a);                                                                             \
        got = OP(cmpxchg, p, b, 7);                                                                  \
        EXPECT(same_bytes(&got, &a, sizeof a));                                                      \
      }                                                                                              \
    OP(write, p, 10);                                                                                \
    OP(sub, p, 1u); /* not UINT_MAX */                                                               \
    EXPECT(OP(read, p) == 9);                                                                        \
    OP(add, p, -1LL);                                                                                \
    EXPECT(OP(read, p) == 8);                                                                        \
    EXPECT(OP(sum, p) == 8);                                                                         \
  }
CHECK_REAL(float, FLT_MIN, FLT_MAX)
CHECK_REAL(double, DBL_MIN, DBL_MAX)

static void check_qualified_reals(void) {
  const char *type = "volatile double";
  volatile double *p = NEW(volatile double);
  OP(write, p, 1);
  OP(add, p, 1.5);
  EXPECT(OP(add_return, p, 0.25) == 2.75);
  EXPECT(OP(read, (const volatile double *)p) == 2.75);
  EXPECT(OP(sum, (const double *)p) == 2.75);
#ifndef __cplusplus
  {
    _Atomic float *q = NEW(_Atomic float);
    type = "_Atomic float";
    OP(write, q, 1);
    OP(sub, q, 1.5);
    EXPECT(OP(read, q) == -0.5f);
    EXPECT(OP(sum, q) == -0.5);
  }
#endif
}

enum colour { kRed, kGreen = 7, kBlue = -9 };

static void check_other_types(void) {
  const char *type = "pointer, bool, enumeration";
  static int object[2];
  int **p = NEW(int *), *seen = &object[1];
  Bool *flag = NEW(Bool), was = 1;
  enum colour *colour = NEW(enum colour);
  EXPECT(OP(read, p) == NULL);
  OP(write, p, &object[0]);
  EXPECT(OP(read, p) == &object[0]);
  EXPECT(OP(xchg, p, &object[1]) == &object[0]);
  EXPECT(OP(cmpxchg, p, &object[0], NULL) == &object[1]);
  EXPECT(OP(try_cmpxchg, p, &seen, NULL));
  EXPECT(OP(read, p) == NULL);
  EXPECT(!OP(try_cmpxchg, p, &seen, NULL));
  EXPECT(seen == NULL);
  OP(write, flag, 256); /* true, not the low byte */
  EXPECT(OP(read, flag) == 1);
  OP(and, flag, 2);
  EXPECT(OP(read, flag) == 1);
  OP(and, flag, 0);
  EXPECT(OP(read, flag) == 0);
  OP(or, flag, 4);
  EXPECT(OP(xchg, flag, 0) == 1);
  EXPECT(!OP(try_cmpxchg, flag, &was, 1) && was == 0);
  EXPECT(OP(cmpxchg, flag, 0, 1) == 0);
  EXPECT(OP(sum, flag) == 1);
  OP(write, colour, kBlue);
  EXPECT(OP(xchg, colour, kGreen) == kBlue);
  EXPECT(OP(cmpxchg, colour, kGreen, kRed) == kGreen);
  EXPECT(OP(read, colour) == kRed);
}

static void check_pairs(void) {
  const char *type = "struct percpu_pair";
  struct percpu_pair *p = NEW(struct percpu_pair), seen = {0, 0}, got;
  const struct percpu_pair one = {1, ~(uint64_t)0}, two = {~(uint64_t)1, 2};
  EXPECT(OP(cmpxchg16, p, &seen, one));
  got = OP(read16, p);
  EXPECT(got.low == one.low && got.high == one.high);
  seen = one;
  ++seen.low;
  EXPECT(!OP(cmpxchg16, p, &seen, two));
  EXPECT(seen.low == one.low && seen.high == one.high);
  --seen.high;
  EXPECT(!OP(cmpxchg16, p, &seen, two));
  EXPECT(seen.low == one.low && seen.high == one.high);
  EXPECT(OP(cmpxchg16, p, &seen, two));
  got = percpu_load16(OP(this_ptr, p));
  EXPECT(got.low == two.low && got.high == two.high);
}

static unsigned nr_evaluated;
static uint64_t *once(uint64_t *p) {
  ++nr_evaluated;
  return p;
}
static unsigned value_once(unsigned v) {
  ++nr_evaluated;
  return v;
}

static void check_arguments_evaluated_once(void) {
  const char *type = "arguments";
  uint64_t *p = NEW(uint64_t), seen = 0, **pp = NEW(uint64_t *);
  nr_evaluated = 0;
  OP(write, once(p), value_once(1));
  OP(add, once(p), value_once(1));
  OP(sub, once(p), value_once(1));
  OP(inc, once(p));
  OP(dec, once(p));
  OP(and, once(p), value_once(1));
  OP(or, once(p), value_once(1));
  EXPECT(nr_evaluated == 12);
  EXPECT(OP(read, once(p)) + OP(add_return, once(p), value_once(0)) + OP(xchg, once(p), value_once(1)) == 3);
  EXPECT(OP(cmpxchg, once(p), value_once(1), value_once(0)) == 1);
  EXPECT(OP(try_cmpxchg, once(p), once(&seen), value_once(9)));
  EXPECT(OP(sum, once(p)) == 9 && *OP(this_ptr, once(p)) == 9 && OP(ptr, once(p), value_once(0)) != NULL);
  EXPECT(nr_evaluated == 27);
  /* one operation as an argument of another */
  OP(write, pp, p);
  EXPECT(OP(read, OP(read, pp)) == 9);
  OP(write, p, OP(add_return, p, OP(read, p)));
  EXPECT(OP(read, p) == 18);
  EXPECT(OP(xchg, p, OP(cmpxchg, p, OP(read, p), 4)) == 4 && OP(read, p) == 18);
}

static void check_addresses_and_sums(void) {
  const char *type = "copies";
  uint64_t *p = NEW(uint64_t);
  int8_t *small = NEW(int8_t);
  const uint64_t *readable = p;
  unsigned cpu, nr = 0;
  uint64_t *copy, all = 0;
  const int8_t *small_copy;
  unsigned ids = fixture_nr_cpus() + 2;
  EXPECT(OP(ptr, p, ids) == NULL);
  EXPECT(OP(ptr, p, -1) == NULL);
  EXPECT(OP(ptr, p, (unsigned)-1) == NULL);
  EXPECT(OP(ptr, p, ids - 2) == p); /* a hole: the handle itself */
  EXPECT(OP(ptr, readable, 0) == OP(ptr, p, 0));
  for (cpu = 0; cpu < ids; ++cpu) {
    if (cpu == ids - 2) continue;
    *OP(ptr, p, cpu) = (uint64_t)(cpu + 1) * (cpu + 1); /* not a bit for each: there may be more than 64 */
    all += *OP(ptr, p, cpu);
  }
  EXPECT(OP(sum, readable) == all);
#ifdef VALUES_POOL
  percpu_pool_for_each_possible_cpu(fixture_pool(), cpu) {
#else
  percpu_for_each_possible_cpu(cpu) {
#endif
    EXPECT(cpu < ids && cpu != ids - 2);
    ++nr;
  }
  EXPECT(nr == ids - 1);
  nr = 0;
  FOR_EACH_COPY(copy, p) ++nr;
  EXPECT(nr == ids + 1);
  nr = 0;
  FOR_EACH_COPY(small_copy, (const int8_t *)small) {
    if (*small_copy != 0) break;
    if (++nr == 2) break;
  }
  EXPECT(nr == 2);
  /* small elements are widened by their sign */
  FOR_EACH_COPY(copy, p) *copy = 0;
  for (cpu = 0; cpu < ids; ++cpu)
    if (cpu != ids - 2) *OP(ptr, small, cpu) = -128;
  EXPECT(OP(sum, small) == -128 * (int)(ids - 1));
  EXPECT(sizeof(OP(sum, small)) == 8);
}

/* Sums of vectors equal the sums of their elements, whatever their length, out of alignment, with wide values. */
static void check_vector_sums(void) {
  const char *type = "vectors";
  enum { kLong = 1100 };
  static uint64_t sums[kLong + 1];
  static double real_sums[kLong + 1];
#ifdef VALUES_POOL
  uint64_t *p = (uint64_t *)fixture_pool_alloc((kLong + 1) * 8, 8);
#else
  uint64_t *p = (uint64_t *)fixture_alloc((kLong + 1) * 8, 8);
#endif
  double *d = (double *)(void *)p;
  uint64_t *copy, state = 88172645463325252u;
  double *real_copy;
  static const size_t lengths[] = {0, 1, 2, 3, 4, 5, 8, 17, 100, 1023, 1024, 1025, kLong};
  size_t i, l, shift;
  FOR_EACH_COPY(copy, p) for (i = 0; i <= kLong; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    copy[i] = state;
  }
  for (shift = 0; shift < 2; ++shift)
    for (l = 0; l < sizeof lengths / sizeof lengths[0] && lengths[l] + shift <= kLong; ++l) {
      sums[shift + lengths[l]] = 42;
      OP(sum_n, p + shift, lengths[l], sums + shift);
      for (i = 0; i < lengths[l]; ++i) EXPECT(sums[shift + i] == OP(sum, p + shift + i));
      EXPECT(sums[shift + lengths[l]] == 42);
    }
  FOR_EACH_COPY(real_copy, d) for (i = 0; i <= kLong; ++i) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    real_copy[i] = (double)(int64_t)state / 3;
  }
  OP(sum_n, d, kLong, real_sums);
  for (i = 0; i < kLong; ++i) EXPECT(real_sums[i] == OP(sum, d + i));
}

void VALUES_NAME(struct values_result *into) {
  result = into;
  check_i8();
  check_u8();
  check_i16();
  check_u16();
  check_i32();
  check_u32();
  check_i64();
  check_u64();
  check_volatile_u32();
  check_float();
  check_double();
  check_qualified_reals();
  check_other_types();
  check_pairs();
  check_arguments_evaluated_once();
  check_addresses_and_sums();
  check_vector_sums();
}
