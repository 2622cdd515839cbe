// SPDX-License-Identifier: MIT
//
// The numbers that name things, each a type of its own, so that a CPU cannot be passed where a unit is meant. An id
// holds its number in `value`; a negative one names nothing.
#ifndef PERCPU_BASE_IDS_H
#define PERCPU_BASE_IDS_H

#include <compare>
#include <cstddef>
#include <cstdint>

namespace percpu {

template <class What>
struct Id {
  int32_t value = -1;

  constexpr bool valid() const { return value >= 0; }
  // The number as an index. Requires: valid().
  constexpr size_t index() const { return static_cast<size_t>(value); }
  constexpr auto operator<=>(const Id&) const = default;
};

// A CPU's number, as the kernel counts them; there may be holes.
using CpuId = Id<struct CpuIdTag>;
// A NUMA node's number, as the kernel counts them; there may be holes.
using NodeId = Id<struct NodeIdTag>;
// The memory of one CPU inside one chunk, counted over all groups, padding and extra units included.
using UnitId = Id<struct UnitIdTag>;
// Units that share memory.
using GroupId = Id<struct GroupIdTag>;

// The rest are measures of the core's state, kept where several processes may map it: exactly 32 bits, never negative.

// A chunk of one pool. Chunk 0 is the first chunk. Ids of destroyed chunks are used again, the lowest first.
struct ChunkId {
  uint32_t value;
  constexpr size_t index() const { return value; }
  constexpr auto operator<=>(const ChunkId&) const = default;
};

// A page of a unit, counted from the unit's start; it stands for that page of every unit of a chunk.
struct PageIndex {
  uint32_t value;
  constexpr auto operator<=>(const PageIndex&) const = default;
};

// A distance in bytes from the start of a unit.
struct AreaOffset {
  uint32_t bytes;
  constexpr auto operator<=>(const AreaOffset&) const = default;
};

// `count` pages of a unit from `first` on.
struct PageRun {
  PageIndex first;
  uint32_t count;
  constexpr bool operator==(const PageRun&) const = default;
};

static_assert(sizeof(ChunkId) == 4 && sizeof(AreaOffset) == 4 && sizeof(PageRun) == 8);

}  // namespace percpu

#endif  // PERCPU_BASE_IDS_H
