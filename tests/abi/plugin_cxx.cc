// SPDX-License-Identifier: MIT
#include "plugin.c"
