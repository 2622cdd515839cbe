/* SPDX-License-Identifier: MIT */
/*
 * percpu/ops_c.h - the spellings of percpu/ops.h, copies.h and list.h in C
 *
 * Macros that look at the type behind the handle, refuse what the contract does not allow, convert the values, and go
 * on to percpu/words.h. Locals get a number from __COUNTER__, so that one operation may be an argument of another.
 */
#ifndef PERCPU_OPS_C_H
#define PERCPU_OPS_C_H

#define PERCPU_PASTE_(a, b) a##b
#define PERCPU_LOCAL_(name, id) PERCPU_PASTE_(percpu_##name##_, id)

/* The type behind a handle, without const and volatile (the comma makes an rvalue of it). */
#define PERCPU_TYPE_(p) __typeof__(((void)0, *(p)))

/* What the contract asks of T. __builtin_classify_type: 1 integer, 3 enumeration, 4 bool, 5 pointer (and what decays into one),
 * 8 floating. */
#define PERCPU_NEEDS_SIZE_(p)                                                                            \
  _Static_assert(sizeof(*(p)) == 1 || sizeof(*(p)) == 2 || sizeof(*(p)) == 4 || sizeof(*(p)) == 8,       \
                 "a per-CPU operation needs an element of 1, 2, 4 or 8 bytes");                          \
  _Static_assert(__builtin_classify_type(*(p)) != 5 ||                                                   \
                     __builtin_types_compatible_p(__typeof__(*(p)), PERCPU_TYPE_(p)),                    \
                 "a per-CPU operation takes an element, and the handle points to an array");             \
  _Static_assert(__builtin_classify_type(*(p)) == 1 || __builtin_classify_type(*(p)) == 3 ||             \
                     __builtin_classify_type(*(p)) == 4 || __builtin_classify_type(*(p)) == 5 ||         \
                     __builtin_classify_type(*(p)) == 8,                                                 \
                 "a per-CPU operation needs an element that is a number, an enumeration or a pointer");  \
  _Static_assert(__builtin_classify_type(*(p)) != 8 || _Generic(*(p), float: 1, double: 1, default: 0),  \
                 "of floating numbers a per-CPU operation takes float and double")
#define PERCPU_NEEDS_MUTABLE_(p)                                                             \
  PERCPU_NEEDS_SIZE_(p);                                                                     \
  _Static_assert(!__builtin_types_compatible_p(__typeof__(&*(p)), const __typeof__(*(p)) *), \
                 "this per-CPU operation writes, and the handle points to const")
#define PERCPU_NEEDS_INTEGER_(p)                                                             \
  PERCPU_NEEDS_MUTABLE_(p);                                                                  \
  _Static_assert(__builtin_classify_type(*(p)) == 1 || __builtin_classify_type(*(p)) == 3 || \
                     __builtin_classify_type(*(p)) == 4,                                     \
                 "this per-CPU operation needs an integer element")
#define PERCPU_NEEDS_NUMBER_(p)                                                                   \
  PERCPU_NEEDS_MUTABLE_(p);                                                                       \
  _Static_assert(_Generic(*(p), _Bool: 0, default: 1) &&                                          \
                     (__builtin_classify_type(*(p)) == 1 || __builtin_classify_type(*(p)) == 3 || \
                      __builtin_classify_type(*(p)) == 8),                                        \
                 "this per-CPU operation needs an element that is an integer (not bool), a float or a double")

/* A value as an integer element takes it. */
#define PERCPU_INTEGER_(p, v) ((uint64_t)(PERCPU_TYPE_(p))(+(v)))

/* Bits as a value of the element's type. */
#define PERCPU_VALUE_(p, id, the_bits)                                 \
  union {                                                              \
    uint64_t bits;                                                     \
    PERCPU_TYPE_(p) value;                                             \
  } PERCPU_LOCAL_(got, id) = {PERCPU_PLACED_(the_bits, sizeof(*(p)))}; \
  PERCPU_LOCAL_(got, id).value

#define PERCPU_READ_(view, p, id)                                     \
  __extension__({                                                     \
    PERCPU_NEEDS_SIZE_(p);                                            \
    PERCPU_VALUE_(p, id, percpu_word_read_(view, sizeof(*(p)), (p))); \
  })
#define PERCPU_WRITE_(view, p, v, id)                                                               \
  __extension__({                                                                                   \
    PERCPU_NEEDS_MUTABLE_(p);                                                                       \
    PERCPU_TYPE_(p) PERCPU_LOCAL_(new, id) = (v);                                                   \
    percpu_word_mov_(view, sizeof(*(p)), (p), percpu_bits_(&PERCPU_LOCAL_(new, id), sizeof(*(p)))); \
  })
#define PERCPU_ADD_(view, p, v)                                                                         \
  __extension__({                                                                                       \
    PERCPU_NEEDS_NUMBER_(p);                                                                            \
    _Generic(*(p), float: percpu_word_fadd_4_, double: percpu_word_fadd_8_, default: percpu_word_add_)( \
        view, sizeof(*(p)), (p), _Generic(*(p), float: (float)(v), double: (double)(v),                 \
                                          default: PERCPU_INTEGER_(p, v)));                             \
  })
#define PERCPU_SUB_(view, p, v)                                                                         \
  __extension__({                                                                                       \
    PERCPU_NEEDS_NUMBER_(p);                                                                            \
    _Generic(*(p), float: percpu_word_fadd_4_, double: percpu_word_fadd_8_, default: percpu_word_add_)( \
        view, sizeof(*(p)), (p), _Generic(*(p), float: -(float)(v), double: -(double)(v),               \
                                          default: 0 - PERCPU_INTEGER_(p, v)));                         \
  })
#define PERCPU_ADD_RETURN_(view, p, v)                                                                \
  __extension__({                                                                                     \
    PERCPU_NEEDS_NUMBER_(p);                                                                          \
    (PERCPU_TYPE_(p)) _Generic(*(p), float: percpu_word_fadd_return_4_,                               \
                               double: percpu_word_fadd_return_8_, default: percpu_word_add_return_)( \
        view, sizeof(*(p)), (p), _Generic(*(p), float: (float)(v), double: (double)(v),               \
                                          default: PERCPU_INTEGER_(p, v)));                           \
  })
#define PERCPU_AND_(view, p, v)                                        \
  __extension__({                                                      \
    PERCPU_NEEDS_INTEGER_(p);                                          \
    percpu_word_band_(view, sizeof(*(p)), (p), PERCPU_INTEGER_(p, v)); \
  })
#define PERCPU_OR_(view, p, v)                                        \
  __extension__({                                                     \
    PERCPU_NEEDS_INTEGER_(p);                                         \
    percpu_word_bor_(view, sizeof(*(p)), (p), PERCPU_INTEGER_(p, v)); \
  })
#define PERCPU_XCHG_(view, p, v, id)                                                              \
  __extension__({                                                                                 \
    PERCPU_NEEDS_MUTABLE_(p);                                                                     \
    PERCPU_TYPE_(p) PERCPU_LOCAL_(new, id) = (v);                                                 \
    PERCPU_VALUE_(p, id, percpu_word_xchg_(view, sizeof(*(p)), (p),                               \
                                           percpu_bits_(&PERCPU_LOCAL_(new, id), sizeof(*(p))))); \
  })
#define PERCPU_CMPXCHG_(view, p, old, v, id)                                                         \
  __extension__({                                                                                    \
    PERCPU_NEEDS_MUTABLE_(p);                                                                        \
    PERCPU_TYPE_(p) PERCPU_LOCAL_(seen, id) = (old);                                                 \
    PERCPU_TYPE_(p) PERCPU_LOCAL_(new, id) = (v);                                                    \
    PERCPU_VALUE_(p, id, percpu_word_cmpxchg_(view, sizeof(*(p)), (p),                               \
                                              percpu_bits_(&PERCPU_LOCAL_(seen, id), sizeof(*(p))),  \
                                              percpu_bits_(&PERCPU_LOCAL_(new, id), sizeof(*(p))))); \
  })
#define PERCPU_TRY_CMPXCHG_(view, p, expected, v, id)                                     \
  __extension__({                                                                         \
    PERCPU_NEEDS_MUTABLE_(p);                                                             \
    PERCPU_TYPE_(p) *PERCPU_LOCAL_(at, id) = (expected);                                  \
    PERCPU_TYPE_(p) PERCPU_LOCAL_(new, id) = (v);                                         \
    (_Bool)percpu_word_try_cmpxchg_(view, sizeof(*(p)), (p), PERCPU_LOCAL_(at, id),       \
                                    percpu_bits_(&PERCPU_LOCAL_(new, id), sizeof(*(p)))); \
  })

#define PERCPU_DEFAULT_ ((const struct percpu_view *)0)

#define percpu_read(p) PERCPU_READ_(PERCPU_DEFAULT_, p, __COUNTER__)
#define percpu_write(p, v) PERCPU_WRITE_(PERCPU_DEFAULT_, p, v, __COUNTER__)
#define percpu_add(p, v) PERCPU_ADD_(PERCPU_DEFAULT_, p, v)
#define percpu_sub(p, v) PERCPU_SUB_(PERCPU_DEFAULT_, p, v)
#define percpu_inc(p) PERCPU_ADD_(PERCPU_DEFAULT_, p, 1)
#define percpu_dec(p) PERCPU_SUB_(PERCPU_DEFAULT_, p, 1)
#define percpu_and(p, v) PERCPU_AND_(PERCPU_DEFAULT_, p, v)
#define percpu_or(p, v) PERCPU_OR_(PERCPU_DEFAULT_, p, v)
#define percpu_add_return(p, v) PERCPU_ADD_RETURN_(PERCPU_DEFAULT_, p, v)
#define percpu_xchg(p, v) PERCPU_XCHG_(PERCPU_DEFAULT_, p, v, __COUNTER__)
#define percpu_cmpxchg(p, old, v) PERCPU_CMPXCHG_(PERCPU_DEFAULT_, p, old, v, __COUNTER__)
#define percpu_try_cmpxchg(p, expected, v) PERCPU_TRY_CMPXCHG_(PERCPU_DEFAULT_, p, expected, v, __COUNTER__)

#define percpu_pool_read(pool, p) PERCPU_READ_(percpu_pool_view_(pool), p, __COUNTER__)
#define percpu_pool_write(pool, p, v) PERCPU_WRITE_(percpu_pool_view_(pool), p, v, __COUNTER__)
#define percpu_pool_add(pool, p, v) PERCPU_ADD_(percpu_pool_view_(pool), p, v)
#define percpu_pool_sub(pool, p, v) PERCPU_SUB_(percpu_pool_view_(pool), p, v)
#define percpu_pool_inc(pool, p) PERCPU_ADD_(percpu_pool_view_(pool), p, 1)
#define percpu_pool_dec(pool, p) PERCPU_SUB_(percpu_pool_view_(pool), p, 1)
#define percpu_pool_and(pool, p, v) PERCPU_AND_(percpu_pool_view_(pool), p, v)
#define percpu_pool_or(pool, p, v) PERCPU_OR_(percpu_pool_view_(pool), p, v)
#define percpu_pool_add_return(pool, p, v) PERCPU_ADD_RETURN_(percpu_pool_view_(pool), p, v)
#define percpu_pool_xchg(pool, p, v) PERCPU_XCHG_(percpu_pool_view_(pool), p, v, __COUNTER__)
#define percpu_pool_cmpxchg(pool, p, old, v) PERCPU_CMPXCHG_(percpu_pool_view_(pool), p, old, v, __COUNTER__)
#define percpu_pool_try_cmpxchg(pool, p, expected, v) \
  PERCPU_TRY_CMPXCHG_(percpu_pool_view_(pool), p, expected, v, __COUNTER__)

/* percpu/copies.h */

#define PERCPU_PTR_(view, p, cpu) ((__typeof__(&*(p)))percpu_copy_of_cpu_(view, (p), (size_t)(+(cpu))))
#define PERCPU_THIS_PTR_(view, p) ((__typeof__(&*(p)))percpu_this_copy_(view, (p)))

/* An integer type: that of the element, where it is one. */
#define PERCPU_INTEGER_TYPE_(p) \
  __typeof__(_Generic(*(p), float: 0, double: 0, default: (PERCPU_TYPE_(p))0))
#define PERCPU_IS_SIGNED_(p) ((PERCPU_INTEGER_TYPE_(p))-1 < (PERCPU_INTEGER_TYPE_(p))1)
#define PERCPU_SUM_TYPE_(p)                                                                 \
  __typeof__(_Generic(*(p), float: (double)0, double: (double)0,                            \
                      default: __builtin_choose_expr(sizeof(*(p)) == 8, (PERCPU_TYPE_(p))0, \
                               __builtin_choose_expr(PERCPU_IS_SIGNED_(p), (int64_t)0, (uint64_t)0))))
#define PERCPU_NEEDS_SUMMABLE_(p)                                                              \
  PERCPU_NEEDS_SIZE_(p);                                                                       \
  _Static_assert(__builtin_classify_type(*(p)) == 1 || __builtin_classify_type(*(p)) == 3 ||   \
                     __builtin_classify_type(*(p)) == 4 || __builtin_classify_type(*(p)) == 8, \
                 "a per-CPU sum needs integer, float or double elements")
#define PERCPU_SUM_(view, p)                                                                 \
  __extension__({                                                                            \
    PERCPU_NEEDS_SUMMABLE_(p);                                                               \
    (PERCPU_SUM_TYPE_(p)) _Generic(*(p), float: percpu_sum_real_, double: percpu_sum_real_,  \
                                   default: percpu_sum_integer_)(view, sizeof(*(p)),         \
                                                                 PERCPU_IS_SIGNED_(p), (p)); \
  })
#define PERCPU_SUM_N_(view, p, n, out, id)                                              \
  __extension__({                                                                       \
    PERCPU_NEEDS_SUMMABLE_(p);                                                          \
    _Static_assert(sizeof(*(p)) == 8, "percpu_sum_n needs 8-byte integers or doubles"); \
    PERCPU_TYPE_(p) *PERCPU_LOCAL_(sums, id) = (out);                                   \
    _Generic(*(p), double: percpu_sum_n_real_, default: percpu_sum_n_integer_)(         \
        view, (p), (n), (void *)PERCPU_LOCAL_(sums, id));                               \
  })

#define percpu_ptr(p, cpu) PERCPU_PTR_(PERCPU_DEFAULT_, p, cpu)
#define percpu_this_ptr(p) PERCPU_THIS_PTR_(PERCPU_DEFAULT_, p)
#define percpu_sum(p) PERCPU_SUM_(PERCPU_DEFAULT_, p)
#define percpu_sum_n(p, n, out) PERCPU_SUM_N_(PERCPU_DEFAULT_, p, n, out, __COUNTER__)

#define percpu_pool_ptr(pool, p, cpu) PERCPU_PTR_(percpu_pool_view_(pool), p, cpu)
#define percpu_pool_this_ptr(pool, p) PERCPU_THIS_PTR_(percpu_pool_view_(pool), p)
#define percpu_pool_sum(pool, p) PERCPU_SUM_(percpu_pool_view_(pool), p)
#define percpu_pool_sum_n(pool, p, n, out) PERCPU_SUM_N_(percpu_pool_view_(pool), p, n, out, __COUNTER__)

#endif /* PERCPU_OPS_C_H */
