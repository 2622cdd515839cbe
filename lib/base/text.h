// SPDX-License-Identifier: MIT
//
// A bounded text writer. It writes into a buffer that the caller owns, never past its end, and goes on counting what it
// would have needed, as snprintf does; so a caller may write once into nothing, and again into a buffer of that size.
//
//   char buffer[128];
//   Text text(buffer);
//   text.format("%zu bytes on CPU %d", size_bytes, cpu).put('\n');
//
// It needs no locale, no heap, no lock, and leaves errno alone: it works in a signal handler and inside malloc.
//
// Invariants: the buffer holds a terminated string after every call, unless its capacity is 0.
#ifndef PERCPU_BASE_TEXT_H
#define PERCPU_BASE_TEXT_H

#include <cstdarg>
#include <cstddef>

#define PERCPU_PRINTF_(format_at, first_at) __attribute__((format(printf, format_at, first_at)))

namespace percpu {

class Text {
 public:
  // Requires: `buffer` holds `capacity_bytes`; it may be null when that is 0 (then everything is only counted).
  Text(char* buffer, size_t capacity_bytes);
  template <size_t n>
  explicit Text(char (&buffer)[n]) : Text(buffer, n) {}
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;

  Text& put(char c);
  Text& put(const char* string);
  Text& put(const char* chars, size_t len_bytes);
  // Somebody's text, in one line: control characters become \xNN.
  Text& put_visible(const char* chars, size_t len_bytes);
  // `count` times the same character: indentation, columns.
  Text& repeat(char c, size_t count);

  // The printf subset that this library needs: %d %i %u %x %X %c %s %p %%, the length modifiers hh h l ll z j t, a width (or
  // *), the flags 0 and -, and a precision (or *) for %s only. Anything else is written as it stands in the format.
  Text& format(const char* format, ...) PERCPU_PRINTF_(2, 3);
  Text& vformat(const char* format, va_list args) PERCPU_PRINTF_(2, 0);

  // A JSON string, quotes included. Bytes below 0x20 and 0x7f are escaped, others are copied as they are; bytes that are
  // not UTF-8 become U+FFFD, so that the result is always valid JSON.
  Text& json_string(const char* string);
  Text& json_string(const char* chars, size_t len_bytes);

  // What everything so far takes, without the terminator: may exceed the capacity.
  size_t needed_bytes() const { return needed_; }
  // What is in the buffer, without the terminator.
  size_t length_bytes() const;
  bool truncated() const { return needed_ > length_bytes(); }
  // The text so far, always terminated ("" for a capacity of 0).
  const char* c_str() const;

 private:
  char* buffer_;
  size_t capacity_;
  size_t needed_ = 0;
};

}  // namespace percpu

#endif  // PERCPU_BASE_TEXT_H
