// SPDX-License-Identifier: MIT
//
// Where in the address space each unit of each chunk lies. Plain arithmetic on numbers, in both directions; nothing here
// touches memory.
//
// The reservation begins with a window that is never mapped to anything: handles lie in it. One window per group follows,
// all of the same size, each a row of chunks `stride` apart:
//
//   base              + window            + 2 window          ...
//   | handles         | group 0           | group 1           |
//     chunk 0, 1, ..    chunk 0, 1, ..      chunk 0, 1, ..        (stride each; the rest of a window is unused)
//
//   handle        = base + chunk * stride + offset                         offset < unit size
//   address(unit) = handle + unit_offset(unit),   unit_offset = (1 + group) * window + place in group * unit size
//
// Invariants: a window is a multiple of the layout's atom, so that the first chunk, whose area begins each group's window,
// can consist of huge pages if the reservation is aligned to the atom.
#ifndef PERCPU_CORE_PLACEMENT_H
#define PERCPU_CORE_PLACEMENT_H

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/ids.h"
#include "core/layout.h"

namespace percpu {

// The addresses of a pool.
struct Placement {
  uint64_t base = 0;  // of the reservation, and of the handle window
  uint64_t window_bytes = 0;
  uint64_t stride_bytes = 0;
  uint64_t unit_size_bytes = 0;
  uint32_t max_chunks = 0;
  uint32_t nr_groups = 0;

  // What to reserve, aligned to the layout's atom.
  uint64_t reservation_bytes() const { return (1 + uint64_t{nr_groups}) * window_bytes; }
  uint64_t end() const { return base + reservation_bytes(); }
  uint64_t group_base(GroupId group) const { return base + (1 + static_cast<uint64_t>(group.index())) * window_bytes; }
  uint64_t handle(ChunkId chunk, uint64_t offset_bytes) const {
    return base + static_cast<uint64_t>(chunk.index()) * stride_bytes + offset_bytes;
  }
  // Where the area of the group in that chunk begins.
  uint64_t area(GroupId group, ChunkId chunk) const {
    return group_base(group) + static_cast<uint64_t>(chunk.index()) * stride_bytes;
  }
};

struct AddressPlace {
  GroupId group;
  ChunkId chunk{0};
  UnitId unit;                // of the layout; may be a padding or an extra unit
  uint64_t offset_bytes = 0;  // in the unit
  constexpr bool operator==(const AddressPlace&) const = default;
};

// Lays the windows out for at most `max_chunks` chunks. A window is rounded up to the atom, so that the first chunk can
// consist of huge pages in every group. `base` is 0 until the caller has reserved and sets it.
// Returns: nothing if max_chunks is 0 or the sizes exceed what fits in 2^63 bytes.
[[nodiscard]] std::optional<Placement> place(const Layout& layout, uint32_t max_chunks);

// How many chunks fit into a reservation of `bytes`; at least 0, at most 2^31 - 1.
[[nodiscard]] uint32_t max_chunks_in(const Layout& layout, uint64_t bytes);

// What an ordinary address is. Returns: nothing outside the group windows and in their unused parts.
[[nodiscard]] std::optional<AddressPlace> find_address(const Layout& layout, const Placement& placement,
                                                       uint64_t address);

}  // namespace percpu

#endif  // PERCPU_CORE_PLACEMENT_H
