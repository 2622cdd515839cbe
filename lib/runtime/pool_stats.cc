// SPDX-License-Identifier: MIT
//
// What a pool answers when asked.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "runtime/pool.h"

namespace percpu {

uint64_t Pool::nr_live() {
  percpu_stats stats;
  read_counts(&stats);
  return stats.nr_live;
}

bool Pool::address_info(uintptr_t address, percpu_address* info) {
  Spot spot{};
  if (!memory_.locate(address, &spot) || core_->chunk_lost(spot.chunk)) return false;
  *info = {};
  info->pool = to_public(this);
  info->copy = spot.copy;
  info->cpu = spot.copy < memory_.nr_cpu_ids() ? static_cast<int>(spot.copy) : -1;
  info->chunk = spot.chunk.value;
  info->unit_offset = spot.offset.bytes;
  if (spot.copy == memory_.nr_copies()) {
    info->flags |= PERCPU_INFO_HANDLE;
  } else if (spot.copy >= memory_.nr_cpu_ids()) {
    info->flags |= PERCPU_INFO_EXTRA;
  }
  lock_map();
  std::optional<AreaView> area;
  if (core_->chunk_exists(spot.chunk)) area = core_->area_containing(spot.chunk, spot.offset);
  if (area && area->live && (area->reserved || records_used()) &&
      memory_.record(spot.chunk, area->start).domain.load(std::memory_order_relaxed) == kStaticVariables.value) {
    info->flags |= PERCPU_INFO_STATIC;
  }
  unlock_map();
  if (area && area->live) {
    info->handle = reinterpret_cast<void*>(memory_.handle(spot.chunk, area->start));
    info->area_bytes = area->size_bytes;
    info->area_offset = spot.offset.bytes - area->start.bytes;
    info->flags |= PERCPU_INFO_LIVE;
    if (area->reserved) info->flags |= PERCPU_INFO_RESERVED;
  } else if (spot.chunk.value == 0 && spot.offset.bytes < layout_->static_size_bytes()) {
    info->flags |= PERCPU_INFO_STATIC;
  }
  return true;
}

// Asked of the system, so not under the lock: a chunk may come or go meanwhile.
size_t Pool::resident_metadata() {
  size_t bytes = home_bytes_ + shelves_.resident_bytes(*environment_.system);
  for (const StorageRange range : core_->used_storage()) {
    bytes += memory_.resident_core(range.offset_bytes, range.size_bytes);
  }
  for (ChunkId from{0};;) {
    lock_map();
    const std::optional<ChunkId> chunk = core_->next_chunk(from);
    unlock_map();
    if (!chunk) return bytes;
    bytes += memory_.resident_records(*chunk);
    from = ChunkId{chunk->value + 1};
  }
}

void Pool::read_stats(percpu_stats* out) {
  read_counts(out);
  out->metadata_bytes = resident_metadata();
}

// All but what the system is asked for. What is freed is not counted: it is what was allocated and does not live. Areas that
// other threads' calls have in hand meanwhile count as live, or, where they move from a stack that was read to one that was not, as
// freed; the balance thread never has one in hand.
void Pool::read_counts(percpu_stats* out) {
  *out = {};
  lock_map();
  FrontCache::Sums front = front_.sums();
  front.nr_cached += shelves_.nr_areas();
  front.cached_bytes += shelves_.nr_bytes();
  const PoolTotals totals = core_->totals();
  const PoolCounters counters = counters_;
  const uint64_t not_live = front.nr_cached + nr_deferred_.load(std::memory_order_relaxed);
  unlock_map();
  out->nr_allocs = counters.nr_allocs + front.nr_allocs;
  out->nr_live = std::min(counters.nr_taken - std::min(not_live, counters.nr_taken), out->nr_allocs);
  out->nr_frees = out->nr_allocs - out->nr_live;
  out->nr_peak_live = counters.nr_peak_taken;
  out->nr_cached = front.nr_cached;
  out->nr_failed = nr_failed_.load(std::memory_order_relaxed);
  out->live_bytes = counters.taken_bytes - std::min(front.cached_bytes, counters.taken_bytes);
  out->min_request = counters.min_request;
  out->max_request = counters.max_request;
  out->nr_chunks = totals.chunks;
  out->nr_peak_chunks = totals.peak_chunks;
  out->populated_pages = totals.populated_pages;
  out->empty_populated_pages = static_cast<uint64_t>(std::max<int64_t>(totals.empty_populated_pages, 0));
  out->populated_bytes = totals.populated_pages * page_bytes() * memory_.nr_hot();
  out->unit_bytes = memory_.unit_size();
  out->nr_cpus = layout_->nr_cpus();
  out->nr_copies = memory_.nr_real_copies();
  out->nr_groups = memory_.nr_groups();
  out->page_bytes = page_bytes();
  out->nr_balance_rounds = counters.nr_balance_rounds;
  out->nr_chunks_created = counters.nr_chunks_created;
  out->nr_chunks_destroyed = counters.nr_chunks_destroyed;
  out->nr_pages_populated = counters.nr_pages_populated;
  out->nr_pages_depopulated = counters.nr_pages_depopulated;
}

namespace {

percpu_chunk_stats describe(ChunkId chunk, const ChunkStats& stats, bool reserved) {
  percpu_chunk_stats row{};
  row.chunk = chunk.value;
  row.nr_live = stats.live_areas;
  row.live_bytes = stats.live_bytes;
  row.largest_live = stats.largest_area_bytes;
  row.median_live = stats.median_area_bytes;
  row.smallest_live = stats.smallest_area_bytes;
  row.populated_pages = stats.populated_pages;
  row.empty_populated_pages = static_cast<uint64_t>(std::max<int32_t>(stats.empty_populated_pages, 0));
  row.first_free = stats.first_free_bytes;
  row.free_bytes = stats.free_bytes;
  row.largest_run = stats.largest_run_bytes;
  row.fragment_sum = stats.fragmentation_sum_bytes;
  row.fragment_max = stats.fragmentation_max_bytes;
  row.slot = stats.slot;
  row.flags = (chunk.value == 0 ? uint32_t{PERCPU_CHUNK_FIRST} : 0) |
              (reserved ? uint32_t{PERCPU_CHUNK_RESERVED} : 0) |
              (stats.isolated ? uint32_t{PERCPU_CHUNK_ISOLATED} : 0);
  return row;
}

}  // namespace

size_t Pool::read_chunks_from(ChunkCursor& cursor, percpu_chunk_stats* rows, size_t max) {
  size_t count = 0;
  if (!cursor.past_reserved && count < max) {
    cursor.past_reserved = true;
    lock_map();
    const std::optional<ChunkStats> reserved = core_->reserved_stats();
    unlock_map();
    if (reserved) rows[count++] = describe(ChunkId{0}, *reserved, true);
  }
  while (count < max) {
    lock_map();
    const std::optional<ChunkId> chunk = core_->next_chunk(ChunkId{cursor.next_chunk});
    const ChunkStats stats = chunk ? core_->chunk_stats(*chunk) : ChunkStats{};
    unlock_map();
    if (!chunk) break;
    rows[count++] = describe(*chunk, stats, false);
    cursor.next_chunk = chunk->value + 1;
  }
  return count;
}

void Pool::check() {
  SleepMutexGuard guard(grow_lock_);
  lock_map();
  const std::optional<Defect> defect = core_->check();
  unlock_map();
  if (!defect) return;
  fatal("pool '%s', chunk %u%s, page %u: %s: expected %ld, found %ld", name_, defect->chunk.value,
        defect->reserved ? " (reserved part)" : "", defect->page.value, defect->what, defect->expected, defect->found);
}

}  // namespace percpu
