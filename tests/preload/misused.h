// SPDX-License-Identifier: MIT
//
// What tests of malloc share: values that the compiler knows nothing of, what is asked of blocks, and the end of a child that misused them.
#ifndef PERCPU_TESTS_PRELOAD_MISUSED_H
#define PERCPU_TESTS_PRELOAD_MISUSED_H

#include <doctest/doctest.h>

#include <malloc.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include <string>

#include "../unit/child.h"

// The value, of which the compiler knows nothing: it may not leave out a pair of malloc and free, nor warn of what is meant.
template <class T>
T opaque(T value) {
  volatile T hidden = value;
  return hidden;
}

// The address so far behind the beginning of the block.
inline char* at(void* block, size_t offset) { return static_cast<char*>(opaque(block)) + offset; }

inline bool aligned_to(const void* block, size_t align) { return reinterpret_cast<uintptr_t>(block) % align == 0; }

// What the program has of the heap. The caches are emptied first: a span that is there for their sake alone would count with what of it
// is too little for a block.
inline size_t live_bytes() {
  (void)malloc_trim(0);
  return mallinfo2().uordblks;
}

// The line that a child wrote which did this; it must have been stopped by abort().
template <class Act>
std::string stopped_by(Act act) {
  const percpu::ChildEnd end = percpu::run_in_child([&] {
    act();
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error.find('\n') == end.standard_error.size() - 1);
  return end.standard_error;
}

inline bool says(const std::string& text, const char* what) {
  INFO(text);
  return text.find(what) != std::string::npos;
}

#endif  // PERCPU_TESTS_PRELOAD_MISUSED_H
