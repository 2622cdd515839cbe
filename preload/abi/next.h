// SPDX-License-Identifier: MIT
//
// The functions that ours took the place of.
#ifndef PERCPU_PRELOAD_ABI_NEXT_H
#define PERCPU_PRELOAD_ABI_NEXT_H

namespace percpu {

// Whether the address lies in this module's code.
bool is_own_code(const void* address);

// A function of a library that is open already, or of what it depends on; null: it is not open, or has none. What is found stays
// there as long as somebody else has the library open.
void* find_in(const char* library, const char* name);

// The next function of that name behind ours; null: there is none. Context: dlsym() allocates nothing where it finds it.
void* next_function(const char* name);

}  // namespace percpu

#endif  // PERCPU_PRELOAD_ABI_NEXT_H
