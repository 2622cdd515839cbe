// SPDX-License-Identifier: MIT
#include "core/layout.h"

#include <new>

#include "base/bits.h"

namespace percpu {

namespace {

// Larger sizes would overflow the address arithmetic with the most CPUs there can be; nobody has that much memory.
constexpr size_t kMaxSizeBytes = size_t{1} << 40;

constexpr size_t kStorageAlignBytes = 64;

// Where the tables lie, for as many groups and units as these CPUs may need at most: each CPU a group of its own, with an
// extra unit, and padding for a third of them.
struct TableOffsets {
  size_t groups;
  size_t units_of_cpus;
  size_t cpus_of_units;
  size_t end;
};

TableOffsets table_offsets(const CpuMask& possible) {
  size_t nr_cpus = possible.count();
  size_t nr_cpu_ids = possible.empty() ? 0 : possible.last().index() + 1;
  size_t most_units = nr_cpus + nr_cpus / 3 + nr_cpus;
  TableOffsets at;
  at.groups = round_up(sizeof(Layout), alignof(Group));
  at.units_of_cpus = at.groups + nr_cpus * sizeof(Group);
  at.cpus_of_units = at.units_of_cpus + nr_cpu_ids * sizeof(UnitId);
  at.end = round_up(at.cpus_of_units + most_units * sizeof(CpuId), kStorageAlignBytes);
  return at;
}

LayoutProblem check_input(const LayoutInput& input, size_t storage_bytes) {
  if (input.possible->empty()) return {"no CPU is possible", 1, 0};
  size_t needed = layout_storage_bytes(*input.possible);
  if (storage_bytes < needed) return {"too little storage for the layout", needed, storage_bytes};
  if (!is_power_of_two(input.page_size_bytes))
    return {"the page size must be a power of two", 4096, input.page_size_bytes};
  bool needs_huge = input.first_chunk != FirstChunk::kPage;
  if (needs_huge && (input.huge_page_size_bytes == 0 || input.huge_page_size_bytes % input.page_size_bytes != 0))
    return {"the huge page size must be whole pages", input.page_size_bytes, input.huge_page_size_bytes};
  const size_t sizes[] = {input.static_size_bytes,   input.reserved_size_bytes, input.dynamic_size_bytes,
                          input.min_unit_size_bytes, input.page_size_bytes,     input.huge_page_size_bytes};
  for (size_t size : sizes) {
    if (size > kMaxSizeBytes) return {"a size is too large", kMaxSizeBytes, size};
  }
  return {};
}

}  // namespace

// Fills in one Layout, in the order of its functions. Friend of Layout, which is constant for everybody else.
class LayoutBuilder {
 public:
  LayoutBuilder(const LayoutInput& input, void* storage)
      : input_(input), layout_(new (storage) Layout()), at_(table_offsets(*input.possible)) {
    layout_->groups_at_ = static_cast<uint32_t>(at_.groups);
    layout_->units_of_cpus_at_ = static_cast<uint32_t>(at_.units_of_cpus);
    layout_->cpus_of_units_at_ = static_cast<uint32_t>(at_.cpus_of_units);
  }

  Layout* build(FirstChunk how) {
    set_sizes(how);
    find_groups();
    choose_units_per_allocation();
    number_units();
    return layout_;
  }

 private:
  Group* groups() { return layout_->table<Group>(layout_->groups_at_); }
  UnitId* units_of_cpus() { return layout_->table<UnitId>(layout_->units_of_cpus_at_); }
  CpuId* cpus_of_units() { return layout_->table<CpuId>(layout_->cpus_of_units_at_); }

  void set_sizes(FirstChunk how) {
    layout_->first_chunk_ = how;
    layout_->page_size_ = input_.page_size_bytes;
    layout_->atom_size_ = how == FirstChunk::kEmbed ? input_.huge_page_size_bytes : input_.page_size_bytes;
    layout_->static_size_ = input_.static_size_bytes;
    layout_->reserved_size_ = input_.reserved_size_bytes;
    size_t sum = input_.static_size_bytes + input_.reserved_size_bytes + input_.dynamic_size_bytes;
    size_t surplus = round_up(sum, input_.page_size_bytes) - sum;
    layout_->dynamic_size_ = input_.dynamic_size_bytes + surplus;
    min_unit_size_ = input_.min_unit_size_bytes > sum + surplus ? input_.min_unit_size_bytes : sum + surplus;
    if (min_unit_size_ == 0) min_unit_size_ = input_.page_size_bytes;
    layout_->allocation_size_ = round_up_to_multiple(min_unit_size_, layout_->atom_size_);
  }

  // Whether they are on one node.
  bool near(CpuId a, CpuId b) const {
    if (input_.distance == nullptr) return true;
    return input_.distance(input_.distance_context, a, b) <= kLocalCpuDistance &&
           input_.distance(input_.distance_context, b, a) <= kLocalCpuDistance;
  }

  // Whether they are of one group.
  bool local(CpuId a, CpuId b) const { return layout_->first_chunk_ == FirstChunk::kPage || near(a, b); }

  // Leaves the number of its group with each CPU, where its unit will be written later.
  void find_groups() {
    const CpuMask& possible = *input_.possible;
    UnitId* group_of = units_of_cpus();
    layout_->nr_cpus_ = static_cast<uint32_t>(possible.count());
    layout_->nr_cpu_ids_ = static_cast<uint32_t>(possible.last().index()) + 1;
    layout_->nr_groups_ = 0;
    for (uint32_t cpu = 0; cpu < layout_->nr_cpu_ids_; ++cpu) group_of[cpu] = UnitId{};
    for (CpuId opener = possible.first(); opener.valid(); opener = possible.after(opener)) {
      if (group_of[opener.index()].valid()) continue;
      Group* group = new (groups() + layout_->nr_groups_) Group();
      for (CpuId cpu = opener; cpu.valid(); cpu = possible.after(cpu)) {
        if (group_of[cpu.index()].valid() || (cpu != opener && !local(opener, cpu))) continue;
        group_of[cpu.index()] = UnitId{static_cast<int32_t>(layout_->nr_groups_)};
        ++group->nr_cpus;
      }
      ++layout_->nr_groups_;
    }
  }

  // What a number of units per allocation costs.
  struct Cost {
    uint32_t allocations = 0;
    uint32_t padding = 0;
  };
  Cost cost_of(uint32_t units_per_allocation) {
    Cost cost;
    for (uint32_t g = 0; g < layout_->nr_groups_; ++g) {
      uint32_t nr_cpus = groups()[g].nr_cpus;
      uint32_t allocations = (nr_cpus + units_per_allocation - 1) / units_per_allocation;
      cost.allocations += allocations;
      cost.padding += allocations * units_per_allocation - nr_cpus;
    }
    return cost;
  }

  // The largest number of units that neither pads too much nor, smaller ones being tried next, is beaten.
  void choose_units_per_allocation() {
    const size_t allocation = layout_->allocation_size_;
    uint32_t fewest_allocations = UINT32_MAX;
    // More units than CPUs in one allocation would be padding; the bound keeps the arithmetic within 32 bits.
    size_t largest = allocation / min_unit_size_;
    if (largest > 2 * kMaxCpus) largest = 2 * kMaxCpus;
    for (uint32_t upa = static_cast<uint32_t>(largest); upa > 0; --upa) {
      if (allocation % upa != 0 || allocation / upa % layout_->page_size_ != 0) continue;
      Cost cost = cost_of(upa);
      if (cost.padding > layout_->nr_cpus_ / 3) continue;
      if (cost.allocations > fewest_allocations) break;
      fewest_allocations = cost.allocations;
      layout_->units_per_allocation_ = upa;
    }
  }

  void number_units() {
    uint32_t next = 0;
    uint32_t most = 0;
    for (uint32_t g = 0; g < layout_->nr_groups_; ++g) {
      Group& group = groups()[g];
      group.first_unit = UnitId{static_cast<int32_t>(next)};
      group.nr_units = static_cast<uint32_t>(round_up_to_multiple(group.nr_cpus, layout_->units_per_allocation_));
      next += group.nr_units_with_extra();
      if (group.nr_units_with_extra() > most) most = group.nr_units_with_extra();
    }
    layout_->nr_units_ = next;
    layout_->stride_ = most * layout_->unit_size_bytes();
    for (uint32_t unit = 0; unit < next; ++unit) cpus_of_units()[unit] = CpuId{};
    place_cpus();
  }

  // Of each CPU that has no unit yet, and behind it those near it in its group. Each group's first_unit serves as the cursor, and is set
  // back at the end.
  void place_cpus() {
    const CpuMask& possible = *input_.possible;
    for (CpuId first = possible.first(); first.valid(); first = possible.after(first)) {
      if (has_unit(first)) continue;
      const uint32_t group = static_cast<uint32_t>(units_of_cpus()[first.index()].index());
      for (CpuId cpu = first; cpu.valid(); cpu = possible.after(cpu)) {
        if (has_unit(cpu) || units_of_cpus()[cpu.index()].index() != group || !(cpu == first || near(first, cpu))) continue;
        UnitId& cursor = groups()[group].first_unit;
        units_of_cpus()[cpu.index()] = cursor;
        cpus_of_units()[cursor.index()] = cpu;
        ++cursor.value;
      }
    }
    for (uint32_t g = 0; g < layout_->nr_groups_; ++g)
      groups()[g].first_unit.value -= static_cast<int32_t>(groups()[g].nr_cpus);
  }

  // Before, the number of its group stands where its unit's will.
  bool has_unit(CpuId cpu) { return cpus_of_units()[units_of_cpus()[cpu.index()].index()] == cpu; }

  const LayoutInput& input_;
  Layout* layout_;
  TableOffsets at_;
  size_t min_unit_size_ = 0;
};

namespace {

// Huge pages are worth it when the parts of all CPUs fill at least half of what would be taken.
bool huge_pages_pay(const Layout& layout) {
  uint64_t taken = 0;
  for (uint32_t g = 0; g < layout.nr_groups(); ++g) taken += layout.group({static_cast<int32_t>(g)}).nr_units;
  taken *= layout.unit_size_bytes();
  uint64_t used = uint64_t{layout.parts_size_bytes()} * layout.nr_cpus();
  return 2 * used >= taken;
}

}  // namespace

size_t layout_storage_bytes(const CpuMask& possible) { return table_offsets(possible).end; }

LayoutProblem build_layout(const LayoutInput& input, void* storage, size_t storage_bytes, const Layout** layout) {
  *layout = nullptr;
  if (LayoutProblem problem = check_input(input, storage_bytes)) return problem;
  LayoutBuilder builder(input, storage);
  if (input.first_chunk != FirstChunk::kAuto) {
    *layout = builder.build(input.first_chunk);
    return {};
  }
  *layout = builder.build(FirstChunk::kEmbed);
  if (!input.transparent_huge_pages || !huge_pages_pay(**layout)) *layout = builder.build(FirstChunk::kPage);
  return {};
}

const Group& Layout::group(GroupId group) const { return table<Group>(groups_at_)[group.index()]; }

UnitId Layout::unit_of_cpu(CpuId cpu) const {
  if (!cpu.valid() || cpu.index() >= nr_cpu_ids_) return {};
  return table<UnitId>(units_of_cpus_at_)[cpu.index()];
}

CpuId Layout::cpu_of_unit(UnitId unit) const {
  if (!unit.valid() || unit.index() >= nr_units_) return {};
  return table<CpuId>(cpus_of_units_at_)[unit.index()];
}

GroupId Layout::group_of_unit(UnitId unit) const {
  if (!unit.valid() || unit.index() >= nr_units_) return {};
  int32_t low = 0;  // the last group that begins at or before the unit
  int32_t high = static_cast<int32_t>(nr_groups_);
  while (high - low > 1) {
    int32_t middle = (low + high) / 2;
    if (group({middle}).first_unit <= unit) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return {low};
}

bool Layout::is_extra(UnitId unit) const {
  GroupId id = group_of_unit(unit);
  return id.valid() && group(id).extra_unit() == unit;
}

bool Layout::is_padding(UnitId unit) const {
  return unit.valid() && unit.index() < nr_units_ && !cpu_of_unit(unit).valid() && !is_extra(unit);
}

CpuId Layout::placement_cpu(UnitId unit) const {
  return is_extra(unit) ? cpu_of_unit(group(group_of_unit(unit)).first_unit) : cpu_of_unit(unit);
}

uint64_t Layout::unit_offset_bytes(UnitId unit, uint64_t window_bytes) const {
  GroupId id = group_of_unit(unit);
  uint64_t place = static_cast<uint64_t>(unit.value - group(id).first_unit.value);
  return (1 + static_cast<uint64_t>(id.index())) * window_bytes + place * unit_size_bytes();
}

}  // namespace percpu
