// SPDX-License-Identifier: MIT
//
// The naive twin's bookkeeping and its comparisons. See reference.h.
#include "model/reference.h"

#include <algorithm>
#include <numeric>

namespace percpu::model {
namespace {

std::string differs(const std::string& what, int64_t expected, int64_t found) {
  return what + ": expected " + std::to_string(expected) + ", found " + std::to_string(found);
}

// The free runs of bytes [begin, end), a fragment each: calls on_run(start, len), start counted from begin.
template <class OnRun>
void for_free_runs(const std::vector<uint8_t>& taken, uint32_t begin, uint32_t end, OnRun on_run) {
  uint32_t len = 0;
  for (uint32_t i = begin; i < end; ++i) {
    if (taken[i]) {
      if (len != 0) on_run(i - len - begin, len);
      len = 0;
    } else {
      ++len;
    }
  }
  if (len != 0) on_run(end - len - begin, len);
}

// What the specification says of a record's hints, against the bytes [begin, end).
template <class Hints>
std::string compare_hints(const std::string& whose, const Hints& hints, const std::vector<uint8_t>& taken,
                          uint32_t begin, uint32_t end) {
  uint32_t largest = 0;
  uint32_t largest_before = 0;
  uint32_t at_contig = 0;
  uint32_t at_scan = 0;
  uint32_t first = end - begin;
  for_free_runs(taken, begin, end, [&](uint32_t start, uint32_t len) {
    largest = std::max(largest, len);
    first = std::min(first, start);
    if (start < hints.contig_hint_start) largest_before = std::max(largest_before, len);
    if (start == hints.contig_hint_start) at_contig = len;
    if (start == hints.scan_hint_start) at_scan = len;
  });
  if (hints.contig_hint != largest) return differs(whose + " contig_hint", largest, hints.contig_hint);
  if (at_contig != largest) return differs(whose + " run at contig_hint_start", largest, at_contig);
  if (hints.first_free != first) return differs(whose + " first_free", first, hints.first_free);
  if (hints.scan_hint == 0) return "";
  if (at_scan != hints.scan_hint) return differs(whose + " run at scan_hint_start", hints.scan_hint, at_scan);
  if (hints.scan_hint_start == hints.contig_hint_start) return whose + " scan run is the contig run";
  if (hints.scan_hint_start > hints.contig_hint_start) {
    if (hints.scan_hint != hints.contig_hint)
      return differs(whose + " scan_hint behind contig_hint", hints.contig_hint, hints.scan_hint);
  } else if (hints.scan_hint != largest_before) {
    return differs(whose + " scan_hint", largest_before, hints.scan_hint);
  }
  return "";
}

}  // namespace

Reference::Reference(const PoolShape& shape, void* storage)
    : shape_(shape), state_(static_cast<PoolState*>(storage)), page_fragments_(shape.page_size_bytes / 4) {
  const uint32_t static_end = (shape.static_bytes + 3) / 4;
  const uint32_t reserved_end = static_end + shape.reserved_bytes / 4;
  const uint32_t dynamic_end = (shape.static_bytes + shape.reserved_bytes + shape.dynamic_bytes) / 4;
  const auto set_up = [&](NaiveMap& map, uint32_t begin, uint32_t end) {
    map.begin = begin;
    map.end = end;
    map.page_begin = begin / page_fragments_;
    map.page_end = begin == end ? map.page_begin : (end + page_fragments_ - 1) / page_fragments_;
    map.immutable = true;
    map.taken.assign(shape.unit_size_bytes / 4, 1);
    map.populated.assign(shape.unit_size_bytes / shape.page_size_bytes, 0);
    std::fill(map.taken.begin() + begin, map.taken.begin() + end, 0);
    std::fill(map.populated.begin() + map.page_begin, map.populated.begin() + map.page_end, 1);
    map.free_fragments = end - begin;
    map.largest_run = end - begin;
  };
  set_up(reserved_, static_end, reserved_end);
  set_up(chunks_[0], reserved_end, dynamic_end);
}

// ---- what the pool did ----------------------------------------------------------------------------------------------

std::string Reference::took(const Area& area, Context context, Region region) {
  const bool reserved = region == Region::reserved;
  if (!exists(area.chunk) || (reserved && area.chunk.value != 0)) return "an area in a chunk that does not exist";
  NaiveMap& map = naive(area.chunk, reserved);
  const uint32_t begin = area.offset.bytes / 4;
  const uint32_t end = begin + area.size_bytes / 4;
  if (!map.listed) return "an area in a chunk that is out of reach";
  if (begin < map.begin || end > map.end) return "an area outside the part that it was asked from";
  for (uint32_t i = begin; i < end; ++i) {
    if (map.taken[i]) return "an area over taken fragment " + std::to_string(i);
    map.taken[i] = 1;
    if (context == Context::atomic && !map.populated[i / page_fragments_])
      return "an area in atomic context on unpopulated page " + std::to_string(i / page_fragments_);
  }
  map.areas[begin] = end - begin;
  map.free_fragments -= end - begin;
  map.isolated = false;  // an allocation reintegrates its chunk
  return "";
}

void Reference::queued(const Area& area) {
  naive(area.chunk, in_reserved(area)).queued.insert(area.offset.bytes / 4);
}

std::string Reference::gave(const Area& area, const Released& released) {
  const uint32_t begin = area.offset.bytes / 4;
  NaiveMap& map = naive(area.chunk, in_reserved(area));
  const auto found = map.areas.find(begin);
  if (found == map.areas.end()) return "a release of no area";
  const uint32_t len = found->second;
  if (released.size_bytes != len * 4) return differs("released bytes", len * 4, released.size_bytes);
  std::fill_n(map.taken.begin() + begin, len, 0);
  map.areas.erase(found);
  map.queued.erase(begin);
  map.free_fragments += len;
  const bool wholly_free = map.free_fragments == map.end - map.begin;
  if (released.chunk_now_wholly_free != wholly_free)
    return differs("chunk now wholly free", wholly_free, released.chunk_now_wholly_free);
  if (released.isolated) map.isolated = true;
  return "";
}

std::string Reference::populated(ChunkId chunk, PageRun run) {
  NaiveMap& map = naive(chunk, false);
  for (uint32_t page = run.first.value; page < run.first.value + run.count; ++page) {
    if (map.populated.at(page)) return "a populated page to populate: " + std::to_string(page);
    map.populated[page] = 1;
  }
  return "";
}

std::string Reference::depopulated(ChunkId chunk, PageRun run) {
  NaiveMap& map = naive(chunk, false);
  const ChunkHead& head = state_->head(chunk);
  if (map.immutable) return "pages of an immutable chunk to give back";
  if (head.list != state_->slots.to_depopulate() && head.list != state_->slots.free())
    return differs("slot of a chunk whose pages are given back", state_->slots.to_depopulate(), head.list);
  for (uint32_t page = run.first.value; page < run.first.value + run.count; ++page) {
    if (!map.populated.at(page)) return "an unpopulated page to give back: " + std::to_string(page);
    map.populated[page] = 0;
    for (uint32_t i = page * page_fragments_; i < (page + 1) * page_fragments_; ++i)
      if (map.taken[i]) return "a page to give back under an area: " + std::to_string(page);
  }
  return "";
}

std::string Reference::begun(ChunkId chunk) {
  for (uint32_t id = 0; id < chunk.value; ++id)
    if (chunks_.count(id) == 0) return differs("the id of a new chunk", id, chunk.value);
  if (exists(chunk)) return "a new chunk with an id in use";
  NaiveMap map;
  map.end = shape_.unit_size_bytes / 4;
  map.page_end = shape_.unit_size_bytes / shape_.page_size_bytes;
  map.listed = false;
  map.taken.assign(map.end, 0);
  map.populated.assign(map.page_end, 0);
  map.free_fragments = map.end;
  map.largest_run = map.end;
  chunks_[chunk.value] = map;
  return "";
}

void Reference::published(ChunkId chunk) { naive(chunk, false).listed = true; }

std::string Reference::retired(ChunkId chunk) {
  NaiveMap& map = naive(chunk, false);
  if (!map.areas.empty() || map.immutable) return "a chunk to destroy that holds areas or is the first";
  map.listed = false;
  map.isolated = true;
  return "";
}

void Reference::removed(ChunkId chunk) { chunks_.erase(chunk.value); }

// ---- questions ------------------------------------------------------------------------------------------------------

const NaiveMap& Reference::map_of(const Area& area) const {
  return in_reserved(area) ? reserved_ : chunks_.at(area.chunk.value);
}

bool Reference::in_reserved(const Area& area) const {
  return area.chunk.value == 0 && area.offset.bytes / 4 < reserved_.end;
}

std::string Reference::follow_reintegration(bool reserve_was_low) {
  for (auto& [id, map] : chunks_) {
    if (!map.isolated || !map.listed || state_->heads()[id].isolated()) continue;
    if (!reserve_was_low && map.free_fragments != map.end - map.begin)
      return "chunk " + std::to_string(id) + " was reintegrated without a reason";
    map.isolated = false;
  }
  return "";
}

int64_t Reference::empty_populated() const {
  int64_t pages = 0;
  for (const auto& [id, map] : chunks_)
    if (!map.isolated) pages += state_->heads()[id].empty_populated_pages;
  return pages;
}

uint32_t Reference::due_slot(const NaiveMap& map) const {
  const uint32_t bytes = map.largest_run * 4;
  if (bytes == shape_.unit_size_bytes) return state_->slots.free();
  uint32_t slot = 0;
  if (bytes != 0) slot = 1;
  for (uint32_t limit = 16; limit <= bytes; limit *= 2) ++slot;
  return slot;
}

Reference::Forecast Reference::forecast(uint32_t want, Context context) const {
  Forecast forecast;
  for (const auto& [id, map] : chunks_) {
    const ChunkHead& head = state_->heads()[id];
    if (!map.listed || map.largest_run < want) continue;
    if (head.list == 0 || head.list == state_->slots.to_depopulate()) continue;
    if (want * 4 == shape_.unit_size_bytes && head.list != state_->slots.free()) continue;
    uint32_t run = 0;
    bool fits = context == Context::normal;
    for (uint32_t i = map.begin; i < map.end && !fits; ++i) {
      run = map.taken[i] || !map.populated[i / page_fragments_] ? 0 : run + 1;
      fits = run >= want;
    }
    if (!fits) continue;
    forecast.must_fit = true;
    forecast.lowest_slot = std::min<uint32_t>(forecast.lowest_slot, head.list);
  }
  return forecast;
}

// ---- comparisons ----------------------------------------------------------------------------------------------------

std::string Reference::compare_map(const NaiveMap& map, const AreaMap& real, uint32_t page_begin,
                                   uint32_t page_end) const {
  for (uint32_t page = page_begin; page < page_end; ++page) {
    const Block& block = real.blocks()[page - map.page_begin];
    const uint32_t begin = page * page_fragments_;
    const uint32_t end = begin + page_fragments_;
    const std::string whose = "block of page " + std::to_string(page);
    std::string wrong = compare_hints(whose, block, map.taken, begin, end);
    if (!wrong.empty()) return wrong;
    uint32_t left = 0;
    while (left < page_fragments_ && !map.taken[begin + left]) ++left;
    uint32_t right = 0;
    while (right < page_fragments_ && !map.taken[end - 1 - right]) ++right;
    if (block.left_free != left) return differs(whose + " left_free", left, block.left_free);
    if (block.right_free != right) return differs(whose + " right_free", right, block.right_free);
  }
  const ChunkHead& head = real.head();
  std::string wrong =
      compare_hints("chunk", head.hints, map.taken, map.page_begin * page_fragments_, map.page_end * page_fragments_);
  if (!wrong.empty()) return wrong;
  if (head.free_fragments != map.free_fragments)
    return differs("free fragments", map.free_fragments, head.free_fragments);
  int64_t empty_populated = 0;
  int64_t populated = 0;
  for (uint32_t page = map.page_begin; page < map.page_end; ++page) {
    const auto first = map.taken.begin() + page * page_fragments_;
    const bool empty = std::find(first, first + page_fragments_, 1) == first + page_fragments_;
    populated += map.populated[page];
    if (map.populated[page] && empty) ++empty_populated;
    if (!map.populated[page] && !empty) --empty_populated;
  }
  if (head.empty_populated_pages != empty_populated)
    return differs("empty populated pages", empty_populated, head.empty_populated_pages);
  if (head.populated_pages != populated) return differs("populated pages", populated, head.populated_pages);
  return "";
}

std::string Reference::compare_slot(const NaiveMap& map, const ChunkHead& head) const {
  if (head.isolated() != map.isolated) return differs("isolated", map.isolated, head.isolated());
  if (!map.listed)
    return head.list == ChunkHead::kNoSlot ? "" : differs("slot of a chunk out of reach", 255, head.list);
  const uint32_t due = due_slot(map);
  if (map.isolated) {
    if (head.list != state_->slots.sidelined() && head.list != state_->slots.to_depopulate())
      return differs("slot of an isolated chunk", state_->slots.to_depopulate(), head.list);
    return "";
  }
  if (head.list == 0 && due < 3) return "";  // full, or put aside
  return head.list == due ? "" : differs("slot", due, head.list);
}

std::string Reference::compare_touched(ChunkId chunk, bool reserved, uint32_t page_begin, uint32_t page_end) {
  NaiveMap& map = naive(chunk, reserved);
  const AreaMap real = reserved ? state_->reserved_map() : state_->map(chunk);
  map.largest_run = 0;
  for_free_runs(map.taken, map.begin, map.end,
                [&](uint32_t, uint32_t len) { map.largest_run = std::max(map.largest_run, len); });
  std::string wrong = compare_map(map, real, page_begin, page_end);
  if (wrong.empty() && !reserved) wrong = compare_slot(map, real.head());
  if (wrong.empty()) return "";
  return "chunk " + std::to_string(chunk.value) + (reserved ? " (reserved part): " : ": ") + wrong;
}

std::string Reference::compare_stats(const NaiveMap& map, const ChunkStats& stats) const {
  std::vector<uint32_t> sizes;
  for (const auto& [begin, len] : map.areas) {
    if (map.queued.count(begin) == 0) sizes.push_back(len * 4);
  }
  std::sort(sizes.begin(), sizes.end());
  const uint32_t last_end = map.areas.empty() ? map.begin : map.areas.rbegin()->first + map.areas.rbegin()->second;
  uint32_t sum = 0;
  uint32_t largest_before = 0;
  uint32_t runs = 0;
  for_free_runs(map.taken, map.begin, map.end, [&](uint32_t start, uint32_t len) {
    ++runs;
    if (map.begin + start >= last_end) return;
    sum += len * 4;
    largest_before = std::max(largest_before, len * 4);
  });
  const auto first = std::find(map.taken.begin() + map.begin, map.taken.begin() + map.end, 0) - map.taken.begin();
  const struct {
    const char* what;
    int64_t expected;
    int64_t found;
  } numbers[] = {
      {"live areas", static_cast<int64_t>(sizes.size()), stats.live_areas},
      {"smallest area", sizes.empty() ? 0 : sizes.front(), stats.smallest_area_bytes},
      {"median area", sizes.empty() ? 0 : sizes[(sizes.size() - 1) / 2], stats.median_area_bytes},
      {"largest area", sizes.empty() ? 0 : sizes.back(), stats.largest_area_bytes},
      {"live bytes", std::accumulate(sizes.begin(), sizes.end(), int64_t{0}), stats.live_bytes},
      {"free bytes", map.free_fragments * 4, stats.free_bytes},
      {"largest run", map.largest_run * 4, stats.largest_run_bytes},
      {"first free", first * 4, stats.first_free_bytes},
      {"free runs", runs, stats.free_runs},
      {"fragmentation sum", sum, stats.fragmentation_sum_bytes},
      {"fragmentation maximum", largest_before, stats.fragmentation_max_bytes},
  };
  for (const auto& number : numbers)
    if (number.expected != number.found) return differs(number.what, number.expected, number.found);
  return "";
}

std::string Reference::compare_chunk(ChunkId chunk) {
  for (const bool reserved : {false, true}) {
    if (reserved && chunk.value != 0) break;
    const NaiveMap& map = naive(chunk, reserved);
    std::string wrong = compare_touched(chunk, reserved, map.page_begin, map.page_end);
    if (!wrong.empty()) return wrong;
  }
  return "";
}

std::string Reference::compare_all() {
  PoolCore core = PoolCore::attach(state_);
  const uint32_t parts = shape_.static_bytes + shape_.reserved_bytes + shape_.dynamic_bytes;
  int64_t populated = (parts + shape_.page_size_bytes - 1) / shape_.page_size_bytes;
  uint32_t chunks = 0;
  uint32_t free_chunks = 0;
  for (const auto& [id, map] : chunks_) {
    std::string wrong = compare_chunk(ChunkId{id});
    if (wrong.empty()) wrong = compare_stats(map, core.chunk_stats(ChunkId{id}));
    if (!wrong.empty()) return "chunk " + std::to_string(id) + ": " + wrong;
    if (id != 0) populated += std::count(map.populated.begin(), map.populated.end(), 1);
    chunks += map.listed || map.isolated;  // a retired chunk is there until it is removed
    free_chunks += map.listed && !map.isolated && !map.immutable && map.largest_run * 4 == shape_.unit_size_bytes;
  }
  if (const auto stats = core.reserved_stats()) {
    const std::string wrong = compare_stats(reserved_, *stats);
    if (!wrong.empty()) return "reserved part: " + wrong;
  }
  const PoolTotals totals = core.totals();
  if (totals.empty_populated_pages != empty_populated())
    return differs("empty populated pages of the pool", empty_populated(), totals.empty_populated_pages);
  if (static_cast<int64_t>(totals.populated_pages) != populated)
    return differs("populated pages of the pool", populated, static_cast<int64_t>(totals.populated_pages));
  if (totals.chunks != chunks) return differs("chunks", chunks, totals.chunks);
  if (totals.free_chunks != free_chunks) return differs("wholly free chunks", free_chunks, totals.free_chunks);
  if (const auto defect = core.check())
    return "the pool's own check, chunk " + std::to_string(defect->chunk.value) + " page " +
           std::to_string(defect->page.value) + ": " + differs(defect->what, defect->expected, defect->found);
  return "";
}

}  // namespace percpu::model
