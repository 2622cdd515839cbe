// SPDX-License-Identifier: MIT
//
// The forms of operators new and delete that go by another one: the standard lets a program replace that alone (a new with a
// header in front of each block, say), and then they must come by it. So each calls the other by its exported name, where the
// dynamic linker has put the program's or ours. A compiler may take a body that it sees for the one that is called: those that
// others go by are in another file, or weak.
#include <stddef.h>

#include <new>

#include "preload/abi/new_delete.h"
#include "preload/abi/next.h"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wsized-deallocation"  // the others are in new_delete.cc
#endif

extern "C" {
void* bound_new(size_t) __asm__("_Znwm");
void* bound_new_aligned(size_t, std::align_val_t) __asm__("_ZnwmSt11align_val_t");
void bound_delete(void*) noexcept __asm__("_ZdlPv");
void bound_delete_array(void*) noexcept __asm__("_ZdaPv");
void bound_delete_aligned(void*, std::align_val_t) noexcept __asm__("_ZdlPvSt11align_val_t");
void bound_delete_array_aligned(void*, std::align_val_t) noexcept __asm__("_ZdaPvSt11align_val_t");
}

namespace {

using NewNothrow = void* (*)(size_t, const std::nothrow_t&);
using NewAlignedNothrow = void* (*)(size_t, std::align_val_t, const std::nothrow_t&);

// Those that do not throw must catch what the program's throw. This library brings no runtime that could: the program's own does.
template <class Form>
Form next(const char* name) {
  return reinterpret_cast<Form>(percpu::next_function(name));
}

using percpu::heap::heap;
using percpu::heap::make;

// Whether two names are bound to different functions. (A compiler that is asked says yes: that is what names are for.)
template <class Function>
PRELOAD_HOT bool differ(Function bound, Function own) {
  asm("" : "+r"(own));
  return __builtin_expect(bound != own, 0);
}

PRELOAD_HOT bool replaced() { return differ(&bound_new, &percpu_own_new); }
PRELOAD_HOT bool replaced_delete() { return differ(&bound_delete, &percpu_own_delete); }
// Where nothing is replaced the hot ones do it themselves. A jump by the dynamic linker's table takes 1.3 ns of 5, a look at
// whether something is replaced as much or more. So they have a window of their own, in which no block is before that is known.
uintptr_t forms_window = uintptr_t{1} << 63;

__attribute__((noinline)) void form_slow(void* block) {
  if (replaced_delete()) return bound_delete(block);
  heap.release(block);  // no sequence of its own: tests/fire aborts at each instruction of each
}
__attribute__((noinline)) void array_slow(void* block) { bound_delete_array(block); }

bool replaced_aligned() { return differ(&bound_new_aligned, &percpu_own_new_aligned); }

}  // namespace

void percpu::heap::begin_forms() {
  if (!replaced_delete() && !differ(&bound_delete_array, &percpu_own_delete_array)) forms_window = cache_places.window;
}

PRELOAD_OPERATOR void* operator new[](size_t size) { return replaced() ? bound_new(size) : make(size, false); }
PRELOAD_OPERATOR void* operator new[](size_t size, std::align_val_t align) { return bound_new_aligned(size, align); }

PRELOAD_OPERATOR void* operator new(size_t size, const std::nothrow_t& tag) noexcept {
  const NewNothrow other = replaced() ? next<NewNothrow>("_ZnwmRKSt9nothrow_t") : nullptr;
  return other != nullptr ? other(size, tag) : make(size, true);
}
PRELOAD_OPERATOR void* operator new[](size_t size, const std::nothrow_t& tag) noexcept {
  const NewNothrow other = replaced() ? next<NewNothrow>("_ZnamRKSt9nothrow_t") : nullptr;
  return other != nullptr ? other(size, tag) : make(size, true);
}
PRELOAD_OPERATOR void* operator new(size_t size, std::align_val_t align, const std::nothrow_t& tag) noexcept {
  const NewAlignedNothrow other =
      replaced_aligned() ? next<NewAlignedNothrow>("_ZnwmSt11align_val_tRKSt9nothrow_t") : nullptr;
  return other != nullptr ? other(size, align, tag) : percpu::heap::new_aligned_nothrow(size, align, PRELOAD_CALLER);
}
PRELOAD_OPERATOR void* operator new[](size_t size, std::align_val_t align, const std::nothrow_t& tag) noexcept {
  const NewAlignedNothrow other =
      replaced_aligned() ? next<NewAlignedNothrow>("_ZnamSt11align_val_tRKSt9nothrow_t") : nullptr;
  return other != nullptr ? other(size, align, tag) : percpu::heap::new_aligned_nothrow(size, align, PRELOAD_CALLER);
}

PRELOAD_OPERATOR __attribute__((weak)) void operator delete[](void* block) noexcept {
  if (__builtin_expect(!heap.try_release(block, forms_window), 0)) form_slow(block);
}
PRELOAD_OPERATOR void operator delete(void* block, const std::nothrow_t&) noexcept { bound_delete(block); }
PRELOAD_OPERATOR void operator delete[](void* block, const std::nothrow_t&) noexcept { bound_delete_array(block); }
// The one that compilers call most: at a line of the instruction cache, as free().
PRELOAD_OPERATOR __attribute__((aligned(64))) void operator delete(void* block, size_t) noexcept {
  if (__builtin_expect(!heap.try_release(block, forms_window), 0)) form_slow(block);
}
PRELOAD_OPERATOR void operator delete[](void* block, size_t) noexcept {
  if (__builtin_expect(!heap.try_release(block, forms_window), 0)) array_slow(block);
}
PRELOAD_OPERATOR __attribute__((weak)) void operator delete[](void* block, std::align_val_t align) noexcept {
  bound_delete_aligned(block, align);
}
PRELOAD_OPERATOR void operator delete(void* block, size_t, std::align_val_t align) noexcept {
  bound_delete_aligned(block, align);
}
PRELOAD_OPERATOR void operator delete[](void* block, size_t, std::align_val_t align) noexcept {
  bound_delete_array_aligned(block, align);
}
PRELOAD_OPERATOR void operator delete(void* block, std::align_val_t align, const std::nothrow_t&) noexcept {
  bound_delete_aligned(block, align);
}
PRELOAD_OPERATOR void operator delete[](void* block, std::align_val_t align, const std::nothrow_t&) noexcept {
  bound_delete_array_aligned(block, align);
}

extern "C" void percpu_own_delete_array(void*) noexcept __attribute__((alias("_ZdaPv"), visibility("hidden")));
