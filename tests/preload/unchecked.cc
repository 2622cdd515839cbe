// SPDX-License-Identifier: MIT
//
// Under the preload with PERCPU_CONF=check:off: what free() no longer looks at, and what is told all the same.
#include <doctest/doctest.h>

#include <sched.h>
#include <stdlib.h>

#include "misused.h"
#include "one_cpu.h"

TEST_CASE("a small block freed twice in a row is not told: it is handed out twice") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    // On one CPU, so that one stack is meant.
    if (!stay_on_this_cpu()) return 9;
    // Half of what this CPU's stack of the class has held is taken: it has room. (A full one goes the checked way.)
    void* held[256];
    for (void*& each : held) each = opaque(malloc(100));
    for (void* each : held) free(opaque(each));
    for (int i = 0; i < 128; ++i) held[i] = opaque(malloc(100));
    void* block = malloc(100);
    free(opaque(block));
    free(opaque(block));
    void* first = opaque(malloc(100));
    void* second = opaque(malloc(100));
    return first == block && second == block ? 7 : 8;
  });
  CHECK(end.standard_error == "");
  CHECK(end.exit_code == 7);
}

TEST_CASE("what does not come by the caches is told as ever") {
  int local = 0;
  CHECK(says(stopped_by([&] { free(opaque<void*>(&local)); }), "not a block of this heap"));
  CHECK(says(stopped_by([] {
               void* block = malloc(1000000);
               free(opaque(block));
               free(opaque(block));
             }),
             "freed already"));
}
