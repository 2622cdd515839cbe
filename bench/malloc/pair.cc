// SPDX-License-Identifier: MIT
//
// pair: malloc(64) and free, the same block again and again: the shortest way through an allocator. ns a pair.
//
// pair_floor: the same with two functions that do nothing (nothing.c) in place of malloc and free: the loop, the calls into a shared
// library, and the block's number, of which no allocator can save anything.
#include "driver.h"
#include "nothing.h"

namespace {

constexpr size_t kPairs = 3'000'000;

}  // namespace

double bench::pair(const Scale& scale) {
  const size_t pairs = scale.of(kPairs);
  return median_ns(scale, 5, [=] {
           for (size_t i = 0; i < pairs; i++) give_back(take(64, i), i);
         }) / static_cast<double>(pairs);
}

double bench::pair_floor(const Scale& scale) {
  const size_t pairs = scale.of(kPairs);
  return median_ns(scale, 5, [=] {
           for (size_t i = 0; i < pairs; i++) give_back<bench_nothing_free>(take<bench_nothing_malloc>(64, i), i);
         }) / static_cast<double>(pairs);
}
