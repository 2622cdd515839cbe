// SPDX-License-Identifier: MIT
//
// The phases of a round of balancing. See balance_plan.h.
#include "core/balance_plan.h"

#include <algorithm>

#include "base/check.h"
#include "core/pool_state.h"

namespace percpu {

BalanceStep BalancePlan::next() {
  step_ = {};
  while (phase_ != Phase::over && !plan_phase()) phase_ = static_cast<Phase>(static_cast<uint8_t>(phase_) + 1);
  return step_;
}

bool BalancePlan::plan_phase() {
  switch (phase_) {
    case Phase::destroy_free:
      return plan_destroy(false);
    case Phase::reclaim:
      return plan_reclaim();
    case Phase::trim:
      return plan_trim();
    case Phase::populate:
      return goal_ == Goal::balance && plan_populate();
    case Phase::destroy_empty:
      return plan_destroy(true);
    case Phase::over:
      break;
  }
  return false;
}

// ---- destroying -----------------------------------------------------------------------------------------------------

// Of the wholly free chunks the one freed last is spared: it stands at the front.
bool BalancePlan::plan_destroy(bool unpopulated_only) {
  PoolState& state = *core_.state_;
  const Slots slots = state.slot_lists();
  if (state.slots.free_chunks < 2) return false;
  for (uint32_t chunk = slots.last(state.slots.free()); chunk != IndexList::kNone; chunk = slots.prev(chunk)) {
    const ChunkHead& head = state.heads()[chunk];
    if (head.immutable() || (unpopulated_only && head.populated_pages != 0)) continue;
    core_.retire_chunk(ChunkId{chunk});
    step_.kind = BalanceStep::Kind::destroy_chunk;
    step_.chunk = ChunkId{chunk};
    return true;
  }
  return false;
}

// ---- giving pages back ----------------------------------------------------------------------------------------------

// Adds runs of empty populated pages to the step, from the last page before `below_page` downwards, and marks them not
// populated. Stops when the step is full. Returns: the lowest page that was visited.
uint32_t BalancePlan::take_back_pages(ChunkId chunk, uint32_t below_page, uint32_t max_pages) {
  PoolState& state = *core_.state_;
  AreaMap map = state.map(chunk);
  step_.kind = BalanceStep::Kind::depopulate;
  step_.chunk = chunk;
  uint32_t page = below_page;
  while (page > 0 && max_pages > 0 && step_.nr_runs < BalanceStep::kMaxRuns) {
    const uint32_t last = find_last_one(map.populated(), 0, page);
    if (last == page) return 0;
    page = last;
    if (!map.is_empty(page)) continue;
    Run run{page, 1};
    for (; --max_pages > 0 && page > 0 && map.is_populated(page - 1) && map.is_empty(page - 1); --page)
      run = {page - 1, run.len + 1};
    map.mark_depopulated(run);
    if (!map.head().isolated()) state.add_empty_populated(-int64_t{run.len});
    store_relaxed(&state.totals.populated_pages, state.totals.populated_pages - run.len);
    step_.runs[step_.nr_runs++] = {{run.start}, run.len};
  }
  return page;
}

bool BalancePlan::plan_reclaim() {
  PoolState& state = *core_.state_;
  const Slots slots = state.slot_lists();
  for (;;) {
    const uint32_t chunk = slots.first(state.slots.to_depopulate());
    if (chunk == IndexList::kNone) return false;
    const ChunkHead& head = state.heads()[chunk];
    if (reclaim_chunk_ != chunk) {
      reclaim_chunk_ = chunk;
      reclaim_below_ = head.nr_blocks;
    }
    // The chunk is isolated: the pool's count is that of the others. It does not change while the lock is held.
    const bool reserve_is_low = state.totals.empty_populated_pages < state.shape.empty_high_pages;
    if (!reserve_is_low && head.empty_populated_pages > 0 && reclaim_below_ > 0) {
      reclaim_below_ = take_back_pages(ChunkId{chunk}, reclaim_below_, UINT32_MAX);
      if (step_.nr_runs != 0) return true;
      step_ = {};
    }
    finish_reclaim(ChunkId{chunk}, reserve_is_low);
  }
}

void BalancePlan::finish_reclaim(ChunkId chunk, bool reserve_is_low) {
  PoolState& state = *core_.state_;
  Slots slots = state.slot_lists();
  reclaim_chunk_ = kNoChunk;
  slots.unlink(chunk);
  if (!reserve_is_low && state.head(chunk).empty_populated_pages > 0) {
    // Emptied behind the cursor. It ends: no area is allocated in the chunk as long as it is on this list.
    slots.insert_into(state.slots.to_depopulate(), chunk, Slots::End::back);
  } else if (reserve_is_low || state.map(chunk).wholly_free()) {
    state.reintegrate(chunk);
    slots.insert(chunk, Slots::End::front);
  } else {
    slots.insert_into(state.slots.sidelined(), chunk, Slots::End::back);
  }
}

bool BalancePlan::plan_trim() {
  PoolState& state = *core_.state_;
  const Slots slots = state.slot_lists();
  for (uint32_t chunk = slots.first(state.slots.free()); chunk != IndexList::kNone; chunk = slots.next(chunk)) {
    const ChunkHead& head = state.heads()[chunk];
    const uint32_t pages = state.pages_to_trim(head);
    if (pages == 0) continue;
    (void)take_back_pages(ChunkId{chunk}, head.nr_blocks, pages);
    return true;
  }
  return false;
}

// ---- populating -----------------------------------------------------------------------------------------------------

void BalancePlan::count_pages_wanted() {
  PoolState& state = *core_.state_;
  const int64_t high = state.shape.empty_high_pages;
  const bool failed = load_relaxed(&state.atomic_failed) != 0;
  if (failed) store_relaxed<uint32_t>(&state.atomic_failed, 0);
  const int64_t missing = std::clamp<int64_t>(high - state.totals.empty_populated_pages, 0, high);
  pages_wanted_ = static_cast<uint32_t>(failed ? high : missing);
  pages_wanted_known_ = true;
}

bool BalancePlan::plan_populate() {
  PoolState& state = *core_.state_;
  const Slots slots = state.slot_lists();
  if (!pages_wanted_known_) count_pages_wanted();
  if (pages_wanted_ == 0) return false;
  for (uint32_t slot = slots.first_searched(state.shape.page_size_bytes); slots.next_searched(slot); ++slot) {
    for (uint32_t chunk = slots.first(slot); chunk != IndexList::kNone; chunk = slots.next(chunk)) {
      const ChunkHead& head = state.heads()[chunk];
      const auto missing = state.map(ChunkId{chunk}).next_unpopulated(0, head.nr_blocks);
      if (!missing || head.immutable()) continue;
      step_.kind = BalanceStep::Kind::populate;
      step_.chunk = ChunkId{chunk};
      step_.nr_runs = 1;
      step_.runs[0] = {{missing->start}, std::min(missing->len, pages_wanted_)};
      return true;
    }
  }
  const std::optional<ChunkId> created = core_.begin_chunk();
  if (!created) return false;
  step_.kind = BalanceStep::Kind::create_chunk;
  step_.chunk = *created;
  return true;
}

// ---- after a step ---------------------------------------------------------------------------------------------------

void BalancePlan::completed(bool succeeded) {
  PoolState& state = *core_.state_;
  const BalanceStep step = step_;
  step_ = {};
  switch (step.kind) {
    case BalanceStep::Kind::destroy_chunk:
      core_.remove_chunk(step.chunk);
      break;
    case BalanceStep::Kind::create_chunk:
      if (succeeded)
        core_.publish_chunk(step.chunk);
      else
        core_.abandon_chunk(step.chunk);
      break;
    case BalanceStep::Kind::populate:
      if (!succeeded) break;
      core_.mark_populated(step.chunk, step.runs[0]);
      pages_wanted_ -= step.runs[0].count;
      if (state.head(step.chunk).list == state.slots.sidelined()) {
        Slots slots = state.slot_lists();
        state.reintegrate(step.chunk);
        slots.unlink(step.chunk);
        slots.insert(step.chunk, Slots::End::front);
      }
      break;
    case BalanceStep::Kind::depopulate:
    case BalanceStep::Kind::done:
      break;
  }
  const bool grows = step.kind == BalanceStep::Kind::create_chunk || step.kind == BalanceStep::Kind::populate;
  if (grows && !succeeded) pages_wanted_ = 0;
}

void BalancePlan::lost() {
  core_.lose_chunk(step_.chunk);
  if (step_.kind == BalanceStep::Kind::create_chunk) pages_wanted_ = 0;
  step_ = {};
}

}  // namespace percpu
