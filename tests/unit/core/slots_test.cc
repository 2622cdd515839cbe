// SPDX-License-Identifier: MIT
//
// The rules by which chunks are sorted into slots and move between them. The heads here have no maps: only the largest
// run matters.
#include "core/slots.h"

#include <doctest/doctest.h>

#include <vector>

namespace percpu {
namespace {

constexpr uint32_t kUnit = 65536;
using End = Slots::End;
using Order = std::vector<uint32_t>;

struct Lists {
  Lists() {
    table.unit_bytes = kUnit;
    for (ChunkHead& head : heads) head.list = ChunkHead::kNoSlot;
  }
  Slots slots() { return Slots(table, heads); }
  void set_run(uint32_t chunk, uint32_t run_bytes) { heads[chunk].hints.contig_hint = run_bytes / kFragmentBytes; }
  void insert(uint32_t chunk, uint32_t run_bytes, End end = End::back) {
    set_run(chunk, run_bytes);
    slots().insert({chunk}, end);
  }
  void resize(uint32_t chunk, uint32_t run_bytes) {
    set_run(chunk, run_bytes);
    slots().relocate({chunk});
  }
  Order in(uint32_t slot) {
    Order order;
    for (uint32_t chunk = slots().first(slot); chunk != IndexList::kNone; chunk = slots().next(chunk))
      order.push_back(chunk);
    return order;
  }

  SlotTable table{};
  ChunkHead heads[8]{};
};

TEST_CASE("a chunk's slot follows from its largest run") {
  const struct {
    uint32_t run_bytes, slot;
  } rows[] = {
      {0, 0},   {4, 1},   {12, 1},   {15, 1},   {16, 2},    {28, 2},    {31, 2},     {32, 3},          {63, 3},
      {64, 4},  {127, 4}, {128, 5},  {4095, 9}, {4096, 10}, {8191, 10}, {32768, 13}, {65532, 13},      {65536, 14},
      {1u << 30, 28},
  };
  for (const auto& row : rows) {
    CAPTURE(row.run_bytes);
    CHECK(slot_of_run(row.run_bytes) == row.slot);
  }
}

TEST_CASE("the special slots come behind the size slots") {
  SlotTable table{};
  for (const uint32_t unit : {4096u, 65536u, 1536u * 1024, 1u << 30}) {
    table.unit_bytes = unit;
    CHECK(table.sidelined() > slot_of_run(unit - 4));
    CHECK(table.free() == table.sidelined() + 1);
    CHECK(table.to_depopulate() == table.free() + 1);
    CHECK(table.to_depopulate() < SlotTable::kMaxSlots);
  }
}

TEST_CASE("the free slot holds chunks whose run is exactly a unit, and no others") {
  Lists lists;
  lists.insert(1, kUnit);
  lists.insert(2, kUnit - 4);
  CHECK(lists.in(lists.table.free()) == Order{1});
  CHECK(lists.in(13) == Order{2});
  CHECK(lists.table.free_chunks == 1);
}

TEST_CASE("an immutable chunk in the free slot is not one to be destroyed") {
  Lists lists;
  lists.heads[0].flags = ChunkHead::kImmutable;
  lists.insert(0, kUnit);
  CHECK(lists.in(lists.table.free()) == Order{0});
  CHECK(lists.table.free_chunks == 0);
  lists.resize(0, 16);
  CHECK(lists.table.free_chunks == 0);
}

TEST_CASE("a search goes from the smallest slot that could fit upwards; for a whole unit in the free slot only") {
  Lists lists;
  CHECK(lists.slots().first_searched(4) == 1);
  CHECK(lists.slots().first_searched(16) == 2);
  CHECK(lists.slots().first_searched(kUnit - 4) == 13);
  CHECK(lists.slots().first_searched(kUnit) == lists.table.free());

  lists.insert(1, 4096);
  lists.insert(2, 32);
  lists.insert(3, kUnit);
  lists.insert(4, 0);
  lists.set_run(5, 128);
  lists.slots().insert_into(lists.table.sidelined(), {5}, End::back);
  lists.set_run(6, 128);
  lists.slots().insert_into(lists.table.to_depopulate(), {6}, End::back);
  Order visited;
  for (uint32_t slot = 1; lists.slots().next_searched(slot); ++slot)
    for (const uint32_t chunk : lists.in(slot)) visited.push_back(chunk);
  CHECK(visited == Order{2, 1, 5, 3});  // full and to-depopulate are not searched; sidelined comes before free
}

TEST_CASE("a chunk moves to the front when its slot rises, to the back when it falls") {
  Lists lists;
  lists.insert(1, 64);
  lists.insert(2, 64);
  lists.insert(3, 16);
  lists.insert(4, 1024);
  lists.resize(3, 64);
  CHECK(lists.in(4) == Order{3, 1, 2});
  lists.resize(4, 64);
  CHECK(lists.in(4) == Order{3, 1, 2, 4});
}

TEST_CASE("a chunk whose slot does not change stays where it is in the list") {
  Lists lists;
  lists.insert(1, 64);
  lists.insert(2, 68);
  lists.resize(2, 124);
  lists.resize(1, 100);
  CHECK(lists.in(4) == Order{1, 2});
}

TEST_CASE("a chunk that was put aside stays in slot 0 until the slot that it deserves changes") {
  Lists lists;
  lists.insert(1, 24);
  lists.insert(2, 24);
  lists.slots().put_aside({1});
  CHECK(lists.in(0) == Order{1});
  CHECK(lists.in(2) == Order{2});
  lists.resize(1, 28);  // still slot 2
  CHECK(lists.in(0) == Order{1});
  lists.resize(1, 32);
  CHECK(lists.in(0).empty());
  CHECK(lists.in(3) == Order{1});
}

TEST_CASE("a chunk that was put aside and gets fuller moves too") {
  Lists lists;
  lists.insert(1, 24);
  lists.slots().put_aside({1});
  lists.resize(1, 8);
  CHECK(lists.in(0).empty());
  CHECK(lists.in(1) == Order{1});
  lists.slots().put_aside({1});
  lists.resize(1, 0);
  CHECK(lists.in(0) == Order{1});
  CHECK(lists.heads[1].due == 0);
}

TEST_CASE("an isolated chunk stays where it is whatever it deserves") {
  Lists lists;
  lists.heads[1].flags = ChunkHead::kIsolated;
  lists.set_run(1, 64);
  lists.slots().insert_into(lists.table.sidelined(), {1}, End::back);
  lists.resize(1, kUnit);
  CHECK(lists.in(lists.table.sidelined()) == Order{1});
  CHECK(lists.table.free_chunks == 0);
  // Back in service it goes where it belongs.
  lists.heads[1].flags = 0;
  lists.slots().unlink({1});
  lists.slots().insert({1}, End::front);
  CHECK(lists.in(lists.table.free()) == Order{1});
}

TEST_CASE("slots without chunks are passed over") {
  Lists lists;
  uint32_t slot = 1;
  CHECK_FALSE(lists.slots().next_searched(slot));
  lists.insert(1, 1024);
  CHECK(lists.slots().next_searched(slot));
  CHECK(slot == 8);
  slot = 9;
  CHECK_FALSE(lists.slots().next_searched(slot));
  lists.slots().unlink({1});
  slot = 1;
  CHECK_FALSE(lists.slots().next_searched(slot));
  CHECK(lists.table.nonempty == 0);
  CHECK(lists.heads[1].list == ChunkHead::kNoSlot);
  lists.slots().unlink({1});  // no harm twice
}

}  // namespace
}  // namespace percpu
