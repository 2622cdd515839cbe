// SPDX-License-Identifier: MIT
#include "../as_told.h"
#include "fuzz.h"

int LLVMFuzzerInitialize(int*, char***) {
  expect_preload_as_told();
  return 0;
}
