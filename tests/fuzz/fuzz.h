// SPDX-License-Identifier: MIT
//
// What a fuzz target defines. Built by clang with -Dfuzz=true it is a libFuzzer program; otherwise driver.cc feeds it inputs
// that it changes at random, beginning with the target's seeds, so that every build of the suite runs it for a moment.
#ifndef PERCPU_TESTS_FUZZ_FUZZ_H
#define PERCPU_TESTS_FUZZ_FUZZ_H

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <vector>

// One input. A promise that is broken stops the program.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size_bytes);

// Before the first input (initialize.cc).
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv);

// Inputs to begin with.
std::vector<std::string_view> fuzz_seeds();

#define FUZZ_EXPECT(condition)                                                          \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition);         \
      abort();                                                                          \
    }                                                                                   \
  } while (0)

namespace fuzz {

// Reads an input as a row of decisions; zeros when it is used up.
class Decisions {
 public:
  Decisions(const uint8_t* data, size_t size_bytes) : at_(data), end_(data + size_bytes) {}
  bool done() const { return at_ == end_; }
  uint8_t byte() { return at_ == end_ ? 0 : *at_++; }
  uint32_t word() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return value;
  }
  // The rest, as text.
  std::string_view rest() {
    const std::string_view text(reinterpret_cast<const char*>(at_), static_cast<size_t>(end_ - at_));
    at_ = end_;
    return text;
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace fuzz

#endif  // PERCPU_TESTS_FUZZ_FUZZ_H
