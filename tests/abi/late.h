/* SPDX-License-Identifier: MIT */
/* What the libraries of late.c let their program do: they use no variable of theirs before they are asked to. */
#ifndef PERCPU_TESTS_ABI_LATE_H
#define PERCPU_TESTS_ABI_LATE_H

struct late_calls {
  long *(*count)(void); /* a handle: LATE_VALUE on each CPU, and what was counted */
  long **(*pointer)(void); /* a handle: &target on each CPU, by a relocation */
  long *target;
};

typedef const struct late_calls *(*late_face_function)(void);

#endif /* PERCPU_TESTS_ABI_LATE_H */
