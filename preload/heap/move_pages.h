// SPDX-License-Identifier: MIT
//
// How a large block that grows elsewhere takes its pages along: mremap moves them, which costs less than copying.
#ifndef PERCPU_PRELOAD_HEAP_MOVE_PAGES_H
#define PERCPU_PRELOAD_HEAP_MOVE_PAGES_H

#include <cstddef>
#include <cstdint>

#include "os/system.h"

namespace percpu::heap {

// Moves the pages of [from, from + bytes) to `to`, open memory that nobody uses, and leaves the old addresses open and empty.
// mremap refuses a range of several mappings (blocks consist of several when they were moved before, or partly have huge pages):
// then the halves are tried, and what is small is copied, and given back at once. Keeps errno. Returns false where the old
// addresses are not empty; the bytes are at `to` all the same.
// In a process that has tens of thousands of mappings already, all is copied.
// may_look: whether files may be opened for that (limit:off); else some thousand moves are all.
bool move_pages(const System& system, uintptr_t from, uintptr_t to, size_t bytes, bool may_look);

// Whether the mapping that has this address goes on before or behind the range. One in the middle of the window does; what another
// thread mapped where the range had been taken away does not. False, too, where that cannot be told.
bool goes_on_outside(const System& system, uintptr_t start, size_t bytes);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_MOVE_PAGES_H
