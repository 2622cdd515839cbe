// SPDX-License-Identifier: MIT
//
// pair: malloc(64) and free, the same block again and again: the shortest way through an allocator. ns a pair.
#include "driver.h"

double bench::pair(const Scale& scale) {
  const size_t pairs = scale.of(3'000'000);
  return median_ns(5, [=] {
           for (size_t i = 0; i < pairs; i++) give_back(take(64, i), i);
         }) / static_cast<double>(pairs);
}
