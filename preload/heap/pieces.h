// SPDX-License-Identifier: MIT
//
// A text of any length, handed on in pieces: the statistics of a machine with many CPUs are longer than any buffer of ours, and
// nothing is allocated here.
//
// Invariants: what was formatted at once is in one piece.
#ifndef PERCPU_PRELOAD_HEAP_PIECES_H
#define PERCPU_PRELOAD_HEAP_PIECES_H

#include <cstdarg>
#include <cstddef>

#include "base/text.h"

namespace percpu::heap {

class Pieces {
 public:
  // At most so long is what is formatted at once; the rest is cut off.
  static constexpr size_t kMostAtOnce = 512;

  // Takes a piece, which is terminated.
  using Take = void (*)(void* context, const char* chars, size_t len_bytes);

  Pieces(Take take, void* context) : Pieces(take, context, own_, sizeof own_) {}
  // With a larger buffer of the caller's, so that fewer texts come in more than one piece.
  Pieces(Take take, void* context, char* buffer, size_t capacity_bytes)
      : take_(take), context_(context), buffer_(buffer), capacity_bytes_(capacity_bytes) {}
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;
  ~Pieces() {
    if (length_ != 0) take_(context_, buffer_, length_);
  }

  void format(const char* format, ...) PERCPU_PRINTF_(2, 3) {
    if (capacity_bytes_ - length_ < kMostAtOnce) {
      take_(context_, buffer_, length_);
      length_ = 0;
    }
    Text text(buffer_ + length_, kMostAtOnce);
    va_list args;
    va_start(args, format);
    text.vformat(format, args);
    va_end(args);
    length_ += text.length_bytes();
  }

 private:
  Take take_;
  void* context_;
  char* buffer_;
  size_t capacity_bytes_;
  size_t length_ = 0;
  char own_[2048];
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_PIECES_H
