/* SPDX-License-Identifier: MIT */
/* The second source file of headers.sh's program; also compiled as C++. */
#include "headers_use.h"

#ifdef __cplusplus
extern "C"
#endif
    uint64_t
    headers_use_elsewhere(const struct headers_areas *a);

uint64_t headers_use_elsewhere(const struct headers_areas *a) {
  return headers_use(a);
}
