// SPDX-License-Identifier: MIT
//
// What the two files of C++'s operators share.
#ifndef PERCPU_PRELOAD_NEW_DELETE_H
#define PERCPU_PRELOAD_NEW_DELETE_H

#include <cstddef>
#include <new>

#define PRELOAD_OPERATOR __attribute__((visibility("default")))
// In an operator itself: where it returns to.
#define PRELOAD_CALLER __builtin_return_address(0)

// Our own, whoever has taken the places of the operators.
extern "C" {
void* percpu_own_new(size_t);
void* percpu_own_new_aligned(size_t, std::align_val_t);
}

namespace percpu::heap {

// What the operators do that do not throw. caller: an address in whoever called them.
void* new_nothrow(size_t size, const void* caller);
void* new_aligned_nothrow(size_t size, std::align_val_t align, const void* caller);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_NEW_DELETE_H
