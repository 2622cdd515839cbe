// SPDX-License-Identifier: MIT
//
// Under the preload: a program that replaces operators new and delete by its own, with a header in front of each block, but not
// the forms that go by them: those must.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "../as_told.h"

namespace {
size_t live = 0;
size_t most = SIZE_MAX;  // larger blocks are refused
constexpr size_t kHeader = 256;

struct alignas(128) Wide {
  char bytes[256];
};
}  // namespace

__attribute__((noinline)) void* operator new(size_t size) {
  char* const block = size > most ? nullptr : static_cast<char*>(malloc(size + kHeader));
  if (block == nullptr) throw std::bad_alloc();
  live++;
  return block + kHeader;
}
__attribute__((noinline)) void operator delete(void* block) noexcept {
  if (block == nullptr) return;
  live--;
  free(static_cast<char*>(block) - kHeader);
}
__attribute__((noinline)) void* operator new(size_t size, std::align_val_t align) {
  live++;
  return static_cast<char*>(aligned_alloc(static_cast<size_t>(align), size + kHeader)) + kHeader;
}
__attribute__((noinline)) void operator delete(void* block, std::align_val_t) noexcept {
  if (block == nullptr) return;
  live--;
  free(static_cast<char*>(block) - kHeader);
}

int main() {
  expect_preload_as_told();
  for (int round = 0; round < 3; ++round) {
    int* volatile one = new int(1);
    int* volatile many = new int[100];
    int* volatile maybe = new (std::nothrow) int(2);
    int* volatile maybe_many = new (std::nothrow) int[100];
    Wide* volatile wide = new Wide;
    Wide* volatile wides = new Wide[2];
    Wide* volatile maybe_wide = new (std::nothrow) Wide;
    Wide* volatile maybe_wides = new (std::nothrow) Wide[2];
    if (live != 8) return 1;
    delete one;
    delete[] many;
    ::operator delete(maybe, sizeof *maybe);
    ::operator delete[](maybe_many, std::nothrow);
    delete wide;
    delete[] wides;
    ::operator delete(maybe_wide, std::align_val_t{128}, std::nothrow);
    ::operator delete[](maybe_wides, sizeof *maybe_wides, std::align_val_t{128});
    if (live != 0) return 2;
    std::vector<int> numbers(10000, 7);
    std::stable_sort(numbers.begin(), numbers.end());  // takes its buffer without throwing
    most = 1000;
    void* volatile refused = ::operator new(2000, std::nothrow);
    most = SIZE_MAX;
    if (refused != nullptr) return 3;
  }
  if (live != 0) return 4;
  puts("good");
  return 0;
}
