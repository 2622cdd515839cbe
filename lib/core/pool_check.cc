// SPDX-License-Identifier: MIT
//
// Recomputes from the bitmaps what is kept besides them. See pool_core.h. Nothing here changes anything.
#include <algorithm>

#include "core/pool_core.h"
#include "core/pool_state.h"

namespace percpu {
namespace {

// Collects the first discrepancy of a place.
class Findings {
 public:
  explicit Findings(Defect where) : defect_(where) {}

  void expect_equal(const char* what, int64_t expected, int64_t found) {
    if (expected == found || found_) return;
    defect_.what = what;
    defect_.expected = expected;
    defect_.found = found;
    found_ = true;
  }
  void at_page(uint32_t page) {
    if (!found_) defect_.page = {page};
  }
  [[nodiscard]] bool any() const { return found_; }
  [[nodiscard]] std::optional<Defect> result() const { return found_ ? std::optional<Defect>(defect_) : std::nullopt; }

 private:
  Defect defect_;
  bool found_ = false;
};

// The names of a record's fields, of a block's and of a chunk's.
struct Names {
  const char* contig_hint;
  const char* contig_hint_start;
  const char* scan_hint;
  const char* scan_hint_start;
  const char* first_free;
};
constexpr Names kBlockNames = {"block contig_hint", "block contig_hint_start", "block scan_hint",
                               "block scan_hint_start", "block first_free"};
constexpr Names kChunkNames = {"chunk contig_hint", "chunk contig_hint_start", "chunk scan_hint",
                               "chunk scan_hint_start", "chunk first_free"};

// The length of the free run that starts at `start`; 0 where none does.
uint32_t whole_run_at(const uint64_t* words, uint32_t len, uint32_t start) {
  if (start >= len || (start > 0 && !test_bit(words, start - 1))) return 0;
  return find_next_one(words, start, len) - start;
}

// Checks the invariants of run_hints.h against the bits.
template <class Hints>
void check_hints(Findings& findings, const Names& names, const Hints& hints, const uint64_t* words, uint32_t len) {
  uint32_t largest = 0;
  uint32_t largest_before = 0;
  for (uint32_t start = find_next_zero(words, 0, len); start < len;) {
    const uint32_t end = find_next_one(words, start, len);
    largest = std::max(largest, end - start);
    if (start < hints.contig_hint_start) largest_before = std::max(largest_before, end - start);
    start = find_next_zero(words, end, len);
  }
  findings.expect_equal(names.contig_hint, largest, hints.contig_hint);
  findings.expect_equal(names.contig_hint_start, hints.contig_hint,
                        whole_run_at(words, len, hints.contig_hint_start));
  findings.expect_equal(names.first_free, find_next_zero(words, 0, len), hints.first_free);
  if (hints.scan_hint == 0) return;
  findings.expect_equal(names.scan_hint_start, 1, hints.scan_hint_start != hints.contig_hint_start);
  findings.expect_equal(names.scan_hint_start, whole_run_at(words, len, hints.scan_hint_start), hints.scan_hint);
  if (hints.scan_hint_start < hints.contig_hint_start)
    findings.expect_equal(names.scan_hint, largest_before, hints.scan_hint);
  else
    findings.expect_equal(names.scan_hint, hints.contig_hint, hints.scan_hint);
}

void check_one_block(Findings& findings, const AreaMap& map, uint32_t index) {
  const Block& block = map.blocks()[index];
  const uint64_t* words = map.block_words(index);
  const uint32_t len = map.block_len();
  findings.at_page(map.head().first_page + index);
  check_hints(findings, kBlockNames, block, words, len);
  findings.expect_equal("block left_free", find_next_one(words, 0, len), block.left_free);
  const uint32_t last = find_last_one(words, 0, len);
  findings.expect_equal("block right_free", last == len ? len : len - 1 - last, block.right_free);
  findings.expect_equal("block marked as open", block.contig_hint != 0, test_bit(map.open(), index));
}

// The bits that say where areas are: live ones begin at bounds, taken stretches begin at bounds.
void check_areas(Findings& findings, const AreaMap& map) {
  const uint32_t len = map.len();
  findings.expect_equal("neighbours' fragments taken", map.own_begin() + (len - map.own_end()),
                        count_ones(map.alloc(), 0, map.own_begin()) + count_ones(map.alloc(), map.own_end(), len));
  const uint32_t first = map.marks().first(map.first_fragment());
  const uint32_t last = map.marks().last(map.first_fragment() + len);
  for (uint32_t mark = find_next_one(map.live(), first, last); mark < last; mark = find_next_one(map.live(), mark + 1, last)) {
    // Of the unit, so it may lie before the map (and is large then), or behind it.
    const uint32_t at = map.marks().fragment(mark) - map.first_fragment();
    const bool owned = at >= map.own_begin() && at < map.own_end();
    findings.expect_equal("live area owned", 1, owned);
    if (!owned) continue;
    findings.expect_equal("live area taken", 1, map.is_taken(at));
    findings.expect_equal("live area bounded", 1, map.is_bound(at));
  }
  for (uint32_t at = find_next_one(map.alloc(), 0, len); at < len;) {
    findings.expect_equal("first area of a taken stretch bounded", 1, map.is_bound(at));
    const uint32_t end = find_next_zero(map.alloc(), at, len);
    if (end < len) findings.expect_equal("last area of a taken stretch bounded", 1, map.is_bound(end));
    at = find_next_one(map.alloc(), end, len);
  }
}

void check_counts(Findings& findings, const AreaMap& map) {
  const ChunkHead& head = map.head();
  int64_t empty_populated = 0;
  for (uint32_t page = 0; page < head.nr_blocks; ++page) {
    const uint32_t first = page * map.block_len();
    const bool empty = find_next_one(map.alloc(), first, first + map.block_len()) == first + map.block_len();
    empty_populated += int64_t{map.is_populated(page) && empty} - int64_t{!map.is_populated(page) && !empty};
  }
  findings.expect_equal("empty populated pages of the chunk", empty_populated, head.empty_populated_pages);
  findings.expect_equal("populated pages of the chunk", count_ones(map.populated(), 0, head.nr_blocks),
                        head.populated_pages);
  findings.expect_equal("free fragments of the chunk", map.len() - count_ones(map.alloc(), 0, map.len()),
                        head.free_fragments);
}

void check_map(Findings& findings, const AreaMap& map) {
  for (uint32_t block = 0; block < map.head().nr_blocks && !findings.any(); ++block)
    check_one_block(findings, map, block);
  findings.at_page(map.head().first_page);
  check_hints(findings, kChunkNames, map.head().hints, map.alloc(), map.len());
  check_areas(findings, map);
  check_counts(findings, map);
  if (const auto border = map.tree().wrong_border()) {
    findings.at_page(map.head().first_page + *border);
    findings.expect_equal("tree node at this page up to date", 1, 0);
  }
}

// A chunk's slot: what it deserves, and where it may be instead.
void check_slot(Findings& findings, PoolState& state, ChunkId chunk) {
  const ChunkHead& head = state.head(chunk);
  if (head.list == ChunkHead::kNoSlot) return;  // begun or retired
  const uint32_t due = state.slot_lists().due(head);
  if (head.isolated()) {
    const bool right = head.list == state.slots.sidelined() || head.list == state.slots.to_depopulate();
    findings.expect_equal("slot of an isolated chunk", state.slots.to_depopulate(), right ? state.slots.to_depopulate()
                                                                                         : head.list);
    return;
  }
  findings.expect_equal("due slot", due, head.due);
  const bool aside = head.list == 0 && due < kFirstKeptSlot;
  if (!aside) findings.expect_equal("slot", due, head.list);
}

std::optional<Defect> check_both_maps(PoolState& state, ChunkId chunk) {
  Findings findings(Defect{nullptr, 0, 0, chunk, false, {0}});
  check_map(findings, state.map(chunk));
  check_slot(findings, state, chunk);
  if (findings.any() || chunk.value != 0) return findings.result();
  Findings reserved(Defect{nullptr, 0, 0, chunk, true, {0}});
  check_map(reserved, state.reserved_map());
  return reserved.result();
}

// The lists against the chunks' own idea of where they are. Returns: how many chunks the lists hold.
uint32_t check_lists(Findings& findings, PoolState& state) {
  Slots slots = state.slot_lists();
  uint32_t listed = 0;
  uint32_t free_chunks = 0;
  for (uint32_t slot = 0; slot < SlotTable::kMaxSlots && !findings.any(); ++slot) {
    uint32_t before = IndexList::kNone;
    for (uint32_t chunk = slots.first(slot); chunk != IndexList::kNone && !findings.any(); chunk = slots.next(chunk)) {
      findings.expect_equal("slot of a chunk in a list", slot, state.heads()[chunk].list);
      findings.expect_equal("chunk before this one in its list", before, slots.prev(chunk));
      free_chunks += slot == state.slots.free() && !state.heads()[chunk].immutable();
      ++listed;
      before = chunk;
    }
    findings.expect_equal("last chunk of a slot", before, slots.last(slot));
    findings.expect_equal("slot marked as holding chunks", before != IndexList::kNone,
                          (state.slots.nonempty >> slot) & 1);
  }
  findings.expect_equal("wholly free chunks", free_chunks, state.slots.free_chunks);
  return listed;
}

}  // namespace

std::optional<Defect> PoolCore::check_block(ChunkId chunk, PageIndex page) const {
  AreaMap map = state_->map(chunk);
  bool reserved = false;
  if (chunk.value == 0 && (page.value < map.head().first_page || map.head().nr_blocks == 0)) {
    map = state_->reserved_map();
    reserved = true;
  }
  const uint32_t index = page.value - map.head().first_page;
  if (page.value < map.head().first_page || index >= map.head().nr_blocks) return std::nullopt;
  Findings findings(Defect{nullptr, 0, 0, chunk, reserved, page});
  check_one_block(findings, map, index);
  return findings.result();
}

std::optional<Defect> PoolCore::check_chunk(ChunkId chunk) const { return check_both_maps(*state_, chunk); }

std::optional<Defect> PoolCore::check() const {
  PoolState& state = *state_;
  Findings findings(Defect{nullptr, 0, 0, ChunkId{0}, false, {0}});
  int64_t empty_populated = 0;
  uint32_t listed = 0;
  uint64_t populated = round_up(state.dynamic_end(), state.shape.page_size_bytes) / state.shape.page_size_bytes;
  for (auto chunk = next_chunk(ChunkId{0}); chunk; chunk = next_chunk(ChunkId{chunk->value + 1})) {
    if (auto defect = check_both_maps(state, *chunk)) return defect;
    const ChunkHead& head = state.head(*chunk);
    listed += head.list != ChunkHead::kNoSlot;
    if (chunk->value != 0) populated += head.populated_pages;
    if (!head.isolated()) empty_populated += head.empty_populated_pages;
  }
  findings.expect_equal("chunks with ids never used", 0,
                        count_ones(state.id_bits(), state.ids_end, state.shape.max_chunks));
  findings.expect_equal("chunks in lists", listed, check_lists(findings, state));
  findings.expect_equal("empty populated pages of the pool", empty_populated, state.totals.empty_populated_pages);
  findings.expect_equal("populated pages of the pool", static_cast<int64_t>(populated),
                        static_cast<int64_t>(state.totals.populated_pages));
  return findings.result();
}

}  // namespace percpu
