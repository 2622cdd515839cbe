/* SPDX-License-Identifier: MIT */
/* What the opened libraries of the tests let their program do. All export one function, plugin_face(). */
#ifndef PERCPU_TESTS_ABI_PLUGIN_H
#define PERCPU_TESTS_ABI_PLUGIN_H

#include <stdint.h>

struct plugin_calls {
  uint64_t *(*count)(void);        /* a handle: 1 in sum after the constructor, the rest is what work() counted */
  int *(*table)(void);             /* a handle: 1, 2, 3, 0, 0, ... on each CPU */
  unsigned table_words;
  void (*work)(unsigned times);
  long (*sum_of_fives)(void);      /* of a variable of the file's own: 5 on each CPU */
};

typedef const struct plugin_calls *(*plugin_face_function)(void);

#endif /* PERCPU_TESTS_ABI_PLUGIN_H */
