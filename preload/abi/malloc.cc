// SPDX-License-Identifier: MIT
//
// The names that programs call: all of C's, POSIX's and glibc's allocation functions, so that no block ever comes from another
// heap. Each forwards inward; this is the place that sets errno, and the corner cases are decided here:
//
//   malloc(0)            a block of its own
//   realloc(p, 0)        frees p and returns null, as glibc's does
//   too large            null and ENOMEM, products that overflow included
//   alignment            no power of two: EINVAL from posix_memalign and aligned_alloc; memalign rounds up, as glibc's does
//   errno                free() and posix_memalign() leave it alone
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

#include <bit>
#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "base/errno_kept.h"
#include "preload/abi/export.h"
#include "preload/heap/heap.h"

using percpu::heap::heap;
using percpu::heap::class_of;
using percpu::heap::kClasses;
using percpu::heap::kLargestAlign;
using percpu::heap::kMaxSmallBytes;

namespace {

void* or_enomem(void* block) {
  if (__builtin_expect(block == nullptr, 0)) errno = ENOMEM;
  return block;
}

// What malloc() and free() do when the cache could not serve them. Out of the way, so that they themselves need no stack.
__attribute__((noinline)) void* malloc_slow(size_t size) { return or_enomem(heap.allocate(size)); }
__attribute__((noinline)) void free_slow(void* block) { heap.release(block); }

// Null, too, for what is larger than any block, and aligned better. Requires: a power of two.
void* aligned(size_t align, size_t size) {
  if (align > kLargestAlign || size > PTRDIFF_MAX) return nullptr;
  return heap.allocate_aligned(align, size);
}

bool product(size_t count, size_t size, size_t* bytes) {
  return !__builtin_mul_overflow(count, size, bytes) && *bytes <= PTRDIFF_MAX;
}

}  // namespace

// The two that everybody calls begin at a line of the instruction cache.
PRELOAD_EXPORT __attribute__((aligned(64))) void* malloc(size_t size) {
  void* block = heap.try_allocate(size);
  return __builtin_expect(block != nullptr, 1) ? block : malloc_slow(size);
}

PRELOAD_EXPORT __attribute__((aligned(64))) void free(void* block) {
  if (__builtin_expect(!heap.try_release(block), 0)) free_slow(block);
}
// The same, whoever has taken its name.
extern "C" __attribute__((visibility("hidden"), alias("free"))) void percpu_own_free(void*) noexcept;
PRELOAD_EXPORT void free_sized(void* block, size_t size) { heap.release_sized(block, size, false); }
PRELOAD_EXPORT void free_aligned_sized(void* block, size_t, size_t size) { heap.release_sized(block, size, true); }

PRELOAD_EXPORT void* calloc(size_t count, size_t size) {
  size_t bytes = 0;
  if (!product(count, size, &bytes)) return or_enomem(nullptr);
  if (void* block = heap.try_allocate(bytes); __builtin_expect(block != nullptr, 1)) return memset(block, 0, bytes);
  return or_enomem(heap.allocate_zeroed(bytes));
}

PRELOAD_EXPORT void* realloc(void* block, size_t size) {
  if (block == nullptr) return or_enomem(heap.allocate(size));
  if (size == 0) {
    heap.release(block);
    return nullptr;
  }
  const size_t bytes = heap.try_size(block);
  if (bytes == 0 || size > kMaxSmallBytes) return or_enomem(heap.reallocate(block, size));
  if (bytes == kClasses.info[class_of(size)].size_bytes) return block;
  void* const other = heap.try_allocate(size);
  if (other == nullptr) return or_enomem(heap.reallocate(block, size));
  memcpy(other, block, bytes < size ? bytes : size);
  percpu_own_free(block);
  return other;
}

// As libc's does, by whatever realloc() the program sees: one that has its own malloc need not have this. (A compiler that sees ours
// takes that, so it is not told what is called.)
PRELOAD_EXPORT void* reallocarray(void* block, size_t count, size_t size) {
  size_t bytes = 0;
  if (!product(count, size, &bytes)) return or_enomem(nullptr);
  void* (*bound)(void*, size_t) = nullptr;
  PRELOAD_LOAD_BOUND(realloc, bound);
  return bound(block, bytes);
}

PRELOAD_EXPORT int posix_memalign(void** out, size_t align, size_t size) {
  if (!percpu::is_power_of_two(align) || align % sizeof(void*) != 0) return EINVAL;
  const percpu::ErrnoKept errno_kept;
  void* block = aligned(align, size);
  if (block == nullptr) return ENOMEM;
  *out = block;
  return 0;
}

PRELOAD_EXPORT void* aligned_alloc(size_t align, size_t size) {
  if (!percpu::is_power_of_two(align)) {
    errno = EINVAL;
    return nullptr;
  }
  return or_enomem(aligned(align, size));
}

PRELOAD_EXPORT void* memalign(size_t align, size_t size) {
  if (align > SIZE_MAX / 2 + 1) {  // no power of two is as large: glibc's errno
    errno = EINVAL;
    return nullptr;
  }
  if (align > kLargestAlign) return or_enomem(nullptr);
  return or_enomem(aligned(std::bit_ceil(align == 0 ? size_t{1} : align), size));
}

// (Not the heap's system_page_bytes(), which are known from its first call on.)
PRELOAD_EXPORT void* valloc(size_t size) { return or_enomem(aligned(percpu::page_size_bytes(), size)); }

PRELOAD_EXPORT void* pvalloc(size_t size) {
  const size_t page = percpu::page_size_bytes();
  if (size > PTRDIFF_MAX - page) return or_enomem(nullptr);
  return or_enomem(aligned(page, size == 0 ? page : percpu::round_up(size, page)));
}

PRELOAD_EXPORT size_t malloc_usable_size(void* block) {
  const size_t bytes = heap.try_size(block);
  return __builtin_expect(bytes != 0, 1) ? bytes : heap.usable_bytes(block, "malloc_usable_size");
}

// ---- glibc's own ways to ask and to tell ---------------------------------------------------------------------------------

PRELOAD_EXPORT int malloc_trim(size_t) { return heap.trim() ? 1 : 0; }

// The parameters of another allocator: they mean nothing here. glibc's accepts all, unknown ones too, but for fast bins of sizes that it
// has none for.
PRELOAD_EXPORT int mallopt(int parameter, int value) {
  constexpr int kLargestFast = 80 * sizeof(size_t) / 4;
  return parameter != M_MXFAST || (value >= 0 && value <= kLargestFast) ? 1 : 0;
}

// Large blocks are of the same heap as others: nothing is in hblks and hblkhd.
PRELOAD_EXPORT struct mallinfo2 mallinfo2(void) {
  const percpu::heap::HeapTotals totals = heap.totals();
  struct mallinfo2 info {};
  info.arena = totals.used_bytes + totals.dirty_bytes;
  info.uordblks = totals.live_bytes();
  info.fordblks = totals.free_small_bytes + totals.dirty_bytes;
  info.fsmblks = totals.cached_bytes;
  info.keepcost = totals.dirty_bytes;
  return info;
}

PRELOAD_EXPORT struct mallinfo mallinfo(void) {
  const struct mallinfo2 wide = mallinfo2();
  struct mallinfo info {};
  info.arena = static_cast<int>(wide.arena);
  info.uordblks = static_cast<int>(wide.uordblks);
  info.fordblks = static_cast<int>(wide.fordblks);
  info.fsmblks = static_cast<int>(wide.fsmblks);
  info.keepcost = static_cast<int>(wide.keepcost);
  return info;
}

PRELOAD_EXPORT void malloc_stats(void) {
  percpu::heap::Pieces text([](void*, const char* chars, size_t len_bytes) { percpu::report_raw(chars, len_bytes); }, nullptr);
  heap.print_stats(text);
}

PRELOAD_EXPORT int malloc_info(int options, FILE* stream) {
  if (options != 0) return EINVAL;
  percpu::heap::Pieces text([](void* to, const char* chars, size_t len_bytes) { (void)fwrite(chars, 1, len_bytes, static_cast<FILE*>(to)); },
                            stream);
  heap.print_xml(text);
  return 0;
}

// ---- glibc's second names ------------------------------------------------------------------------------------------------

PRELOAD_EXPORT void cfree(void*) __attribute__((alias("free")));
PRELOAD_EXPORT void* __libc_malloc(size_t) __attribute__((alias("malloc")));
PRELOAD_EXPORT void* __libc_calloc(size_t, size_t) __attribute__((alias("calloc")));
PRELOAD_EXPORT void* __libc_realloc(void*, size_t) __attribute__((alias("realloc")));
PRELOAD_EXPORT void* __libc_reallocarray(void*, size_t, size_t) __attribute__((alias("reallocarray")));
PRELOAD_EXPORT void __libc_free(void*) __attribute__((alias("free")));
PRELOAD_EXPORT void __libc_cfree(void*) __attribute__((alias("free")));
PRELOAD_EXPORT void* __libc_memalign(size_t, size_t) __attribute__((alias("memalign")));
PRELOAD_EXPORT void* __libc_valloc(size_t) __attribute__((alias("valloc")));
PRELOAD_EXPORT void* __libc_pvalloc(size_t) __attribute__((alias("pvalloc")));
PRELOAD_EXPORT int __posix_memalign(void**, size_t, size_t) __attribute__((alias("posix_memalign")));
PRELOAD_EXPORT int __libc_mallopt(int, int) __attribute__((alias("mallopt")));
PRELOAD_EXPORT struct mallinfo __libc_mallinfo(void) __attribute__((alias("mallinfo")));
