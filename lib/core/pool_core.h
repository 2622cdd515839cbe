// SPDX-License-Identifier: MIT
//
// The allocator as a pure state machine: which areas of which chunks are taken, which pages are populated, which chunk
// is searched next. It takes no lock, makes no system call and touches no area memory: it says what is so, and the
// runtime makes it so. A PoolCore is a view: one pointer to storage that the caller handed in. The storage holds
// indices and offsets only, so several processes may map it at different addresses, each with a view of its own.
//
//   storage:  | header: shape, totals, slots | chunk ids in use | chunk heads | maps of reserved, 0, 1, 2 ... |
//
// The storage is meant to be lazily populated zero pages: creating a pool touches the header and the first chunk's
// metadata; a chunk's metadata is touched when the chunk is made, and its pages can be given back when it is gone.
//
// How an allocation in normal context goes, with the runtime's two locks (its grow lock G, its map lock L):
//
//   G:  L: allocate() -> none: unlock L, begin_chunk(), system calls, publish_chunk(), again
//       L: next_unpopulated_run() -> unlock L, populate, L: mark_populated() -> again until there is none
//          a failure: L: clear_live() + release() give the area back; then allocate() once more with Context::atomic,
//          so that an allocation is not refused for want of memory that the reserve of empty pages holds
//
// In atomic context it is the first line's L part alone. A free is clear_live() (anywhere), then release() under L.
//
// Invariants: see area_map.h for one map, slots.h for the lists; check() recomputes all of them from the bitmaps.
//   empty populated pages, of one map = (populated pages whose block is wholly free)
//                                     - (pages that areas have taken and that are not populated yet)
//   and of the pool = the sum over the dynamic maps of chunks that are not isolated. Hence it can be below zero while
//   an allocation waits for its pages, and is right once the allocation is complete.
//
// Locking: the caller holds the pool's map lock around every call, but for those that say "lock-free". What lock-free
// calls read is written with atomic stores. In addition the runtime serialises populating, chunk creation, and every
// step of a BalancePlan with its grow lock: at most one of these is under way at a time.
#ifndef PERCPU_CORE_POOL_CORE_H
#define PERCPU_CORE_POOL_CORE_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/ids.h"
#include "core/area_marks.h"
#include "core/pool_report.h"
#include "core/pool_shape.h"

namespace percpu {

struct PoolState;

// One allocation: [offset, offset + size_bytes) of every unit of the chunk.
struct Area {
  ChunkId chunk;
  AreaOffset offset;
  uint32_t size_bytes;
  constexpr bool operator==(const Area&) const = default;
};

enum class Context : uint8_t {
  normal,  // any free run will do; the caller populates what is missing
  atomic,  // only places whose pages are all populated
};

enum class Region : uint8_t {
  dynamic,   // the dynamic part of the first chunk, and all other chunks
  reserved,  // the reserved part of the first chunk, nothing else
};

// What release() did, and what the caller should do about it.
struct Released {
  uint32_t size_bytes = 0;
  bool wake_balancer = false;          // a second wholly free chunk, or a chunk to reclaim
  bool chunk_now_wholly_free = false;  // the chunk holds no area any more
  bool isolated = false;               // this call put the chunk on the to-depopulate list
};

// Bytes of the storage, counted from its start.
struct StorageRange {
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
};

class PoolCore {
 public:
  // ---- storage --------------------------------------------------------------------------------------------------

  // Says whether a pool can have this shape. Returns: nullptr, or what is wrong with it.
  [[nodiscard]] static const char* refusal(const PoolShape& shape);

  // How much storage a pool of this shape wants. Requires: refusal(shape) is nullptr. Returns: bytes, whole pages. Most
  // of it is never touched.
  [[nodiscard]] static uint64_t storage_bytes(const PoolShape& shape);

  // Makes a pool in storage. Requires: storage_bytes(shape) zero bytes, page-aligned; refusal(shape) is nullptr.
  // The first chunk exists afterwards, fully populated and immutable. Context: before anybody else sees the storage.
  [[nodiscard]] static PoolCore create(void* zeroed_storage, const PoolShape& shape);

  // A view of a pool that create() made, here or in another process.
  [[nodiscard]] static PoolCore attach(void* storage);

  // Lock-free: constant since create().
  [[nodiscard]] const PoolShape& shape() const;

  // ---- allocating -----------------------------------------------------------------------------------------------

  // Takes an area. Requires: size_bytes a multiple of kFragmentBytes, above 0, at most unit_size_bytes; align_bytes a
  // power of two from kFragmentBytes to the page size. Returns: the area, its live mark set; nothing where no chunk
  // fits (or, for Region::reserved, where the reserved part does not fit it or does not exist). A failure in atomic
  // context is remembered for the balancer. Pages may be missing unless the context was atomic: see
  // next_unpopulated_run().
  [[nodiscard]] std::optional<Area> allocate(uint32_t size_bytes, uint32_t align_bytes, Context context, Region region);

  // The lowest run of pages of a live area that are not populated; nothing once all are.
  [[nodiscard]] std::optional<PageRun> next_unpopulated_run(const Area& area) const;

  // Records that pages are backed in every unit. Requires: none of them was populated. Counts each as an empty
  // populated page, which settles what taking it lowered. To be called after the system call has succeeded, never
  // before.
  void mark_populated(ChunkId chunk, PageRun run);

  // Lock-free, async-signal-safe. Remembers that an allocation in atomic context failed before it came here.
  void note_atomic_failure();

  // Lock-free. Whether fewer empty populated pages are left than the low mark, or an atomic allocation failed: the
  // balancer should be woken.
  [[nodiscard]] bool wants_populate() const;

  // ---- freeing --------------------------------------------------------------------------------------------------

  // Ends the life of the area that starts at this offset: clears its live mark. Exactly one of several racing callers
  // wins. Returns: whether the caller won; false also for anything that is not the start of a live area, see
  // classify(). The area stays taken until release(). Context: lock-free, async-signal-safe, any numbers.
  [[nodiscard]] bool clear_live(ChunkId chunk, AreaOffset offset);

  // The same, and tells the size of the area. Returns: 0 where the caller did not win.
  [[nodiscard]] uint32_t end_life(ChunkId chunk, AreaOffset offset);

  // The marks by themselves. Lock-free: constant since create().
  [[nodiscard]] AreaMarks marks() const;

  // Frees an area whose live mark the caller has cleared.
  Released release(ChunkId chunk, AreaOffset offset);

  // What is at an offset, for the message about a bad handle. Context: lock-free, best effort where others allocate and
  // free at the same time; any numbers.
  [[nodiscard]] Finding classify(ChunkId chunk, AreaOffset offset) const;

  // The size of a live area in bytes. Requires: the offset is the start of a live area that is not freed meanwhile.
  // Context: lock-free.
  [[nodiscard]] uint32_t area_size(ChunkId chunk, AreaOffset offset) const;

  // The area that holds an offset. Returns: nothing where it is free, or in no map (static part, out of range).
  [[nodiscard]] std::optional<AreaView> area_containing(ChunkId chunk, AreaOffset offset) const;

  // ---- chunks ---------------------------------------------------------------------------------------------------

  // Makes a chunk in two steps, so that it is out of reach while the system is asked for its memory. begin_chunk()
  // sets the lowest unused id aside; nothing: all max_chunks are used, or lost. Then publish_chunk(), which puts the wholly free,
  // unpopulated chunk into the free slot, or abandon_chunk(). Requires: one at a time (the grow lock).
  [[nodiscard]] std::optional<ChunkId> begin_chunk();
  void publish_chunk(ChunkId chunk);
  void abandon_chunk(ChunkId chunk);

  // Takes a chunk out of reach of allocation, ahead of its destruction. Requires: wholly free, not the first one.
  void retire_chunk(ChunkId chunk);

  // Forgets a retired chunk; its pages count as populated no more and its id may be used again.
  void remove_chunk(ChunkId chunk);

  // In place of remove_chunk() or abandon_chunk() where the chunk's addresses belong to somebody else by now: it does not exist any more,
  // but its id is never used again.
  void lose_chunk(ChunkId chunk);

  // The pages of the storage that may be given back once `chunk` has been removed or abandoned: those that hold its metadata and
  // that of no existing chunk. May be empty; grows to neighbours that are gone too. The pages then read as zero, as
  // begin_chunk() expects. Requires: the grow lock from this call until the pages are given back.
  [[nodiscard]] StorageRange chunk_storage(ChunkId chunk) const;

  // What of the storage may ever have been touched: whole pages, one part behind the other. Lock-free.
  [[nodiscard]] std::array<StorageRange, 2> used_storage() const;

  // Lock-free, best effort. Whether the chunk exists (begun, published or retired).
  [[nodiscard]] bool chunk_exists(ChunkId chunk) const;
  [[nodiscard]] bool chunk_lost(ChunkId chunk) const;

  // Iterates over existing chunks in the order of their ids. Returns: the lowest one not below `from`.
  [[nodiscard]] std::optional<ChunkId> next_chunk(ChunkId from) const;

  // ---- asking ---------------------------------------------------------------------------------------------------

  // Lock-free, each number by itself.
  [[nodiscard]] PoolTotals totals() const;

  // Walks the maps of one chunk; chunk 0 means its dynamic part. Requires: the chunk exists.
  [[nodiscard]] ChunkStats chunk_stats(ChunkId chunk) const;
  // The same of the reserved part; nothing where there is none.
  [[nodiscard]] std::optional<ChunkStats> reserved_stats() const;

  // Recomputes from the bitmaps everything that is kept besides them, and compares. Returns: the first discrepancy.
  // check_block() looks at one page's block, check_chunk() at one chunk with all its blocks (chunk 0: both maps),
  // check() at all chunks, the slots and the totals.
  [[nodiscard]] std::optional<Defect> check_block(ChunkId chunk, PageIndex page) const;
  [[nodiscard]] std::optional<Defect> check_chunk(ChunkId chunk) const;
  [[nodiscard]] std::optional<Defect> check() const;

 private:
  friend class BalancePlan;
  friend struct PoolState;
  explicit PoolCore(PoolState* state) : state_(state) {}

  // A retired chunk and its pages count no more.
  void uncount_chunk(ChunkId chunk);

  PoolState* state_;
};

}  // namespace percpu

#endif  // PERCPU_CORE_POOL_CORE_H
