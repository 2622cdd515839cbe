/* SPDX-License-Identifier: MIT */
/*
 * percpu/ops_cxx.h - the spellings of percpu/ops.h and percpu/copies.h in C++ (17 and later)
 *
 * Function templates that deduce T from the handle, refuse what the contract does not allow, convert the values, and go
 * on to percpu/words.h. They throw nothing, need no exceptions, no run-time type information and no library.
 */
#ifndef PERCPU_OPS_CXX_H
#define PERCPU_OPS_CXX_H

#if __cplusplus < 201703L
#error "percpu.h needs C++17 or later (-std=c++17)"
#else

extern "C++" { /* also where the header is included with C linkage */

#include <type_traits>

namespace percpu::detail {

using View = const struct percpu_view *;

template <class T>
constexpr bool kFits = sizeof(T) == 1 || sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8;
template <class T, class U>
constexpr bool kIs = std::is_same_v<std::remove_cv_t<T>, U>;
template <class T>
constexpr bool kNumber = std::is_arithmetic_v<T> && !kIs<T, bool>;
/* What is floating and nothing that we add: std::float16_t and its kin. (A long double of 8 bytes is a double.) */
template <class T>
constexpr bool kOtherFloat = std::is_floating_point_v<T> && !kIs<T, float> && !kIs<T, double> && !kIs<T, long double>;

/* The type behind a handle, without const and volatile; also keeps a parameter from being deduced. */
template <class T>
struct ValueOf {
  static_assert(kFits<T>, "a per-CPU operation needs an element of 1, 2, 4 or 8 bytes");
  static_assert(std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_pointer_v<T>,
                "a per-CPU operation needs an element that is a number, an enumeration or a pointer");
  static_assert(!kOtherFloat<T>, "of floating numbers a per-CPU operation takes float and double");
  using type = std::remove_cv_t<T>;
};
template <class T>
using Value = typename ValueOf<T>::type;

template <class T>
PERCPU_INLINE_ Value<T> from_bits(uint64_t bits) {
  Value<T> value;
  percpu_from_bits_(&value, bits, sizeof value);
  return value;
}

/* A number as an element of type T takes it. For a T that is none, whatever: the operation says what is wrong. */
template <class T, class V>
PERCPU_INLINE_ Value<T> as_number(V v) {
  if constexpr (std::is_arithmetic_v<T>) return static_cast<Value<T>>(v);
  else return Value<T>{};
}

template <class T>
PERCPU_INLINE_ void needs_mutable() {
  static_assert(!std::is_const_v<T>, "this per-CPU operation writes, and the handle points to const");
}
template <class T>
PERCPU_INLINE_ void needs_integer() {
  needs_mutable<T>();
  static_assert(std::is_integral_v<T>, "this per-CPU operation needs an integer element");
}
template <class T>
PERCPU_INLINE_ void needs_number() {
  needs_mutable<T>();
  static_assert(kNumber<T>,
                "this per-CPU operation needs an element that is an integer (not bool), a float or a double");
}

template <class T>
PERCPU_INLINE_ Value<T> read(View view, T *p) {
  return from_bits<T>(percpu_word_read_(view, sizeof(T), p));
}
template <class T>
PERCPU_INLINE_ void write(View view, T *p, Value<T> v) {
  needs_mutable<T>();
  percpu_word_mov_(view, sizeof(T), p, percpu_bits_(&v, sizeof v));
}
template <class T>
PERCPU_INLINE_ void add(View view, T *p, Value<T> v) {
  needs_number<T>();
  if constexpr (std::is_floating_point_v<T>) {
    if constexpr (sizeof(T) == 4) percpu_fadd_4_(view, p, v);
    else percpu_fadd_8_(view, p, v);
  } else {
    percpu_word_add_(view, sizeof(T), p, static_cast<uint64_t>(v));
  }
}
template <class T>
PERCPU_INLINE_ void sub(View view, T *p, Value<T> v) {
  needs_number<T>();
  if constexpr (std::is_floating_point_v<T>) add(view, p, static_cast<Value<T>>(-v));
  else percpu_word_add_(view, sizeof(T), p, 0 - static_cast<uint64_t>(v));
}
template <class T>
PERCPU_INLINE_ Value<T> add_return(View view, T *p, Value<T> v) {
  needs_number<T>();
  if constexpr (!std::is_floating_point_v<T>)
    return static_cast<Value<T>>(percpu_word_add_return_(view, sizeof(T), p, static_cast<uint64_t>(v)));
  else if constexpr (sizeof(T) == 4) return percpu_fadd_4_(view, p, v);
  else return percpu_fadd_8_(view, p, v);
}
template <class T>
PERCPU_INLINE_ void bit_and(View view, T *p, Value<T> v) {
  needs_integer<T>();
  percpu_word_band_(view, sizeof(T), p, static_cast<uint64_t>(v));
}
template <class T>
PERCPU_INLINE_ void bit_or(View view, T *p, Value<T> v) {
  needs_integer<T>();
  percpu_word_bor_(view, sizeof(T), p, static_cast<uint64_t>(v));
}
template <class T>
PERCPU_INLINE_ Value<T> xchg(View view, T *p, Value<T> v) {
  needs_mutable<T>();
  return from_bits<T>(percpu_word_xchg_(view, sizeof(T), p, percpu_bits_(&v, sizeof v)));
}
template <class T>
PERCPU_INLINE_ Value<T> cmpxchg(View view, T *p, Value<T> old, Value<T> v) {
  needs_mutable<T>();
  return from_bits<T>(
      percpu_word_cmpxchg_(view, sizeof(T), p, percpu_bits_(&old, sizeof old), percpu_bits_(&v, sizeof v)));
}
template <class T>
PERCPU_INLINE_ bool try_cmpxchg(View view, T *p, Value<T> *expected, Value<T> v) {
  needs_mutable<T>();
  return percpu_word_try_cmpxchg_(view, sizeof(T), p, expected, percpu_bits_(&v, sizeof v)) != 0;
}

/* What a sum of T is given in: 64 bits, signed as T is, or a double. */
template <class T>
struct SumOf {
  static_assert(std::is_arithmetic_v<T> && !kOtherFloat<T>, "a per-CPU sum needs integer, float or double elements");
  static_assert(kFits<T>, "a per-CPU sum needs elements of 1, 2, 4 or 8 bytes");
  using wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
  using integer = std::conditional_t<sizeof(T) == 8, std::remove_cv_t<T>, wide>;
  using type = std::conditional_t<std::is_floating_point_v<T>, double, integer>;
};
template <class T>
using Sum = typename SumOf<T>::type;

template <class T>
PERCPU_INLINE_ Sum<T> sum(View view, T *p) {
  if constexpr (std::is_floating_point_v<T>) return percpu_sum_real_(view, sizeof(T), 1, p);
  else return static_cast<Sum<T>>(percpu_sum_integer_(view, sizeof(T), std::is_signed_v<T>, p));
}
template <class T>
PERCPU_INLINE_ void sum_n(View view, T *p, size_t n, Sum<T> *out) {
  static_assert(sizeof(T) == 8, "percpu_sum_n needs 8-byte integers or doubles");
  if constexpr (std::is_floating_point_v<T>) percpu_sum_n_real_(view, p, n, out);
  else percpu_sum_n_integer_(view, p, n, out);
}

template <class T>
PERCPU_INLINE_ T *ptr(View view, T *p, size_t cpu) {
  return static_cast<T *>(percpu_copy_of_cpu_(view, p, cpu));
}
template <class T>
PERCPU_INLINE_ T *this_ptr(View view, T *p) {
  return static_cast<T *>(percpu_this_copy_(view, p));
}

} /* namespace percpu::detail */

/*
 * Each operation twice: for the default pool, and for a given one. Numbers (V) are converted by a cast, so that -1 for
 * an unsigned element is no reason to warn.
 */
#define PERCPU_CXX_(name, inner, Result, more, params, args)                                            \
  template <class T PERCPU_STRIP_ more>                                                                 \
  PERCPU_INLINE_ Result percpu_##name(T *p PERCPU_STRIP_ params) {                                      \
    return percpu::detail::inner(nullptr, p PERCPU_STRIP_ args);                                        \
  }                                                                                                     \
  template <class T PERCPU_STRIP_ more>                                                                 \
  PERCPU_INLINE_ Result percpu_pool_##name(const struct percpu_pool *pool, T *p PERCPU_STRIP_ params) { \
    return percpu::detail::inner(percpu_pool_view_(pool), p PERCPU_STRIP_ args);                        \
  }
#define PERCPU_CXX_NUMBER_(name, inner, Result) \
  PERCPU_CXX_(name, inner, Result, (, class V), (, V v), (, percpu::detail::as_number<T>(v)))

PERCPU_CXX_(read, read, percpu::detail::Value<T>, (), (), ())
PERCPU_CXX_(write, write, void, (), (, percpu::detail::Value<T> v), (, v))
PERCPU_CXX_NUMBER_(add, add, void)
PERCPU_CXX_NUMBER_(sub, sub, void)
PERCPU_CXX_(inc, add, void, (), (), (, 1))
PERCPU_CXX_(dec, sub, void, (), (), (, 1))
PERCPU_CXX_NUMBER_(and, bit_and, void)
PERCPU_CXX_NUMBER_(or, bit_or, void)
PERCPU_CXX_NUMBER_(add_return, add_return, percpu::detail::Value<T>)
PERCPU_CXX_(xchg, xchg, percpu::detail::Value<T>, (), (, percpu::detail::Value<T> v), (, v))
PERCPU_CXX_(cmpxchg, cmpxchg, percpu::detail::Value<T>, (),
            (, percpu::detail::Value<T> old, percpu::detail::Value<T> v), (, old, v))
PERCPU_CXX_(try_cmpxchg, try_cmpxchg, bool, (),
            (, percpu::detail::Value<T> *expected, percpu::detail::Value<T> v), (, expected, v))

/* percpu/copies.h */
PERCPU_CXX_(ptr, ptr, T *, (), (, size_t cpu), (, cpu))
/* For numbers of any integer type, so that an int is no reason to warn. */
PERCPU_CXX_(ptr, ptr, T *, (, class Cpu, class = std::enable_if_t<std::is_integral_v<Cpu>>), (, Cpu cpu), (, static_cast<size_t>(cpu)))
PERCPU_CXX_(this_ptr, this_ptr, T *, (), (), ())
PERCPU_CXX_(sum, sum, percpu::detail::Sum<T>, (), (), ())
PERCPU_CXX_(sum_n, sum_n, void, (), (, size_t n, percpu::detail::Sum<T> *out), (, n, out))

#undef PERCPU_CXX_NUMBER_
#undef PERCPU_CXX_

} /* extern "C++" */

#endif /* C++17 */

#endif /* PERCPU_OPS_CXX_H */
