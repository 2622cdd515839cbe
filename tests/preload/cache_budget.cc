// SPDX-License-Identifier: MIT
//
// Under the preload with a small `cache`: what a CPU's caches hold stays within it, and a class that is asked for grows at the expense
// of one that is not.
#include <doctest/doctest.h>

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "misused.h"
#include "one_cpu.h"

extern "C" void malloc_stats_print(void (*write)(void*, const char*), void* context, const char* options) __attribute__((weak));

namespace {

constexpr size_t kBudget = 64 * 1024;  // as in meson.build
constexpr int kBlocks = 600;

size_t cached_bytes() { return mallinfo2().fsmblks; }

// Takes and gives back many blocks of a size: its stack is found empty and full again and again.
void use(size_t size, int rounds) {
  static void* blocks[kBlocks];
  for (int round = 0; round < rounds; ++round) {
    for (void*& block : blocks) REQUIRE((block = malloc(opaque(size))) != nullptr);
    for (void* block : blocks) free(block);
  }
}

// The number in front of these words.
unsigned long told(const char* words) {
  std::string text;
  text.reserve(64 * 1024);
  malloc_stats_print([](void* to, const char* piece) { static_cast<std::string*>(to)->append(piece); }, &text, nullptr);
  size_t end = text.find(words);
  REQUIRE(end != std::string::npos);
  size_t begin = end - 1;
  while (begin > 0 && strchr("0123456789", text[begin - 1]) != nullptr) --begin;
  return strtoul(&text[begin], nullptr, 10);
}

}  // namespace

TEST_CASE("each class in turn gets most of the budget, and all together never more") {
  REQUIRE(malloc_stats_print != nullptr);
  REQUIRE(stay_on_this_cpu());
  malloc_trim(0);
  // What tests and libraries use besides lies in the caches too: within the budget.
  // (On a slow machine a tick may find the same counts twice, and empty all of it: that makes room, too.)
  const auto made_room = [] { return told(" lanes made room for others") + told(" CPUs' caches emptied"); };
  unsigned long before = made_room();
  for (int turn = 0; turn < 3; ++turn) {
    for (const size_t size : {size_t{64}, size_t{256}, size_t{1024}, size_t{4096}}) {
      CAPTURE(turn);
      CAPTURE(size);
      use(size, 100);
      const size_t cached = cached_bytes();
      CHECK(cached <= kBudget);
      CHECK(cached >= kBudget / 2);
      const unsigned long now = made_room();
      if (turn > 0) CHECK(now > before);
      before = now;
    }
  }
}
