// SPDX-License-Identifier: MIT
//
// A pool's rounds of balance, what wakes them, and its part in a fork.
#include "base/check.h"
#include "runtime/pool.h"
#include "runtime/trace.h"

namespace percpu {
namespace {

// A call does no more than this for others who leave it work meanwhile.
constexpr int kMostRounds = 8;

}  // namespace

// Leaves a note that work is due. Context: any.
void Pool::request(uint32_t due) {
  if (balance_mode_ == BalanceMode::kOff) due &= ~uint32_t{kBalance};
  if (due == kGrace && environment_.grace->lost()) return;  // it would stay due for ever
  // A line that was left in the log is asked for each time: who takes kSay back just now may not see the line otherwise.
  if ((due & kSay) != 0 || (state_.load(std::memory_order_relaxed) & due) != due) state_.fetch_or(due, std::memory_order_seq_cst);
}

// At the end of every call: says what atomic contexts could not say, and sees to the work that is due.
void Pool::after_call(Caller caller) {
  uint32_t due = state_.load(std::memory_order_seq_cst) & kAllDue;
  if ((due & kSay) != 0 && caller == Caller::kMayBlock) {
    state_.fetch_and(~uint32_t{kSay}, std::memory_order_acquire);
    environment_.warnings->write_deferred();
  }
  due &= ~uint32_t{kSay};
  if (due == 0) [[likely]] return;
  Balancer& balancer = *environment_.balancer;
  // Grace periods always need the thread: who calls may be inside a read section.
  if ((due & kGrace) != 0 || balance_mode_ == BalanceMode::kThread) {
    balancer.wake();
    if (caller == Caller::kMayBlock) {
      state_.fetch_and(~uint32_t{kThread}, std::memory_order_relaxed);
      balancer.start_if_wanted();
    }
  }
  if (balance_mode_ == BalanceMode::kOff || caller == Caller::kAtomic) return;
  if (balance_mode_ == BalanceMode::kThread && balancer.serves()) return;
  if (caller == Caller::kMayBlock) {
    for (int rounds = 0; rounds < kMostRounds && balance_due(); rounds++) make_round();
    return;
  }
  // A free by an ordinary caller may wait for locks, one by a signal handler may not, and both come here: if nobody holds
  // a lock of this pool, doing the work is safe for both. Who holds it comes here afterwards, and finds what became due
  // meanwhile: work is noted before the try at the lock, the lock given back before the look at what is due, in an order that all
  // agree on. (What a handler left that interrupted a call on another pool waits for this one's next call, as does what was freed
  // late by somebody who only asked.)
  std::atomic_thread_fence(std::memory_order_seq_cst);
  for (int rounds = 0; rounds < kMostRounds && balance_due() && !inside_map_lock() && grow_lock_.try_lock(); rounds++) {
    run_round();
    grow_lock_.unlock();
  }
}

bool Pool::take_due() {
  if (balance_mode_ != BalanceMode::kThread) return false;
  return (state_.fetch_and(~uint32_t{kBalance}, std::memory_order_acquire) & kBalance) != 0;
}

void Pool::take_over() {
  if (cached()) drain_front_caches();
  if (take_due()) make_round();
  after_call(Caller::kFreeing);
}

void Pool::balance() {
  drain_front_caches();
  make_round();
  after_call(Caller::kMayBlock);
}

void Pool::make_round() {
  environment_.warnings->write_deferred();
  SleepMutexGuard guard(grow_lock_);
  run_round();
}

// ---- rounds --------------------------------------------------------------------------------------------------------

void Pool::run_round() {
  state_.fetch_and(~uint32_t{kBalance}, std::memory_order_acquire);
  const bool filled = run_plan(BalancePlan::Goal::balance);
  lock_map();
  counters_.nr_balance_rounds++;
  unlock_map();
  starved_.store(!filled && core_->wants_populate(), std::memory_order_relaxed);
}

// Executes the steps that the plan proposes. False when a step that needs memory failed.
bool Pool::run_plan(BalancePlan::Goal goal) {
  BalancePlan plan(*core_, goal);
  bool good = true;
  for (;;) {
    lock_map();
    const BalanceStep step = plan.next();
    unlock_map();
    if (step.kind == BalanceStep::Kind::done) return good;
    const Outcome outcome = carry_out(step);
    const bool done = outcome == Outcome::kDone;
    const bool destroys = step.kind == BalanceStep::Kind::destroy_chunk;
    good = good && (done || destroys);
    lock_map();
    if (outcome == Outcome::kLost) {
      plan.lost();
      counters_.nr_chunks_destroyed += destroys ? 1 : 0;
      unlock_map();
      continue;
    }
    plan.completed(done);
    StorageRange storage{};
    switch (step.kind) {
      case BalanceStep::Kind::destroy_chunk:
        counters_.nr_chunks_destroyed++;
        storage = core_->chunk_storage(step.chunk);
        break;
      case BalanceStep::Kind::create_chunk:
        if (done) {
          counters_.nr_chunks_created++;
        } else {
          storage = core_->chunk_storage(step.chunk);
        }
        break;
      case BalanceStep::Kind::populate:
        for (uint32_t i = 0; i < step.nr_runs && done; i++) counters_.nr_pages_populated += step.runs[i].count;
        break;
      case BalanceStep::Kind::depopulate:
        for (uint32_t i = 0; i < step.nr_runs; i++) counters_.nr_pages_depopulated += step.runs[i].count;
        break;
      case BalanceStep::Kind::done:
        break;
    }
    unlock_map();
    memory_.drop_core_pages(storage.offset_bytes, storage.size_bytes);
  }
}

// Makes the system calls of one step. Giving memory back never fails, but addresses may be lost by it.
Pool::Outcome Pool::carry_out(const BalanceStep& step) {
  int result = 0;
  switch (step.kind) {
    case BalanceStep::Kind::destroy_chunk:
      result = memory_.retire_chunk(step.chunk);
      PERCPU_TRACE4(chunk_destroy, name_, step.chunk.value, memory_.handle(step.chunk, {0}), memory_.chunk_bytes());
      if (result == UnitMemory::kLostChunk) return Outcome::kLost;
      kept_unclean_ = result != 0 || kept_unclean_;
      break;
    case BalanceStep::Kind::depopulate:
      for (uint32_t i = 0; i < step.nr_runs; i++) {
        kept_unclean_ = !memory_.depopulate(step.chunk, step.runs[i]) || kept_unclean_;
      }
      break;
    case BalanceStep::Kind::populate:
      for (uint32_t i = 0; i < step.nr_runs; i++) {
        if (memory_.populate(step.chunk, step.runs[i]) != 0) return Outcome::kFailed;
      }
      break;
    case BalanceStep::Kind::create_chunk:
      result = memory_.open_chunk(step.chunk);
      if (result == UnitMemory::kLostChunk) return Outcome::kLost;
      if (result != 0) return Outcome::kFailed;
      PERCPU_TRACE4(chunk_create, name_, step.chunk.value, memory_.handle(step.chunk, {0}), memory_.chunk_bytes());
      break;
    case BalanceStep::Kind::done:
      break;
  }
  return Outcome::kDone;
}

// Memory is short: gives back what is not needed, and takes nothing. CPUs are stopped only for what they hold: a pool that is full
// comes here with every allocation that fails.
void Pool::relieve() {
  if (front_.sums().nr_cached + shelves_.nr_areas() != 0) drain_fenced();
  (void)run_plan(BalancePlan::Goal::give_back);
}

// ---- grace periods -------------------------------------------------------------------------------------------------

bool Pool::grace_waiting() const {
  return grace_batch_.load(std::memory_order_acquire) != 0 || grace_pending_.load(std::memory_order_acquire) != 0;
}

bool Pool::begin_grace_batch() {
  state_.fetch_and(~uint32_t{kGrace}, std::memory_order_acquire);
  lock_map();
  // A batch is there already where the parent of this process forked during its grace period: it waits anew.
  if (grace_batch_.load(std::memory_order_relaxed) == 0) {
    grace_batch_.store(grace_pending_.exchange(0, std::memory_order_acq_rel), std::memory_order_relaxed);
  }
  const bool any = grace_batch_.load(std::memory_order_relaxed) != 0;
  unlock_map();
  return any;
}

void Pool::free_grace_batch() {
  for (;;) {
    lock_map();
    const uint32_t entry = grace_batch_.load(std::memory_order_relaxed);
    if (entry != 0) {
      const Spot spot = spot_of_entry(entry);
      grace_batch_.store(memory_.record(spot.chunk, spot.offset).next, std::memory_order_relaxed);
      uncharge(spot, core_->area_size(spot.chunk, spot.offset));
      release(spot);
      nr_deferred_.fetch_sub(1, std::memory_order_relaxed);
    }
    unlock_map();
    if (entry == 0) break;
  }
  if (grace_pending_.load(std::memory_order_acquire) != 0) request(kGrace);
  after_call(Caller::kFreeing);
}

// ---- fork ----------------------------------------------------------------------------------------------------------

void Pool::fork_stop() {
  grow_lock_.lock();
  if (front_.is_open()) front_.stop();
}

void Pool::fork_prepare() { lock_map(); }

void Pool::fork_parent() {
  unlock_map();
  if (front_.is_open()) front_.start();
  grow_lock_.unlock();
}

// What the parent's balancer had in hand or had been told is due is due in the child.
void Pool::fork_child() {
  state_.fetch_and(~uint32_t{kGrace}, std::memory_order_relaxed);
  if (grace_waiting()) request(kGrace);
  state_.fetch_or(kNoneCached, std::memory_order_relaxed);  // there is no thread that knows of them
  fork_parent();
}

}  // namespace percpu
