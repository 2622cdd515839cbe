/* SPDX-License-Identifier: MIT
 *
 * Those of the tests in rpmalloc's test/main.c (MAIN) that ask nothing of the malloc but memory. test_alloc and test_malloc ask
 * for rpmalloc's own sizes, the rest for heaps, pages and statistics of its own.
 */
#define main main_of_rpmalloc
#include MAIN
#undef main

int main(void) {
  const struct {
    const char *name;
    int (*run)(void);
  } tests[] = {
      {"test_realloc", test_realloc},   {"test_superalign", test_superalign}, {"test_crossthread", test_crossthread},
      {"test_threaded", test_threaded}, {"test_threadspam", test_threadspam},
  };
  int failed = 0;
  test_initialize();
  for (size_t i = 0; i < sizeof tests / sizeof tests[0]; ++i) {
    const int wrong = tests[i].run();
    failed += wrong != 0;
    printf("%s: %s\n", wrong ? "FAILED" : "passed", tests[i].name);
    fflush(stdout);
  }
  return failed;
}
