// SPDX-License-Identifier: MIT
//
// mimalloc's test/main-override.cpp (MAIN_OVERRIDE) with more of its cases than its own main has switched on: all but those that
// ask for heaps of their own, that fault on purpose, and that leak or touch gigabytes to be timed.
#define main main_of_mimalloc
#include MAIN_OVERRIDE
#undef main

namespace {

struct Case {
  const char *name;
  void (*run)();
};

constexpr Case kCases[] = {
    {"various_tests", various_tests},
    {"test_mixed1", test_mixed1},
    {"test_std_string", test_std_string},
    {"test_thread_local", test_thread_local},
    {"heap_thread_free_large", heap_thread_free_large},
    {"heap_thread_free_huge", heap_thread_free_huge},
    {"padding_shrink", padding_shrink},
    {"large_alloc", large_alloc},
    {"tsan_numa_test", tsan_numa_test},
    {"strdup_test", strdup_test},
    {"test_stl_allocator1", [] { if (!test_stl_allocator1()) abort(); }},
    {"test_stl_allocator2", [] { if (!test_stl_allocator2()) abort(); }},
    {"test_mt_shutdown", test_mt_shutdown},
};

}  // namespace

// Each case that ends has a line; who does not get to the last has failed.
int main() {
  for (const Case &c : kCases) {
    c.run();
    std::printf("passed: %s\n", c.name);
    std::fflush(stdout);
  }
  return 0;
}
