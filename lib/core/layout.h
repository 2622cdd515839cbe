// SPDX-License-Identifier: MIT
//
// The shape of a chunk: which CPUs share memory, how large a unit is, which unit is whose. A pure function of the machine
// and the wishes; it runs once per pool, and the result is constant.
//
// A chunk has one area of memory per group; a group's area is a row of units: those of its CPUs in the order of their
// numbers, those of one node together, padding up to a multiple of the units per allocation, and one extra unit for threads without rseq.
//
//   group 0:  | cpu 0 | cpu 1 | cpu 4 | padding | extra |     unit ids  0  1  2  3  4
//   group 1:  | cpu 2 | cpu 3 | extra |                       unit ids  5  6  7
//
// Where the units of all chunks lie in the address space is placement.h's business.
//
// Embed and page. With `embed`, the atom is a huge page, CPUs are grouped by distance, a group's units share huge pages,
// and each group is bound to its node. With `page`, the atom is a page and all CPUs are one group whatever the distances
// (there is one extra unit, then). Since each unit consists of pages of its own, placement does not suffer: the node is a
// property of the unit, not of the group, in both cases. So whoever binds memory asks for the node of each unit's CPU and
// binds runs of units that agree (few, since those of a node lie together, however the machine numbers its CPUs); padding is
// not backed, and an extra unit takes the node of its group's first CPU.
//
// Invariants: after a build without a problem, check_layout() finds none. Layout holds no pointers; its tables follow it
// in the same storage, so it can be copied as bytes and read in shared memory at any address.
#ifndef PERCPU_CORE_LAYOUT_H
#define PERCPU_CORE_LAYOUT_H

#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "base/ids.h"
#include "base/text.h"

namespace percpu {

// How the first chunk is backed; kAuto is a wish only.
enum class FirstChunk : uint8_t { kAuto, kEmbed, kPage };

// A distance up to this, in both directions, makes two CPUs members of one group.
inline constexpr unsigned kLocalCpuDistance = 10;

// The distance from one CPU's node to another's, as libnuma counts (10: local).
using CpuDistance = unsigned (*)(const void* context, CpuId from, CpuId to);

struct LayoutInput {
  const CpuMask* possible = nullptr;
  CpuDistance distance = nullptr;  // null: all CPUs are local to each other
  const void* distance_context = nullptr;
  size_t static_size_bytes = 0;
  size_t reserved_size_bytes = 0;
  size_t dynamic_size_bytes = 0;
  size_t min_unit_size_bytes = 0;  // the parts' sum takes its place where that is larger
  size_t page_size_bytes = 0;
  size_t huge_page_size_bytes = 0;         // embed's atom
  bool transparent_huge_pages = false;     // whether they can be had
  FirstChunk first_chunk = FirstChunk::kAuto;
};

// What is wrong with a layout: nothing while `what` is null.
struct LayoutProblem {
  const char* what = nullptr;
  uint64_t expected = 0;
  uint64_t found = 0;
  explicit operator bool() const { return what != nullptr; }
};

struct Group {
  UnitId first_unit;
  uint32_t nr_cpus = 0;
  uint32_t nr_units = 0;  // CPUs and padding, without the extra unit, which comes next

  UnitId extra_unit() const { return {first_unit.value + static_cast<int32_t>(nr_units)}; }
  uint32_t nr_units_with_extra() const { return nr_units + 1; }
};

class Layout {
 public:
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;

  // Sizes in bytes. The parts add up to a whole number of pages: what is over went to the dynamic part.
  size_t static_size_bytes() const { return static_size_; }
  size_t reserved_size_bytes() const { return reserved_size_; }
  size_t dynamic_size_bytes() const { return dynamic_size_; }
  size_t parts_size_bytes() const { return static_size_ + reserved_size_ + dynamic_size_; }
  size_t page_size_bytes() const { return page_size_; }
  size_t atom_size_bytes() const { return atom_size_; }
  size_t allocation_size_bytes() const { return allocation_size_; }
  size_t unit_size_bytes() const { return allocation_size_ / units_per_allocation_; }
  size_t unit_pages() const { return unit_size_bytes() / page_size_; }
  uint32_t units_per_allocation() const { return units_per_allocation_; }
  // kEmbed or kPage.
  FirstChunk first_chunk() const { return first_chunk_; }
  // The bytes of one group's area in one chunk: those of the largest group, extra unit included.
  size_t stride_bytes() const { return stride_; }

  uint32_t nr_groups() const { return nr_groups_; }
  uint32_t nr_units() const { return nr_units_; }      // padding and extra units included
  uint32_t nr_cpus() const { return nr_cpus_; }        // possible CPUs
  uint32_t nr_cpu_ids() const { return nr_cpu_ids_; }  // the highest possible CPU + 1
  // Copy ids, as in percpu/abi.h: CPU numbers, then one extra copy per group.
  uint32_t nr_copies() const { return nr_cpu_ids_ + nr_groups_; }

  // Requires: group < nr_groups().
  const Group& group(GroupId group) const;
  // Invalid for a CPU that is not possible.
  UnitId unit_of_cpu(CpuId cpu) const;
  // Invalid for padding, for extra units, and for unit ids out of range.
  CpuId cpu_of_unit(UnitId unit) const;
  // Invalid for a CPU that is not possible, a unit out of range.
  GroupId group_of_cpu(CpuId cpu) const { return group_of_unit(unit_of_cpu(cpu)); }
  GroupId group_of_unit(UnitId unit) const;
  UnitId extra_unit(GroupId id) const { return group(id).extra_unit(); }
  bool is_extra(UnitId unit) const;
  bool is_padding(UnitId unit) const;
  // The CPU whose node the unit's memory should come from: its own, for an extra unit the first of the group. Invalid for
  // padding.
  CpuId placement_cpu(UnitId unit) const;

  // Bytes from a handle to its copy in that unit, given the window of the placement. Requires: the unit is in range.
  uint64_t unit_offset_bytes(UnitId unit, uint64_t window_bytes) const;

 private:
  friend class LayoutBuilder;
  friend LayoutProblem check_layout(const Layout& layout, const CpuMask& possible);
  friend struct LayoutTestAccess;
  Layout() = default;

  template <class Entry>
  Entry* table(uint32_t offset_bytes) {
    return reinterpret_cast<Entry*>(reinterpret_cast<char*>(this) + offset_bytes);
  }
  template <class Entry>
  const Entry* table(uint32_t offset_bytes) const {
    return reinterpret_cast<const Entry*>(reinterpret_cast<const char*>(this) + offset_bytes);
  }

  size_t static_size_ = 0;
  size_t reserved_size_ = 0;
  size_t dynamic_size_ = 0;
  size_t page_size_ = 0;
  size_t atom_size_ = 0;
  size_t allocation_size_ = 0;
  size_t stride_ = 0;
  uint32_t units_per_allocation_ = 1;
  uint32_t nr_groups_ = 0;
  uint32_t nr_units_ = 0;
  uint32_t nr_cpus_ = 0;
  uint32_t nr_cpu_ids_ = 0;
  FirstChunk first_chunk_ = FirstChunk::kPage;
  // Where the tables are, in bytes from the start of this object.
  uint32_t groups_at_ = 0;         // Group[nr_groups]
  uint32_t units_of_cpus_at_ = 0;  // UnitId[nr_cpu_ids]
  uint32_t cpus_of_units_at_ = 0;  // CpuId[nr_units]
};

// What any layout of these CPUs may need, aligned to 64.
[[nodiscard]] size_t layout_storage_bytes(const CpuMask& possible);

// Builds the layout in the storage. *layout points into it, and is null if there is a problem: no CPU, a size that
// overflows, a page size that is not a power of two, huge pages that are not whole pages, too little storage.
[[nodiscard]] LayoutProblem build_layout(const LayoutInput& input, void* storage, size_t storage_bytes,
                                         const Layout** layout);

// Recomputes what must hold of a finished layout. Returns: the first problem: no group, a unit smaller than the parts'
// sum, sizes that are not aligned, a CPU mapped twice or not at all, units that belong to no group.
[[nodiscard]] LayoutProblem check_layout(const Layout& layout, const CpuMask& possible);

// Sizes of the parts, unit size, allocation = n * atom, then each group with its CPUs in unit order; padding is shown as
// "--", the extra unit as "++".
void print_layout(const Layout& layout, Text& text);

}  // namespace percpu

#endif  // PERCPU_CORE_LAYOUT_H
