// SPDX-License-Identifier: MIT
//
// Whether this kernel has the shared zero page: then memory that was only read is backed by it, and costs nothing. Kernels of
// some virtual machines have none, and give each page that is read memory of its own.
#ifndef PERCPU_TESTS_OS_ZERO_PAGE_H
#define PERCPU_TESTS_OS_ZERO_PAGE_H

#include <doctest/doctest.h>
#include <sys/mman.h>

#include "os/pages.h"

namespace percpu {

inline bool has_zero_page() {
  const size_t page = page_size_bytes();
  void* memory = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  (void)*static_cast<const volatile char*>(memory);
  NodeId node{};
  const bool own = node_of(real_system(), reinterpret_cast<uintptr_t>(memory), &node) == 0;
  munmap(memory, page);
  return !own;
}

}  // namespace percpu

#endif  // PERCPU_TESTS_OS_ZERO_PAGE_H
