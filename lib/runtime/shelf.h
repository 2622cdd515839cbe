// SPDX-License-Identifier: MIT
//
// Freed areas between the front caches and the maps of a pool that is not wide: what a full stack gives up, and an empty one takes back,
// by the batch and at the price of one lock. (What magazine allocators call a depot: Bonwick and Adams, Magazines and Vmem, USENIX
// 2001. The preload's lists of blocks have the same.) Without it, who frees a thousand areas and then takes a thousand has all but the
// last few searched for in the maps.
//
// An area on a shelf is what one in a front cache is: taken in the maps, not live, charged to nobody.
//
// A shelf keeps account of the fewest areas that were on it since it was last looked after: these nobody needed, and they go back to
// the maps. So what a burst left is gone a moment later, whatever else the pool does.
//
// Invariants: a handle is on one shelf at most, and in no front cache.
// Locking: by the pool's map lock, but count(), which is a hint.
#ifndef PERCPU_RUNTIME_SHELF_H
#define PERCPU_RUNTIME_SHELF_H

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "os/pages.h"
#include "runtime/front_cache.h"

namespace percpu {

class Shelves {
 public:
  static constexpr uint32_t kNrClasses = FrontCache::kNrClasses;
  // As many areas of one class as take 512 KiB of each copy: 4 MiB in a pool of kWideCopies.
  static constexpr uint32_t limit_of(uint32_t size_class) { return kClassBytes / FrontCache::size_of(size_class); }

  // Gets memory for the handles, backed as far as it is used. Where the system has none, nothing is ever shelved.
  void open(const System& system);
  void close(const System& system);
  bool is_open() const { return shelves_[0].slots != nullptr; }

  // How many of a class there are: of all that was put. Without the lock a hint.
  uint32_t count(uint32_t size_class) const { return __atomic_load_n(&shelves_[size_class].count, __ATOMIC_RELAXED); }
  uint64_t nr_areas() const;
  uint64_t nr_bytes() const;

  // Puts areas on the shelf. Returns how many found room, the first ones.
  uint32_t put(uint32_t size_class, const uintptr_t* areas, uint32_t count);
  // Takes off the areas that were put last, at most so many. Returns how many.
  uint32_t take(uint32_t size_class, uintptr_t* areas, uint32_t most);
  // Takes off such as nobody needed since begin_account(): those that were put first, in that order.
  uint32_t take_idle(uint32_t size_class, uintptr_t* areas, uint32_t most);
  void begin_account(uint32_t size_class) { shelves_[size_class].least = shelves_[size_class].count; }

  // Gives the memory of the handles back, in three steps, since the system is not to be asked with the lock held. shut() keeps areas
  // out; false, and nothing is done, where some lie here, or where the memory was given back and not used since.
  bool shut();
  void depopulate(const System& system);  // without the lock
  void reopen() { shut_ = false; }

  size_t resident_bytes(const System& system) const;

 private:
  static constexpr uint32_t kClassBytes = 512 << 10;

  // A ring, since areas go in at one end and out at both.
  struct Shelf {
    uintptr_t* slots = nullptr;
    uint32_t first = 0;  // the slot of the one that was put first
    uint32_t count = 0;
    uint32_t least = 0;  // since begin_account(), and not taken by take_idle() so far
  };
  // The slot of the `nth` area from the first one on.
  static uintptr_t& slot(const Shelf& shelf, uint32_t limit, uint32_t nth) {
    const uint32_t place = shelf.first + nth;
    return shelf.slots[place < limit ? place : place - limit];
  }
  static void set_count(Shelf& shelf, uint32_t count) {
    __atomic_store_n(&shelf.count, count, __ATOMIC_RELAXED);
    shelf.least = std::min(shelf.least, count);
  }
  static constexpr size_t size_bytes() {
    size_t slots = 0;
    for (uint32_t c = 0; c < kNrClasses; c++) slots += limit_of(c);
    return slots * sizeof(uintptr_t);
  }
  PageRange range() const;

  Shelf shelves_[kNrClasses];
  bool shut_ = true;
  bool used_ = false;  // since the memory was given back
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_SHELF_H
