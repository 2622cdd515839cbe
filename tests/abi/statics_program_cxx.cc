// SPDX-License-Identifier: MIT
#include "statics_program.c"
