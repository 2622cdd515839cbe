// SPDX-License-Identifier: MIT
//
// The end of a program that cannot go on, and lines on stderr. Every line begins with "libpercpu: " and is written by
// one write(2), so that lines of several threads do not mix (a longer text is cut at kLineBytes and says so by "...").
//
// Context of everything here: any, including signal handlers and the inside of malloc; no allocation, no stdio, no lock;
// errno is preserved.
#ifndef PERCPU_BASE_CHECK_H
#define PERCPU_BASE_CHECK_H

#include <cstddef>

#include "base/text.h"

namespace percpu {

// The longest line, with its prefix and newline.
inline constexpr size_t kLineBytes = 1024;

// Writes "libpercpu: <message>\n" to stderr.
void report(const char* format, ...) PERCPU_PRINTF_(1, 2);

// Writes the text as it is to stderr, whole, in as many writes as it takes (a dump of several lines).
void report_raw(const char* chars, size_t len_bytes);
// The same to another file.
void report_raw_to(int file, const char* chars, size_t len_bytes);

// Writes "libpercpu: <message>\n" to stderr and aborts.
[[noreturn]] void fatal(const char* format, ...) PERCPU_PRINTF_(1, 2);

// What PERCPU_CHECK calls; not meant to be called by name.
[[noreturn]] void check_failed(const char* file, int line, const char* condition, const char* format, ...)
    PERCPU_PRINTF_(4, 5);

}  // namespace percpu

// An invariant of this library: where it is broken, the program stops with one line that names the place, the condition,
// and, in the words of the caller, what was expected and what was found. Checked in every build.
#define PERCPU_CHECK(condition, format, ...)                                                                \
  do {                                                                                                      \
    if (__builtin_expect(!(condition), 0))                                                                  \
      ::percpu::check_failed(__FILE__, __LINE__, #condition, format __VA_OPT__(, ) __VA_ARGS__);            \
  } while (0)

#endif  // PERCPU_BASE_CHECK_H
