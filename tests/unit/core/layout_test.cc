// SPDX-License-Identifier: MIT
#include "core/layout.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../seed.h"

namespace percpu {

// Breaks finished layouts, for check_layout() to find.
struct LayoutTestAccess {
  static UnitId& unit_of(Layout& layout, int cpu) { return layout.table<UnitId>(layout.units_of_cpus_at_)[cpu]; }
  static CpuId& cpu_of(Layout& layout, int unit) { return layout.table<CpuId>(layout.cpus_of_units_at_)[unit]; }
  static Group& group(Layout& layout, int group) { return layout.table<Group>(layout.groups_at_)[group]; }
  static uint32_t& nr_groups(Layout& layout) { return layout.nr_groups_; }
  static uint32_t& nr_units(Layout& layout) { return layout.nr_units_; }
  static uint32_t& units_per_allocation(Layout& layout) { return layout.units_per_allocation_; }
  static size_t& allocation_size(Layout& layout) { return layout.allocation_size_; }
  static size_t& static_size(Layout& layout) { return layout.static_size_; }
  static size_t& atom_size(Layout& layout) { return layout.atom_size_; }
  static size_t& page_size(Layout& layout) { return layout.page_size_; }
  static size_t& stride(Layout& layout) { return layout.stride_; }
};

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kKilo = 1024;

// A machine as a table: the node of each CPU and the distances between nodes.
struct Machine {
  std::map<int, int> node_of;
  std::map<std::pair<int, int>, unsigned> distances;  // from, to; 20 where nothing is said, 10 to itself

  CpuMask possible() const {
    CpuMask mask;
    for (const auto& [cpu, node] : node_of) mask.add({cpu});
    return mask;
  }
  unsigned distance(int from_cpu, int to_cpu) const {
    int from = node_of.at(from_cpu);
    int to = node_of.at(to_cpu);
    auto found = distances.find({from, to});
    if (found != distances.end()) return found->second;
    return from == to ? 10 : 20;
  }
  static unsigned ask(const void* context, CpuId from, CpuId to) {
    return static_cast<const Machine*>(context)->distance(from.value, to.value);
  }
};

// CPUs in blocks, one block a node: {first, count}.
Machine blocks(std::initializer_list<std::pair<int, int>> nodes) {
  Machine machine;
  int node = 0;
  for (const auto& [first, count] : nodes) {
    for (int cpu = first; cpu < first + count; ++cpu) machine.node_of[cpu] = node;
    ++node;
  }
  return machine;
}

// The defaults of the configuration.
LayoutInput input_for(const CpuMask& possible, const Machine& machine, FirstChunk first_chunk) {
  LayoutInput input;
  input.possible = &possible;
  input.distance = Machine::ask;
  input.distance_context = &machine;
  input.static_size_bytes = 0;
  input.reserved_size_bytes = 8 * kKilo;
  input.dynamic_size_bytes = 28 * kKilo;
  input.min_unit_size_bytes = 128 * kKilo;
  input.page_size_bytes = kPage;
  input.huge_page_size_bytes = kHuge;
  input.transparent_huge_pages = true;
  input.first_chunk = first_chunk;
  return input;
}

// A layout and what it stands on.
struct Built {
  Machine machine;
  CpuMask possible;
  std::vector<uint64_t> storage;
  const Layout* layout = nullptr;
  LayoutProblem problem;

  Built(Machine described, FirstChunk first_chunk, const std::function<void(LayoutInput&)>& change = {})
      : machine(std::move(described)), possible(machine.possible()) {
    LayoutInput input = input_for(possible, machine, first_chunk);
    if (change) change(input);
    size_t bytes = layout_storage_bytes(possible);
    storage.assign(bytes / 8 + 1, 0x5a5a5a5a5a5a5a5a);
    problem = build_layout(input, storage.data(), bytes, &layout);
    CHECK(storage.back() == 0x5a5a5a5a5a5a5a5a);
  }
  const Layout& operator*() const { return *layout; }
  const Layout* operator->() const { return layout; }
  Layout& to_break() { return const_cast<Layout&>(*layout); }
};

// A group as "0 1 -- ++".
std::string shown(const Layout& layout, int g) {
  const Group& group = layout.group({g});
  std::string text;
  for (uint32_t u = 0; u < group.nr_units_with_extra(); ++u) {
    UnitId unit{group.first_unit.value + static_cast<int>(u)};
    if (!text.empty()) text += ' ';
    text += layout.is_extra(unit) ? "++" : layout.is_padding(unit) ? "--" : std::to_string(layout.cpu_of_unit(unit).value);
  }
  return text;
}

std::string printed(const Layout& layout) {
  char buffer[4096];
  Text text(buffer);
  print_layout(layout, text);
  return buffer;
}

TEST_CASE("two CPUs by pages: one unit each, one group, one extra unit") {
  Built built(blocks({{0, 2}}), FirstChunk::kPage);
  REQUIRE_FALSE(built.problem);
  CHECK(built->unit_size_bytes() == 131072);
  CHECK(built->allocation_size_bytes() == 131072);
  CHECK(built->atom_size_bytes() == 4096);
  CHECK(built->units_per_allocation() == 1);
  CHECK(built->unit_pages() == 32);
  CHECK(built->stride_bytes() == 3 * 131072);
  CHECK(built->nr_cpus() == 2);
  CHECK(built->nr_cpu_ids() == 2);
  CHECK(built->nr_groups() == 1);
  CHECK(built->nr_units() == 3);
  CHECK(built->nr_copies() == 3);
  CHECK(shown(*built, 0) == "0 1 ++");
  CHECK(printed(*built) ==
        "parts: static 0 + reserved 8192 + dynamic 28672 = 36864 bytes\n"
        "unit: 131072 bytes, 1 in an allocation of 32 * 4096 bytes (page)\n"
        "group 0: 0 1 ++\n");
}

TEST_CASE("two CPUs by huge pages share one") {
  Built built(blocks({{0, 2}}), FirstChunk::kEmbed);
  REQUIRE_FALSE(built.problem);
  CHECK(built->units_per_allocation() == 2);
  CHECK(built->unit_size_bytes() == 1048576);
  CHECK(built->stride_bytes() == 3 * 1048576);
  CHECK(printed(*built) ==
        "parts: static 0 + reserved 8192 + dynamic 28672 = 36864 bytes\n"
        "unit: 1048576 bytes, 2 in an allocation of 1 * 2097152 bytes (embed)\n"
        "group 0: 0 1 ++\n");
}

TEST_CASE("four nodes of two CPUs are four groups; by pages they are one") {
  Built built(blocks({{0, 2}, {2, 2}, {4, 2}, {6, 2}}), FirstChunk::kEmbed);
  REQUIRE_FALSE(built.problem);
  CHECK(built->nr_groups() == 4);
  CHECK(built->units_per_allocation() == 2);
  CHECK(built->nr_units() == 12);
  CHECK(built->nr_copies() == 12);
  CHECK(shown(*built, 0) == "0 1 ++");
  CHECK(shown(*built, 3) == "6 7 ++");
  CHECK(built->unit_of_cpu({6}) == UnitId{9});
  CHECK(built->extra_unit({3}) == UnitId{11});
  Built paged(blocks({{0, 2}, {2, 2}, {4, 2}, {6, 2}}), FirstChunk::kPage);
  CHECK(paged->nr_groups() == 1);
  CHECK(shown(*paged, 0) == "0 1 2 3 4 5 6 7 ++");
}

TEST_CASE("CPUs of one node need not be neighbours; groups are in the order of their lowest CPUs") {
  Machine machine;
  machine.node_of = {{0, 7}, {1, 3}, {2, 7}, {5, 3}, {9, 7}, {64, 0}};
  Built built(machine, FirstChunk::kEmbed);
  REQUIRE_FALSE(built.problem);
  // 6 CPUs allow 2 padding units. By 4: 1 + 2 + 3; by 2: 1 + 0 + 1, in 4 allocations; by 1: 6 are more.
  CHECK(built->units_per_allocation() == 2);
  CHECK(shown(*built, 0) == "0 2 9 -- ++");
  CHECK(shown(*built, 1) == "1 5 ++");
  CHECK(shown(*built, 2) == "64 -- ++");
  CHECK(built->nr_units() == 11);
  CHECK(built->nr_cpu_ids() == 65);
  CHECK(built->nr_copies() == 68);
  CHECK(built->unit_of_cpu({64}) == UnitId{8});
  CHECK(built->extra_unit({0}) == UnitId{4});
  CHECK(built->extra_unit({2}) == UnitId{10});
  CHECK_FALSE(built->unit_of_cpu({3}).valid());
  CHECK_FALSE(built->unit_of_cpu({65}).valid());
  CHECK_FALSE(built->unit_of_cpu({-1}).valid());
  CHECK(built->group_of_cpu({9}) == GroupId{0});
  CHECK(built->group_of_unit({4}) == GroupId{0});
  CHECK(built->group_of_unit({5}) == GroupId{1});
  CHECK(built->group_of_unit({10}) == GroupId{2});
  CHECK_FALSE(built->group_of_unit({11}).valid());
  CHECK(built->is_padding({3}));
  CHECK(built->is_padding({9}));
  CHECK_FALSE(built->is_padding({4}));
  CHECK_FALSE(built->is_padding({11}));
  CHECK(built->placement_cpu({4}) == CpuId{0});
  CHECK(built->placement_cpu({10}) == CpuId{64});
  CHECK(built->placement_cpu({2}) == CpuId{9});
  CHECK_FALSE(built->placement_cpu({3}).valid());
}

TEST_CASE("by pages the units of one node lie together, however its CPUs are numbered") {
  Machine machine;
  for (int cpu = 0; cpu < 8; ++cpu) machine.node_of[cpu] = cpu % 2;
  machine.node_of[12] = 0;
  machine.node_of[13] = 4;
  Built built(machine, FirstChunk::kPage);
  REQUIRE_FALSE(built.problem);
  CHECK(built->nr_groups() == 1);
  CHECK(shown(*built, 0) == "0 2 4 6 12 1 3 5 7 13 ++");
  CHECK(built->unit_of_cpu({12}) == UnitId{4});
  CHECK(built->unit_of_cpu({1}) == UnitId{5});
  CHECK_FALSE(check_layout(*built, built.possible));
  // Nodes that are no further from each other than CPUs of one node are as one.
  machine.distances = {{{0, 1}, 10}, {{1, 0}, 10}};
  CHECK(shown(*Built(machine, FirstChunk::kPage), 0) == "0 1 2 3 4 5 6 7 12 13 ++");
}

TEST_CASE("512 CPUs on 8 nodes with holes in their numbers") {
  Machine machine;
  for (int node = 0; node < 8; ++node) {
    for (int i = 0; i < 64; ++i) machine.node_of[node * 80 + i] = node;
  }
  Built built(machine, FirstChunk::kEmbed);
  REQUIRE_FALSE(built.problem);
  CHECK(built->units_per_allocation() == 16);
  CHECK(built->unit_size_bytes() == 131072);
  CHECK(built->nr_groups() == 8);
  CHECK(built->nr_cpus() == 512);
  CHECK(built->nr_cpu_ids() == 624);
  CHECK(built->nr_units() == 8 * 65);
  CHECK(built->stride_bytes() == 65 * 131072);
  CHECK(built->unit_of_cpu({0}) == UnitId{0});
  CHECK(built->unit_of_cpu({63}) == UnitId{63});
  CHECK(built->extra_unit({0}) == UnitId{64});
  CHECK_FALSE(built->unit_of_cpu({64}).valid());
  CHECK(built->unit_of_cpu({80}) == UnitId{65});
  CHECK(built->unit_of_cpu({623}) == UnitId{7 * 65 + 63});
  CHECK_FALSE(check_layout(*built, built.possible));
}

TEST_CASE("CPUs are grouped only where they are local in both directions") {
  Machine machine = blocks({{0, 1}, {1, 1}, {2, 1}, {3, 1}});
  machine.distances[{0, 1}] = 10;  // and 20 back
  machine.distances[{0, 2}] = 10;
  machine.distances[{2, 0}] = 10;
  machine.distances[{2, 3}] = 10;  // local to each other, but node 3 is not to node 0, which opened the group
  machine.distances[{3, 2}] = 10;
  Built built(machine, FirstChunk::kEmbed);
  REQUIRE_FALSE(built.problem);
  CHECK(built->nr_groups() == 3);
  CHECK(built->group_of_cpu({2}) == built->group_of_cpu({0}));
  CHECK(built->group_of_cpu({1}) != built->group_of_cpu({0}));
  CHECK(built->group_of_cpu({3}) == GroupId{2});
}

TEST_CASE("one CPU has an allocation for itself") {
  Built embed(blocks({{0, 1}}), FirstChunk::kEmbed);
  CHECK(embed->units_per_allocation() == 1);
  CHECK(embed->unit_size_bytes() == kHuge);
  CHECK(shown(*embed, 0) == "0 ++");
  Built page(blocks({{8191, 1}}), FirstChunk::kPage);
  CHECK(page->nr_cpu_ids() == 8192);
  CHECK(page->unit_of_cpu({8191}) == UnitId{0});
  CHECK(page->nr_copies() == 8193);
}

TEST_CASE("padding is allowed up to a third of the CPUs, rounded down, and refused beyond") {
  struct Case {
    int cpus;
    uint32_t units_per_allocation;
    uint32_t units;  // with padding, without the extra one
  };
  // The largest power of two up to 16 that pads no more than cpus / 3 units.
  const Case cases[] = {{1, 1, 1},   {2, 2, 2},    {3, 4, 4},    {4, 4, 4},    {5, 2, 6},    {6, 8, 8},
                        {7, 8, 8},   {8, 8, 8},    {9, 4, 12},   {11, 4, 12},  {12, 16, 16}, {13, 16, 16},
                        {16, 16, 16}, {17, 4, 20}, {20, 8, 24},  {24, 16, 32}, {23, 8, 24},  {33, 8, 40}};
  for (const Case& c : cases) {
    CAPTURE(c.cpus);
    Built built(blocks({{0, c.cpus}}), FirstChunk::kEmbed);
    CHECK(built->units_per_allocation() == c.units_per_allocation);
    CHECK(built->group({0}).nr_units == c.units);
    CHECK(built->unit_size_bytes() == kHuge / c.units_per_allocation);
  }
}

TEST_CASE("of two numbers of units that take equally many allocations, the smaller wins") {
  // 12 pages hold 4 units of 3 pages or 3 of 4; three CPUs take one allocation either way, with or without padding.
  Built built(blocks({{0, 3}, {3, 3}, {6, 3}}), FirstChunk::kEmbed, [](LayoutInput& input) {
    input.reserved_size_bytes = 0;
    input.dynamic_size_bytes = kPage;
    input.min_unit_size_bytes = 3 * kPage;
    input.huge_page_size_bytes = 12 * kPage;
  });
  CHECK(built->units_per_allocation() == 3);
  CHECK(built->unit_size_bytes() == 4 * kPage);
}

TEST_CASE("what the parts' sum misses of a page goes to the dynamic part, and a large sum makes larger units") {
  Built built(blocks({{0, 2}}), FirstChunk::kPage, [](LayoutInput& input) { input.static_size_bytes = 300000; });
  REQUIRE_FALSE(built.problem);
  CHECK(built->static_size_bytes() == 300000);
  CHECK(built->reserved_size_bytes() == 8192);
  CHECK(built->dynamic_size_bytes() == 28672 + 3104);
  CHECK(built->parts_size_bytes() == 83 * kPage);
  CHECK(built->unit_size_bytes() == 83 * kPage);
  Built embed(blocks({{0, 2}}), FirstChunk::kEmbed, [](LayoutInput& input) { input.static_size_bytes = 3000000; });
  CHECK(embed->allocation_size_bytes() == 2 * kHuge);
  CHECK(embed->units_per_allocation() == 1);
}

TEST_CASE("auto takes huge pages where they can be had and are at least half used") {
  auto small_units = [](LayoutInput& input) { input.min_unit_size_bytes = 32 * kKilo; };
  // 64 CPUs * 36864 bytes in 2 huge pages: 56 %.
  CHECK(Built(blocks({{0, 64}}), FirstChunk::kAuto, small_units)->first_chunk() == FirstChunk::kEmbed);
  CHECK(Built(blocks({{0, 64}}), FirstChunk::kAuto, small_units)->unit_size_bytes() == 65536);
  // In units of 128 KiB they take 4: 28 %.
  CHECK(Built(blocks({{0, 64}}), FirstChunk::kAuto)->first_chunk() == FirstChunk::kPage);
  CHECK(Built(blocks({{0, 2}}), FirstChunk::kAuto)->first_chunk() == FirstChunk::kPage);
  Built without(blocks({{0, 64}}), FirstChunk::kAuto, [](LayoutInput& input) {
    input.min_unit_size_bytes = 32 * kKilo;
    input.transparent_huge_pages = false;
  });
  CHECK(without->first_chunk() == FirstChunk::kPage);
  CHECK(without->unit_size_bytes() == 36864);
  // Exactly half, and a page less: two CPUs that share a huge page.
  auto parts_of = [](size_t bytes) {
    return [bytes](LayoutInput& input) { input.dynamic_size_bytes = bytes - input.reserved_size_bytes; };
  };
  CHECK(Built(blocks({{0, 2}}), FirstChunk::kAuto, parts_of(kHuge / 4))->first_chunk() == FirstChunk::kEmbed);
  CHECK(Built(blocks({{0, 2}}), FirstChunk::kAuto, parts_of(kHuge / 4 - kPage))->first_chunk() == FirstChunk::kPage);
}

TEST_CASE("input that makes no layout is refused with what is wrong, and gives none") {
  auto problem_of = [](const std::function<void(LayoutInput&)>& change) {
    Built built(blocks({{0, 2}}), FirstChunk::kAuto, change);
    CHECK(built.layout == nullptr);
    return std::string(built.problem.what == nullptr ? "" : built.problem.what);
  };
  CpuMask none;
  CHECK(problem_of([&](LayoutInput& input) { input.possible = &none; }) == "no CPU is possible");
  CHECK(problem_of([](LayoutInput& input) { input.page_size_bytes = 0; }) == "the page size must be a power of two");
  CHECK(problem_of([](LayoutInput& input) { input.page_size_bytes = 12288; }) == "the page size must be a power of two");
  CHECK(problem_of([](LayoutInput& input) { input.huge_page_size_bytes = 0; }) ==
        "the huge page size must be whole pages");
  CHECK(problem_of([](LayoutInput& input) { input.huge_page_size_bytes = 2048; }) ==
        "the huge page size must be whole pages");
  CHECK(problem_of([](LayoutInput& input) { input.static_size_bytes = SIZE_MAX; }) == "a size is too large");
  CHECK(problem_of([](LayoutInput& input) { input.dynamic_size_bytes = (size_t{1} << 40) + 1; }) == "a size is too large");
  CHECK(problem_of([](LayoutInput& input) { input.min_unit_size_bytes = SIZE_MAX; }) == "a size is too large");
  Built built(blocks({{0, 2}}), FirstChunk::kPage);
  LayoutInput input = input_for(built.possible, built.machine, FirstChunk::kPage);
  input.huge_page_size_bytes = 0;  // not needed
  const Layout* layout = nullptr;
  size_t bytes = layout_storage_bytes(built.possible);
  CHECK_FALSE(build_layout(input, built.storage.data(), bytes, &layout));
  LayoutProblem problem = build_layout(input, built.storage.data(), bytes - 1, &layout);
  CHECK(std::string(problem.what) == "too little storage for the layout");
  CHECK(problem.expected == bytes);
  CHECK(problem.found == bytes - 1);
}

TEST_CASE("a finished layout can be copied as bytes and read elsewhere") {
  Built built(blocks({{0, 3}, {8, 5}}), FirstChunk::kEmbed);
  std::vector<uint64_t> copy = built.storage;
  std::fill(built.storage.begin(), built.storage.end(), 0);
  const Layout& moved = *reinterpret_cast<const Layout*>(copy.data());
  CHECK_FALSE(check_layout(moved, built.possible));
  CHECK(moved.unit_of_cpu({8}).valid());
}

using Break = std::function<void(Layout&)>;

std::string found_in(const Break& break_it) {
  Built built(blocks({{0, 3}, {8, 3}}), FirstChunk::kEmbed);  // "0 1 2 -- ++", "8 9 10 -- ++"
  CHECK_FALSE(check_layout(*built, built.possible));
  break_it(built.to_break());
  LayoutProblem problem = check_layout(*built, built.possible);
  return problem.what == nullptr ? "" : problem.what;
}

TEST_CASE("the check finds what is broken") {
  using Access = LayoutTestAccess;
  CHECK(found_in([](Layout& l) { Access::nr_groups(l) = 0; }) == "the layout must have a group");
  CHECK(found_in([](Layout& l) { Access::page_size(l) = 5000; }) == "the page size must be a power of two");
  CHECK(found_in([](Layout& l) { Access::atom_size(l) = 5000; }) == "the atom must be whole pages");
  CHECK(found_in([](Layout& l) { Access::atom_size(l) = 0; }) == "the atom must be whole pages");
  CHECK(found_in([](Layout& l) { Access::allocation_size(l) += 4096; }) == "an allocation must be whole atoms");
  CHECK(found_in([](Layout& l) { Access::units_per_allocation(l) = 3; }) == "an allocation must be whole units");
  CHECK(found_in([](Layout& l) { Access::units_per_allocation(l) = 1024; }) == "a unit must be whole pages");
  CHECK(found_in([](Layout& l) { Access::static_size(l) += 4; }) == "the parts must add up to whole pages");
  CHECK(found_in([](Layout& l) { Access::static_size(l) += kHuge; }) ==
        "a unit must hold the static, reserved and dynamic parts");
  CHECK(found_in([](Layout& l) { Access::group(l, 1).first_unit.value = 6; }) ==
        "a group must begin behind the one before");
  CHECK(found_in([](Layout& l) { Access::group(l, 1).nr_cpus = 5; }) ==
        "a group must have a unit for each of its CPUs");
  CHECK(found_in([](Layout& l) { Access::group(l, 1).nr_units = 3; }) == "a group must be whole allocations");
  CHECK(found_in([](Layout& l) { Access::stride(l) -= 4096; }) == "a group must fit into the stride");
  CHECK(found_in([](Layout& l) { Access::nr_units(l) = 11; }) == "every unit must belong to a group");
  CHECK(found_in([](Layout& l) { Access::cpu_of(l, 3) = {8}; }) == "a CPU is mapped to two units");
  CHECK(found_in([](Layout& l) { Access::cpu_of(l, 3) = {5}; }) == "a unit is mapped to a CPU that is not possible");
  CHECK(found_in([](Layout& l) {
          Access::cpu_of(l, 4) = {2};
          Access::cpu_of(l, 2) = {};
        }) == "an extra unit is mapped to a CPU");
  CHECK(found_in([](Layout& l) { Access::cpu_of(l, 2) = {}; }) == "a possible CPU is mapped to no unit");
  CHECK(found_in([](Layout& l) { Access::unit_of(l, 2) = {1}; }) == "a CPU and its unit do not agree");
  CHECK(found_in([](Layout& l) { Access::unit_of(l, 2) = {}; }) == "a CPU and its unit do not agree");
}

// The specification, written down once more as naively as possible.
struct Naive {
  std::vector<std::vector<int>> groups;
  uint32_t units_per_allocation = 0;
  size_t allocation_size = 0;

  static bool near(const Machine& machine, int a, int b) {
    return a == b || (machine.distance(a, b) <= 10 && machine.distance(b, a) <= 10);
  }

  // Where the specification is silent: those of one node lie together.
  static std::vector<int> together(const Machine& machine, std::vector<int> left) {
    std::vector<int> sorted;
    while (!left.empty()) {
      const int first = left[0];
      const auto rest = std::stable_partition(left.begin(), left.end(), [&](int cpu) { return near(machine, first, cpu); });
      sorted.insert(sorted.end(), left.begin(), rest);
      left.erase(left.begin(), rest);
    }
    return sorted;
  }

  Naive(const Machine& machine, size_t parts, size_t min_unit, size_t page, size_t atom, bool one_group) {
    std::vector<int> left;
    for (const auto& [cpu, node] : machine.node_of) left.push_back(cpu);
    while (!left.empty()) {
      std::vector<int> group;
      std::vector<int> rest;
      for (int cpu : left) {
        bool local = one_group || near(machine, left[0], cpu);
        (local ? group : rest).push_back(cpu);
      }
      groups.push_back(together(machine, group));
      left = rest;
    }
    size_t padded_parts = (parts + page - 1) / page * page;
    min_unit = std::max(min_unit, padded_parts);
    allocation_size = (min_unit + atom - 1) / atom * atom;
    bool any = false;
    size_t last_allocations = 0;
    for (size_t upa = allocation_size / min_unit; upa >= 1; --upa) {
      if (allocation_size % upa != 0 || (allocation_size / upa) % page != 0) continue;
      size_t allocations = 0;
      size_t padding = 0;
      for (const auto& group : groups) {
        size_t padded = group.size();
        while (padded % upa != 0) ++padded;
        allocations += padded / upa;
        padding += padded - group.size();
      }
      if (padding > machine.node_of.size() / 3) continue;
      if (any && allocations > last_allocations) break;
      any = true;
      last_allocations = allocations;
      units_per_allocation = static_cast<uint32_t>(upa);
    }
  }
};

Machine random_machine(std::mt19937_64& random) {
  Machine machine;
  size_t cpus = 1 + random() % (random() % 4 == 0 ? 300 : 20);
  int nodes = static_cast<int>(1 + random() % 9);
  int spread = random() % 3 == 0 ? 8192 : static_cast<int>(cpus + random() % 20);
  while (machine.node_of.size() < cpus)
    machine.node_of[static_cast<int>(random() % static_cast<uint64_t>(spread))] =
        static_cast<int>(random() % static_cast<uint64_t>(nodes)) * 3;
  unsigned choices[] = {10, 11, 20, 40};
  for (int from = 0; from < nodes * 3; from += 3) {
    for (int to = 0; to < nodes * 3; to += 3) {
      if (from != to && random() % 2 == 0) machine.distances[{from, to}] = choices[random() % 4];
    }
  }
  return machine;
}

TEST_CASE("on any machine: the specification's layout, each CPU once, and nothing for the check to find") {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 600; ++round) {
    CAPTURE(round);
    bool embed = random() % 2 == 0;
    size_t page = kPage << (random() % 3 * 2);  // 4, 16, 64 KiB
    size_t huge = random() % 2 == 0 ? page << (random() % 10) : page * (1 + random() % 100);
    size_t statics = random() % 3 == 0 ? random() % 200000 : random() % 100;
    size_t reserved = random() % 20000;
    size_t dynamic = 20480 + random() % 20000;
    size_t min_unit = (32768 + random() % 200000 + page - 1) / page * page;
    Built built(random_machine(random), embed ? FirstChunk::kEmbed : FirstChunk::kPage, [&](LayoutInput& input) {
      input.static_size_bytes = statics;
      input.reserved_size_bytes = reserved;
      input.dynamic_size_bytes = dynamic;
      input.min_unit_size_bytes = min_unit;
      input.page_size_bytes = page;
      input.huge_page_size_bytes = huge;
    });
    REQUIRE_FALSE(built.problem);
    Naive naive(built.machine, statics + reserved + dynamic, min_unit, page, embed ? huge : page, !embed);
    REQUIRE(built->allocation_size_bytes() == naive.allocation_size);
    REQUIRE(built->units_per_allocation() == naive.units_per_allocation);
    REQUIRE(built->nr_groups() == naive.groups.size());
    int next = 0;
    for (size_t g = 0; g < naive.groups.size(); ++g) {
      const Group& group = built->group({static_cast<int>(g)});
      REQUIRE(group.first_unit == UnitId{next});
      REQUIRE(group.nr_cpus == naive.groups[g].size());
      for (size_t i = 0; i < naive.groups[g].size(); ++i) {
        CpuId cpu{naive.groups[g][i]};
        UnitId unit{next + static_cast<int>(i)};
        REQUIRE(built->unit_of_cpu(cpu) == unit);
        REQUIRE(built->cpu_of_unit(unit) == cpu);
        REQUIRE(built->group_of_cpu(cpu) == GroupId{static_cast<int>(g)});
        REQUIRE(built->placement_cpu(unit) == cpu);
      }
      for (uint32_t u = group.nr_cpus; u < group.nr_units; ++u)
        REQUIRE(built->is_padding({next + static_cast<int>(u)}));
      REQUIRE(group.nr_units % naive.units_per_allocation == 0);
      REQUIRE(group.nr_units - group.nr_cpus < naive.units_per_allocation);
      next += static_cast<int>(group.nr_units);
      REQUIRE(built->is_extra({next}));
      REQUIRE(built->extra_unit({static_cast<int>(g)}) == UnitId{next});
      ++next;
    }
    REQUIRE(built->nr_units() == static_cast<uint32_t>(next));
    LayoutProblem problem = check_layout(*built, built.possible);
    CAPTURE(problem.what);
    REQUIRE_FALSE(problem);
  }
}

TEST_CASE("8192 CPUs, each on a node of its own or all on one") {
  Machine lonely;
  Machine together;
  for (int cpu = 0; cpu < 8192; ++cpu) {
    lonely.node_of[cpu] = cpu % 1024;
    together.node_of[cpu] = 0;
  }
  Built many(lonely, FirstChunk::kEmbed);
  REQUIRE_FALSE(many.problem);
  CHECK(many->nr_groups() == 1024);
  CHECK(many->units_per_allocation() == 8);
  CHECK_FALSE(check_layout(*many, many.possible));
  Built one(together, FirstChunk::kEmbed);
  CHECK(one->nr_units() == 8193);
  CHECK(one->units_per_allocation() == 16);
  // The most tables there can be: no two CPUs local to each other.
  CpuMask possible = together.possible();
  LayoutInput input = input_for(possible, together, FirstChunk::kEmbed);
  input.distance = [](const void*, CpuId, CpuId) { return 20u; };
  std::vector<uint64_t> storage(layout_storage_bytes(possible) / 8);
  const Layout* layout = nullptr;
  REQUIRE_FALSE(build_layout(input, storage.data(), storage.size() * 8, &layout));
  CHECK(layout->nr_groups() == 8192);
  CHECK(layout->nr_units() == 16384);
  CHECK_FALSE(check_layout(*layout, possible));
}

}  // namespace
}  // namespace percpu
