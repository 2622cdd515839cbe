// SPDX-License-Identifier: MIT
//
// C++'s operators new and delete. When there is no memory the new-handler is called until there is, or until
// there is no handler; then std::bad_alloc is thrown, or null returned. Handler and exception belong to the caller's own C++
// runtime, which is found when it is needed: this library brings none, and C programs have none. A program in C may have one all
// the same, in no global scope: that of its plug-ins (python3's modules), opened with RTLD_LOCAL. So every operator hands down
// whom it returns to, and the caller's module is asked first.
#include <dlfcn.h>
#include <link.h>
#include <stddef.h>

#include <new>

#include "base/bits.h"
#include "base/check.h"
#include "preload/abi/export.h"
#include "preload/abi/new_delete.h"
#include "preload/abi/next.h"
#include "preload/heap/heap.h"

using percpu::heap::heap;
using percpu::heap::kLargestAlign;

namespace {

using Handler = void (*)();

// A function of the module that has this address, or of what that depends on; null: there is none, or the module is the program.
void* find_with(const void* address, const char* name) {
  Dl_info info{};
  link_map* module = nullptr;
  if (dladdr1(address, &info, reinterpret_cast<void**>(&module), RTLD_DL_LINKMAP) == 0 || module->l_name[0] == 0) return nullptr;
  // Opened by name, as the record is no handle of a module that came with another: that has no scope before.
  return percpu::find_in(module->l_name, name);
}

// A function of the C++ runtime that the caller sees. What is found stays there, as whoever wants to throw by it has the runtime open.
// Context: none of the heap's locks is held; the dynamic linker takes its own, and may allocate. (Without any memory the global
// scope can still be asked.)
void* find_for(const void* caller, const char* name) {
  if (void* const found = find_with(caller, name); found != nullptr) return found;
  if (void* const found = dlsym(RTLD_DEFAULT, name); found != nullptr) return found;
  for (const char* runtime : {"libstdc++.so.6", "libc++.so.1", "libc++abi.so.1"}) {
    if (void* const found = percpu::find_in(runtime, name); found != nullptr) return found;
  }
  return nullptr;
}

using GetHandler = Handler (*)();
GetHandler find_get_handler(const void* caller) { return reinterpret_cast<GetHandler>(find_for(caller, "_ZSt15get_new_handlerv")); }

// The new-handler, if the caller's runtime has one.
Handler handler(const void* caller) {
  const GetHandler get = find_get_handler(caller);
  return get != nullptr ? get() : nullptr;
}

[[noreturn]] void throw_bad_alloc(size_t size, const void* caller) {
  using Throw = void (*)();
  const Throw throw_it = reinterpret_cast<Throw>(find_for(caller, "_ZSt17__throw_bad_allocv"));
  if (throw_it != nullptr) throw_it();
  percpu::fatal("operator new(%zu): no memory, and no C++ runtime to throw std::bad_alloc", size);
}

// Null, too, for what is aligned better than any block.
void* take(size_t align, size_t size) {
  if (align > kLargestAlign) return nullptr;
  return align == 0 ? heap.allocate(size) : heap.allocate_aligned(align, size);
}

// Requires: the first try has failed. caller: an address in whoever called the operator.
__attribute__((noinline, cold)) void* try_again(size_t align, size_t size, bool nothrow, const void* caller) {
  for (;;) {
    const Handler handle = handler(caller);
    if (handle == nullptr) {
      if (nothrow) return nullptr;
      throw_bad_alloc(size, caller);
    }
    handle();
    if (void* block = take(align, size); block != nullptr) return block;
  }
}

const void* module_of(const void* address) {
  Dl_info info{};
  return dladdr(address, &info) != 0 ? info.dli_fbase : nullptr;
}

// The form that does not throw of the runtime that has this function. First the way that needs no memory.
template <class Form>
Form find_form(GetHandler get, const char* name) {
  const void* const runtime = reinterpret_cast<const void*>(get);
  void* const next = percpu::next_function(name);
  return reinterpret_cast<Form>(next != nullptr && module_of(next) == module_of(runtime) ? next : find_with(runtime, name));
}

// The same for the forms that do not throw. A handler may throw, and only the runtime that it belongs to can catch that: so its own
// form is called, which comes back here by operator new. (A runtime that is linked into the program has no form that can be found:
// what calls it does not come here, as a rule.)
__attribute__((noinline, cold)) void* try_again_nothrow(size_t align, size_t size, const void* caller) {
  const GetHandler get = find_get_handler(caller);
  if (get == nullptr || get() == nullptr) return nullptr;
  const std::nothrow_t tag{};
  using Form = void* (*)(size_t, const std::nothrow_t&);
  using AlignedForm = void* (*)(size_t, std::align_val_t, const std::nothrow_t&);
  if (align == 0) {
    if (const auto form = find_form<Form>(get, "_ZnwmRKSt9nothrow_t"); form != nullptr) return form(size, tag);
  } else {
    const auto form = find_form<AlignedForm>(get, "_ZnwmSt11align_val_tRKSt9nothrow_t");
    if (form != nullptr) return form(size, std::align_val_t{align}, tag);
  }
  return try_again(align, size, true, caller);
}

void* make_aligned(size_t size, std::align_val_t align, bool nothrow, const void* caller) {
  const size_t bytes = static_cast<size_t>(align);
  if (!percpu::is_power_of_two(bytes)) return nothrow ? nullptr : (throw_bad_alloc(size, caller), nullptr);
  if (void* block = take(bytes, size); block != nullptr) return block;
  return nothrow ? try_again_nothrow(bytes, size, caller) : try_again(bytes, size, false, caller);
}

}  // namespace

namespace percpu::heap {

void* new_slow(size_t size, bool nothrow, const void* caller) {
  void* block = heap.allocate(size);
  if (__builtin_expect(block != nullptr, 1)) return block;
  return nothrow ? try_again_nothrow(0, size, caller) : try_again(0, size, false, caller);
}
void* new_aligned_nothrow(size_t size, std::align_val_t align, const void* caller) {
  return make_aligned(size, align, true, caller);
}
void delete_slow(void* block) { heap.release(block); }

}  // namespace percpu::heap

using percpu::heap::drop;
using percpu::heap::make;

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wsized-deallocation"  // those are in new_forms.cc
#endif

// The four that the other forms go by (new_forms.cc).
PRELOAD_OPERATOR void* operator new(size_t size) { return make(size, false); }
PRELOAD_OPERATOR void* operator new(size_t size, std::align_val_t align) {
  return make_aligned(size, align, false, PRELOAD_CALLER);
}
PRELOAD_OPERATOR void operator delete(void* block) noexcept { drop(block); }
PRELOAD_OPERATOR void operator delete(void* block, std::align_val_t) noexcept { drop(block); }

extern "C" {
void* percpu_own_new(size_t) __attribute__((alias("_Znwm"), visibility("hidden")));
void percpu_own_delete(void*) noexcept __attribute__((alias("_ZdlPv"), visibility("hidden")));
void* percpu_own_new_aligned(size_t, std::align_val_t) __attribute__((alias("_ZnwmSt11align_val_t"), visibility("hidden")));
}
