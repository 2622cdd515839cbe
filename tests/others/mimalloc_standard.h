/* SPDX-License-Identifier: MIT
 *
 * Comes before mimalloc's tests and takes the place of their test/testhelper.h: a check that calls what has no twin in the
 * standard library is left out from there on (mimalloc_standard.c). Each check writes one line, which mimalloc.py reads.
 */
#ifndef PERCPU_TESTS_OTHERS_MIMALLOC_STANDARD_H
#define PERCPU_TESTS_OTHERS_MIMALLOC_STANDARD_H
#define TESTHELPER_H_ /* theirs */

#include <errno.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
extern jmp_buf check_left_out;  /* where a check ends that cannot be made */
extern const char *check_open;  /* the check under way, NULL outside of checks */
extern int checks_failed;
void check_ends(bool passed);

/* Of aligned memory that is zeroed only the alignment is tried: the shim sets the zeros itself. */
static inline bool check_has_no_meaning(const char *name) {
  return strstr(name, "alloc_aligned-") != NULL || strstr(name, "zalloc-aligned-") != NULL;
}
static inline int print_test_summary(void) { return checks_failed; }
#ifdef __cplusplus
}
#endif

#define CHECK_BODY(name)                                                        \
  errno = 0;                                                                    \
  if (setjmp(check_left_out) != 0 || check_has_no_meaning(check_open = (name))) \
    printf("left out: %s\n", check_open), check_open = NULL;                    \
  else                                                                          \
    for (bool done = false, result = true; !done; done = true, check_ends(result))
#define CHECK(name, expression) \
  CHECK_BODY(name) { result = (expression); }

#endif
