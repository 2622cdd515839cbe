// SPDX-License-Identifier: MIT
#include "runtime/shelf.h"

#include <sys/mman.h>

namespace percpu {

void Shelves::open(const System& system) {
  const intptr_t memory = system.mmap(0, kBytes, PROT_READ | PROT_WRITE, MAP_NORESERVE);
  if (memory >= 0) handles_ = reinterpret_cast<uintptr_t*>(memory);
}

void Shelves::close(const System& system) {
  if (handles_ != nullptr) (void)system.munmap(range().start, range().size_bytes);
  handles_ = nullptr;
}

uint64_t Shelves::nr_areas() const {
  uint64_t sum = 0;
  for (uint32_t c = 0; c < kNrClasses; c++) sum += count(c);
  return sum;
}

uint64_t Shelves::nr_bytes() const {
  uint64_t sum = 0;
  for (uint32_t c = 0; c < kNrClasses; c++) sum += uint64_t{count(c)} * FrontCache::size_of(c);
  return sum;
}

uint32_t Shelves::put(uint32_t size_class, const uintptr_t* areas, uint32_t count) {
  if (handles_ == nullptr) return 0;
  Shelf& shelf = shelves_[size_class];
  const uint32_t taken = std::min(count, kLimit - shelf.count);
  std::copy_n(areas, taken, at(size_class) + shelf.count);
  set_count(shelf, shelf.count + taken);
  return taken;
}

uint32_t Shelves::take(uint32_t size_class, uintptr_t* areas, uint32_t most) {
  Shelf& shelf = shelves_[size_class];
  const uint32_t taken = std::min(most, shelf.count);
  if (taken == 0) return 0;
  std::copy_n(at(size_class) + shelf.count - taken, taken, areas);
  set_count(shelf, shelf.count - taken);
  return taken;
}

uint32_t Shelves::take_idle(uint32_t size_class, uintptr_t* areas, uint32_t most) {
  Shelf& shelf = shelves_[size_class];
  const uint32_t taken = std::min(most, shelf.least);
  if (taken == 0) return 0;
  std::copy_n(at(size_class), taken, areas);
  std::copy(at(size_class) + taken, at(size_class) + shelf.count, at(size_class));
  const uint32_t left = shelf.least - taken;
  set_count(shelf, shelf.count - taken);
  shelf.least = left;
  return taken;
}

size_t Shelves::resident_bytes(const System& system) const {
  size_t pages = 0;
  if (handles_ == nullptr || resident_pages(system, range(), &pages) != 0) return 0;
  return pages * page_size_bytes();
}

}  // namespace percpu
