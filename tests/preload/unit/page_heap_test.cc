// SPDX-License-Identifier: MIT
//
// The free pages of a node: which run serves what, what joins, what goes back and in which order, and what becomes huge. At
// the end a random run beside a naive model, which knows of each page whether it is taken and what was written to it.
#include "preload/heap/page_heap.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../unit/sanitized.h"
#include "../../unit/seed.h"
#include "core/config.h"
#include "preload/heap/decay.h"
#include "../address_space.h"
#include "small_system.h"

namespace percpu::heap {
namespace {

// Returns what it was.
rlim_t limit_address_space(rlim_t bytes) {
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_AS, &before) == 0);
  const rlimit now{bytes, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_AS, &now) == 0);
  return before.rlim_cur;
}

struct Fixture {
  Window window;
  PageHeap pages;

  explicit Fixture(uint32_t nr_nodes = 1, uint32_t node = 0, bool by_pieces = false) {
    rlim_t before = 0;
    if (by_pieces) before = limit_address_space(address_space_bytes() + (size_t{1} << 30));  // for this moment
    REQUIRE(window.reserve_all(SmallSystem::system(), nr_nodes) == 0);
    if (by_pieces) (void)limit_address_space(before);
    REQUIRE(window.by_pieces() == by_pieces);
    pages.init(window, node);
    SmallSystem::advices.clear();
  }
  ~Fixture() { munmap(reinterpret_cast<void*>(window.base()), window.size_bytes()); }

  uint32_t take(uint64_t nr_pages, uint64_t align = 1, Purpose purpose = Purpose::kLarge) {
    const uint32_t number = pages.allocate(nr_pages, align, purpose);
    REQUIRE(number != 0);
    REQUIRE(window.span(number).nr_pages == nr_pages);
    return number;
  }
  uint64_t first(uint32_t number) { return window.span(number).first_page; }
  uint64_t* word(uint64_t page) { return static_cast<uint64_t*>(window.address_of(page)); }
  // Writes to every page.
  void touch(uint32_t number, uint64_t value = 1) {
    for (uint64_t i = 0; i < window.span(number).nr_pages; ++i) *word(first(number) + i) = value;
  }
  uint64_t used() {
    const PageStats stats = pages.stats();
    return stats.open_pages - stats.dirty_pages - stats.clean_pages;
  }
};

// All that the system was asked since the last call was about whole pages of its own.
void check_said() {
  for (const auto* said : {&SmallSystem::advices, &SmallSystem::binds}) {
    for (const SmallSystem::Said& each : *said) REQUIRE((each.start | each.bytes) % system_page_bytes() == 0);
  }
  SmallSystem::advices.clear();
  SmallSystem::binds.clear();
}

TEST_CASE("a freed run is taken again before clean ones, and reads as it was left") {
  Fixture at;
  const uint32_t a = at.take(10);
  const uint32_t fence = at.take(1);
  CHECK(at.window.span(a).pages == Pages::kClean);
  at.touch(a, 77);
  const uint64_t page = at.first(a);
  at.pages.release(a);
  CHECK(at.pages.stats().dirty_pages == 10);
  const uint32_t b = at.take(4);
  CHECK(at.first(b) == page);
  CHECK(at.window.span(b).pages == Pages::kDirty);
  CHECK(*at.word(page) == 77);
  CHECK(at.pages.stats().dirty_pages == 6);
  at.pages.release(fence);
  at.pages.release(b);
  CHECK(at.used() == 0);
}

TEST_CASE("the smallest run that fits is taken") {
  Fixture at;
  uint32_t runs[4];
  uint32_t fences[4];
  const uint64_t sizes[4] = {100, 3, 40, 7};
  for (int i = 0; i < 4; ++i) {
    runs[i] = at.take(sizes[i]);
    fences[i] = at.take(1);
  }
  const uint64_t of_seven = at.first(runs[3]);
  const uint64_t of_forty = at.first(runs[2]);
  for (const uint32_t run : runs) at.pages.release(run);
  CHECK(at.first(at.take(5)) == of_seven);
  CHECK(at.first(at.take(5)) == of_forty);
  static_cast<void>(fences);
}

TEST_CASE("neighbours join, whichever is freed last") {
  const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (const auto& order : orders) {
    Fixture at;
    uint32_t runs[3];
    for (uint32_t& run : runs) run = at.take(5);
    const uint32_t fence = at.take(1);
    const uint64_t page = at.first(runs[0]);
    for (const int i : order) at.pages.release(runs[i]);
    CHECK(at.first(at.take(15)) == page);
    static_cast<void>(fence);
  }
}

TEST_CASE("a run begins at a multiple of what was asked for, in the address space") {
  Fixture at;
  for (uint64_t align = 1; align <= 4096; align *= 2) {
    const uint32_t number = at.take(3, align);
    CHECK(reinterpret_cast<uintptr_t>(at.window.address_of(at.first(number))) % (align << kPageShift) == 0);
  }
}

TEST_CASE("a run grows over free pages behind it, and gives its last ones back") {
  Fixture at;
  const uint32_t a = at.take(4);
  const uint32_t b = at.take(6);
  const uint32_t fence = at.take(1);
  CHECK_FALSE(at.pages.resize(a, 5));
  at.pages.release(b);
  CHECK_FALSE(at.pages.resize(a, 11));
  CHECK(at.pages.resize(a, 8));
  CHECK(at.pages.stats().dirty_pages == 2);
  CHECK(at.pages.resize(a, 10));
  CHECK(at.pages.resize(a, 1));
  CHECK(at.pages.stats().dirty_pages == 9);
  CHECK(at.used() == 2);
  static_cast<void>(fence);
}

TEST_CASE("of what was idle since the last tick half goes back in a half-life; what was needed, or just freed, stays") {
  Fixture at;
  std::vector<uint32_t> runs;
  for (int i = 0; i < 64; ++i) runs.push_back(at.take(16));
  const uint32_t fence = at.take(1);
  for (size_t i = 0; i < 64; i += 2) at.pages.release(runs[i]);
  at.pages.decay(kWhole / 2);  // they were not free a tick ago
  CHECK(at.pages.stats().dirty_pages == 512);
  at.pages.decay(kWhole / 2);
  CHECK(at.pages.stats().dirty_pages == 256);
  CHECK(at.pages.stats().purged_pages == 256);
  at.pages.decay(kWhole);
  CHECK(at.pages.stats().dirty_pages == 256);
  // Needed and freed again: not idle.
  const uint32_t again = at.take(16);
  std::vector<uint32_t> more{again};
  while (at.pages.stats().dirty_pages >= 16) more.push_back(at.take(16));
  for (const uint32_t number : more) at.pages.release(number);
  at.pages.decay(0);
  CHECK(at.pages.stats().dirty_pages == 256);
  at.pages.decay(0);
  CHECK(at.pages.stats().dirty_pages == 0);
  static_cast<void>(fence);
}

// How many ticks pass until half of what is idle has gone back (a run more may be left), by what PERCPU_CONF says of `decay`.
int ticks_to_half(const char* conf, uint64_t tick_ms) {
  constexpr uint64_t kRuns = 256;
  constexpr uint64_t kRunPages = 16;
  const uint64_t kept = kept_share(tick_ms, parse_config(conf, 4096, nullptr, nullptr).decay_ms);
  Fixture at;
  std::vector<uint32_t> runs;
  for (uint64_t i = 0; i < 2 * kRuns; ++i) runs.push_back(at.take(kRunPages));
  for (size_t i = 0; i < runs.size(); i += 2) at.pages.release(runs[i]);
  at.pages.decay(kept);  // they were not free a tick ago
  CHECK(at.pages.stats().dirty_pages == kRuns * kRunPages);
  int ticks = 0;
  for (; at.pages.stats().dirty_pages > (kRuns / 2 + 1) * kRunPages && ticks < 1000; ++ticks) at.pages.decay(kept);
  return ticks;
}

TEST_CASE("half of what is idle goes back in a second by default, and in so many milliseconds as are asked for") {
  CHECK(ticks_to_half("", 200) == 5);
  CHECK(ticks_to_half("", 100) == 10);
  CHECK(ticks_to_half("", 1000) == 1);
  CHECK(ticks_to_half("decay:200", 200) == 1);
  CHECK(ticks_to_half("decay:200", 100) == 2);
  CHECK(ticks_to_half("decay:500", 100) == 5);
  CHECK(ticks_to_half("decay:0", 200) == 1);
}

TEST_CASE("of one long run twice what is due goes back at most, the end first, and what is less than a page is not forgotten") {
  Fixture at;
  const uint32_t run = at.take(10000);
  const uint32_t fence = at.take(1);
  const uint64_t page = at.first(run);
  at.touch(run, 7);
  at.pages.release(run);
  at.pages.decay(0);  // not free a tick ago
  CHECK(at.pages.stats().dirty_pages == 10000);
  at.pages.decay(kWhole - kWhole / 64);
  CHECK(at.pages.stats().dirty_pages == 10000 - 2 * (10000 / 64));
  CHECK(*at.word(page) == 7);
  CHECK(*at.word(page + 9687) == 7);
  CHECK(*at.word(page + 9688) == 0);
  // A hundred thousandth: a page every tenth time or so, and of a run twice that.
  for (int i = 0; i < 100; ++i) at.pages.decay(kWhole - kWhole / 100000);
  const uint64_t gone = 9688 - at.pages.stats().dirty_pages;
  CHECK(gone >= 9);
  CHECK(gone <= 20);
  static_cast<void>(fence);
}

TEST_CASE("of a long run of which little is taken, or which grows, the rest is idle") {
  Fixture at;
  const uint32_t run = at.take(1024);
  const uint32_t little = at.take(8);
  const uint32_t fence = at.take(1);
  at.pages.release(run);
  at.pages.decay(0);
  const uint32_t taken = at.take(4);
  at.pages.release(little);
  CHECK(at.pages.stats().dirty_pages == 1028);
  at.pages.decay(kWhole / 2);
  CHECK(at.pages.stats().dirty_pages < 1028 / 2 + 16);
  static_cast<void>(taken);
  static_cast<void>(fence);
}

TEST_CASE("what was given back reads as zero, and is handed out as clean") {
  Fixture at;
  const uint32_t a = at.take(50);
  at.touch(a, 5);
  const uint64_t page = at.first(a);
  at.pages.release(a);
  CHECK(at.pages.purge_to(10) >= 40);
  CHECK(at.pages.purge_all() + at.pages.stats().purged_pages >= 50);
  CHECK(at.pages.stats().dirty_pages == 0);
  const uint32_t b = at.take(50);
  CHECK(at.window.span(b).pages == Pages::kClean);
  for (uint64_t i = 0; i < 50; ++i) CHECK(*at.word(at.first(b) + i) == 0);
  static_cast<void>(page);
}

TEST_CASE("where the system takes nothing back, the pages stay dirty") {
  Fixture at;
  const uint32_t a = at.take(50);
  at.touch(a, 5);
  at.pages.release(a);
  SmallSystem::keeps_pages = true;
  CHECK(at.pages.purge_all() == 0);
  CHECK(at.pages.stats().dirty_pages == 50);
  SmallSystem::keeps_pages = false;
  CHECK(at.pages.purge_all() == 50);
}

TEST_CASE("without memory for tables or pages there is none, and later there is") {
  for (int granted = 0; granted < 8; ++granted) {
    Fixture at;
    SmallSystem::opens_left = granted;
    const uint32_t number = at.pages.allocate(10, 1, Purpose::kBlocks);
    SmallSystem::opens_left = -1;
    if (number == 0) CHECK(at.used() == 0);
    const uint32_t other = at.take(10);
    at.touch(other);
    CHECK(at.used() == (number == 0 ? 10 : 20));
  }
}

TEST_CASE("a node opens its own part of the window, and has it placed there") {
  Fixture at(4, 2);
  at.pages.bind_to(NodeId{5});
  const uint32_t number = at.take(10);
  CHECK(at.window.node_of_page(at.first(number)) == 2);
  REQUIRE(SmallSystem::binds.size() == 1);
  CHECK(SmallSystem::binds[0].what == 5);
  CHECK(SmallSystem::binds[0].start == at.window.base() + 2 * (at.window.node_pages() << kPageShift));
  CHECK(SmallSystem::binds[0].bytes >= 10 * kPageBytes);
}

// ---- huge pages ------------------------------------------------------------------------------------------------------

// What was last said of the address.
int last_advice(uintptr_t address) {
  int advice = -1;
  for (const SmallSystem::Said& said : SmallSystem::advices) {
    if ((said.what == MADV_HUGEPAGE || said.what == MADV_NOHUGEPAGE) && address - said.start < said.bytes) advice = said.what;
  }
  return advice;
}

// A heap with 32 MiB in use, and a run that ends where a region does.
struct LargeFixture : Fixture {
  LargeFixture() { base = take(8192, kRegionPages); }
  uint32_t base = 0;
  uintptr_t address(uint32_t number) { return reinterpret_cast<uintptr_t>(window.address_of(first(number))); }
};

TEST_CASE("begun anew, it forgets what is free before the line, and leaves the block there that ends at it") {
  for (const bool block_at_the_line : {true, false}) {
    Fixture at;
    at.pages.release(at.take(1), true);
    const PageStats opened = at.pages.stats();
    const uint32_t all = at.take(opened.open_pages);
    const uint64_t last = at.first(all) + opened.open_pages - 1;
    for (uint64_t page = at.first(all); page <= last; ++page) at.window.set_entry(page, all, kKindLane);
    if (!block_at_the_line) at.pages.release(all);
    CHECK(at.pages.begin_anew() == last + 1);
    CHECK(at.window.entry(last).kind() == (block_at_the_line ? kKindLane : kKindNone));
    const uint32_t next = at.take(3);
    CHECK(at.first(next) == last + 1);
    at.pages.release(next, true);  // nor joined to what is before the line
    CHECK(at.first(at.take(at.pages.stats().clean_pages)) == last + 1);
  }
}

TEST_CASE("nothing is huge in a small heap, nor where it is not wanted") {
  Fixture at;
  at.pages.set_huge_use(HugeUse::kAll);
  for (int i = 0; i < 100; ++i) (void)at.take(4, 1, Purpose::kBlocks);
  CHECK(at.pages.stats().huge_regions == 0);
  LargeFixture large;
  for (int i = 0; i < 300; ++i) (void)large.take(4, 1, Purpose::kBlocks);
  CHECK(large.pages.stats().huge_regions == 0);
  large.pages.set_huge_use(HugeUse::kDense);
  (void)large.take(3000);
  CHECK(large.pages.stats().huge_regions == 0);
}

TEST_CASE("blocks fill one region after the other, each huge") {
  LargeFixture at;
  at.pages.set_huge_use(HugeUse::kDense);
  const uint32_t begin = at.take(4, 1, Purpose::kBlocks);
  CHECK(at.first(begin) % kRegionPages == 0);
  CHECK(last_advice(at.address(begin)) == MADV_HUGEPAGE);
  CHECK(at.pages.stats().huge_regions == 1);
  CHECK(at.pages.stats().dirty_pages == kRegionPages - 4);
  for (uint64_t i = 1; i < kRegionPages / 4; ++i) CHECK(at.first(at.take(4, 1, Purpose::kBlocks)) == at.first(begin) + 4 * i);
  CHECK(at.pages.stats().huge_regions == 1);
  CHECK(at.pages.stats().dirty_pages == 0);
  // One that does not divide a region begins with the next.
  (void)at.take(kRegionPages - 3, 1, Purpose::kBlocks);
  const uint32_t next = at.take(5, 1, Purpose::kBlocks);
  CHECK(at.first(next) == at.first(begin) + 2 * kRegionPages);
  CHECK(at.pages.stats().huge_regions == 3);
}

TEST_CASE("large blocks are huge inside with kAll only") {
  LargeFixture at;
  at.pages.set_huge_use(HugeUse::kAll);
  const uint32_t block = at.take(3 * kRegionPages + 10);
  CHECK(at.pages.stats().huge_regions == 3);
  CHECK(last_advice(at.address(block)) == MADV_HUGEPAGE);
  CHECK(last_advice(at.address(block) + 3 * kHugeBytes) != MADV_HUGEPAGE);
  CHECK(at.window.span(block).pages == Pages::kClean);
}

TEST_CASE("whole regions go back first; one that loses some of its pages is not huge any more") {
  LargeFixture at;
  at.pages.set_huge_use(HugeUse::kDense);
  std::vector<uint32_t> spans;
  for (uint64_t i = 0; i < 3 * kRegionPages / 4; ++i) spans.push_back(at.take(4, 1, Purpose::kBlocks));
  const uint64_t region = at.first(spans[0]);
  REQUIRE(at.pages.stats().huge_regions == 3);
  // Most of the first, all of the second, some of the third.
  for (uint64_t i = 1; i < kRegionPages / 2; ++i) at.pages.release(spans[i]);
  for (uint64_t i = kRegionPages / 2; i < kRegionPages / 2 + 10; ++i) at.pages.release(spans[i]);
  REQUIRE(at.pages.stats().dirty_pages == kRegionPages - 4 + kRegionPages + 40);
  SmallSystem::advices.clear();
  CHECK(at.pages.purge_to(at.pages.purgeable_pages() - 1) == kRegionPages);
  CHECK(at.pages.stats().huge_regions == 2);
  CHECK(last_advice(reinterpret_cast<uintptr_t>(at.window.address_of(region + kRegionPages))) == MADV_NOHUGEPAGE);
  CHECK(last_advice(reinterpret_cast<uintptr_t>(at.window.address_of(region))) == -1);
  CHECK(at.pages.purge_all() == kRegionPages - 4 + 40);
  CHECK(at.pages.stats().huge_regions == 0);
  CHECK(last_advice(reinterpret_cast<uintptr_t>(at.window.address_of(region))) == MADV_NOHUGEPAGE);
  CHECK(last_advice(reinterpret_cast<uintptr_t>(at.window.address_of(region + 2 * kRegionPages))) == MADV_NOHUGEPAGE);
}

TEST_CASE("the rest of the region that is being filled does not decay") {
  LargeFixture at;
  at.pages.set_huge_use(HugeUse::kDense);
  (void)at.take(4, 1, Purpose::kBlocks);
  for (int i = 0; i < 50; ++i) at.pages.decay(0);
  CHECK(at.pages.stats().dirty_pages == kRegionPages - 4);
  CHECK(at.pages.purge_all() == kRegionPages - 4);
}

TEST_CASE("a block whose pages moved away leaves clean ones, and nothing huge") {
  LargeFixture at;
  at.pages.set_huge_use(HugeUse::kAll);
  const uint32_t block = at.take(2 * kRegionPages, kRegionPages);
  REQUIRE(at.pages.stats().huge_regions == 2);
  at.pages.release(block, true);
  CHECK(at.pages.stats().huge_regions == 0);
  CHECK(at.pages.stats().dirty_pages == 0);
}

// ---- beside a model --------------------------------------------------------------------------------------------------

// How the kernel has the page: "rw-p", as /proc/self/maps says.
std::string access_of(const void* address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    char access[5] = "";
    if (sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, access) == 3 && reinterpret_cast<uintptr_t>(address) - begin < end - begin)
      return access;
  }
  return "";
}

// How many of these pages may be written to.
uint64_t open_among(Fixture& at, uint64_t first, uint64_t nr_pages) {
  uint64_t open = 0;
  for (uint64_t i = 0; i < nr_pages; ++i) open += access_of(at.word(first + i)) == "rw-p";
  return open;
}

TEST_CASE("where the kernel's books are strict, what goes back in long runs is closed, and opened again when it is needed") {
  Fixture at;
  at.pages.begin_closing();
  const uint32_t a = at.take(100);
  const uint64_t first = at.first(a);
  const uint32_t fence = at.take(1);
  at.touch(a);
  CHECK(open_among(at, first, 512) == 128);  // half a MiB at once
  CHECK(at.pages.stats().open_pages == 128);
  at.pages.release(a);
  CHECK(at.pages.purge_all() == 100);
  CHECK(open_among(at, first, 100) == 0);
  CHECK(at.pages.stats().open_pages == 28);
  // What is open serves first; then a part of what is closed, at an alignment; then the rest, by a block that grows.
  CHECK(at.first(at.take(20)) == at.first(fence) + 1);
  const uint32_t b = at.take(20);
  CHECK(at.first(b) == first);
  for (uint64_t i = 0; i < 20; ++i) CHECK(*at.word(first + i) == 0);
  at.touch(b);
  REQUIRE(at.pages.resize(b, 60));
  for (uint64_t i = 20; i < 60; ++i) CHECK(*at.word(first + i) == 0);
  at.touch(b);
  // A block whose pages moved away.
  REQUIRE(madvise(at.word(first), 60 << kPageShift, MADV_DONTNEED) == 0);
  at.pages.release(b, true);
  CHECK(open_among(at, first, 60) == 0);
}

TEST_CASE("under strict books short runs are closed where they make a long one, or lie beside a closed one") {
  Fixture at;
  at.pages.begin_closing();
  std::vector<uint32_t> pieces;
  for (int i = 0; i < 64; ++i) pieces.push_back(at.take(16));
  for (const uint32_t piece : pieces) at.touch(piece);
  const uint64_t first = at.first(pieces[0]);
  for (const uint32_t piece : pieces) {
    at.pages.release(piece);
    (void)at.pages.purge_all();
  }
  CHECK(open_among(at, first, 64 * 16) == 0);
  // A large alignment leaves nothing open but what is handed out, and half a MiB.
  const uint64_t open = at.pages.stats().open_pages;
  (void)at.take(1, 65536);
  CHECK(at.pages.stats().open_pages <= open + 128);
}

TEST_CASE("under strict books, where the system opens no more, what is open serves, and nothing is lost") {
  Fixture at;
  at.pages.begin_closing();
  const uint32_t a = at.take(1000);
  const uint32_t b = at.take(200);
  at.touch(a);
  at.pages.release(a);
  (void)at.pages.purge_all();
  at.pages.release(b);
  const uint64_t closed = at.pages.stats().closed_pages;
  SmallSystem::opens_left = 0;
  CHECK(at.pages.allocate(900, 1, Purpose::kLarge) == 0);
  CHECK(at.pages.allocate(300, 1, Purpose::kBlocks) == 0);
  const uint32_t c = at.take(150);
  CHECK_FALSE(at.pages.resize(c, 600));
  CHECK(at.pages.stats().closed_pages == closed);
  SmallSystem::opens_left = -1;
  at.touch(at.take(900));
}

TEST_CASE("under strict books, where little can be opened, what is asked for is") {
  Fixture at;
  at.pages.begin_closing();
  SmallSystem::largest_open = 20 << kPageShift;
  const uint32_t a = at.take(10);
  at.touch(a);
  const uint32_t b = at.take(20, 64);
  at.touch(b);
  CHECK(at.pages.allocate(30, 1, Purpose::kLarge) == 0);
  REQUIRE(at.pages.resize(a, 30));
  at.touch(a);
  CHECK(at.used() == 50);
}

TEST_CASE("many aligned blocks out of a closed run make few mappings") {
  Fixture at;
  at.pages.begin_closing();
  const uint32_t a = at.take(80000);
  at.pages.release(a);
  (void)at.pages.purge_all();
  // The window's alone: a sanitizer makes some of its own.
  const auto count = [&] {
    std::ifstream maps("/proc/self/maps");
    size_t found = 0;
    for (std::string line; std::getline(maps, line);) found += std::stoull(line, nullptr, 16) - at.window.base() < at.window.size_bytes();
    return found;
  };
  const auto before = count();
  for (int i = 0; i < 10000; ++i) (void)at.take(1, 4);
  CHECK(count() <= before + 4);
}

TEST_CASE("a run whose addresses are lost while it is closed is nobody's from then on") {
  Fixture at;
  at.pages.begin_closing();
  const uint32_t a = at.take(128);
  at.touch(a);
  const uint64_t first = at.first(a);
  at.pages.release(a);
  SmallSystem::loses_pages = true;
  CHECK(at.pages.purge_all() == 0);
  SmallSystem::loses_pages = false;
  CHECK(at.pages.stats().dirty_pages == 0);
  CHECK(at.used() == 128);
  for (int i = 0; i < 20; ++i) {
    const uint32_t other = at.take(100);
    CHECK((at.first(other) >= first + 128 || at.first(other) + 100 <= first));
    at.touch(other);
  }
}

TEST_CASE("at a new peak what was free since the last tick goes back, down to a sixteenth; below the peak nothing does") {
  Fixture at;
  at.pages.decay(kWhole);
  const uint32_t a = at.take(2000);
  const uint32_t fence = at.take(1);
  at.pages.release(a);
  CHECK_FALSE(at.pages.keeps_too_much());  // it was not kept then
  at.touch(at.take(3000));
  CHECK(at.pages.keeps_too_much());
  at.pages.purge_excess();
  CHECK_FALSE(at.pages.keeps_too_much());
  CHECK(at.pages.purgeable_pages() == 2000);  // free in this tick
  at.touch(at.take(3000));
  CHECK_FALSE(at.pages.keeps_too_much());  // once a tick
  at.pages.decay(kWhole);
  const uint32_t b = at.take(3000);
  at.touch(b);
  CHECK(at.pages.keeps_too_much());
  at.pages.purge_excess();
  CHECK(at.pages.purgeable_pages() <= 11001 / 16);
  CHECK(at.pages.purgeable_pages() > 0);
  // Below the peak.
  at.pages.release(b);
  at.pages.decay(kWhole);
  at.touch(at.take(2900));
  CHECK_FALSE(at.pages.keeps_too_much());
  at.touch(fence);
}

TEST_CASE("a purge looks at each run once, however many may not go") {
  Fixture at;
  constexpr size_t kOld = 500;
  constexpr size_t kFresh = 3000;
  const uint64_t length = 4 * system_pages();
  std::vector<uint32_t> runs;
  for (size_t i = 0; i < kOld + kFresh; ++i) {
    runs.push_back(at.take(length));
    at.touch(at.take(system_pages()));  // no neighbours
  }
  for (size_t i = 0; i < kOld; ++i) at.pages.release(runs[i]);
  at.pages.decay(kWhole);
  for (size_t i = kOld; i < runs.size(); ++i) at.pages.release(runs[i]);
  at.touch(at.take(2 * length));
  REQUIRE(at.pages.keeps_too_much());
  const PageStats before = at.pages.stats();
  at.pages.purge_excess();
  const PageStats after = at.pages.stats();
  CHECK(after.purged_pages - before.purged_pages == kOld * length);
  CHECK(after.purge_looks - before.purge_looks >= kOld);
  CHECK(after.purge_looks - before.purge_looks <= kOld + kFresh);
}

TEST_CASE("what lies in huge regions is looked at once, and kept while there is other memory") {
  LargeFixture at;
  at.pages.set_huge_use(HugeUse::kDense);
  // Each region with holes in it.
  constexpr size_t kRegions = 8;
  const uint64_t length = system_pages();
  std::vector<uint32_t> holes;
  for (uint64_t i = 0; i < kRegions * kRegionPages / length; ++i) {
    const uint32_t number = at.take(length, 1, Purpose::kBlocks);
    if (i % 2 != 0) holes.push_back(number);
  }
  REQUIRE(at.pages.stats().huge_regions >= kRegions);
  const uint64_t huge_regions = at.pages.stats().huge_regions;
  for (const uint32_t number : holes) at.pages.release(number);
  // And some elsewhere, of the same length.
  at.pages.set_huge_use(HugeUse::kNone);
  std::vector<uint32_t> others;
  for (size_t i = 0; i < holes.size() + 60; ++i) {
    const uint32_t number = at.take(length);
    if (i >= holes.size() && i % 2 == 0) others.push_back(number);
  }
  for (const uint32_t number : others) at.pages.release(number);
  const PageStats before = at.pages.stats();
  CHECK(at.pages.purge_to(before.dirty_pages - others.size() * length) == others.size() * length);
  const PageStats after = at.pages.stats();
  CHECK(after.huge_regions == huge_regions);
  CHECK(after.purge_looks - before.purge_looks <= holes.size() + 2 * others.size() + kRegions);
}

// Where the system's pages are as large as ours there is nothing to see.
TEST_CASE("of a page of the system that is in use in part nothing goes back; with its last part all of it") {
  if (system_pages() < 4) return;
  Fixture at;
  const uint32_t a = at.take(3, 1, Purpose::kBlocks);
  const uint32_t b = at.take(system_pages(), 1, Purpose::kBlocks);
  at.touch(a);
  at.touch(b);
  CHECK(at.pages.stats().dirty_pages == system_pages() - 3);
  CHECK(at.pages.purgeable_pages() == 0);
  CHECK(at.pages.purge_all() == 0);
  (void)at.pages.decay(0);
  CHECK_FALSE(at.pages.decay(0));
  const uint32_t c = at.take(2, 1, Purpose::kBlocks);  // of the same page
  CHECK(at.first(c) < at.first(b));
  const uint64_t page = at.first(a);
  at.pages.release(a);
  CHECK(at.pages.purge_all() == 0);
  at.pages.release(c);
  CHECK(at.pages.purge_all() == system_pages());
  CHECK(*at.word(page) == 0);
  CHECK(*at.word(at.first(b)) == 1);
  check_said();
}

TEST_CASE("of a page of the system that is in use in part the rest makes nothing else due") {
  if (system_pages() < 4) return;
  Fixture at;
  constexpr uint64_t kStuckRuns = 400;
  constexpr uint64_t kWholeRuns = 4;
  const uint64_t run_pages = 8 * system_pages();
  for (uint64_t i = 0; i < kStuckRuns; ++i) at.touch(at.take(1, system_pages(), Purpose::kBlocks));
  uint32_t runs[kWholeRuns];
  for (uint32_t& run : runs) {
    run = at.take(run_pages, system_pages());
    at.touch(run);
    at.touch(at.take(system_pages(), system_pages()));
  }
  for (const uint32_t run : runs) at.pages.release(run);
  CHECK(at.pages.stats().dirty_pages == kStuckRuns * (system_pages() - 1) + kWholeRuns * run_pages);
  CHECK(at.pages.purgeable_pages() == kWholeRuns * run_pages);
  CHECK(at.pages.decay(kWhole));
  CHECK(at.pages.decay(kWhole / 2));
  CHECK(at.pages.purgeable_pages() == kWholeRuns / 2 * run_pages);
  // And blocks take it first.
  const uint64_t dirty = at.pages.stats().dirty_pages;
  (void)at.take(system_pages() - 1, 1, Purpose::kBlocks);
  CHECK(at.pages.purgeable_pages() == kWholeRuns / 2 * run_pages);
  CHECK(at.pages.stats().dirty_pages == dirty - (system_pages() - 1));
  check_said();
}

TEST_CASE("random calls do what a model says") {
  std::mt19937_64 random(test_seed());
  // All three under usual books, then all under strict ones, and all in limited address space.
  for (int kind = 0; kind < 9; ++kind) {
    const bool closes = kind >= 3;
    const bool by_pieces = kind >= 6;
    const HugeUse use = std::array{HugeUse::kNone, HugeUse::kDense, HugeUse::kAll}[static_cast<size_t>(kind % 3)];
    if (use != HugeUse::kNone && system_pages() != 1) continue;
    if (by_pieces && kThreadSanitized) continue;
    if (by_pieces && system_page_bytes() != page_size_bytes()) continue;  // of what is taken the system tells in its own pages
    CAPTURE(closes);
    CAPTURE(by_pieces);
    Fixture at(1, 0, by_pieces);
    at.pages.set_huge_use(use);
    if (closes && !by_pieces) at.pages.begin_closing();
    struct Run {
      uint64_t first = 0;
      uint64_t nr_pages = 0;
      uint64_t tag = 0;
      Purpose purpose = Purpose::kBlocks;
    };
    std::map<uint32_t, Run> runs;        // by number
    std::map<uint64_t, uint64_t> taken;  // by first page: the end
    const auto take_pages = [&](uint64_t first, uint64_t nr_pages) {
      auto after = taken.upper_bound(first);
      if (after != taken.end()) REQUIRE(first + nr_pages <= after->first);
      if (after != taken.begin()) REQUIRE(std::prev(after)->second <= first);
      taken[first] = first + nr_pages;
    };
    uint64_t used = 0;
    for (uint64_t step = 1; step <= 8000; ++step) {
      check_said();
      const uint64_t what = random() % 100;
      if (what < 48 || runs.empty()) {
        uint64_t nr_pages = random() % 50 == 0 ? 1 + random() % 2000 : 1 + random() % 40;
        uint64_t align = random() % 8 == 0 ? uint64_t{1} << random() % 10 : 1;
        if (used + nr_pages > 60000) continue;
        const Purpose purpose = random() % 2 == 0 ? Purpose::kBlocks : Purpose::kLarge;
        if (purpose == Purpose::kLarge) {  // as the heap does
          nr_pages = up_to_system(nr_pages);
          align = std::max(align, system_pages());
        }
        const uint32_t number = at.pages.allocate(nr_pages, align, purpose);
        REQUIRE(number != 0);
        const Span& span = at.window.span(number);
        REQUIRE(span.nr_pages == nr_pages);
        REQUIRE((span.first_page + (at.window.base() >> kPageShift)) % align == 0);
        take_pages(span.first_page, nr_pages);
        for (uint64_t i = 0; i < nr_pages; ++i) {
          if (span.pages == Pages::kClean) REQUIRE(*at.word(span.first_page + i) == 0);
          *at.word(span.first_page + i) = step;
        }
        runs[number] = {span.first_page, nr_pages, step, purpose};
        used += nr_pages;
        continue;
      }
      if (what == 98) at.pages.decay(random() % 257 * (kWhole / 256));
      if (what == 99) {
        const uint64_t keep = random() % 2000;
        (void)at.pages.purge_to(keep);
        REQUIRE(at.pages.purgeable_pages() <= keep);
      }
      if (what >= 98) {
        const PageStats stats = at.pages.stats();
        REQUIRE(stats.open_pages - stats.dirty_pages - stats.clean_pages == used);
        REQUIRE(stats.huge_regions <= stats.open_pages / kRegionPages);
        continue;
      }
      auto any = runs.begin();
      std::advance(any, static_cast<long>(random() % (runs.size() < 50 ? runs.size() : 50)));
      Run& run = any->second;
      for (uint64_t i = 0; i < run.nr_pages; ++i) REQUIRE(*at.word(run.first + i) == run.tag);
      taken.erase(run.first);
      used -= run.nr_pages;
      if (what < 90 || (run.purpose == Purpose::kBlocks && system_pages() != 1)) {
        at.pages.release(any->first);
        runs.erase(any);
        continue;
      }
      const uint64_t wanted = up_to_system(1 + random() % (2 * run.nr_pages));
      if (at.pages.resize(any->first, wanted)) run.nr_pages = wanted;
      take_pages(run.first, run.nr_pages);
      used += run.nr_pages;
      for (uint64_t i = 0; i < run.nr_pages; ++i) *at.word(run.first + i) = run.tag;
    }
    if (use != HugeUse::kNone) CHECK(at.pages.stats().huge_regions + at.pages.stats().purged_pages > 0);
    for (const auto& [number, run] : runs) at.pages.release(number);
    (void)at.pages.purge_all();
    const PageStats stats = at.pages.stats();
    CHECK(stats.dirty_pages == 0);
    CHECK(at.pages.purgeable_pages() == 0);
    CHECK(stats.clean_pages == stats.open_pages);
    CHECK((stats.open_pages == 0) == closes);
    CHECK(stats.huge_regions == 0);
    // All of it is one run again.
    (void)at.take(stats.open_pages + stats.closed_pages);
  }
}

}  // namespace
}  // namespace percpu::heap
