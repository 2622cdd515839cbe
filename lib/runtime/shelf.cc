// SPDX-License-Identifier: MIT
#include "runtime/shelf.h"

#include "base/bits.h"

namespace percpu {

void Shelves::open(const System& system) {
  PageRange memory{};
  if (reserve_open(system, round_up(size_bytes(), page_size_bytes()), &memory) != 0) return;
  auto* slots = reinterpret_cast<uintptr_t*>(memory.start);
  for (uint32_t c = 0; c < kNrClasses; c++) {
    shelves_[c].slots = slots;
    slots += limit_of(c);
  }
  shut_ = false;
}

void Shelves::close(const System& system) {
  if (is_open()) (void)unreserve(system, range());
  *this = {};
}

PageRange Shelves::range() const {
  return {reinterpret_cast<uintptr_t>(shelves_[0].slots), round_up(size_bytes(), page_size_bytes())};
}

bool Shelves::shut() {
  if (!used_ || nr_areas() != 0) return false;
  shut_ = true;
  return true;
}

void Shelves::depopulate(const System& system) {
  used_ = percpu::depopulate(system, range()) != 0;
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
  if (shut_) return 0;
  used_ = true;
  Shelf& shelf = shelves_[size_class];
  const uint32_t limit = limit_of(size_class);
  const uint32_t taken = std::min(count, limit - shelf.count);
  for (uint32_t i = 0; i < taken; i++) slot(shelf, limit, shelf.count + i) = areas[i];
  set_count(shelf, shelf.count + taken);
  return taken;
}

uint32_t Shelves::take(uint32_t size_class, uintptr_t* areas, uint32_t most) {
  Shelf& shelf = shelves_[size_class];
  const uint32_t limit = limit_of(size_class);
  const uint32_t taken = std::min(most, shelf.count);
  const uint32_t left = shelf.count - taken;
  for (uint32_t i = 0; i < taken; i++) areas[i] = slot(shelf, limit, left + i);
  if (left == 0) shelf.first = 0;  // so that few areas use few pages
  set_count(shelf, left);
  return taken;
}

uint32_t Shelves::take_idle(uint32_t size_class, uintptr_t* areas, uint32_t most) {
  Shelf& shelf = shelves_[size_class];
  const uint32_t limit = limit_of(size_class);
  const uint32_t taken = std::min(most, shelf.least);
  const uint32_t idle_left = shelf.least - taken;
  for (uint32_t i = 0; i < taken; i++) areas[i] = slot(shelf, limit, i);
  shelf.first += taken;
  if (shelf.first >= limit) shelf.first -= limit;
  set_count(shelf, shelf.count - taken);
  shelf.least = idle_left;
  return taken;
}

size_t Shelves::resident_bytes(const System& system) const {
  size_t pages = 0;
  if (!is_open() || resident_pages(system, range(), &pages) != 0) return 0;
  return pages * page_size_bytes();
}

}  // namespace percpu
