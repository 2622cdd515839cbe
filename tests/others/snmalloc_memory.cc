// SPDX-License-Identifier: MIT
//
// Those of the tests in snmalloc's src/test/func/memory/memory.cc (MEMORY) that ask nothing of the malloc but memory: not where a
// block begins that a pointer points into, nor a limit on address space that a child sets and snmalloc fits into.
#define main main_of_snmalloc
#include MEMORY
#undef main

int main() {
  const struct {
    const char *name;
    void (*run)();
  } tests[] = {
      {"test_alloc_dealloc_64k", test_alloc_dealloc_64k}, {"test_random_allocation", test_random_allocation},
      {"test_calloc", test_calloc},                       {"test_double_alloc", test_double_alloc},
      {"test_static_sized_allocs", test_static_sized_allocs}, {"test_consolidaton_bug", test_consolidaton_bug},
  };
  setup();
  for (const auto &test : tests) {
    for (int i = 0; i < 3; ++i) test.run();
    std::printf("passed: %s\n", test.name);
    std::fflush(stdout);
  }
  return 0;
}
