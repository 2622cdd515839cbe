// SPDX-License-Identifier: MIT
//
// What the heap holds, per node, CPU and class, and what was done in the background: as text, as JSON, and as glibc says it.
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

// The kernel's number of a page heap's node. Of one that is bound to none, which of the heaps it is.
static unsigned node_number(const PageStats& pages, uint32_t index) {
  return pages.node.valid() ? static_cast<unsigned>(pages.node.value) : index;
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
    text.format("  node %u: %lu KiB open, %lu backed and free, %lu not backed\n", node_number(pages, node), kib(pages.open_pages << kPageShift),
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
    text.format("%s{\"node\":%u,\"open_bytes\":%lu,\"dirty_bytes\":%lu,\"clean_bytes\":%lu}", node == 0 ? "" : ",", node_number(pages, node),
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
                  "\"cached_blocks\":%lu}", first ? "" : ",", kClasses.info[i].size_bytes,
                  node_number(pages_[node].stats(), node), ul(here.spans), ul(here.span_bytes), ul(here.blocks), ul(here.free_blocks), ul(here.cached_blocks));
      first = false;
    }
  }
  const LargeTotals large = large_totals();
  text.format("],\"large\":{\"blocks\":%lu,\"bytes\":%lu}}\n", ul(large.blocks), ul(large.bytes));
}

// One heap, of which "fast" is what the caches have, "rest" what is free in spans, by size, and the pages that are free and backed. What is
// used is what the system gave less these two. All is asked before anything is handed on: whoever writes it may allocate.
void Heap::print_xml(Pieces& text) {
  const HeapTotals sum = totals();
  uint64_t cached_blocks = 0;
  uint64_t free_blocks = sum.dirty_bytes != 0 ? 1 : 0;
  uint64_t free_of[kNrClasses];
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const ClassTotals of_class = class_totals(i);
    free_of[i] = of_class.free_blocks;
    cached_blocks += of_class.cached_blocks;
    free_blocks += of_class.free_blocks;
  }
  text.format("<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n");
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const uint64_t size_bytes = kClasses.info[i].size_bytes;
    if (free_of[i] == 0) continue;
    text.format("<size from=\"%lu\" to=\"%lu\" total=\"%lu\" count=\"%lu\"/>\n", ul(size_bytes), ul(size_bytes),
                ul(free_of[i] * size_bytes), ul(free_of[i]));
  }
  if (sum.dirty_bytes != 0) {
    text.format("<unsorted from=\"%lu\" to=\"%lu\" total=\"%lu\" count=\"1\"/>\n", ul(kPageBytes), ul(sum.dirty_bytes), ul(sum.dirty_bytes));
  }
  const auto print_sums = [&](const char* of_all) {
    const uint64_t given = sum.used_bytes + sum.dirty_bytes;
    text.format("<total type=\"fast\" count=\"%lu\" size=\"%lu\"/>\n"
                "<total type=\"rest\" count=\"%lu\" size=\"%lu\"/>\n"
                "%s"
                "<system type=\"current\" size=\"%lu\"/>\n"
                "<system type=\"max\" size=\"%lu\"/>\n"
                "<aspace type=\"total\" size=\"%lu\"/>\n"
                "<aspace type=\"mprotect\" size=\"%lu\"/>\n",
                ul(cached_blocks), ul(sum.cached_bytes), ul(free_blocks),
                ul(sum.free_small_bytes - sum.cached_bytes + sum.dirty_bytes), of_all, ul(given), ul(given), ul(sum.open_bytes),
                ul(sum.open_bytes));
  };
  text.format("</sizes>\n");
  print_sums("");
  text.format("</heap>\n");
  print_sums("<total type=\"mmap\" count=\"0\" size=\"0\"/>\n");
  text.format("</malloc>\n");
}

}  // namespace percpu::heap
