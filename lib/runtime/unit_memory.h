// SPDX-License-Identifier: MIT
//
// The address space of a pool and the memory in it: where each copy of a handle is, and what makes it memory. One
// reservation:
//
//   | handle window | group 0 | group 1 | ... | core state | records |
//
// Where each part begins is reckoned by core/placement.h. A handle of chunk k lies in base + k * stride + [0, unit size), and each group's
// units of chunk k begin k * stride behind that group's beginning.
//
// Copies come in three kinds:
//   hot     of CPUs that this process may run on: populated with the page
//   cold    of other possible CPUs, and of all CPUs where the pool is bare: address space only, until a thread runs there;
//           zeroing reads first
//   extra   one a group, for threads without rseq: zeroed like cold ones, since a walk over all copies may write to them
//
// Zeroing a small area reads first in hot copies, too: what is zero already, as most copies of a small area are, stays in the
// caches of the CPUs that use its neighbours.
//
// Invariants: all of this is constant after create().
// Locking: none here. Opening, populating, depopulating and retiring are done under the pool's grow lock; zeroing by who
// owns the area.
#ifndef PERCPU_RUNTIME_UNIT_MEMORY_H
#define PERCPU_RUNTIME_UNIT_MEMORY_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/ids.h"
#include "core/layout.h"
#include "core/pool_shape.h"
#include "core/placement.h"
#include "os/pages.h"
#include "os/system.h"
#include "os/topology.h"

namespace percpu {

// 8 bytes a fragment, used at the fragment where an area starts, and touched only there: what an area is charged to, and
// the next area in a list of areas that wait to be freed (0: the last; else index of the fragment + 1).
struct Record {
  std::atomic<uint32_t> domain;
  uint32_t next;
};

// Where a handle, or an address in a copy, points.
struct Spot {
  ChunkId chunk;
  AreaOffset offset;  // in the unit
  uint32_t copy;      // copy id; nr_copies for an address in the handle window
};

class UnitMemory {
 public:
  struct Plan {
    const Layout* layout;
    const Topology* topology;
    uint32_t max_chunks;
    uint64_t core_bytes;  // of the core state
    bool bare;            // no copy is hot
  };

  // What create() wants of its caller's memory, for the tables of any layout with so many CPU numbers.
  static size_t largest_table_bytes(uint32_t nr_cpu_ids);

  // Reserves the address space, opens the core state, and fills the tables. `tables` holds largest_table_bytes(), zeroed, and
  // lives as long as this. Returns 0 or -errno, and then nothing is left.
  [[nodiscard]] int create(const System& system, const Plan& plan, void* tables);
  // Gives everything back.
  void destroy();

  // ---- arithmetic ---------------------------------------------------------------------------------------------

  uintptr_t handle(ChunkId chunk, AreaOffset offset) const { return placement_.handle(chunk, offset.bytes); }
  // The place of a handle of ours.
  Spot spot_of(uintptr_t handle) const {
    const uintptr_t chunk = chunk_at(handle - placement_.base);
    const uintptr_t offset = handle - placement_.base - chunk * placement_.stride_bytes;
    return {{static_cast<uint32_t>(chunk)}, {static_cast<uint32_t>(offset)}, nr_copies_};
  }
  // A handle's place; false where the value does not lie in a unit's part of the handle window.
  bool locate_handle(uintptr_t handle, Spot* spot) const {
    const uintptr_t distance = handle - placement_.base;
    if (distance >= handles_bytes_) return false;
    *spot = spot_of(handle);
    // Not the spot's 32 bits: a stride may be longer than they count.
    return distance - chunk_at(distance) * placement_.stride_bytes < placement_.unit_size_bytes;
  }
  // The place of any address in the reservation; false for one that is in no copy and no handle.
  bool locate(uintptr_t address, Spot* spot) const;
  bool contains(uintptr_t address) const { return address - reservation_.start < reservation_.size_bytes; }

  const uintptr_t* offsets() const { return offset_; }
  uint32_t nr_cpu_ids() const { return nr_copies_ - nr_groups_; }
  uint32_t nr_copies() const { return nr_copies_; }
  uint32_t nr_hot() const { return nr_hot_; }
  const uintptr_t* hot_offsets() const { return hot_; }
  uint32_t nr_groups() const { return nr_groups_; }
  // Copies that exist: holes are not counted.
  uint32_t nr_real_copies() const { return nr_real_copies_; }
  uintptr_t base() const { return placement_.base; }
  size_t unit_size() const { return placement_.unit_size_bytes; }
  size_t page_size() const { return page_size_; }
  // The last refusal to bind memory to a node, -errno; 0: there was none. Where it is refused, memory comes from anywhere.
  int bind_error() const { return bind_error_; }
  // Bytes of one chunk in all groups.
  size_t chunk_bytes() const { return chunk_bytes_; }
  void* core_state() const { return reinterpret_cast<void*>(core_.start); }
  // The record of the fragment where an area starts: see Record, above. Readable while the chunk exists.
  Record& record(ChunkId chunk, AreaOffset offset) const {
    return records_[static_cast<uintptr_t>(chunk.value) * (placement_.unit_size_bytes / kFragmentBytes) +
                    offset.bytes / kFragmentBytes];
  }

  // ---- memory ---------------------------------------------------------------------------------------------------

  // Makes the memory of a chunk accessible, without backing it. Returns 0 or -errno: then it is as before, but that after kLostChunk its
  // addresses are somebody else's, and the chunk is never to be used again.
  [[nodiscard]] int open_chunk(ChunkId chunk);
  static constexpr int kLostChunk = -EADDRNOTAVAIL;
  // Gives all memory of a chunk back. Returns 0; -EBUSY where the system would not take it: what is read there later may not be zero; or
  // kLostChunk.
  [[nodiscard]] int retire_chunk(ChunkId chunk);
  // Backs a run of pages in every hot copy. Returns 0 or -errno: some may be backed then.
  [[nodiscard]] int populate(ChunkId chunk, PageRun run);
  // Gives a run of pages back in every copy. False as above.
  [[nodiscard]] bool depopulate(ChunkId chunk, PageRun run);
  // Opens chunk 0 and backs its parts in every hot copy; `embed`: by huge pages, whole allocations of the layout.
  [[nodiscard]] int open_first_chunk();
  // Gives pages of the core state back; they read as zero.
  void drop_core_pages(uint64_t offset_bytes, uint64_t size_bytes);

  // Zeroes an area in every copy.
  void zero(uintptr_t handle, size_t size_bytes) const;
  // The same for one of at most kSmallBytes, inline.
  static constexpr size_t kSmallBytes = 256;
  void zero_small(uintptr_t handle, size_t size_bytes) const {
    const uintptr_t* const end = hot_ + nr_real_copies_;  // cold and extra ones follow
    const uintptr_t* offset = hot_;
    if (size_bytes == sizeof(uint64_t)) [[likely]] {
      while (word_at(handle + *offset) == 0) [[likely]] {
        if (++offset == end) return;
      }
    }
    for (; offset != end; offset++) {
      zero_if_not(reinterpret_cast<char*>(handle + *offset), size_bytes);
    }
  }
  // Zeroes many areas, copy by copy.
  struct Stretch {
    uintptr_t handle;
    size_t size_bytes;
  };
  void zero(const Stretch* stretches, uint32_t count) const;
  // Writes the same bytes to the copy of every CPU; extra copies are zeroed.
  void write_copies(uintptr_t handle, const void* image, size_t size_bytes) const;

  // Resident bytes of the pool's own state; of whole pages of the core state.
  size_t resident_core(uint64_t offset_bytes, uint64_t size_bytes) const;
  size_t resident_records(ChunkId chunk) const;

 private:
  // distance / stride, by a multiplication: every allocation and free comes here. Exact, see stride_inverse_.
  uintptr_t chunk_at(uintptr_t distance) const {
    return static_cast<uintptr_t>((static_cast<unsigned __int128>(distance / kMinPageBytes) * stride_inverse_) >> 64);
  }
  static uint64_t word_at(uintptr_t address) {
    uint64_t word;
    std::memcpy(&word, reinterpret_cast<const void*>(address), sizeof word);
    return word;
  }
  // Writes only where something lies: memory that was never touched stays the kernel's shared zero page. Requires: a multiple of 4.
  // Bit by bit of the size, without loops below a cache line: sizes of areas are the same again and again.
  static void zero_if_not(char* at, size_t size_bytes) {
    for (; size_bytes >= 64; size_bytes -= 64) at = zero_pairs_if_not<4>(at);
    if ((size_bytes & 32) != 0) at = zero_pairs_if_not<2>(at);
    if ((size_bytes & 16) != 0) at = zero_pairs_if_not<1>(at);
    if ((size_bytes & 8) != 0) {
      if (word_at(reinterpret_cast<uintptr_t>(at)) != 0) std::memset(at, 0, sizeof(uint64_t));
      at += sizeof(uint64_t);
    }
    if ((size_bytes & 4) == 0) return;
    uint32_t last;
    std::memcpy(&last, at, sizeof last);
    if (last != 0) std::memset(at, 0, sizeof last);
  }
  // The same for so many pairs of words. Returns what lies behind them.
  template <size_t kNrPairs>
  static char* zero_pairs_if_not(char* at) {
    using Pair = uint64_t __attribute__((vector_size(16)));
    Pair any{};
    for (size_t i = 0; i < kNrPairs; i++) {
      Pair pair;  // one by one: g++ would keep a copy of an array of them in memory
      std::memcpy(&pair, at + i * sizeof pair, sizeof pair);
      any |= pair;
    }
    if ((any[0] | any[1]) != 0) std::memset(at, 0, kNrPairs * sizeof(Pair));
    return at + kNrPairs * sizeof(Pair);
  }

  // Units of one group on one node, as they lie in a chunk.
  struct Span {
    uint32_t group;
    NodeId node;
    size_t offset_bytes;  // from the begin of the group's units
    size_t size_bytes;
  };

  PageRange group_range(uint32_t group, ChunkId chunk) const;
  PageRange record_range(ChunkId chunk) const;
  PageRange run_in_copy(ChunkId chunk, PageRun run, uintptr_t copy_offset) const;
  void unreserve_all();
  void fill_tables(const Plan& plan);
  void fill_spans(const Plan& plan);
  NodeId node_of_group(uint32_t group) const;
  void bind_windows();
  void bind_spans(ChunkId chunk);
  int populate_huge();

  const System* system_ = nullptr;
  const Layout* layout_ = nullptr;
  Placement placement_{};
  PageRange reservation_{};
  PageRange core_{};
  Record* records_ = nullptr;
  size_t page_size_ = 0;
  size_t chunk_bytes_ = 0;
  size_t handles_bytes_ = 0;  // of the window, what the chunks have of it
  // 2^64 / s + 1 for the stride s in units of 4 KiB. For d below 2^36 (in the same units: 2^48 bytes) and s below 2^28 the
  // error of d * inverse / 2^64 is d / 2^64 * (something at most 1), less than the 1/s that would reach the next integer.
  uint64_t stride_inverse_ = 0;
  uint32_t nr_copies_ = 0;
  uint32_t nr_groups_ = 0;
  uint32_t nr_hot_ = 0;
  uint32_t nr_cold_ = 0;
  uint32_t nr_real_copies_ = 0;
  uint32_t nr_spans_ = 0;
  int bind_error_ = 0;
  bool lost_ = false;  // addresses of a chunk

  // Tables, in the caller's memory.
  uintptr_t* offset_ = nullptr;  // [nr_copies]: part of the ABI
  uintptr_t* hot_ = nullptr;     // [nr_hot]: offsets of the hot copies; the next two follow it without a gap
  uintptr_t* cold_ = nullptr;    // [nr_cold]
  uintptr_t* extra_ = nullptr;   // [nr_groups]
  Span* span_ = nullptr;         // [nr_spans]: of groups that lie on several nodes; else one a group
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_UNIT_MEMORY_H
