// SPDX-License-Identifier: MIT
//
// Small files, mostly of /proc and /sys. Nothing here allocates or changes errno; all is async-signal-safe.
#ifndef PERCPU_OS_FILE_H
#define PERCPU_OS_FILE_H

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <optional>

#include "os/system.h"

namespace percpu {

// Reads the beginning of a file, at most capacity_bytes - 1. The buffer holds a terminated text afterwards, "" on failure.
// Returns: its length, or -errno.
ssize_t read_beginning(const System& system, const char* path, char* buffer, size_t capacity_bytes);

// The number that a text begins with, in decimal digits. Nothing: it begins with none, or one above 64 bits.
std::optional<uint64_t> leading_number(const char* text);

// A file, line by line. A line that is longer than the buffer is passed over.
class Lines {
 public:
  // otherwise: the file where the first cannot be opened; null: none is.
  Lines(const System& system, const char* path, const char* otherwise = nullptr) : system_(system), file_(system.open(path)) {
    if (file_ < 0 && otherwise != nullptr) file_ = system.open(otherwise);
  }
  ~Lines() {
    if (file_ >= 0) static_cast<void>(system_.close(file_));
  }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  // 0, or -errno: the file could not be opened, and has no lines.
  int error() const { return file_ < 0 ? file_ : 0; }
  // The next line, without its newline, until the call after it; null at the end, where the last newline is.
  char* next();

 private:
  bool fill();

  const System& system_;
  int file_;
  size_t at_ = 0;
  size_t filled_ = 0;
  bool skipping_ = false;
  char buffer_[1024];
};

// The mappings of this process: the first file is empty when the main thread has ended, and emulators know only the first.
inline constexpr const char* kOwnMaps[] = {"/proc/self/maps", "/proc/thread-self/maps"};

}  // namespace percpu

#endif  // PERCPU_OS_FILE_H
