// SPDX-License-Identifier: MIT
//
// The forms of operators new and delete that go by another one: the standard lets a program replace that alone (a new with a
// header in front of each block, say), and then they must come by it. So each calls the other by its exported name, where the
// dynamic linker has put the program's or ours. A compiler may take a body that it sees for the one that is called: those that
// others go by are in another file, or weak.
#include <dlfcn.h>
#include <stddef.h>

#include <new>

#include "preload/new_delete.h"

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
  return reinterpret_cast<Form>(dlsym(RTLD_NEXT, name));
}

bool replaced() { return &bound_new != &percpu_own_new; }
bool replaced_aligned() { return &bound_new_aligned != &percpu_own_new_aligned; }

}  // namespace

PRELOAD_OPERATOR void* operator new[](size_t size) { return bound_new(size); }
PRELOAD_OPERATOR void* operator new[](size_t size, std::align_val_t align) { return bound_new_aligned(size, align); }

PRELOAD_OPERATOR void* operator new(size_t size, const std::nothrow_t& tag) noexcept {
  const NewNothrow other = replaced() ? next<NewNothrow>("_ZnwmRKSt9nothrow_t") : nullptr;
  return other != nullptr ? other(size, tag) : percpu::heap::new_nothrow(size, PRELOAD_CALLER);
}
PRELOAD_OPERATOR void* operator new[](size_t size, const std::nothrow_t& tag) noexcept {
  const NewNothrow other = replaced() ? next<NewNothrow>("_ZnamRKSt9nothrow_t") : nullptr;
  return other != nullptr ? other(size, tag) : percpu::heap::new_nothrow(size, PRELOAD_CALLER);
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

PRELOAD_OPERATOR __attribute__((weak)) void operator delete[](void* block) noexcept { bound_delete(block); }
PRELOAD_OPERATOR void operator delete(void* block, const std::nothrow_t&) noexcept { bound_delete(block); }
PRELOAD_OPERATOR void operator delete[](void* block, const std::nothrow_t&) noexcept { bound_delete_array(block); }
PRELOAD_OPERATOR void operator delete(void* block, size_t) noexcept { bound_delete(block); }
PRELOAD_OPERATOR void operator delete[](void* block, size_t) noexcept { bound_delete_array(block); }
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
