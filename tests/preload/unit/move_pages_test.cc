// SPDX-License-Identifier: MIT
//
// What a move of pages leaves behind, and whose a mapping is where it failed half-way.
#include "preload/heap/move_pages.h"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <cstring>

#include "preload/heap/size_class.h"

namespace percpu::heap {
namespace {

constexpr size_t kPiece = 64 * kPageBytes;

struct Range {
  char* start;
  size_t bytes;

  explicit Range(size_t size) : start(static_cast<char*>(map(nullptr, size, 0))), bytes(size) { REQUIRE(start != MAP_FAILED); }
  ~Range() { munmap(start, bytes); }
  static void* map(void* at, size_t size, int flags) {
    return mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
  }
  uintptr_t address(size_t offset) const { return reinterpret_cast<uintptr_t>(start) + offset; }
};

TEST_CASE("the bytes arrive, and the old addresses are open and empty") {
  const Range range(4 * kPiece);
  for (size_t i = 0; i < kPiece; i += kPageBytes) memset(range.start + i, static_cast<int>(1 + i / kPageBytes), kPageBytes);
  CHECK(move_pages(real_system(), range.address(0), range.address(2 * kPiece), kPiece, true));
  for (size_t i = 0; i < kPiece; i += kPageBytes) {
    REQUIRE(range.start[2 * kPiece + i] == static_cast<char>(1 + i / kPageBytes));
    REQUIRE(range.start[i] == 0);
  }
}

TEST_CASE("a part of a mapping goes on outside; what was mapped in its place does not") {
  const Range range(3 * kPiece);
  const uintptr_t middle = range.address(kPiece);
  CHECK(goes_on_outside(real_system(), middle, kPiece));
  CHECK(goes_on_outside(real_system(), range.address(0), kPiece));
  CHECK(goes_on_outside(real_system(), range.address(2 * kPiece), kPiece));
  REQUIRE(munmap(range.start + kPiece, kPiece) == 0);
  CHECK_FALSE(goes_on_outside(real_system(), middle, kPiece));
  // As another thread's would be: not of this kind, and no longer than the hole.
  void* const foreign = mmap(range.start + kPiece, kPiece, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  REQUIRE(foreign != MAP_FAILED);
  CHECK_FALSE(goes_on_outside(real_system(), middle, kPiece));
}

}  // namespace
}  // namespace percpu::heap
