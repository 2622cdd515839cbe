// SPDX-License-Identifier: MIT
//
// What the two files of C++'s operators share.
#ifndef PERCPU_PRELOAD_ABI_NEW_DELETE_H
#define PERCPU_PRELOAD_ABI_NEW_DELETE_H

#include <cstddef>
#include <new>

#include "preload/heap/heap.h"

#define PRELOAD_OPERATOR __attribute__((visibility("default")))
// In an operator itself: where it returns to.
#define PRELOAD_CALLER __builtin_return_address(0)

// Our own, whoever has taken the places of the operators.
#define PRELOAD_HIDDEN __attribute__((visibility("hidden"), noinline))
extern "C" {
PRELOAD_HIDDEN void* percpu_own_new(size_t);
PRELOAD_HIDDEN void percpu_own_delete(void*) noexcept;
PRELOAD_HIDDEN void percpu_own_delete_array(void*) noexcept;
PRELOAD_HIDDEN void* percpu_own_new_aligned(size_t, std::align_val_t);
}

namespace percpu::heap {

// When the caches could not serve them. caller: an address in whoever called the operator.
PRELOAD_HIDDEN void* new_slow(size_t size, bool nothrow, const void* caller);
PRELOAD_HIDDEN void delete_slow(void* block);
// From the constructor, when the caches are open.
PRELOAD_HIDDEN void begin_forms();
PRELOAD_HIDDEN void* new_aligned_nothrow(size_t size, std::align_val_t align, const void* caller);

// Inlined: whom it returns to is whom the operator does; not asked for on the fast path.
PRELOAD_HOT void* make(size_t size, bool nothrow) {
  void* block = heap.try_allocate(size);
  return __builtin_expect(block != nullptr, 1) ? block : new_slow(size, nothrow, PRELOAD_CALLER);
}
PRELOAD_HOT void drop(void* block) {
  if (__builtin_expect(!heap.try_release(block), 0)) delete_slow(block);
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_ABI_NEW_DELETE_H
