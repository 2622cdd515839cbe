// SPDX-License-Identifier: MIT
//
// Under the preload: every other name of what corners.cc tests, called once at least: glibc's second ones, all forms of C++'s operators,
// jemalloc's that changes nothing. There are no threads here, so that what the heap says of itself is exact.
#include <doctest/doctest.h>

#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <bit>
#include <new>
#include <string>
#include <vector>

#include "misused.h"

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_memalign(size_t, size_t);
void* __libc_valloc(size_t);
void* __libc_pvalloc(size_t);
void __libc_free(void*);
void* __libc_realloc(void*, size_t);
void* __libc_reallocarray(void*, size_t, size_t) __attribute__((weak));
void __libc_cfree(void*) __attribute__((weak));
int __posix_memalign(void**, size_t, size_t) __attribute__((weak));
int __libc_mallopt(int, int) __attribute__((weak));
struct mallinfo __libc_mallinfo(void) __attribute__((weak));
struct mallinfo narrow_mallinfo(void) __asm__("mallinfo");  // of whose use the header warns
void cfree(void*) __attribute__((weak));
void* mallocx(size_t, int) __attribute__((weak));
size_t xallocx(void*, size_t, size_t, int) __attribute__((weak));
size_t sallocx(const void*, int) __attribute__((weak));
void dallocx(void*, int) __attribute__((weak));
}

TEST_CASE("glibc's second names serve the same heap, and do the same") {
  REQUIRE(cfree != nullptr);
  REQUIRE(__libc_reallocarray != nullptr);
  REQUIRE(__libc_cfree != nullptr);
  REQUIRE(__posix_memalign != nullptr);
  REQUIRE(__libc_mallopt != nullptr);
  REQUIRE(__libc_mallinfo != nullptr);
  const size_t before = live_bytes();
  // malloc_usable_size() stops the program for what is no block of this heap.
  const auto check = [](void* block, size_t align, size_t size) {
    REQUIRE(block != nullptr);
    CHECK(aligned_to(block, align));
    CHECK(malloc_usable_size(block) >= size);
    memset(block, 0xff, size);
  };
  void* block = __libc_malloc(opaque(size_t{100}));
  check(block, 16, 100);
  free(block);
  block = __libc_calloc(3, opaque(size_t{33}));
  CHECK(std::string(static_cast<char*>(block), 99) == std::string(99, 0));
  check(block, 16, 99);
  block = __libc_realloc(block, opaque(size_t{5000}));
  CHECK(static_cast<unsigned char*>(block)[98] == 0xff);
  check(block, 16, 5000);
  block = __libc_reallocarray(block, 100, opaque(size_t{100}));
  CHECK(static_cast<unsigned char*>(block)[4999] == 0xff);
  check(block, 16, 10000);
  errno = 0;
  CHECK(__libc_reallocarray(block, opaque(SIZE_MAX / 2), 3) == nullptr);
  CHECK(errno == ENOMEM);
  errno = 0;
  CHECK(__libc_calloc(opaque(SIZE_MAX / 2), 3) == nullptr);
  CHECK(errno == ENOMEM);
  errno = 17;
  __libc_free(block);
  CHECK(errno == 17);
  block = __libc_memalign(opaque(size_t{200}), 10);
  check(block, 256, 10);
  __libc_cfree(block);
  __libc_cfree(nullptr);
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  block = __libc_valloc(opaque(size_t{10}));
  check(block, page, 10);
  free(block);
  block = __libc_pvalloc(opaque(page + 1));
  check(block, page, 2 * page);
  cfree(block);
  block = nullptr;
  CHECK(__posix_memalign(&block, 24, 8) == EINVAL);
  CHECK(__posix_memalign(&block, 64, opaque(size_t{PTRDIFF_MAX})) == ENOMEM);
  CHECK(block == nullptr);
  CHECK(__posix_memalign(&block, 512, opaque(size_t{700})) == 0);
  check(block, 512, 700);
  free(block);
  CHECK(live_bytes() == before);
  CHECK(__libc_mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
  CHECK(__libc_mallopt(1000, 1) == 1);
}

TEST_CASE("mallinfo tells what mallinfo2 does, as far as an int goes") {
  void* const block = malloc(opaque(size_t{3000000}));
  free(malloc(opaque(size_t{100})));
  const struct mallinfo2 wide = mallinfo2();
  for (const struct mallinfo& narrow : {narrow_mallinfo(), __libc_mallinfo()}) {
    CHECK(narrow.uordblks >= 3000000);
    CHECK(narrow.uordblks == static_cast<int>(wide.uordblks));
    CHECK(narrow.arena == static_cast<int>(wide.arena));
    CHECK(narrow.fordblks == static_cast<int>(wide.fordblks));
    CHECK(narrow.fsmblks == static_cast<int>(wide.fsmblks));
    CHECK(narrow.keepcost == static_cast<int>(wide.keepcost));
  }
  free(block);
}

namespace {

constexpr std::align_val_t kWide{256};

// Every form of operator new, and every form of operator delete.
struct NewForm {
  const char* name;
  bool array;
  bool aligned;
  bool throws;
  void* (*take)(size_t size);
};
constexpr NewForm kNewForms[] = {
    {"new", false, false, true, [](size_t size) { return ::operator new(size); }},
    {"new[]", true, false, true, [](size_t size) { return ::operator new[](size); }},
    {"new, nothrow", false, false, false, [](size_t size) { return ::operator new(size, std::nothrow); }},
    {"new[], nothrow", true, false, false, [](size_t size) { return ::operator new[](size, std::nothrow); }},
    {"new, aligned", false, true, true, [](size_t size) { return ::operator new(size, kWide); }},
    {"new[], aligned", true, true, true, [](size_t size) { return ::operator new[](size, kWide); }},
    {"new, aligned, nothrow", false, true, false, [](size_t size) { return ::operator new(size, kWide, std::nothrow); }},
    {"new[], aligned, nothrow", true, true, false, [](size_t size) { return ::operator new[](size, kWide, std::nothrow); }},
};
struct DeleteForm {
  const char* name;
  bool array;
  bool aligned;
  void (*drop)(void* block, size_t size);
};
constexpr DeleteForm kDeleteForms[] = {
    {"delete", false, false, [](void* block, size_t) { ::operator delete(block); }},
    {"delete, sized", false, false, [](void* block, size_t size) { ::operator delete(block, size); }},
    {"delete, nothrow", false, false, [](void* block, size_t) { ::operator delete(block, std::nothrow); }},
    {"delete[]", true, false, [](void* block, size_t) { ::operator delete[](block); }},
    {"delete[], sized", true, false, [](void* block, size_t size) { ::operator delete[](block, size); }},
    {"delete[], nothrow", true, false, [](void* block, size_t) { ::operator delete[](block, std::nothrow); }},
    {"delete, aligned", false, true, [](void* block, size_t) { ::operator delete(block, kWide); }},
    {"delete, sized, aligned", false, true, [](void* block, size_t size) { ::operator delete(block, size, kWide); }},
    {"delete, aligned, nothrow", false, true, [](void* block, size_t) { ::operator delete(block, kWide, std::nothrow); }},
    {"delete[], aligned", true, true, [](void* block, size_t) { ::operator delete[](block, kWide); }},
    {"delete[], sized, aligned", true, true, [](void* block, size_t size) { ::operator delete[](block, size, kWide); }},
    {"delete[], aligned, nothrow", true, true, [](void* block, size_t) { ::operator delete[](block, kWide, std::nothrow); }},
};

// How a call ended: with a block or null, by bad_alloc, or by what the new-handler threw.
enum class End { kBlock, kNull, kBadAlloc, kHandlers };
End end_of(const NewForm& form, size_t size) {
  try {
    return form.take(size) != nullptr ? End::kBlock : End::kNull;
  } catch (const std::bad_alloc&) {
    return End::kBadAlloc;
  } catch (int) {
    return End::kHandlers;
  }
}

int asked = 0;               // how often the new-handler was called
std::vector<void*> hoarded;  // what it gives back

}  // namespace

TEST_CASE("what any form of operator new gives is freed by every form of operator delete that belongs to it") {
  for (const NewForm& form : kNewForms) {
    for (const DeleteForm& other : kDeleteForms) {
      for (const size_t size : {size_t{0}, size_t{1}, size_t{100}, size_t{5000}, size_t{100000}}) {
        const size_t before = live_bytes();
        if (form.array != other.array || form.aligned != other.aligned) continue;
        void* const block = form.take(size);
        const size_t with_block = live_bytes();
        if (block != nullptr) memset(block, 1, size);
        other.drop(block, size);
        other.drop(nullptr, size);
        const size_t after = live_bytes();
        CAPTURE(form.name);
        CAPTURE(other.name);
        CAPTURE(size);
        CHECK(block != nullptr);
        CHECK(aligned_to(block, form.aligned ? 256 : size < 16 ? 8 : 16));
        CHECK(with_block >= before + (size == 0 ? 1 : size));
        CHECK(after == before);
      }
    }
  }
}

TEST_CASE("new and delete expressions of a type that is aligned better than malloc's blocks") {
  struct alignas(128) Wide {
    char bytes[256];
  };
  Wide* const wide = new Wide;
  CHECK(aligned_to(wide, 128));
  delete wide;
  Wide* const many = new Wide[3];
  CHECK(aligned_to(many, 128));
  delete[] many;
}

TEST_CASE("every form of operator new asks the new-handler until there is none, then throws bad_alloc or returns null") {
  const size_t size = opaque(size_t{PTRDIFF_MAX});
  for (const NewForm& form : kNewForms) {
    CAPTURE(form.name);
    const End none = form.throws ? End::kBadAlloc : End::kNull;
    asked = 0;
    CHECK(end_of(form, size) == none);
    CHECK(asked == 0);
    std::set_new_handler([] {
      if (++asked >= 3) std::set_new_handler(nullptr);
    });
    CHECK(end_of(form, size) == none);
    CHECK(asked == 3);
    CHECK((std::get_new_handler() == nullptr));
  }
}

TEST_CASE("what a new-handler throws comes out of the forms that throw; the others return null, and the handler stays") {
  const size_t size = opaque(size_t{PTRDIFF_MAX});
  for (const NewForm& form : kNewForms) {
    CAPTURE(form.name);
    asked = 0;
    std::set_new_handler([] {
      ++asked;
      throw 17;
    });
    for (int times = 1; times <= 2; ++times) {
      CHECK(end_of(form, size) == (form.throws ? End::kHandlers : End::kNull));
      CHECK(asked == times);
    }
    std::set_new_handler(nullptr);
  }
}

TEST_CASE("a new-handler that frees memory gets every form of operator new its block") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    constexpr size_t kGiga = size_t{1} << 30;
    hoarded.reserve(1000);
    for (size_t i = 0; i < sizeof kNewForms / sizeof kNewForms[0]; ++i) {
      // The whole window, untouched.
      for (size_t size = size_t{1} << 46; size >= kGiga;) {
        void* const block = malloc(opaque(size));
        if (block != nullptr && hoarded.size() == hoarded.capacity()) return 50;
        if (block != nullptr) {
          hoarded.push_back(block);
        } else {
          size /= 2;
        }
      }
      asked = 0;
      std::set_new_handler([] {
        ++asked;
        for (void* block : hoarded) free(block);
        hoarded.clear();
      });
      void* const block = kNewForms[i].take(opaque(kGiga));
      std::set_new_handler(nullptr);
      if (block == nullptr || asked != 1) return 1 + static_cast<int>(i);
      free(block);
    }
    return 0;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("no alignment beyond 1 GiB is served, by whatever name it is asked for") {
  REQUIRE(mallocx != nullptr);
  for (size_t align = size_t{2} << 30; align != 0; align *= 2) {
    CAPTURE(align);
    void* out = &errno;
    CHECK(posix_memalign(&out, align, 8) == ENOMEM);
    CHECK(out == &errno);
    errno = 0;
    CHECK(aligned_alloc(align, 8) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(memalign(align, 8) == nullptr);
    CHECK(errno == ENOMEM);
    CHECK(mallocx(8, std::countr_zero(align)) == nullptr);
    CHECK_THROWS_AS(static_cast<void>(::operator new(8, std::align_val_t{align})), std::bad_alloc);
    CHECK(::operator new[](8, std::align_val_t{align}, std::nothrow) == nullptr);
    // As where there is no memory: the new-handler is asked.
    asked = 0;
    std::set_new_handler([] {
      if (++asked >= 2) std::set_new_handler(nullptr);
    });
    CHECK(::operator new(8, std::align_val_t{align}, std::nothrow) == nullptr);
    CHECK(asked == 2);
  }
}

TEST_CASE("xallocx changes nothing: it says how large the block is, which neither grows nor shrinks in place") {
  REQUIRE(xallocx != nullptr);
  for (const size_t size : {8, 100, 5000, 32768, 100000}) {
    CAPTURE(size);
    const size_t before = live_bytes();
    auto* const block = static_cast<unsigned char*>(mallocx(size, 0));
    const size_t usable = sallocx(block, 0);
    memset(block, 0xab, usable);
    const size_t live = live_bytes();
    for (const size_t wish : {size_t{1}, size, usable, usable + 1, 2 * size + 70000}) {
      CHECK(xallocx(block, wish, opaque(size_t{100}), 0) == usable);
      CHECK(sallocx(block, 0) == usable);
    }
    CHECK(live_bytes() == live);
    CHECK(block[0] == 0xab);
    CHECK(block[usable - 1] == 0xab);
    dallocx(block, 0);
    CHECK(live_bytes() == before);
  }
}
