// SPDX-License-Identifier: MIT
//
// What must hold of a finished layout, recomputed without the builder; and the layout as text.
#include "core/layout.h"

#include "base/bits.h"

namespace percpu {

namespace {

LayoutProblem check_sizes(const Layout& layout) {
  if (layout.nr_groups() == 0) return {"the layout must have a group", 1, 0};
  if (!is_power_of_two(layout.page_size_bytes()))
    return {"the page size must be a power of two", 4096, layout.page_size_bytes()};
  if (layout.atom_size_bytes() == 0 || layout.atom_size_bytes() % layout.page_size_bytes() != 0)
    return {"the atom must be whole pages", layout.page_size_bytes(), layout.atom_size_bytes()};
  if (layout.allocation_size_bytes() == 0 || layout.allocation_size_bytes() % layout.atom_size_bytes() != 0)
    return {"an allocation must be whole atoms", layout.atom_size_bytes(), layout.allocation_size_bytes()};
  if (layout.units_per_allocation() == 0 || layout.allocation_size_bytes() % layout.units_per_allocation() != 0)
    return {"an allocation must be whole units", layout.allocation_size_bytes(), layout.units_per_allocation()};
  if (layout.unit_size_bytes() % layout.page_size_bytes() != 0)
    return {"a unit must be whole pages", layout.page_size_bytes(), layout.unit_size_bytes()};
  if (layout.parts_size_bytes() % layout.page_size_bytes() != 0)
    return {"the parts must add up to whole pages", layout.page_size_bytes(), layout.parts_size_bytes()};
  if (layout.unit_size_bytes() < layout.parts_size_bytes())
    return {"a unit must hold the static, reserved and dynamic parts", layout.parts_size_bytes(),
            layout.unit_size_bytes()};
  return {};
}

LayoutProblem check_groups(const Layout& layout) {
  uint64_t next = 0;
  for (uint32_t g = 0; g < layout.nr_groups(); ++g) {
    const Group& group = layout.group({static_cast<int32_t>(g)});
    if (group.first_unit.value < 0 || group.first_unit.index() != next)
      return {"a group must begin behind the one before", next, static_cast<uint64_t>(group.first_unit.value)};
    if (group.nr_cpus == 0 || group.nr_cpus > group.nr_units)
      return {"a group must have a unit for each of its CPUs", group.nr_cpus, group.nr_units};
    if (group.nr_units % layout.units_per_allocation() != 0)
      return {"a group must be whole allocations", layout.units_per_allocation(), group.nr_units};
    if (group.nr_units_with_extra() * layout.unit_size_bytes() > layout.stride_bytes())
      return {"a group must fit into the stride", layout.stride_bytes(),
              group.nr_units_with_extra() * layout.unit_size_bytes()};
    next += group.nr_units_with_extra();
  }
  if (next != layout.nr_units()) return {"every unit must belong to a group", layout.nr_units(), next};
  return {};
}

// Units first, so that a CPU with two of them is called that.
LayoutProblem check_mapping(const Layout& layout, const CpuMask& possible) {
  CpuMask mapped;
  for (uint32_t u = 0; u < layout.nr_units(); ++u) {
    UnitId unit{static_cast<int32_t>(u)};
    CpuId cpu = layout.cpu_of_unit(unit);
    if (!cpu.valid()) continue;
    uint64_t number = cpu.index();
    if (!possible.has(cpu)) return {"a unit is mapped to a CPU that is not possible", u, number};
    if (mapped.has(cpu)) return {"a CPU is mapped to two units", static_cast<uint64_t>(layout.unit_of_cpu(cpu).value), u};
    if (layout.is_extra(unit)) return {"an extra unit is mapped to a CPU", u, number};
    mapped.add(cpu);
  }
  for (CpuId cpu = possible.first(); cpu.valid(); cpu = possible.after(cpu)) {
    if (!mapped.has(cpu)) return {"a possible CPU is mapped to no unit", possible.count(), cpu.index()};
    if (layout.cpu_of_unit(layout.unit_of_cpu(cpu)) != cpu)
      return {"a CPU and its unit do not agree", cpu.index(), static_cast<uint64_t>(layout.unit_of_cpu(cpu).value)};
  }
  return {};
}

}  // namespace

LayoutProblem check_layout(const Layout& layout, const CpuMask& possible) {
  if (LayoutProblem problem = check_sizes(layout)) return problem;
  if (LayoutProblem problem = check_groups(layout)) return problem;
  return check_mapping(layout, possible);
}

void print_layout(const Layout& layout, Text& text) {
  text.format("parts: static %zu + reserved %zu + dynamic %zu = %zu bytes\n", layout.static_size_bytes(),
              layout.reserved_size_bytes(), layout.dynamic_size_bytes(), layout.parts_size_bytes());
  text.format("unit: %zu bytes, %u in an allocation of %zu * %zu bytes (%s)\n", layout.unit_size_bytes(),
              layout.units_per_allocation(), layout.allocation_size_bytes() / layout.atom_size_bytes(),
              layout.atom_size_bytes(), layout.first_chunk() == FirstChunk::kEmbed ? "embed" : "page");
  for (uint32_t g = 0; g < layout.nr_groups(); ++g) {
    const Group& group = layout.group({static_cast<int32_t>(g)});
    text.format("group %u:", g);
    for (uint32_t u = 0; u < group.nr_units; ++u) {
      CpuId cpu = layout.cpu_of_unit({group.first_unit.value + static_cast<int32_t>(u)});
      if (cpu.valid()) {
        text.format(" %d", cpu.value);
      } else {
        text.put(" --");
      }
    }
    text.put(" ++\n");
  }
}

}  // namespace percpu
