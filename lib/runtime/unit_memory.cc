// SPDX-License-Identifier: MIT
#include "runtime/unit_memory.h"

#include <cerrno>
#include <cstring>
#include <new>

#include "base/bits.h"
#include "base/check.h"

// AddressSanitizer's, where the program has it: what is reachable from these addresses is not leaked. It looks at what can be read.
extern "C" {
__attribute__((weak)) void __lsan_register_root_region(const void* start, size_t size_bytes);
__attribute__((weak)) void __lsan_unregister_root_region(const void* start, size_t size_bytes);
}

namespace percpu {
namespace {

// Writes only what differs, so that memory that was never touched stays the kernel's shared zero page.
void write_if_different(char* at, const char* image, size_t size_bytes) {
  constexpr size_t kStep = 256;
  for (size_t done = 0; done < size_bytes; done += kStep) {
    const size_t n = size_bytes - done < kStep ? size_bytes - done : kStep;
    if (std::memcmp(at + done, image + done, n) != 0) std::memcpy(at + done, image + done, n);
  }
}

inline char* copy_at(uintptr_t handle, uintptr_t offset) { return reinterpret_cast<char*>(handle + offset); }

}  // namespace

// ---- making and unmaking -----------------------------------------------------------------------------------------

// There are at most as many groups as CPUs, so at most twice as many copies; `offset` has an entry for each, and so have
// `hot`, `cold` and `extra` together. A span holds a unit at least: a CPU's, or an extra one.
size_t UnitMemory::largest_table_bytes(uint32_t nr_cpu_ids) {
  return 2 * nr_cpu_ids * (2 * sizeof(uintptr_t) + sizeof(Span)) + alignof(Span);
}

int UnitMemory::create(const System& system, const Plan& plan, void* tables) {
  const std::optional<Placement> placement = place(*plan.layout, plan.max_chunks);
  if (!placement) return -ENOMEM;
  system_ = &system;
  layout_ = plan.layout;
  placement_ = *placement;
  page_size_ = layout_->page_size_bytes();
  nr_groups_ = layout_->nr_groups();
  nr_copies_ = layout_->nr_copies();
  handles_bytes_ = placement_.max_chunks * placement_.stride_bytes;
  stride_inverse_ = UINT64_MAX / (placement_.stride_bytes / kMinPageBytes) + 1;
  const uint64_t core_bytes = round_up<uint64_t>(plan.core_bytes, page_size_);
  const uint64_t records_bytes =
      placement_.max_chunks * round_up(placement_.unit_size_bytes / kFragmentBytes * sizeof(Record), page_size_);
  const uint64_t units_bytes = placement_.reservation_bytes();
  int result = reserve(system, units_bytes + core_bytes + records_bytes, layout_->atom_size_bytes(), &reservation_);
  if (result != 0) return result;
  placement_.base = reservation_.start;
  core_ = {reservation_.start + units_bytes, core_bytes};
  records_ = reinterpret_cast<Record*>(core_.end());
  result = open_range(system, core_);
  if (result != 0) {
    unreserve_all();
    return result;
  }
  offset_ = static_cast<uintptr_t*>(tables);
  fill_tables(plan);
  fill_spans(plan);
  bind_windows();
  if (__lsan_register_root_region != nullptr)
    __lsan_register_root_region(reinterpret_cast<void*>(placement_.base), placement_.reservation_bytes());
  return 0;
}

void UnitMemory::destroy() {
  if (__lsan_unregister_root_region != nullptr)
    __lsan_unregister_root_region(reinterpret_cast<void*>(placement_.base), placement_.reservation_bytes());
  unreserve_all();
}

// Where addresses of chunks were lost, all of the chunks' stay as they are: others' mappings may lie there.
void UnitMemory::unreserve_all() {
  if (lost_) reservation_ = {core_.start, reservation_.end() - core_.start};
  const int result = unreserve(*system_, reservation_);
  if (result != 0) report("the address space of a pool could not be given back (error %d)", -result);
  reservation_ = {};
}

void UnitMemory::fill_tables(const Plan& plan) {
  const uint32_t nr_cpu_ids = layout_->nr_cpu_ids();
  const auto is_hot = [&plan](CpuId cpu) { return !plan.bare && plan.topology->allowed.has(cpu); };
  hot_ = offset_ + nr_copies_;
  nr_hot_ = 0;
  for (uint32_t cpu = 0; cpu < nr_cpu_ids; cpu++) {
    const CpuId id{static_cast<int32_t>(cpu)};
    const UnitId unit = layout_->unit_of_cpu(id);
    offset_[cpu] = unit.valid() ? layout_->unit_offset_bytes(unit, placement_.window_bytes) : 0;
    if (unit.valid() && is_hot(id)) hot_[nr_hot_++] = offset_[cpu];
  }
  cold_ = hot_ + nr_hot_;
  nr_cold_ = 0;
  for (uint32_t cpu = 0; cpu < nr_cpu_ids; cpu++) {
    const CpuId id{static_cast<int32_t>(cpu)};
    if (offset_[cpu] != 0 && !is_hot(id)) cold_[nr_cold_++] = offset_[cpu];
  }
  extra_ = cold_ + nr_cold_;
  nr_real_copies_ = nr_hot_ + nr_cold_ + nr_groups_;
  chunk_bytes_ = 0;
  for (uint32_t g = 0; g < nr_groups_; g++) {
    const GroupId group{static_cast<int32_t>(g)};
    extra_[g] = layout_->unit_offset_bytes(layout_->extra_unit(group), placement_.window_bytes);
    offset_[nr_cpu_ids + g] = extra_[g];
    chunk_bytes_ += group_range(g, ChunkId{0}).size_bytes;
  }
}

// Runs of units whose memory should come from the same node. Padding joins whatever is before it.
void UnitMemory::fill_spans(const Plan& plan) {
  const auto after = reinterpret_cast<uintptr_t>(offset_ + 2 * nr_copies_);
  span_ = reinterpret_cast<Span*>(round_up(after, alignof(Span)));
  nr_spans_ = 0;
  if (plan.topology->one_memory_node()) return;
  const size_t unit_size = placement_.unit_size_bytes;
  for (uint32_t g = 0; g < nr_groups_; g++) {
    const Group& group = layout_->group(GroupId{static_cast<int32_t>(g)});
    Span* open = nullptr;
    for (uint32_t i = 0; i < group.nr_units_with_extra(); i++) {
      const UnitId unit{group.first_unit.value + static_cast<int32_t>(i)};
      const CpuId cpu = layout_->placement_cpu(unit);
      const NodeId node = cpu.valid() ? plan.topology->memory_node_of_cpu(cpu) : (open != nullptr ? open->node : kNoNode);
      if (open == nullptr || open->node != node) {
        open = &span_[nr_spans_++];
        *open = {g, node, i * unit_size, 0};
      }
      open->size_bytes += unit_size;
    }
  }
}

// The node of a group that lies on one; kNoNode otherwise.
NodeId UnitMemory::node_of_group(uint32_t group) const {
  NodeId node = kNoNode;
  for (uint32_t i = 0; i < nr_spans_; i++) {
    if (span_[i].group != group) continue;
    if (node.valid() && node != span_[i].node) return kNoNode;
    node = span_[i].node;
  }
  return node;
}

// Groups on one node are bound once, as a whole, and cost one mapping.
void UnitMemory::bind_windows() {
  for (uint32_t g = 0; g < nr_groups_; g++) {
    const NodeId node = node_of_group(g);
    if (!node.valid()) continue;
    const GroupId group{static_cast<int32_t>(g)};
    const int result = bind(*system_, {placement_.group_base(group), placement_.window_bytes}, node);
    if (result != 0) bind_error_ = result;
  }
}

// Units of groups on several nodes are bound as their chunk is opened.
void UnitMemory::bind_spans(ChunkId chunk) {
  for (uint32_t i = 0; i < nr_spans_; i++) {
    const Span& span = span_[i];
    if (node_of_group(span.group).valid()) continue;
    const uintptr_t start = group_range(span.group, chunk).start + span.offset_bytes;
    const int result = bind(*system_, {start, span.size_bytes}, span.node);
    if (result != 0) bind_error_ = result;
  }
}

PageRange UnitMemory::group_range(uint32_t group, ChunkId chunk) const {
  const GroupId id{static_cast<int32_t>(group)};
  return {placement_.area(id, chunk), layout_->group(id).nr_units_with_extra() * placement_.unit_size_bytes};
}

PageRange UnitMemory::record_range(ChunkId chunk) const {
  const size_t size_bytes = placement_.unit_size_bytes / kFragmentBytes * sizeof(Record);
  return {reinterpret_cast<uintptr_t>(&record(chunk, AreaOffset{0})), size_bytes};
}

PageRange UnitMemory::run_in_copy(ChunkId chunk, PageRun run, uintptr_t copy_offset) const {
  const AreaOffset offset{static_cast<uint32_t>(run.first.value * page_size_)};
  return {handle(chunk, offset) + copy_offset, run.count * page_size_};
}

// ---- chunks --------------------------------------------------------------------------------------------------------

int UnitMemory::open_chunk(ChunkId chunk) {
  int result = open_range(*system_, record_range(chunk));
  for (uint32_t g = 0; g < nr_groups_ && result == 0; g++) {
    result = open_dumped(*system_, group_range(g, chunk));
  }
  if (result != 0) {
    const int retired = retire_chunk(chunk);  // nothing was written there yet
    return retired == kLostChunk ? kLostChunk : result;
  }
  bind_spans(chunk);
  return 0;
}

int UnitMemory::retire_chunk(ChunkId chunk) {
  int left = 0;
  for (uint32_t g = 0; g < nr_groups_; g++) {
    const int result = retire(*system_, group_range(g, chunk), node_of_group(g));
    if (result >= 0) continue;
    report("the memory of chunk %u could not be given back (error %d)", chunk.value, -result);
    if (result == -ENOMEM) lost_ = true;
    if (left != kLostChunk) left = result == -ENOMEM ? kLostChunk : -EBUSY;
  }
  // Kept accessible: a wild handle is looked up without a lock, and must find no live area rather than fault. What is left
  // in records does no harm: an area's domain is 0 again when the area is freed.
  (void)percpu::depopulate(*system_, record_range(chunk));
  return left;
}

int UnitMemory::populate(ChunkId chunk, PageRun run) {
  for (uint32_t i = 0; i < nr_hot_; i++) {
    const int result = percpu::populate(*system_, run_in_copy(chunk, run, hot_[i]));
    if (result != 0) return result;
  }
  return 0;
}

bool UnitMemory::depopulate(ChunkId chunk, PageRun run) {
  bool good = true;
  for (uint32_t copy = 0; copy < nr_copies_; copy++) {
    if (offset_[copy] == 0) continue;
    const int result = percpu::depopulate(*system_, run_in_copy(chunk, run, offset_[copy]));
    if (result != 0) report("pages of chunk %u could not be given back (error %d)", chunk.value, -result);
    good = good && result == 0;
  }
  return good;
}

int UnitMemory::open_first_chunk() {
  const ChunkId first{0};
  const int result = open_chunk(first);
  if (result != 0) return result;
  if (layout_->first_chunk() == FirstChunk::kEmbed) return populate_huge();
  const auto pages = static_cast<uint32_t>(layout_->parts_size_bytes() / page_size_);
  return populate(first, {PageIndex{0}, pages});
}

// Whole allocations in which a hot copy lies; padding shares their huge pages and is not backed by itself.
int UnitMemory::populate_huge() {
  const size_t allocation = layout_->allocation_size_bytes();
  for (uint32_t g = 0; g < nr_groups_; g++) {
    const PageRange range = group_range(g, ChunkId{0});
    const size_t huge_bytes = layout_->group(GroupId{static_cast<int32_t>(g)}).nr_units * placement_.unit_size_bytes;
    (void)advise_huge(*system_, {range.start, huge_bytes}, true);  // small pages do as well
    for (uintptr_t at = range.start; at < range.start + huge_bytes; at += allocation) {
      bool wanted = false;
      for (uint32_t i = 0; i < nr_hot_; i++) {
        const uintptr_t copy = placement_.base + hot_[i];
        wanted = wanted || (copy >= at && copy < at + allocation);
      }
      if (!wanted) continue;
      const int result = percpu::populate(*system_, {at, allocation});
      if (result != 0) return result;
    }
  }
  return 0;
}

void UnitMemory::drop_core_pages(uint64_t offset_bytes, uint64_t size_bytes) {
  if (size_bytes == 0 || percpu::depopulate(*system_, {core_.start + offset_bytes, size_bytes}) == 0) return;
  std::memset(reinterpret_cast<void*>(core_.start + offset_bytes), 0, size_bytes);
}

// ---- contents ------------------------------------------------------------------------------------------------------

void UnitMemory::zero(uintptr_t handle, size_t size_bytes) const {
  if (size_bytes <= kSmallBytes) return zero_small(handle, size_bytes);
  const Stretch one{handle, size_bytes};
  zero(&one, 1);
}

void UnitMemory::zero(const Stretch* stretches, uint32_t count) const {
  for (uint32_t i = 0; i < nr_real_copies(); i++) {
    for (uint32_t s = 0; s < count; s++) {
      char* at = copy_at(stretches[s].handle, hot_[i]);
      if (i < nr_hot_ && stretches[s].size_bytes > kSmallBytes) {
        std::memset(at, 0, stretches[s].size_bytes);
      } else {
        zero_if_not(at, stretches[s].size_bytes);
      }
    }
  }
}

void UnitMemory::write_copies(uintptr_t handle, const void* image, size_t size_bytes) const {
  const char* from = static_cast<const char*>(image);
  for (uint32_t i = 0; i < nr_hot_; i++) write_if_different(copy_at(handle, hot_[i]), from, size_bytes);
  for (uint32_t i = 0; i < nr_cold_; i++) write_if_different(copy_at(handle, cold_[i]), from, size_bytes);
  const size_t words_bytes = round_down(size_bytes, sizeof(uint32_t));
  for (uint32_t i = 0; i < nr_groups_; i++) {
    zero_if_not(copy_at(handle, extra_[i]), words_bytes);
    for (size_t j = words_bytes; j < size_bytes; j++) copy_at(handle, extra_[i])[j] = 0;
  }
}

bool UnitMemory::locate(uintptr_t address, Spot* spot) const {
  if (locate_handle(address, spot)) return true;
  const std::optional<AddressPlace> place = find_address(*layout_, placement_, address);
  if (!place || layout_->is_padding(place->unit)) return false;
  spot->chunk = place->chunk;
  spot->offset = {static_cast<uint32_t>(place->offset_bytes)};
  const CpuId cpu = layout_->cpu_of_unit(place->unit);
  spot->copy = cpu.valid() ? static_cast<uint32_t>(cpu.value) : nr_cpu_ids() + static_cast<uint32_t>(place->group.value);
  return true;
}

size_t UnitMemory::resident_core(uint64_t offset_bytes, uint64_t size_bytes) const {
  size_t pages = 0;
  return resident_pages(*system_, {core_.start + offset_bytes, size_bytes}, &pages) == 0 ? pages * page_size_ : 0;
}

size_t UnitMemory::resident_records(ChunkId chunk) const {
  size_t pages = 0;
  return resident_pages(*system_, record_range(chunk), &pages) == 0 ? pages * page_size_ : 0;
}

}  // namespace percpu
