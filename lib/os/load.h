// SPDX-License-Identifier: MIT
//
// What is found out while the dynamic linker loads the library: before any constructor has run.
#ifndef PERCPU_OS_LOAD_H
#define PERCPU_OS_LOAD_H

#include "base/cpu_mask.h"

namespace percpu {

// The main thread's mask then: no constructor had bound it yet, as an OpenMP runtime's does. Empty where the kernel did not tell.
const CpuMask& allowed_at_load();

}  // namespace percpu

#endif  // PERCPU_OS_LOAD_H
