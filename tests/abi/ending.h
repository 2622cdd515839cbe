/* SPDX-License-Identifier: MIT */
#ifndef PERCPU_TESTS_ABI_ENDING_H
#define PERCPU_TESTS_ABI_ENDING_H

/* What the library's last destructor found; zeros until then. */
struct ending_seen {
  long count, late;
};

typedef long ending_use_function(struct ending_seen *see);

#endif
