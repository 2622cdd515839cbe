// SPDX-License-Identifier: MIT
#include "runtime/report.h"

#include <cstring>

#include "core/layout.h"

namespace percpu {
namespace {

// The rows of both forms: name and member, so that no report can miss one that the other has.
struct StatsRow {
  const char* name;
  uint64_t percpu_stats::*value;
};
constexpr StatsRow kStatsRows[] = {
    {"nr_allocs", &percpu_stats::nr_allocs},
    {"nr_frees", &percpu_stats::nr_frees},
    {"nr_live", &percpu_stats::nr_live},
    {"nr_peak_live", &percpu_stats::nr_peak_live},
    {"nr_cached", &percpu_stats::nr_cached},
    {"nr_failed", &percpu_stats::nr_failed},
    {"live_bytes", &percpu_stats::live_bytes},
    {"min_request", &percpu_stats::min_request},
    {"max_request", &percpu_stats::max_request},
    {"nr_chunks", &percpu_stats::nr_chunks},
    {"nr_peak_chunks", &percpu_stats::nr_peak_chunks},
    {"populated_pages", &percpu_stats::populated_pages},
    {"empty_populated_pages", &percpu_stats::empty_populated_pages},
    {"populated_bytes", &percpu_stats::populated_bytes},
    {"metadata_bytes", &percpu_stats::metadata_bytes},
    {"unit_bytes", &percpu_stats::unit_bytes},
    {"nr_cpus", &percpu_stats::nr_cpus},
    {"nr_copies", &percpu_stats::nr_copies},
    {"nr_groups", &percpu_stats::nr_groups},
    {"page_bytes", &percpu_stats::page_bytes},
    {"nr_balance_rounds", &percpu_stats::nr_balance_rounds},
    {"nr_chunks_created", &percpu_stats::nr_chunks_created},
    {"nr_chunks_destroyed", &percpu_stats::nr_chunks_destroyed},
    {"nr_pages_populated", &percpu_stats::nr_pages_populated},
    {"nr_pages_depopulated", &percpu_stats::nr_pages_depopulated},
};
static_assert(sizeof kStatsRows / sizeof kStatsRows[0] == sizeof(percpu_stats) / sizeof(uint64_t));

struct ChunkRow {
  const char* name;
  uint64_t percpu_chunk_stats::*value;
};
constexpr ChunkRow kChunkRows[] = {
    {"nr_live", &percpu_chunk_stats::nr_live},
    {"live_bytes", &percpu_chunk_stats::live_bytes},
    {"smallest_live", &percpu_chunk_stats::smallest_live},
    {"median_live", &percpu_chunk_stats::median_live},
    {"largest_live", &percpu_chunk_stats::largest_live},
    {"populated_pages", &percpu_chunk_stats::populated_pages},
    {"empty_populated_pages", &percpu_chunk_stats::empty_populated_pages},
    {"first_free", &percpu_chunk_stats::first_free},
    {"free_bytes", &percpu_chunk_stats::free_bytes},
    {"largest_run", &percpu_chunk_stats::largest_run},
    {"fragment_sum", &percpu_chunk_stats::fragment_sum},
    {"fragment_max", &percpu_chunk_stats::fragment_max},
};
static_assert((sizeof kChunkRows / sizeof kChunkRows[0] + 1) * sizeof(uint64_t) + 2 * sizeof(uint32_t) ==
              sizeof(percpu_chunk_stats));

// As many chunks as fit on the stack at once; a report goes through them in turn.
constexpr size_t kBatch = 16;

const char* boolean(bool value) { return value ? "true" : "false"; }

// Calls `write(row, is_first)` for each chunk. Chunks that come or go meanwhile may be missed: the report is a snapshot
// of each chunk, not of all at once.
template <class Write>
void for_each_chunk(Pool& pool, Write write) {
  percpu_chunk_stats rows[kBatch];
  ChunkCursor cursor;
  bool first = true;
  for (;;) {
    const size_t n = pool.read_chunks_from(cursor, rows, kBatch);
    for (size_t i = 0; i < n; i++) {
      write(rows[i], first);
      first = false;
    }
    if (n < kBatch) return;
  }
}

}  // namespace

void report_layout(const Pool& pool, Text& text) { print_layout(pool.layout(), text); }

void report_text(Pool& pool, Text& text) {
  percpu_stats stats;
  pool.read_stats(&stats);
  text.format("pool %s\n", pool.name());
  for (const StatsRow& row : kStatsRows) text.format("  %-22s %lu\n", row.name, stats.*row.value);
  for_each_chunk(pool, [&](const percpu_chunk_stats& chunk, bool) {
    text.format("chunk %lu%s%s slot %u\n", chunk.chunk, (chunk.flags & PERCPU_CHUNK_RESERVED) != 0 ? " reserved" : "",
                (chunk.flags & PERCPU_CHUNK_ISOLATED) != 0 ? " isolated" : "", chunk.slot);
    for (const ChunkRow& row : kChunkRows) text.format("  %-22s %lu\n", row.name, chunk.*row.value);
  });
}

void report_json(Pool& pool, Text& text) {
  percpu_stats stats;
  pool.read_stats(&stats);
  text.format("{\"pool\":");
  text.json_string(pool.name(), std::strlen(pool.name()));
  for (const StatsRow& row : kStatsRows) text.format(",\"%s\":%lu", row.name, stats.*row.value);
  text.format(",\"chunks\":[");
  for_each_chunk(pool, [&](const percpu_chunk_stats& chunk, bool first) {
    text.format("%s{\"chunk\":%lu,\"slot\":%u,\"reserved\":%s,\"isolated\":%s", first ? "" : ",", chunk.chunk, chunk.slot,
                boolean((chunk.flags & PERCPU_CHUNK_RESERVED) != 0), boolean((chunk.flags & PERCPU_CHUNK_ISOLATED) != 0));
    for (const ChunkRow& row : kChunkRows) text.format(",\"%s\":%lu", row.name, chunk.*row.value);
    text.format("}");
  });
  text.format("]}");
}

}  // namespace percpu
