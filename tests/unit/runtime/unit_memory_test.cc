// SPDX-License-Identifier: MIT
#include "runtime/unit_memory.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <set>
#include <vector>

#include "../child.h"
#include "../os/zero_page.h"
#include "world.h"

namespace percpu {
namespace {

constexpr uint64_t kCoreBytes = 3 * 4096;

unsigned distance_by_node(const void* context, CpuId from, CpuId to) {
  const auto& topology = *static_cast<const Topology*>(context);
  return topology.distance(topology.node_of_cpu(from), topology.node_of_cpu(to));
}

// A machine of our own: CPUs on two nodes in turn, a hole at number 5, the first two CPUs allowed.
struct Machine {
  explicit Machine(uint32_t nr_cpu_ids = 8) : nodes(nr_cpu_ids), distances{10, 20, 20, 10} {
    topology.nr_cpu_ids = nr_cpu_ids;
    topology.nr_node_ids = 2;
    for (uint32_t cpu = 0; cpu < nr_cpu_ids; cpu++) {
      nodes[cpu] = cpu == 5 ? int16_t{-1} : static_cast<int16_t>(cpu % 2);
      if (cpu != 5) topology.possible.add(CpuId{static_cast<int32_t>(cpu)});
      if (cpu < 2) topology.allowed.add(CpuId{static_cast<int32_t>(cpu)});
    }
    topology.memory_nodes.add(NodeId{0});
    topology.memory_nodes.add(NodeId{1});
    topology.node_ids = nodes.data();
    topology.distances = distances;
  }
  std::vector<int16_t> nodes;
  uint8_t distances[4];
  Topology topology;
};

struct Memory {
  explicit Memory(FirstChunk first_chunk = FirstChunk::kPage, uint32_t max_chunks = 4, size_t unit_size_bytes = 64 << 10) {
    input.possible = &machine.topology.possible;
    input.distance = distance_by_node;
    input.distance_context = &machine.topology;
    input.static_size_bytes = 100;
    input.dynamic_size_bytes = 20 << 10;
    input.min_unit_size_bytes = unit_size_bytes;
    input.page_size_bytes = page_size_bytes();
    input.huge_page_size_bytes = 2 << 20;
    input.transparent_huge_pages = first_chunk == FirstChunk::kEmbed;
    input.first_chunk = first_chunk;
    layout_storage.resize(layout_storage_bytes(machine.topology.possible) / 8 + 8);
    REQUIRE_FALSE(build_layout(input, layout_storage.data(), layout_storage.size() * 8, &layout));
    tables.resize(UnitMemory::largest_table_bytes(machine.topology.nr_cpu_ids) / 8 + 1);
    plan = {layout, &machine.topology, max_chunks, kCoreBytes, false};
  }
  ~Memory() {
    if (made) memory.destroy();
  }
  void make() {
    REQUIRE(memory.create(faulty.system(), plan, tables.data()) == 0);
    made = true;
  }
  unsigned char* at(ChunkId chunk, uint32_t offset_bytes, uint32_t copy) const {
    return reinterpret_cast<unsigned char*>(memory.handle(chunk, AreaOffset{offset_bytes}) + memory.offsets()[copy]);
  }
  size_t backed(const void* address, size_t size_bytes) const { return pages_of_own(address, size_bytes); }

  FaultySystem& faulty = FaultySystem::reset();
  Machine machine;
  LayoutInput input{};
  std::vector<uint64_t> layout_storage;
  const Layout* layout = nullptr;
  std::vector<uint64_t> tables;
  UnitMemory::Plan plan{};
  UnitMemory memory;
  bool made = false;
};

constexpr ChunkId kFirst{0};
constexpr ChunkId kSecond{1};

// What is read is used: valgrind leaves out a load that nobody needs.
bool faults(const volatile void* address) {
  return run_in_child([&] { return *static_cast<const volatile char*>(address); }).signal == SIGSEGV;
}

TEST_CASE("each copy of a handle has an address of its own, found again by locate, and a hole has none") {
  for (FirstChunk kind : {FirstChunk::kPage, FirstChunk::kEmbed}) {
    CAPTURE(static_cast<int>(kind));
    Memory test(kind);
    test.make();
    const UnitMemory& memory = test.memory;
    CHECK(memory.nr_hot() == 2);
    CHECK(memory.nr_real_copies() == 7 + memory.nr_groups());
    CHECK(memory.nr_groups() == (kind == FirstChunk::kPage ? 1 : 2));
    CHECK(memory.offsets()[5] == 0);
    std::set<const void*> seen;
    for (uint32_t chunk = 0; chunk < 4; chunk++) {
      for (uint32_t offset : {0u, 4096u, static_cast<uint32_t>(memory.unit_size()) - 4}) {
        for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
          if (copy == 5) continue;
          const unsigned char* address = test.at(ChunkId{chunk}, offset, copy);
          CHECK(seen.insert(address).second);
          Spot spot{};
          REQUIRE(memory.locate(reinterpret_cast<uintptr_t>(address), &spot));
          CHECK(spot.chunk.value == chunk);
          CHECK(spot.offset.bytes == offset);
          CHECK(spot.copy == copy);
        }
        Spot spot{};
        const uintptr_t handle = memory.handle(ChunkId{chunk}, AreaOffset{offset});
        REQUIRE(memory.locate(handle, &spot));
        CHECK(spot.copy == memory.nr_copies());
        REQUIRE(memory.locate_handle(handle, &spot));
        CHECK(spot.chunk.value == chunk);
        CHECK(spot.offset.bytes == offset);
      }
    }
  }
}

TEST_CASE("what lies in no copy and is no handle is not located") {
  Memory test;
  test.make();
  const UnitMemory& memory = test.memory;
  Spot spot{};
  CHECK_FALSE(memory.locate(memory.base() - 1, &spot));
  CHECK_FALSE(memory.locate_handle(memory.base() - 4, &spot));
  CHECK_FALSE(memory.locate_handle(memory.handle(kFirst, AreaOffset{0}) + memory.unit_size(), &spot));
  CHECK_FALSE(memory.locate(reinterpret_cast<uintptr_t>(memory.core_state()), &spot));
  CHECK_FALSE(memory.locate(reinterpret_cast<uintptr_t>(&memory.record(kFirst, AreaOffset{0})), &spot));
  CHECK_FALSE(memory.locate(reinterpret_cast<uintptr_t>(&test), &spot));
  CHECK_FALSE(memory.locate(0, &spot));
  CHECK_FALSE(memory.locate(UINTPTR_MAX, &spot));
  for (uint32_t chunk = 4; chunk < 8; chunk++) CHECK_FALSE(memory.locate_handle(memory.handle({chunk}, {0}), &spot));
}

TEST_CASE("what lies between units 4 GiB behind a handle is none") {
  Memory test(FirstChunk::kPage, 2, size_t{1} << 30);
  test.make();
  const UnitMemory& memory = test.memory;
  REQUIRE(test.layout->stride_bytes() > size_t{5} << 30);
  Spot spot{};
  for (const ChunkId chunk : {kFirst, kSecond}) {
    const uintptr_t handle = memory.handle(chunk, AreaOffset{4096});
    REQUIRE(memory.locate_handle(handle, &spot));
    CHECK(spot.offset.bytes == 4096);
    CHECK_FALSE(memory.locate_handle(handle + (uintptr_t{4} << 30), &spot));
    CHECK_FALSE(memory.locate(handle + (uintptr_t{4} << 30), &spot));
  }
}

TEST_CASE("reading through a handle faults, before and after its chunk is opened") {
  Memory test;
  test.make();
  const void* handle = reinterpret_cast<void*>(test.memory.handle(kSecond, AreaOffset{64}));
  CHECK(faults(handle));
  REQUIRE(test.memory.open_chunk(kSecond) == 0);
  CHECK(faults(handle));
  CHECK_FALSE(faults(test.at(kSecond, 64, 0)));
}

TEST_CASE("opening a chunk backs nothing; populating backs the pages asked for, in hot copies only") {
  Memory test;
  test.make();
  UnitMemory& memory = test.memory;
  REQUIRE(memory.open_chunk(kSecond) == 0);
  const size_t page = memory.page_size();
  for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
    if (copy != 5) CHECK(test.backed(test.at(kSecond, 0, copy), memory.unit_size()) == 0);
  }
  REQUIRE(memory.populate(kSecond, {PageIndex{2}, 3}) == 0);
  for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
    if (copy == 5) continue;
    CAPTURE(copy);
    CHECK(test.backed(test.at(kSecond, 0, copy), memory.unit_size()) == (copy < 2 ? 3 : 0));
    CHECK(test.backed(test.at(kSecond, static_cast<uint32_t>(2 * page), copy), 3 * page) == (copy < 2 ? 3 : 0));
  }
}

TEST_CASE("where a pool is bare no copy is hot: a page is backed once it is written to, and no other") {
  Memory test;
  test.plan.bare = true;
  test.make();
  UnitMemory& memory = test.memory;
  CHECK(memory.nr_hot() == 0);
  CHECK(memory.nr_real_copies() == 7 + memory.nr_groups());
  REQUIRE(memory.open_first_chunk() == 0);
  const auto page = static_cast<uint32_t>(memory.page_size());
  *test.at(kFirst, page, 1) = 0xa5;
  for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
    if (copy == 5) continue;
    CAPTURE(copy);
    CHECK(test.backed(test.at(kFirst, 0, copy), memory.unit_size()) == (copy == 1 ? 1 : 0));
    CHECK(*test.at(kFirst, page, copy) == (copy == 1 ? 0xa5 : 0));
  }
  memory.zero(memory.handle(kFirst, AreaOffset{0}), 3 * page);
  CHECK(*test.at(kFirst, page, 1) == 0);
  CHECK(test.backed(test.at(kFirst, 0, 1), memory.unit_size()) == (has_zero_page() ? 1 : 3));  // what is zero was only read
}

TEST_CASE("giving pages back covers all copies, cold and extra ones too, and they read as zero") {
  Memory test;
  test.make();
  UnitMemory& memory = test.memory;
  const size_t page = memory.page_size();
  REQUIRE(memory.open_chunk(kSecond) == 0);
  REQUIRE(memory.populate(kSecond, {PageIndex{0}, 2}) == 0);
  for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
    if (copy != 5) memset(test.at(kSecond, 0, copy), 0xa5, 2 * page);
  }
  CHECK(memory.depopulate(kSecond, {PageIndex{1}, 1}));
  for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
    if (copy == 5) continue;
    CAPTURE(copy);
    CHECK(test.backed(test.at(kSecond, 0, copy), 2 * page) == 1);
    CHECK(*test.at(kSecond, static_cast<uint32_t>(page) - 1, copy) == 0xa5);
    CHECK(*test.at(kSecond, static_cast<uint32_t>(page), copy) == 0);
  }
}

TEST_CASE("a chunk that is retired holds no memory, faults when it is used, and can be opened again, zero") {
  Memory test;
  test.make();
  UnitMemory& memory = test.memory;
  REQUIRE(memory.open_chunk(kSecond) == 0);
  REQUIRE(memory.populate(kSecond, {PageIndex{0}, 2}) == 0);
  *test.at(kSecond, 0, 0) = 1;
  *test.at(kSecond, 0, 3) = 1;
  *test.at(kSecond, 0, memory.nr_cpu_ids()) = 1;
  memory.record(kSecond, AreaOffset{8}).domain = 7;
  CHECK(memory.retire_chunk(kSecond) == 0);
  CHECK(faults(test.at(kSecond, 0, 0)));
  CHECK(faults(test.at(kSecond, 0, 3)));
  CHECK(memory.record(kSecond, AreaOffset{8}).domain == 0);  // still readable: wild handles are looked up there
  REQUIRE(memory.open_chunk(kSecond) == 0);
  for (uint32_t copy : {0u, 3u, memory.nr_cpu_ids()}) CHECK(*test.at(kSecond, 0, copy) == 0);
}

TEST_CASE("a chunk that cannot be opened wholly is not opened at all") {
  for (FirstChunk kind : {FirstChunk::kPage, FirstChunk::kEmbed}) {
    for (int n = 1;; n++) {
      CAPTURE(n);
      Memory test(kind);
      test.make();
      test.faulty.reset().fail_nth(Call::kMprotect, n, ENOMEM);
      const int result = test.memory.open_chunk(kSecond);
      if (!test.faulty.failed_any()) {
        CHECK(result == 0);
        CHECK(n == static_cast<int>(2 + test.memory.nr_groups()));  // records, groups, and one that was not reached
        break;
      }
      CHECK(result == -ENOMEM);
      CHECK(faults(test.at(kSecond, 0, 0)));
      CHECK(faults(test.at(kSecond, 0, 1)));
    }
  }
}

TEST_CASE("a failure to make the memory of a pool leaves nothing behind") {
  for (int n = 1;; n++) {
    CAPTURE(n);
    Memory test;
    test.faulty.reset().fail_nth_of_all(n, ENOMEM).fails_giving_back(false);
    const int result = test.memory.create(test.faulty.system(), test.plan, test.tables.data());
    const int maps = test.faulty.count(Call::kMmap);
    const int unmaps = test.faulty.count(Call::kMunmap);
    if (result == 0) test.made = true;
    if (!test.faulty.failed_any()) {
      REQUIRE(result == 0);
      break;
    }
    if (result == 0) continue;  // mbind, madvise: memory that is not bound, or dumped, is memory all the same
    CHECK(result == -ENOMEM);
    CHECK((maps == unmaps || (maps == 1 && unmaps == 0)));  // either the only map failed or all were undone
  }
}

TEST_CASE("memory that cannot be bound is used unbound, and its maker can tell") {
  Memory test(FirstChunk::kEmbed);
  test.faulty.fail_always(Call::kMbind, EPERM);
  test.make();
  CHECK(test.memory.bind_error() == -EPERM);
  REQUIRE(test.memory.open_chunk(kSecond) == 0);
  REQUIRE(test.memory.populate(kSecond, {PageIndex{0}, 1}) == 0);
}

TEST_CASE("each unit's memory is asked for from its own CPU's node") {
  for (FirstChunk kind : {FirstChunk::kPage, FirstChunk::kEmbed}) {
    CAPTURE(static_cast<int>(kind));
    static std::vector<std::pair<PageRange, uint64_t>> bound;
    bound.clear();
    Memory test(kind);
    System system = test.faulty.system();
    system.mbind = [](uintptr_t address, size_t size_bytes, int, const uint64_t* nodes, size_t, unsigned) {
      bound.push_back({{address, size_bytes}, nodes[0]});
      return 0;
    };
    REQUIRE(test.memory.create(system, test.plan, test.tables.data()) == 0);
    REQUIRE(test.memory.open_chunk(kFirst) == 0);
    const size_t bound_before = bound.size();
    REQUIRE(test.memory.open_chunk(kSecond) == 0);
    // By pages: one node's units, the other's, and the extra one.
    CHECK(bound.size() - bound_before == (kind == FirstChunk::kPage ? 3 : 0));
    for (ChunkId chunk : {kFirst, kSecond}) {
      for (int32_t cpu = 0; cpu < 8; cpu++) {
        if (cpu == 5) continue;
        const auto address = reinterpret_cast<uintptr_t>(test.at(chunk, 0, static_cast<uint32_t>(cpu)));
        uint64_t nodes = 0;
        for (const auto& [range, mask] : bound) {
          if (address >= range.start && address + test.memory.unit_size() <= range.end()) nodes = mask;
        }
        CAPTURE(cpu);
        CHECK(nodes == uint64_t{1} << (cpu % 2));
      }
    }
    test.memory.destroy();
  }
}

TEST_CASE("the first chunk's parts are backed in the hot copies from the start") {
  Memory test;
  test.make();
  REQUIRE(test.memory.open_first_chunk() == 0);
  const size_t parts = test.layout->parts_size_bytes();
  for (uint32_t copy = 0; copy < test.memory.nr_copies(); copy++) {
    if (copy == 5) continue;
    CAPTURE(copy);
    CHECK(test.backed(test.at(kFirst, 0, copy), parts) == (copy < 2 ? parts / test.memory.page_size() : 0));
    CHECK(test.backed(test.at(kFirst, 0, copy), test.memory.unit_size()) ==
          (copy < 2 ? parts / test.memory.page_size() : 0));
  }
}

TEST_CASE("embedded, whole allocations in which a hot copy lies are backed") {
  Memory test(FirstChunk::kEmbed);
  test.make();
  REQUIRE(test.layout->atom_size_bytes() == 2u << 20);
  REQUIRE(test.memory.open_first_chunk() == 0);
  for (uint32_t copy : {0u, 1u}) {
    const auto address = reinterpret_cast<uintptr_t>(test.at(kFirst, 0, copy));
    const uintptr_t allocation = address & ~(test.layout->allocation_size_bytes() - 1);
    size_t pages = 0;
    REQUIRE(resident_pages(real_system(), {allocation, test.layout->allocation_size_bytes()}, &pages) == 0);
    CHECK(pages == test.layout->allocation_size_bytes() / test.memory.page_size());
  }
}

TEST_CASE("zeroing writes hot copies, reads cold ones, and backs nothing that is zero already") {
  Memory test;
  test.make();
  UnitMemory& memory = test.memory;
  REQUIRE(memory.open_chunk(kSecond) == 0);
  REQUIRE(memory.populate(kSecond, {PageIndex{0}, 1}) == 0);
  const uintptr_t handle = memory.handle(kSecond, AreaOffset{12});
  const uint32_t extra = memory.nr_cpu_ids();
  for (size_t size : {4, 8, 12, 32, 36, 64, 68, 76, 128, 256, 1024}) {
    CAPTURE(size);
    for (uint32_t copy : {0u, 1u, 3u, extra}) memset(test.at(kSecond, 0, copy), 0x77, 2048);
    memory.zero(handle, size);
    for (uint32_t copy : {0u, 1u, 3u, extra}) {
      CAPTURE(copy);
      const unsigned char* unit = test.at(kSecond, 0, copy);
      CHECK(unit[11] == 0x77);
      CHECK(unit[12 + size] == 0x77);
      bool zero = true;
      for (size_t i = 0; i < size; i++) zero = zero && unit[12 + i] == 0;
      CHECK(zero);
      // What is not zero is found wherever it lies.
      unsigned seen = 0;
      for (size_t i = 0; i < size; i++) {
        test.at(kSecond, 0, copy)[12 + i] = 1;
        memory.zero(handle, size);
        seen += unit[12 + i];
      }
      CHECK(seen == 0);
    }
  }
  const size_t backed_by_reading = has_zero_page() ? 0 : 1;
  CHECK(test.backed(test.at(kSecond, 0, 2), memory.page_size()) == backed_by_reading);
  CHECK(test.backed(test.at(kSecond, 0, 4), memory.page_size()) == backed_by_reading);
}

TEST_CASE("an image reaches the copy of every CPU, byte for byte, and extra copies are zero") {
  Memory test;
  test.make();
  UnitMemory& memory = test.memory;
  REQUIRE(memory.open_chunk(kSecond) == 0);
  REQUIRE(memory.populate(kSecond, {PageIndex{0}, 1}) == 0);
  unsigned char image[1003];
  for (size_t i = 0; i < sizeof image; i++) image[i] = static_cast<unsigned char>(i * 7 + 1);
  const uintptr_t handle = memory.handle(kSecond, AreaOffset{8});
  const uint32_t extra = memory.nr_cpu_ids();
  for (size_t size : {1, 3, 4, 255, 256, 257, 1003}) {
    CAPTURE(size);
    for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
      if (copy != 5) memset(test.at(kSecond, 0, copy), 0x55, 2048);
    }
    memory.write_copies(handle, image, size);
    for (uint32_t copy = 0; copy < memory.nr_copies(); copy++) {
      if (copy == 5) continue;
      CAPTURE(copy);
      const unsigned char* unit = test.at(kSecond, 8, copy);
      CHECK(unit[-1] == 0x55);
      CHECK(unit[size] == 0x55);
      bool same = true;
      for (size_t i = 0; i < size; i++) same = same && unit[i] == (copy == extra ? 0 : image[i]);
      CHECK(same);
    }
  }
}

TEST_CASE("an image of zeros backs no cold copy") {
  Memory test;
  test.make();
  REQUIRE(test.memory.open_chunk(kSecond) == 0);
  const std::vector<char> zeros(4096);
  test.memory.write_copies(test.memory.handle(kSecond, AreaOffset{0}), zeros.data(), zeros.size());
  const size_t backed_by_reading = has_zero_page() ? 0 : zeros.size() / test.memory.page_size();
  for (uint32_t copy : {2u, 3u, 4u, 6u, 7u}) {
    CHECK(test.backed(test.at(kSecond, 0, copy), test.memory.unit_size()) == backed_by_reading);
  }
}

}  // namespace
}  // namespace percpu
