// SPDX-License-Identifier: MIT
#include "os/file.h"

#include <cerrno>
#include <cstring>

namespace percpu {
namespace {

ssize_t read_some(const System& system, int file, char* buffer, size_t size_bytes) {
  ssize_t got = -EINTR;
  for (int tries = 0; got == -EINTR && tries < kMaxRetries; tries++) got = system.read(file, buffer, size_bytes);
  return got;
}

}  // namespace

ssize_t read_beginning(const System& system, const char* path, char* buffer, size_t capacity_bytes) {
  buffer[0] = 0;
  const int file = system.open(path);
  if (file < 0) return file;
  const ssize_t got = read_some(system, file, buffer, capacity_bytes - 1);
  (void)system.close(file);
  if (got > 0) buffer[got] = 0;
  return got;
}

std::optional<uint64_t> leading_number(const char* text) {
  if (*text < '0' || *text > '9') return std::nullopt;
  uint64_t value = 0;
  for (; *text >= '0' && *text <= '9'; text++) {
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(*text - '0'), &value)) {
      return std::nullopt;
    }
  }
  return value;
}

char* Lines::next() {
  for (;;) {
    char* const start = buffer_ + at_;
    if (char* end = static_cast<char*>(memchr(start, '\n', filled_ - at_)); end != nullptr) {
      *end = 0;
      at_ = static_cast<size_t>(end - buffer_) + 1;
      if (!skipping_) return start;
      skipping_ = false;
      continue;
    }
    if (at_ == 0 && filled_ == sizeof buffer_) {
      skipping_ = true;
      filled_ = 0;
    }
    memmove(buffer_, buffer_ + at_, filled_ - at_);
    filled_ -= at_;
    at_ = 0;
    if (!fill()) return nullptr;
  }
}

bool Lines::fill() {
  if (file_ < 0) return false;
  const ssize_t got = read_some(system_, file_, buffer_ + filled_, sizeof buffer_ - filled_);
  if (got <= 0) return false;
  filled_ += static_cast<size_t>(got);
  return true;
}

}  // namespace percpu
