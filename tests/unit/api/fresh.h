// SPDX-License-Identifier: MIT
//
// Pieces of a test that need the library as it is in a new process: its one object can be used for the first time only
// once. The test program itself never uses the library; each piece runs in a forked child, and says by EXPECT what must
// hold there.
//
//   const ChildEnd end = fresh("unit_size:32K", [] { EXPECT(percpu_alloc(8, 8) != nullptr); });
//   CHECK_FINE(end);
#ifndef PERCPU_TESTS_API_FRESH_H
#define PERCPU_TESTS_API_FRESH_H

#include <doctest/doctest.h>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>

#include <percpu.h>

#include "../child.h"
#include "../sanitized.h"

#define EXPECT(condition)                                                                                     \
  do {                                                                                                        \
    if (!(condition)) ::percpu::not_as_expected(__FILE__, __LINE__, #condition);                              \
  } while (0)
#define EXPECT_EQ(found, expected)                                                                            \
  do {                                                                                                        \
    const auto found_ = (found);                                                                              \
    const auto expected_ = static_cast<std::remove_const_t<decltype(found_)>>(expected);                      \
    if (found_ != expected_) {                                                                                \
      fprintf(stderr, "expected %lld, found %lld: ", static_cast<long long>(expected_),                       \
              static_cast<long long>(found_));                                                                \
      ::percpu::not_as_expected(__FILE__, __LINE__, #found " == " #expected);                                 \
    }                                                                                                         \
  } while (0)
#define CHECK_FINE(end)                        \
  do {                                         \
    const ::percpu::ChildEnd end_ = (end);     \
    INFO(end_.standard_error);                 \
    CHECK(end_.signal == 0);                   \
    CHECK(end_.exit_code == 0);                \
  } while (0)

namespace percpu {

inline constexpr int kNotAsExpected = 99;

[[noreturn]] inline void not_as_expected(const char* file, int line, const char* condition) {
  fprintf(stderr, "%s:%d: expected %s (errno %d)\n", file, line, condition, errno);
  _exit(kNotAsExpected);
}

// Runs the body in a child whose library was never used, with this PERCPU_CONF (null: none). It has kHangSeconds, or ends by
// SIGALRM: a test must not hang where what it tests deadlocks.
template <class Body>
ChildEnd fresh(const char* conf, Body body) {
  return run_in_child([&] {
    alarm(kHangSeconds);
    if (conf != nullptr) {
      setenv("PERCPU_CONF", conf, 1);
    } else {
      unsetenv("PERCPU_CONF");
    }
    body();
    return 0;
  });
}

// Under the thread sanitizer the operations are atomic ones on an extra copy, and no thread can use a front cache.
inline constexpr bool kHaveSequences = PERCPU_HAVE_SEQUENCES != 0;

}  // namespace percpu

#endif  // PERCPU_TESTS_API_FRESH_H
