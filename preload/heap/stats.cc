// SPDX-License-Identifier: MIT
//
// What the heap holds, per node, CPU and class, and what was done in the background: as text and as JSON.
#include "base/bits.h"
#include "preload/heap/heap.h"

namespace percpu::heap {
namespace {

unsigned long ul(uint64_t value) { return static_cast<unsigned long>(value); }
unsigned long kib(uint64_t bytes) { return ul(bytes >> 10); }

}  // namespace

struct CpuSums {
  uint64_t blocks = 0;
  uint64_t bytes = 0;
};

static CpuSums sums_of(const CpuCache& cache, uint32_t cpu) {
  CpuSums sums;
  for (uint32_t lane = 0; lane < cache.nr_lanes(); ++lane) {
    const uint64_t count = cache.count(cpu, lane);
    sums.blocks += count;
    sums.bytes += count * kClasses.info[class_of_lane(lane)].size_bytes;
  }
  return sums;
}

ClassTotals Heap::class_totals(uint32_t size_class, uint32_t node) {
  const ClassInfo& info = kClasses.info[size_class];
  const CentralList::Counts counts = lists_[node][size_class].counts();
  ClassTotals sum;
  sum.spans = counts.nr_spans;
  sum.span_bytes = counts.nr_spans * info.span_pages << kPageShift;
  sum.blocks = counts.nr_spans * info.span_blocks;
  sum.free_blocks = counts.free_blocks;
  for (uint32_t cpu = 0; cpu < cache_.nr_cpus(); ++cpu) sum.cached_blocks += cache_.count(cpu, lane_of(node, size_class));
  return sum;
}

ClassTotals Heap::class_totals(uint32_t size_class) {
  ClassTotals sum;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    const ClassTotals here = class_totals(size_class, node);
    sum.spans += here.spans;
    sum.span_bytes += here.span_bytes;
    sum.blocks += here.blocks;
    sum.free_blocks += here.free_blocks;
    sum.cached_blocks += here.cached_blocks;
  }
  return sum;
}

// What is used, and by no class.
LargeTotals Heap::large_totals() {
  uint64_t runs = 0;
  uint64_t spans = 0;
  uint64_t span_bytes = 0;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) runs += pages_[node].stats().used_runs;
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const ClassTotals small = class_totals(i);
    spans += small.spans;
    span_bytes += small.span_bytes;
  }
  const uint64_t used_bytes = totals().used_bytes;
  return {runs > spans ? runs - spans : 0, used_bytes > span_bytes ? used_bytes - span_bytes : 0};
}

void Heap::print_stats(Pieces& text) {
  const HeapTotals sum = totals();
  text.format("percpu malloc: %lu KiB in use, %lu KiB free in spans and caches, %lu KiB free pages still backed, %lu KiB "
              "given back so far, %lu KiB metadata\n",
              kib(sum.live_bytes()), kib(sum.free_small_bytes), kib(sum.dirty_bytes),
              kib(sum.purged_bytes), kib(sum.metadata_bytes));
  text.format("  balancer: %u ticks, %lu CPUs' caches emptied, %lu lanes made room for others, %lu blocks taken back\n",
              load_relaxed(&nr_ticks_), ul(cache_.work().emptied_cpus), ul(cache_.work().evicted_lanes),
              ul(cache_.work().taken_blocks));
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    const PageStats pages = pages_[node].stats();
    text.format("  node %u: %lu KiB open, %lu backed and free, %lu not backed\n", node, kib(pages.open_pages << kPageShift),
                kib(pages.dirty_pages << kPageShift), kib(pages.clean_pages << kPageShift));
  }
  for (uint32_t cpu = 0; cpu < cache_.nr_cpus(); ++cpu) {
    const CpuSums cached = sums_of(cache_, cpu);
    if (cached.blocks == 0) continue;
    text.format("  CPU %u: %lu blocks, %lu KiB cached of %lu\n", cpu, ul(cached.blocks), kib(cached.bytes),
                kib(cache_.budget_bytes()));
  }
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const ClassTotals sum_of_class = class_totals(i);
    if (sum_of_class.spans == 0) continue;
    text.format("  class %5u: %lu spans, %lu blocks of %lu free in them, %lu in caches\n", kClasses.info[i].size_bytes,
                ul(sum_of_class.spans), ul(sum_of_class.free_blocks), ul(sum_of_class.blocks), ul(sum_of_class.cached_blocks));
  }
  const LargeTotals large = large_totals();
  text.format("  large: %lu blocks, %lu KiB\n", ul(large.blocks), kib(large.bytes));
}

void Heap::print_json(Pieces& text) {
  const HeapTotals sum = totals();
  text.format("{\"used_bytes\":%lu,\"free_small_bytes\":%lu,\"cached_bytes\":%lu,\"dirty_bytes\":%lu,\"clean_bytes\":%lu,"
              "\"purged_bytes\":%lu,\"metadata_bytes\":%lu",
              ul(sum.live_bytes()), ul(sum.free_small_bytes), ul(sum.cached_bytes), ul(sum.dirty_bytes),
              ul(sum.clean_bytes), ul(sum.purged_bytes), ul(sum.metadata_bytes));
  text.format(",\"balancer\":{\"ticks\":%u,\"emptied_cpus\":%lu,\"evicted_lanes\":%lu,\"taken_blocks\":%lu}",
              load_relaxed(&nr_ticks_), ul(cache_.work().emptied_cpus), ul(cache_.work().evicted_lanes),
              ul(cache_.work().taken_blocks));
  text.format(",\"nodes\":[");
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    const PageStats pages = pages_[node].stats();
    text.format("%s{\"node\":%u,\"open_bytes\":%lu,\"dirty_bytes\":%lu,\"clean_bytes\":%lu}", node == 0 ? "" : ",", node,
                ul(pages.open_pages << kPageShift), ul(pages.dirty_pages << kPageShift), ul(pages.clean_pages << kPageShift));
  }
  text.format("],\"cpus\":[");
  bool first = true;
  for (uint32_t cpu = 0; cpu < cache_.nr_cpus(); ++cpu) {
    const CpuSums cached = sums_of(cache_, cpu);
    if (cached.blocks == 0) continue;
    text.format("%s{\"cpu\":%u,\"blocks\":%lu,\"cached_bytes\":%lu}", first ? "" : ",", cpu, ul(cached.blocks), ul(cached.bytes));
    first = false;
  }
  text.format("],\"classes\":[");
  first = true;
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
      const ClassTotals here = class_totals(i, node);
      if (here.spans == 0) continue;
      text.format("%s{\"size_bytes\":%u,\"node\":%u,\"spans\":%lu,\"span_bytes\":%lu,\"blocks\":%lu,\"free_blocks\":%lu,"
                  "\"cached_blocks\":%lu}", first ? "" : ",", kClasses.info[i].size_bytes, node, ul(here.spans), ul(here.span_bytes),
                  ul(here.blocks), ul(here.free_blocks), ul(here.cached_blocks));
      first = false;
    }
  }
  const LargeTotals large = large_totals();
  text.format("],\"large\":{\"blocks\":%lu,\"bytes\":%lu}}\n", ul(large.blocks), ul(large.bytes));
}

}  // namespace percpu::heap
