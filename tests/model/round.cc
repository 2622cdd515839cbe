// SPDX-License-Identifier: MIT
#include "model/round.h"

#include <algorithm>
#include <bit>
#include <cstdio>

namespace percpu::model {

PoolShape choose_shape(Choices& choices) {
  PoolShape shape;
  shape.page_size_bytes = choices.one_in(5) ? 16384 : 4096;
  const uint32_t pages = choices.one_in(4) ? 1 + choices.below(8) : 4 + choices.below(14);
  shape.unit_size_bytes = pages * shape.page_size_bytes;
  shape.max_chunks = 1 + choices.below(9);
  shape.static_bytes = choices.one_in(3) ? 0 : choices.below(shape.unit_size_bytes / 3);
  shape.reserved_bytes = choices.one_in(3) ? 0 : choices.below(shape.unit_size_bytes / 3) & ~3u;
  // The parts' sum is whole pages, but for a unit that has less to give.
  const uint32_t taken = shape.static_bytes + shape.reserved_bytes;
  shape.dynamic_bytes = choices.below(shape.unit_size_bytes - taken + 1);
  shape.dynamic_bytes += (shape.page_size_bytes - (taken + shape.dynamic_bytes) % shape.page_size_bytes) %
                         shape.page_size_bytes;
  shape.empty_low_pages = choices.below(3);
  shape.empty_high_pages = shape.empty_low_pages + choices.below(4);
  return shape;
}

void print_shape(const PoolShape& shape) {
  std::printf("unit %u, page %u, chunks %u, static %u, reserved %u, dynamic %u, marks %u %u\n", shape.unit_size_bytes,
              shape.page_size_bytes, shape.max_chunks, shape.static_bytes, shape.reserved_bytes, shape.dynamic_bytes,
              shape.empty_low_pages, shape.empty_high_pages);
}

uint32_t Round::random_size() {
  const uint32_t unit = shape_.unit_size_bytes;
  switch (random_.below(10)) {
    case 0:
      return 4 * (1 + random_.below(unit / 4));
    case 1:
    case 2:
      return 4 * (1 + random_.below(std::min(unit, 2 * shape_.page_size_bytes) / 4));
    case 3:
      return random_.one_in(20) ? unit : shape_.page_size_bytes;
    case 4:
    case 5:
      return 4 * (1 + random_.below(256));  // at most 1 KiB, so it fits any unit
    case 6:
      return 8;
    default:
      return 4 * (1 + random_.below(16));
  }
}

uint32_t Round::random_align() {
  if (!random_.one_in(3)) return 4;
  const uint32_t exponents = static_cast<uint32_t>(std::countr_zero(shape_.page_size_bytes)) - 1;
  return 4u << random_.below(exponents);
}

// Compares the blocks that an area touches, its chunk, and the pool's count.
bool Round::compare(const Area& area) {
  const bool reserved = twin_.in_reserved(area);
  const uint32_t first = area.offset.bytes / shape_.page_size_bytes;
  const uint32_t last = (area.offset.bytes + area.size_bytes - 1) / shape_.page_size_bytes;
  return fine(twin_.compare_touched(area.chunk, reserved, first, last + 1)) &&
         expect(core_.totals().empty_populated_pages == twin_.empty_populated(), "the pool's empty populated pages");
}

bool Round::took(const Area& area, Context context, Region region) {
  return fine(twin_.took(area, context, region)) && compare(area) &&
         expect(core_.area_size(area.chunk, area.offset) == area.size_bytes, "the size of a new area") &&
         expect(core_.classify(area.chunk, area.offset).kind == Finding::Kind::live_start, "what a new area is");
}

bool Round::allocate(Context context, Region region) {
  const uint32_t size = random_size();
  const uint32_t align = random_align();
  const bool dynamic = region == Region::dynamic;
  const Reference::Forecast forecast =
      dynamic ? twin_.forecast(size / 4, context) : Reference::Forecast{};
  std::vector<uint32_t> slots;
  for (auto chunk = core_.next_chunk({0}); chunk; chunk = core_.next_chunk({chunk->value + 1}))
    slots.resize(chunk->value + 1), slots[chunk->value] = core_.chunk_stats(*chunk).slot;
  std::optional<Area> area = core_.allocate(size, align, context, region);
  if (!area) {
    if (dynamic && align == 4 && !expect(!forecast.must_fit, "an allocation that fits failed")) return false;
    if (dynamic && context == Context::atomic && !expect(core_.wants_populate(), "a forgotten atomic failure"))
      return false;
    return !dynamic || context == Context::atomic || random_.one_in(2) || create_chunk();
  }
  if (!expect(area->size_bytes == size && area->offset.bytes % align == 0, "an area of another size or alignment"))
    return false;
  if (dynamic && align == 4 &&
      !expect(slots[area->chunk.value] <= forecast.lowest_slot, "an area from a chunk that was not the fullest"))
    return false;
  if (!took(*area, context, region)) return false;
  (context == Context::normal && dynamic ? waiting_ : live_).push_back(*area);
  return true;
}

// Populates the next run of an area that waits, or fails to.
bool Round::populate_next(size_t index, bool fails) {
  const Area area = waiting_[index];
  const std::optional<PageRun> run = core_.next_unpopulated_run(area);
  if (run && !fails) {
    core_.mark_populated(area.chunk, *run);
    return fine(twin_.populated(area.chunk, *run)) && compare(area);
  }
  waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(index));
  if (!run) {
    live_.push_back(area);
    return true;
  }
  return expect(core_.clear_live(area.chunk, area.offset), "the live mark of an area that waits") && release(area);
}

bool Round::free_random() {
  if (live_.empty()) return true;
  const size_t index = random_.below(static_cast<uint32_t>(live_.size()));
  const Area area = live_[index];
  live_[index] = live_.back();
  live_.pop_back();
  if (!expect(core_.clear_live(area.chunk, area.offset), "the live mark of a live area") ||
      !expect(!core_.clear_live(area.chunk, area.offset), "a live mark after a free"))
    return false;
  if (random_.one_in(4)) {
    queued_.push_back(area);
    twin_.queued(area);
    const Finding finding = core_.classify(area.chunk, area.offset);
    return expect(finding.kind == Finding::Kind::already_freed, "what a queued area is");
  }
  return release(area);
}

bool Round::release(const Area& area) {
  const Released released = core_.release(area.chunk, area.offset);
  if (!fine(twin_.gave(area, released)) || !compare(area)) return false;
  if (released.isolated && !expect(released.wake_balancer, "an isolated chunk that wakes nobody")) return false;
  return expect(core_.classify(area.chunk, area.offset).kind == Finding::Kind::already_freed, "what a freed area is");
}

bool Round::ask_about_random_offset() {
  if (live_.empty()) return true;
  const Area area = live_[random_.below(static_cast<uint32_t>(live_.size()))];
  const AreaOffset inside{area.offset.bytes + random_.below(area.size_bytes)};
  const Finding finding = core_.classify(area.chunk, inside);
  const auto kind = inside == area.offset ? Finding::Kind::live_start : Finding::Kind::inside_live;
  const auto view = core_.area_containing(area.chunk, inside);
  return expect(finding.kind == kind && finding.start == area.offset, "what an offset inside an area is") &&
         expect(view && view->start == area.offset && view->size_bytes == area.size_bytes && view->live,
                "the area around an offset") &&
         expect(inside == area.offset || !core_.clear_live(area.chunk, inside), "a live mark inside an area");
}

bool Round::create_chunk() {
  if (step_.kind != BalanceStep::Kind::done) return true;  // the alloc mutex is taken
  const std::optional<ChunkId> chunk = core_.begin_chunk();
  if (!chunk) return expect(twin_.nr_chunks() == shape_.max_chunks, "a chunk refused below the maximum");
  if (!fine(twin_.begun(*chunk)) || !fine(twin_.compare_chunk(*chunk))) return false;
  if (random_.one_in(8)) {
    core_.abandon_chunk(*chunk);
    twin_.removed(*chunk);
    return expect(!core_.chunk_exists(*chunk), "an abandoned chunk");
  }
  core_.publish_chunk(*chunk);
  twin_.published(*chunk);
  return fine(twin_.compare_chunk(*chunk));
}

// Starts the next step of a round of balancing; the state between its start and its end is one that others see.
bool Round::balance_step() {
  if (step_.kind != BalanceStep::Kind::done) return finish_balance_step();
  if (!plan_) plan_.emplace(core_, random_.one_in(10) ? BalancePlan::Goal::give_back : BalancePlan::Goal::balance);
  const bool low = core_.totals().empty_populated_pages < shape_.empty_high_pages;
  step_ = plan_->next();
  if (!fine(twin_.follow_reintegration(low))) return false;
  switch (step_.kind) {
    case BalanceStep::Kind::done:
      plan_.reset();
      return true;
    case BalanceStep::Kind::destroy_chunk:
      if (!fine(twin_.retired(step_.chunk))) return false;
      break;
    case BalanceStep::Kind::depopulate:
      for (uint32_t i = 0; i < step_.nr_runs; ++i)
        if (!fine(twin_.depopulated(step_.chunk, step_.runs[i]))) return false;
      break;
    case BalanceStep::Kind::create_chunk:
      if (!fine(twin_.begun(step_.chunk))) return false;
      break;
    case BalanceStep::Kind::populate:
      break;
  }
  return fine(twin_.compare_chunk(step_.chunk));
}

bool Round::finish_balance_step() {
  const bool succeeds = !random_.one_in(6);
  const BalanceStep step = step_;
  step_ = {};
  plan_->completed(succeeds);
  switch (step.kind) {
    case BalanceStep::Kind::destroy_chunk:
      twin_.removed(step.chunk);
      if (random_.one_in(2)) {  // the storage that is not needed any more reads as zero then
        const StorageRange range = core_.chunk_storage(step.chunk);
        if (range.size_bytes != 0)
          madvise(static_cast<char*>(storage_) + range.offset_bytes, range.size_bytes, MADV_DONTNEED);
      }
      return expect(!core_.chunk_exists(step.chunk), "a destroyed chunk");
    case BalanceStep::Kind::create_chunk:
      if (!succeeds) {
        twin_.removed(step.chunk);
        return true;
      }
      twin_.published(step.chunk);
      break;
    case BalanceStep::Kind::populate:
      if (succeeds && !fine(twin_.populated(step.chunk, step.runs[0]))) return false;
      if (succeeds && !fine(twin_.follow_reintegration(true))) return false;
      break;
    case BalanceStep::Kind::depopulate:
    case BalanceStep::Kind::done:
      break;
  }
  return fine(twin_.compare_chunk(step.chunk));
}

bool Round::step() {
  if (random_.one_in(3000)) mood_ = 20 + random_.below(60);
  const bool balancing = step_.kind != BalanceStep::Kind::done;
  const uint32_t what = random_.below(1000);
  if (what < 60) return balance_step();
  if (what < 70) return ask_about_random_offset();
  if (what < 100 && !queued_.empty()) {
    const Area area = queued_.back();
    queued_.pop_back();
    return release(area);
  }
  // The alloc mutex is free between the steps of a round.
  if (what < 300 && !waiting_.empty() && !balancing)
    return populate_next(random_.below(static_cast<uint32_t>(waiting_.size())), random_.one_in(12));
  if (random_.below(100) >= mood_) return free_random();
  if (random_.one_in(40)) return allocate(random_.one_in(2) ? Context::atomic : Context::normal, Region::reserved);
  return allocate(random_.one_in(3) ? Context::atomic : Context::normal, Region::dynamic);
}

bool Round::wind_down() {
  while (step_.kind != BalanceStep::Kind::done)
    if (!finish_balance_step()) return false;
  while (!waiting_.empty())
    if (!populate_next(waiting_.size() - 1, false)) return false;
  while (!queued_.empty()) {
    const Area area = queued_.back();
    queued_.pop_back();
    if (!release(area)) return false;
  }
  while (!live_.empty())
    if (!free_random()) return false;
  while (!queued_.empty()) {
    const Area area = queued_.back();
    queued_.pop_back();
    if (!release(area)) return false;
  }
  if (!compare_all()) return false;
  // The first round populates more where an atomic allocation had failed, the second gives that back.
  for (int round = 0; round < 3; ++round) {
    plan_.emplace(core_);
    do {
      if (!balance_step() || (step_.kind != BalanceStep::Kind::done && !finish_balance_step())) return false;
    } while (plan_);
  }
  // One wholly free chunk may stay, and as many more as the reserve of pages needs. The first chunk's pages stay.
  const PoolTotals totals = core_.totals();
  const uint32_t pages = shape_.unit_size_bytes / shape_.page_size_bytes;
  const int64_t first = core_.chunk_stats(ChunkId{0}).empty_populated_pages;
  const int64_t spare = std::min<int64_t>(pages / 4, 4 * int64_t{shape_.empty_high_pages});
  return compare_all() &&
         expect(totals.free_chunks <= 1 + shape_.empty_high_pages / pages && totals.chunks == totals.free_chunks + 1,
                "chunks left after freeing everything") &&
         expect(totals.empty_populated_pages <= first + 2 * int64_t{shape_.empty_high_pages} + spare,
                "pages left after freeing everything");
}

}  // namespace percpu::model
