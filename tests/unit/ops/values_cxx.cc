// SPDX-License-Identifier: MIT
// values.c, compiled as C++: the same promises, kept by templates.
#include "values.c"
