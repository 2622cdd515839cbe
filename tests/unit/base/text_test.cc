// SPDX-License-Identifier: MIT
#include "base/text.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <climits>
#include <clocale>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

#include "../seed.h"

namespace percpu {
namespace {

// Text and snprintf must agree, and so must what they would have needed.
#define CHECK_LIKE_SNPRINTF(...)                                \
  do {                                                          \
    char expected_[256];                                        \
    int len_ = snprintf(expected_, sizeof expected_, __VA_ARGS__); \
    char found_[256];                                           \
    Text text_(found_);                                         \
    text_.format(__VA_ARGS__);                                  \
    CHECK(std::string(found_) == expected_);                    \
    CHECK(text_.needed_bytes() == size_t(len_));                \
  } while (0)

TEST_CASE("numbers come out as snprintf writes them") {
  CHECK_LIKE_SNPRINTF("%d %d %d", 0, INT_MAX, INT_MIN);
  CHECK_LIKE_SNPRINTF("%i|%5d|%-5d|%05d|%05d", 7, 42, 42, 42, -42);
  CHECK_LIKE_SNPRINTF("%u %u %x %X", 0u, UINT_MAX, 0xbeefu, 0xbeefu);
  CHECK_LIKE_SNPRINTF("%ld %ld %lu %lx", LONG_MAX, LONG_MIN, ULONG_MAX, ULONG_MAX);
  CHECK_LIKE_SNPRINTF("%lld %llu %llx", LLONG_MIN, ULLONG_MAX, 0x123456789abcdefULL);
  CHECK_LIKE_SNPRINTF("%zu %zx %zd", SIZE_MAX, SIZE_MAX, ssize_t{-1});
  CHECK_LIKE_SNPRINTF("%jd %ju %td", INTMAX_MIN, UINTMAX_MAX, ptrdiff_t{-3});
  CHECK_LIKE_SNPRINTF("%hd %hu %hhd %hhu", short(-5), static_cast<unsigned short>(65535), static_cast<signed char>(-7),
                      static_cast<unsigned char>(250));
  CHECK_LIKE_SNPRINTF("%16lx|%016lx|%-16lx|", 0xabcUL, 0xabcUL, 0xabcUL);
  CHECK_LIKE_SNPRINTF("%*d|%-*d|", 6, 42, 6, 42);
  CHECK_LIKE_SNPRINTF("%3d|%3d", 12345, -12345);
}

TEST_CASE("strings, characters and pointers come out as snprintf writes them") {
  CHECK_LIKE_SNPRINTF("%s|%8s|%-8s|", "abc", "abc", "abc");
  CHECK_LIKE_SNPRINTF("%.2s|%.*s|%8.2s|%.0s|", "abc", 1, "abc", "abc", "abc");
  CHECK_LIKE_SNPRINTF("%c%c|%3c|%-3c|", 'a', 'b', 'c', 'd');
  int on_stack = 0;
  CHECK_LIKE_SNPRINTF("%p|%20p|", static_cast<void*>(&on_stack), static_cast<void*>(&on_stack));
  CHECK_LIKE_SNPRINTF("100%% of %s%%", "it");
  CHECK_LIKE_SNPRINTF("no conversion at all");
}

TEST_CASE("a string with a precision is read no further than that") {
  const char unterminated[3] = {'a', 'b', 'c'};
  char buffer[16];
  Text text(buffer);
  text.format("%.*s", 3, unterminated);
  CHECK(std::string(buffer) == "abc");
}

TEST_CASE("random integers come out as snprintf writes them") {
  std::mt19937_64 random(test_seed());
  for (int i = 0; i < 20000; ++i) {
    uint64_t value = random() >> (random() % 64);
    int width = static_cast<int>(random() % 24);
    CHECK_LIKE_SNPRINTF("%*lu|%lx|%ld|%0*ld|%d", width, static_cast<unsigned long>(value),
                        static_cast<unsigned long>(value), static_cast<long>(value), width, static_cast<long>(value),
                        static_cast<int>(value));
  }
}

TEST_CASE("a null string, an unknown conversion and a lone percent are written, not followed") {
  char buffer[64];
  Text text(buffer);
  const char* volatile nothing = nullptr;  // the compiler would warn
  const char* string = nothing;
  text.format("%s", string);
  CHECK(std::string(buffer) == "(null)");
  Text unknown(buffer);
  const char* format = "%5q and %";  // not checked by the compiler
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
  unknown.format(format);
#pragma GCC diagnostic pop
  CHECK(std::string(buffer) == "%5q and %");
}

TEST_CASE("a buffer is never overrun, always terminated, and the need is counted on") {
  for (size_t capacity = 0; capacity <= 12; ++capacity) {
    char buffer[16];
    memset(buffer, '#', sizeof buffer);
    Text text(buffer, capacity);
    text.format("%s-%d", "abcd", 1234).put('!');
    CHECK(text.needed_bytes() == 10);
    for (size_t i = capacity; i < sizeof buffer; ++i) CHECK(buffer[i] == '#');
    CHECK(text.truncated() == (capacity <= 10));
    if (capacity == 0) {
      CHECK(std::string(text.c_str()).empty());
      continue;
    }
    size_t length = capacity <= 10 ? capacity - 1 : 10;
    CHECK(text.length_bytes() == length);
    CHECK(std::string(text.c_str()) == std::string("abcd-1234!").substr(0, length));
  }
  Text counted(nullptr, 0);
  counted.put("four").repeat('.', 3);
  CHECK(counted.needed_bytes() == 7);
}

TEST_CASE("JSON strings are valid JSON whatever is in them") {
  auto json = [](const char* chars, size_t len) {
    char buffer[128];
    Text text(buffer);
    text.json_string(chars, len);
    return std::string(buffer);
  };
  CHECK(json("plain", 5) == "\"plain\"");
  CHECK(json("", 0) == "\"\"");
  CHECK(json("a\"b\\c\n\t", 7) == "\"a\\\"b\\\\c\\n\\t\"");
  CHECK(json("\x01\x1f\x7f\0z", 5) == "\"\\u0001\\u001f\\u007f\\u0000z\"");
  CHECK(json("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 9) == "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"");
  CHECK(json("\xff" "a\xc3", 3) == "\"\\ufffda\\ufffd\"");            // never a lead byte; a cut sequence
  CHECK(json("\xc0\xaf", 2) == "\"\\ufffd\\ufffd\"");                  // overlong
  CHECK(json("\xe0\x80\x80", 3) == "\"\\ufffd\\ufffd\\ufffd\"");      // overlong
  CHECK(json("\xed\xa0\x80", 3) == "\"\\ufffd\\ufffd\\ufffd\"");      // a surrogate
  CHECK(json("\xf4\x90\x80\x80", 4) == "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");  // above 0x10ffff
  CHECK(json("\xf0\x8f\xbf\xbf", 4) == "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");  // overlong
}

TEST_CASE("somebody's text stays in one line") {
  char buffer[64];
  Text text(buffer);
  text.put_visible("a\n\x1b[1mb\x7f\tc", 10);
  CHECK(std::string(buffer) == "a\\x0a\\x1b[1mb\\x7f\\x09c");
}

TEST_CASE("errno survives") {
  char buffer[64];
  Text text(buffer);
  errno = EXDEV;
  text.format("%s %d", "x", 1).json_string("y");
  CHECK(errno == EXDEV);
}

}  // namespace
}  // namespace percpu
