// SPDX-License-Identifier: MIT
//
// C++'s operators new and delete, in every form. When there is no memory the new-handler is called until there is, or until
// there is no handler; then std::bad_alloc is thrown, or null returned. Handler and exception belong to the program's own
// libstdc++, which is found when it is needed: this library brings none, and C programs have none.
#include <dlfcn.h>
#include <stddef.h>

#include <bit>
#include <new>

#include "base/check.h"
#include "preload/heap.h"

using percpu::heap::heap;

#define PRELOAD_OPERATOR __attribute__((visibility("default")))

namespace {

using Handler = void (*)();

// The new-handler, if the program has one.
Handler handler() {
  using Get = Handler (*)();
  const Get get = reinterpret_cast<Get>(dlsym(RTLD_DEFAULT, "_ZSt15get_new_handlerv"));
  return get != nullptr ? get() : nullptr;
}

[[noreturn]] void throw_bad_alloc(size_t size) {
  using Throw = void (*)();
  const Throw throw_it = reinterpret_cast<Throw>(dlsym(RTLD_DEFAULT, "_ZSt17__throw_bad_allocv"));
  if (throw_it != nullptr) throw_it();
  percpu::fatal("operator new(%zu): no memory, and no C++ runtime to throw std::bad_alloc", size);
}

void* take(size_t align, size_t size) { return align == 0 ? heap.allocate(size) : heap.allocate_aligned(align, size); }

// Requires: the first try has failed.
__attribute__((noinline, cold)) void* try_again(size_t align, size_t size, bool nothrow) {
  for (;;) {
    const Handler handle = handler();
    if (handle == nullptr) {
      if (nothrow) return nullptr;
      throw_bad_alloc(size);
    }
    handle();
    if (void* block = take(align, size); block != nullptr) return block;
  }
}

__attribute__((noinline)) void* make_slow(size_t size, bool nothrow) {
  void* block = heap.allocate(size);
  return __builtin_expect(block != nullptr, 1) ? block : try_again(0, size, nothrow);
}

PRELOAD_HOT void* make(size_t size, bool nothrow) {
  void* block = heap.try_allocate(size);
  return __builtin_expect(block != nullptr, 1) ? block : make_slow(size, nothrow);
}

void* make_aligned(size_t size, std::align_val_t align, bool nothrow) {
  const size_t bytes = static_cast<size_t>(align);
  void* block = std::has_single_bit(bytes) ? heap.allocate_aligned(bytes, size) : nullptr;
  if (block != nullptr) return block;
  return std::has_single_bit(bytes) ? try_again(bytes, size, nothrow) : nothrow ? nullptr : (throw_bad_alloc(size), nullptr);
}

__attribute__((noinline)) void drop_slow(void* block) { heap.release(block); }

PRELOAD_HOT void drop(void* block) {
  if (__builtin_expect(!heap.try_release(block), 0)) drop_slow(block);
}

}  // namespace

PRELOAD_OPERATOR void* operator new(size_t size) { return make(size, false); }
PRELOAD_OPERATOR void* operator new[](size_t size) { return make(size, false); }
PRELOAD_OPERATOR void* operator new(size_t size, const std::nothrow_t&) noexcept { return make(size, true); }
PRELOAD_OPERATOR void* operator new[](size_t size, const std::nothrow_t&) noexcept { return make(size, true); }
PRELOAD_OPERATOR void* operator new(size_t size, std::align_val_t align) { return make_aligned(size, align, false); }
PRELOAD_OPERATOR void* operator new[](size_t size, std::align_val_t align) { return make_aligned(size, align, false); }
PRELOAD_OPERATOR void* operator new(size_t size, std::align_val_t align, const std::nothrow_t&) noexcept {
  return make_aligned(size, align, true);
}
PRELOAD_OPERATOR void* operator new[](size_t size, std::align_val_t align, const std::nothrow_t&) noexcept {
  return make_aligned(size, align, true);
}

PRELOAD_OPERATOR void operator delete(void* block) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete[](void* block) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete(void* block, const std::nothrow_t&) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete[](void* block, const std::nothrow_t&) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete(void* block, size_t) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete[](void* block, size_t) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete(void* block, std::align_val_t) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete[](void* block, std::align_val_t) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete(void* block, size_t, std::align_val_t) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete[](void* block, size_t, std::align_val_t) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete(void* block, std::align_val_t, const std::nothrow_t&) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete[](void* block, std::align_val_t, const std::nothrow_t&) noexcept { drop(block); }
