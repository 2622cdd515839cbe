// SPDX-License-Identifier: MIT
#include "base/text.h"

#include <cstdint>
#include <cstring>

namespace percpu {

namespace {

// One conversion of a format: everything between '%' and its letter.
struct Conversion {
  bool left = false;
  bool zero = false;
  size_t width = 0;
  size_t precision = SIZE_MAX;  // SIZE_MAX: none given
  enum class Length : uint8_t { kInt, kChar, kShort, kLong, kLongLong, kSize, kMax, kPtrdiff } length = Length::kInt;
  char letter = 0;
};

struct Digits {
  char chars[20];
  size_t count = 0;
};

Digits to_digits(uint64_t value, unsigned base, bool upper) {
  Digits reversed;
  do {
    unsigned digit = static_cast<unsigned>(value % base);
    reversed.chars[reversed.count++] = static_cast<char>(digit < 10 ? '0' + digit : (upper ? 'A' : 'a') + digit - 10);
    value /= base;
  } while (value != 0);
  Digits digits;
  while (digits.count < reversed.count) {
    digits.chars[digits.count] = reversed.chars[reversed.count - 1 - digits.count];
    ++digits.count;
  }
  return digits;
}

size_t parse_count(const char** at) {
  size_t count = 0;
  while (**at >= '0' && **at <= '9') count = count * 10 + static_cast<size_t>(*(*at)++ - '0');
  return count;
}

Conversion::Length parse_length(const char** at) {
  using Length = Conversion::Length;
  switch (**at) {
    case 'h':
      ++*at;
      if (**at != 'h') return Length::kShort;
      ++*at;
      return Length::kChar;
    case 'l':
      ++*at;
      if (**at != 'l') return Length::kLong;
      ++*at;
      return Length::kLongLong;
    case 'z': ++*at; return Length::kSize;
    case 'j': ++*at; return Length::kMax;
    case 't': ++*at; return Length::kPtrdiff;
    default: return Length::kInt;
  }
}

// The arguments live in a struct, since va_list may be an array type, which cannot be passed on by reference.
struct Arguments {
  va_list list;
};

size_t parse_count_or_star(const char** at, Arguments& args) {
  if (**at != '*') return parse_count(at);
  ++*at;
  int given = va_arg(args.list, int);
  return given > 0 ? static_cast<size_t>(given) : 0;
}

// Requires: *at is behind the '%'. Leaves *at at the letter.
Conversion parse_conversion(const char** at, Arguments& args) {
  Conversion conversion;
  for (;; ++*at) {
    if (**at == '-') {
      conversion.left = true;
    } else if (**at == '0') {
      conversion.zero = true;
    } else {
      break;
    }
  }
  conversion.width = parse_count_or_star(at, args);
  if (**at == '.') {
    ++*at;
    conversion.precision = parse_count_or_star(at, args);
  }
  conversion.length = parse_length(at);
  conversion.letter = **at;
  return conversion;
}

int64_t take_signed(Conversion::Length length, Arguments& args) {
  using Length = Conversion::Length;
  switch (length) {
    case Length::kChar: return static_cast<signed char>(va_arg(args.list, int));
    case Length::kShort: return static_cast<short>(va_arg(args.list, int));
    case Length::kInt: return va_arg(args.list, int);
    case Length::kLong: return va_arg(args.list, long);
    case Length::kLongLong: return va_arg(args.list, long long);
    case Length::kSize: return static_cast<int64_t>(va_arg(args.list, size_t));
    case Length::kMax: return va_arg(args.list, intmax_t);
    case Length::kPtrdiff: return va_arg(args.list, ptrdiff_t);
  }
  return 0;
}

uint64_t take_unsigned(Conversion::Length length, Arguments& args) {
  using Length = Conversion::Length;
  switch (length) {
    case Length::kChar: return static_cast<unsigned char>(va_arg(args.list, unsigned));
    case Length::kShort: return static_cast<unsigned short>(va_arg(args.list, unsigned));
    case Length::kInt: return va_arg(args.list, unsigned);
    default: return static_cast<uint64_t>(take_signed(length, args));
  }
}

void put_padded(Text& text, const Conversion& how, const char* prefix, const char* chars, size_t count) {
  size_t prefix_len = strlen(prefix);
  size_t total = prefix_len + count;
  size_t padding = how.width > total ? how.width - total : 0;
  bool zeros = how.zero && !how.left;
  if (!how.left && !zeros) text.repeat(' ', padding);
  text.put(prefix, prefix_len);
  if (zeros) text.repeat('0', padding);
  text.put(chars, count);
  if (how.left) text.repeat(' ', padding);
}

void put_string(Text& text, Conversion how, const char* string) {
  if (string == nullptr) string = "(null)";
  how.zero = false;
  put_padded(text, how, "", string, strnlen(string, how.precision));
}

// Returns: false when the letter is none that we know; then no argument was taken.
bool put_conversion(Text& text, Conversion how, Arguments& args) {
  switch (how.letter) {
    case 'd':
    case 'i': {
      int64_t value = take_signed(how.length, args);
      uint64_t magnitude = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
      Digits digits = to_digits(magnitude, 10, false);
      put_padded(text, how, value < 0 ? "-" : "", digits.chars, digits.count);
      return true;
    }
    case 'u':
    case 'x':
    case 'X': {
      Digits digits = to_digits(take_unsigned(how.length, args), how.letter == 'u' ? 10 : 16, how.letter == 'X');
      put_padded(text, how, "", digits.chars, digits.count);
      return true;
    }
    case 'p': {
      Digits digits = to_digits(reinterpret_cast<uintptr_t>(va_arg(args.list, void*)), 16, false);
      put_padded(text, how, "0x", digits.chars, digits.count);
      return true;
    }
    case 'c': {
      char c = static_cast<char>(va_arg(args.list, int));
      how.zero = false;
      put_padded(text, how, "", &c, 1);
      return true;
    }
    case 's': put_string(text, how, va_arg(args.list, const char*)); return true;
    case '%': text.put('%'); return true;
    default: return false;
  }
}

// The length of the UTF-8 sequence at `chars`, 0 if there is none (overlong forms, surrogates and values above 0x10ffff
// included).
size_t utf8_len(const unsigned char* chars, size_t available) {
  unsigned char lead = chars[0];
  size_t len = lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (len == 0 || len > available) return 0;
  for (size_t i = 1; i < len; ++i) {
    if ((chars[i] & 0xc0) != 0x80) return 0;
  }
  if (lead == 0xe0 && chars[1] < 0xa0) return 0;  // overlong
  if (lead == 0xed && chars[1] > 0x9f) return 0;  // a surrogate
  if (lead == 0xf0 && chars[1] < 0x90) return 0;  // overlong
  if (lead == 0xf4 && chars[1] > 0x8f) return 0;  // above 0x10ffff
  return len;
}

}  // namespace

Text::Text(char* buffer, size_t capacity_bytes) : buffer_(buffer), capacity_(capacity_bytes) {
  if (capacity_ > 0) buffer_[0] = '\0';
}

size_t Text::length_bytes() const {
  if (capacity_ == 0) return 0;
  return needed_ < capacity_ ? needed_ : capacity_ - 1;
}

const char* Text::c_str() const { return capacity_ > 0 ? buffer_ : ""; }

Text& Text::put(const char* chars, size_t len_bytes) {
  size_t at = length_bytes();
  size_t room = capacity_ > 0 ? capacity_ - 1 - at : 0;
  size_t taken = len_bytes < room ? len_bytes : room;
  if (taken > 0) {
    memcpy(buffer_ + at, chars, taken);
    buffer_[at + taken] = '\0';
  }
  needed_ += len_bytes;
  return *this;
}

Text& Text::put_visible(const char* chars, size_t len_bytes) {
  for (size_t i = 0; i < len_bytes; ++i) {
    const unsigned char c = static_cast<unsigned char>(chars[i]);
    if (c < 0x20 || c == 0x7f) {
      format("\\x%02x", static_cast<unsigned>(c));
    } else {
      put(chars[i]);
    }
  }
  return *this;
}

Text& Text::put(char c) { return put(&c, 1); }

Text& Text::put(const char* string) { return put(string, strlen(string)); }

Text& Text::repeat(char c, size_t count) {
  for (size_t i = 0; i < count; ++i) put(c);
  return *this;
}

Text& Text::format(const char* format, ...) {
  va_list args;
  va_start(args, format);
  vformat(format, args);
  va_end(args);
  return *this;
}

Text& Text::vformat(const char* format, va_list args) {
  Arguments arguments;
  va_copy(arguments.list, args);
  for (const char* at = format; *at != '\0';) {
    const char* plain = at;
    while (*at != '\0' && *at != '%') ++at;
    put(plain, static_cast<size_t>(at - plain));
    if (*at == '\0') break;
    const char* percent = at++;
    Conversion conversion = parse_conversion(&at, arguments);
    if (conversion.letter != '\0') ++at;
    if (!put_conversion(*this, conversion, arguments)) put(percent, static_cast<size_t>(at - percent));
  }
  va_end(arguments.list);
  return *this;
}

Text& Text::json_string(const char* string) { return json_string(string, strlen(string)); }

Text& Text::json_string(const char* chars, size_t len_bytes) {
  put('"');
  for (size_t i = 0; i < len_bytes;) {
    unsigned char c = static_cast<unsigned char>(chars[i]);
    size_t len = utf8_len(reinterpret_cast<const unsigned char*>(chars) + i, len_bytes - i);
    if (len == 0) {
      put("\\ufffd");
    } else if (c == '"' || c == '\\') {
      put('\\').put(chars[i]);
    } else if (c == '\n') {
      put("\\n");
    } else if (c == '\t') {
      put("\\t");
    } else if (c < 0x20 || c == 0x7f) {
      format("\\u%04x", static_cast<unsigned>(c));
    } else {
      put(chars + i, len);
    }
    i += len == 0 ? 1 : len;
  }
  return put('"');
}

}  // namespace percpu
