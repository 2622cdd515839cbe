// SPDX-License-Identifier: MIT
//
// One round of balancing as a sequence of steps. The plan decides under the map lock what is next; the runtime drops
// the lock, makes the system calls of that step, takes the lock again and reports. The order of a round:
//
//   1 destroy   all wholly free chunks but one
//   2 reclaim   for each chunk on the to-depopulate list: give its empty populated pages back, the last page first
//     trim      a wholly free chunk whose empty pages exceed the high mark by far: give back what exceeds it
//   3 populate  until the high mark of empty populated pages is reached; creates a chunk where none has pages to give
//   4 destroy   wholly free chunks without populated pages, leaving one wholly free chunk
//
//   lock; BalancePlan plan(core);
//   for (;;) { BalanceStep step = plan.next(); if (step.kind == done) break;
//              unlock; bool ok = carry_out(step); lock; plan.completed(ok) or plan.lost(); }
//   unlock;
//
// What may happen while the lock is dropped for a step, and why it does no harm:
//   destroy_chunk  next() has retired the chunk: it is in no list, so no allocation finds it; it holds no area, so no
//                  free concerns it. A wild handle into it finds no live mark. Its id stays in use until completed(),
//                  so nobody makes a new chunk at addresses that are being given back.
//   depopulate     next() has marked the pages not populated before the lock was dropped: from then on that is the
//                  truth. The chunk is on the to-depopulate list, which no allocation searches, in either context, so
//                  nobody takes or populates those pages before completed(). Areas of the chunk may be freed meanwhile:
//                  that clears bits and can empty more pages, but it moves no isolated chunk, and the pages in hand
//                  held no area. Pages emptied behind the cursor keep the chunk on the list for another pass, at the
//                  end of it.
//                  A chunk that is trimmed stays in the free slot. Atomic allocation does not take pages that are
//                  marked not populated; an area in normal context may, and populates them under the grow lock, that
//                  is after they have been given back.
//   populate       the pages are marked populated in completed() only, if the system call succeeded. Until then they
//                  are unpopulated, so atomic allocation does not take them. An area in normal context may; before it
//                  looks for the pages that it misses it needs the grow lock, and finds them populated, or populates
//                  them itself. The chunk may change its slot or become isolated meanwhile: the pages are counted where
//                  it is then. A sidelined chunk is back in service once pages of it were populated for it.
//   create_chunk   next() has set an id aside; the chunk is in no list before completed() publishes it.
//
// The trim is this library's own: without it a pool that was emptied could keep a whole chunk backed for good.
//
// Locking: next() and completed() are called with the map lock held, and the grow lock is held from next() to
// completed(); both may be dropped between steps.
#ifndef PERCPU_CORE_BALANCE_PLAN_H
#define PERCPU_CORE_BALANCE_PLAN_H

#include <cstdint>

#include "base/ids.h"
#include "core/pool_core.h"

namespace percpu {

struct BalanceStep {
  enum class Kind : uint8_t {
    done,           // the round is over
    destroy_chunk,  // give all memory of `chunk` back; then completed(); then chunk_storage(chunk) may be given back
    depopulate,     // give the pages `runs` back in every unit of `chunk`
    populate,       // back the pages `runs` (one run) in every unit of `chunk`
    create_chunk,   // make the memory of the new chunk `chunk` usable; where that fails, as for destroy_chunk
  };
  // Runs handed out at once, so that the costly part of giving pages back is paid once for them.
  static constexpr uint32_t kMaxRuns = 32;

  Kind kind = Kind::done;
  ChunkId chunk{};
  uint32_t nr_runs = 0;
  PageRun runs[kMaxRuns] = {};
};

class BalancePlan {
 public:
  // What a round is for.
  enum class Goal : uint8_t {
    balance,    // all phases
    give_back,  // memory is short: all but phase 3
  };

  // Starts a round.
  explicit BalancePlan(PoolCore core, Goal goal = Goal::balance) : core_(core), goal_(goal) {}

  // Decides the next step and makes the pool ready for it. Requires: the step before was completed.
  // Returns: the step; done once the round is over, and ever after.
  [[nodiscard]] BalanceStep next();

  // Records how the step that next() returned ended. `succeeded` matters for populate and create_chunk: a failure ends
  // phase 3 (of a populate step nothing is recorded, so pages that came before the failure must be given back or left:
  // they count as not populated). Giving memory back that fails loses memory, not correctness: the pages are not
  // populated as far as the pool knows, and a chunk is gone.
  void completed(bool succeeded);

  // In place of completed(), of a chunk that was to be destroyed or made, and whose addresses belong to somebody else by now.
  void lost();

 private:
  enum class Phase : uint8_t { destroy_free, reclaim, trim, populate, destroy_empty, over };
  static constexpr uint32_t kNoChunk = UINT32_MAX;

  // Each looks for the next step of its phase and writes it to step_. Returns: false where the phase is over.
  bool plan_phase();
  bool plan_destroy(bool unpopulated_only);
  bool plan_reclaim();
  bool plan_trim();
  bool plan_populate();

  void finish_reclaim(ChunkId chunk, bool reserve_is_low);
  uint32_t take_back_pages(ChunkId chunk, uint32_t below_page, uint32_t max_pages);
  void count_pages_wanted();

  PoolCore core_;
  Goal goal_;
  Phase phase_ = Phase::destroy_free;
  BalanceStep step_{};
  uint32_t reclaim_chunk_ = kNoChunk;  // the chunk in hand in phase 2
  uint32_t reclaim_below_ = 0;         // its pages from here on have been visited
  bool pages_wanted_known_ = false;
  uint32_t pages_wanted_ = 0;          // how many phase 3 has still to populate
};

}  // namespace percpu

#endif  // PERCPU_CORE_BALANCE_PLAN_H
