// SPDX-License-Identifier: MIT
//
// What snmalloc's tests link with (src/test/snmalloc_testlib.h), by its twins in the standard library, as far as those of its
// tests call it that snmalloc.py runs. What asks for the allocator's own books answers nothing.
#include <malloc.h>
#include <sched.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include <test/snmalloc_testlib.h>

namespace snmalloc {

template <ZeroMem zero>
void *alloc(size_t size) {
  return zero == ZeroMem::YesZero ? std::calloc(1, size) : std::malloc(size);
}
template void *alloc<ZeroMem::YesZero>(size_t size);
template void *alloc<ZeroMem::NoZero>(size_t size);

void dealloc(void *p) { std::free(p); }
void dealloc(void *p, size_t) { std::free(p); }
size_t alloc_size(const void *p) { return malloc_usable_size(const_cast<void *>(p)); }

namespace libc {
void *malloc(size_t size) { return std::malloc(size); }
void free(void *p) { std::free(p); }
size_t malloc_usable_size(const void *p) { return ::malloc_usable_size(const_cast<void *>(p)); }
void *malloc_small(smallsizeclass_t size_class) { return std::malloc(sizeclass_to_size_const(size_class)); }
}  // namespace libc

ScopedAllocHandle::ScopedAllocHandle() : ptr(nullptr) {}
ScopedAllocHandle::~ScopedAllocHandle() {}
void *ScopedAllocHandle::alloc(size_t size) { return std::malloc(size); }
void ScopedAllocHandle::dealloc(void *p) { std::free(p); }
void ScopedAllocHandle::dealloc(void *p, size_t) { std::free(p); }
ScopedAllocHandle *ScopedAllocHandle::operator->() { return this; }
ScopedAllocHandle get_scoped_allocator() { return {}; }

size_t max_small_sizeclass_bits() { return MAX_SMALL_SIZECLASS_BITS; }
uint64_t pal_tick() { return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()); }
void pal_pause() { sched_yield(); }
void message_impl(const char *text) { std::puts(text); }
[[noreturn]] void error(const char *text) {
  std::fprintf(stderr, "%s\n", text);
  std::abort();
}

void debug_teardown() {}
void debug_check_empty(bool *) {}
void debug_in_use(size_t) {}
bool is_owned(void *) { return false; }

}  // namespace snmalloc
