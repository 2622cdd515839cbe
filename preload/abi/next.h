// SPDX-License-Identifier: MIT
//
// The functions that ours took the place of.
#ifndef PERCPU_PRELOAD_ABI_NEXT_H
#define PERCPU_PRELOAD_ABI_NEXT_H

namespace percpu {

// Whether the address lies in this module's code.
bool is_own_code(const void* address);

// The next function of that name behind ours; null: there is none. Context: dlsym() allocates nothing where it finds it.
void* next_function(const char* name);

}  // namespace percpu

#endif  // PERCPU_PRELOAD_ABI_NEXT_H
