// SPDX-License-Identifier: MIT
//
// The window and its tables: where addresses belong, and what is refused.
#include "preload/heap/window.h"

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <sys/resource.h>

#include <cerrno>
#include <cstdio>

#include "../../unit/child.h"
#include "../../unit/sanitized.h"
#include "../address_space.h"
#include "small_system.h"

namespace percpu::heap {
namespace {

TEST_CASE("each node has an equal part, of whole regions") {
  for (uint32_t nodes = 1; nodes <= kMaxHeapNodes; ++nodes) {
    CAPTURE(nodes);
    Window window;
    REQUIRE(window.reserve_all(SmallSystem::system(), nodes) == 0);
    CHECK(window.base() % kHugeBytes == 0);
    CHECK(window.node_pages() % kRegionPages == 0);
    CHECK((window.node_pages() << kPageShift) * nodes == window.size_bytes());
    for (uint32_t node = 0; node < nodes; ++node) {
      CHECK(window.node_of_page(node * window.node_pages()) == node);
      CHECK(window.node_of_page((node + 1) * window.node_pages() - 1) == node);
    }
    munmap(reinterpret_cast<void*>(window.base()), window.size_bytes());
  }
}

TEST_CASE("an address is in the window or not, and the page map can be read for all that are") {
  Window window;
  REQUIRE(window.reserve_all(SmallSystem::system(), 1) == 0);
  uint64_t page = 0;
  const auto in = [&](uintptr_t address) { return window.page_of(reinterpret_cast<void*>(address), &page); };
  CHECK_FALSE(in(0));
  CHECK_FALSE(in(window.base() - 1));
  CHECK(in(window.base()));
  CHECK(page == 0);
  CHECK(in(window.base() + window.size_bytes() - 1));
  CHECK(page == (window.size_bytes() >> kPageShift) - 1);
  CHECK(window.entry(page).kind() == kKindNone);
  CHECK_FALSE(in(window.base() + window.size_bytes()));
  CHECK_FALSE(in(~uintptr_t{0}));
  munmap(reinterpret_cast<void*>(window.base()), window.size_bytes());
}

// Of the address space so much is left.
bool limit_to(size_t left) {
  const rlimit limit = {address_space_bytes() + left, RLIM_INFINITY};
  return setrlimit(RLIMIT_AS, &limit) == 0;
}

// All but the tables, and what a test took.
bool can_map(size_t bytes) {
  void* const at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at != MAP_FAILED && munmap(at, bytes) == 0;
}

TEST_CASE("under a limit of the address space all of it is the window's, and all but the tables is left to others") {
  if (kThreadSanitized) return;
  for (const size_t left : {size_t{64} << 20, size_t{200} << 20, size_t{2} << 30}) {
    CAPTURE(left);
    const auto works = [&] {
      if (!limit_to(left)) return 1;
      Window window;
      // Of several nodes each would have a part, and that would be the largest block.
      if (window.reserve_all(real_system(), 4) != 0 || !window.by_pieces()) return 2;
      if (window.size_bytes() < left / 8 * 7 || window.nr_nodes() != 1 || window.node_pages() << kPageShift != window.size_bytes()) return 3;
      if (!can_map(left / 32 * 31)) return 4;
      return 0;
    };
    CHECK(run_in_child(works).exit_code == 0);
    // The limit may be larger than any window: the program has as much already, as those with sanitizers do.
    const ChildEnd end = run_in_child([&] {
      (void)mmap(nullptr, size_t{17} << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      return works();
    });
    CHECK(end.exit_code == 0);
  }
}

TEST_CASE("a window by pieces: what is closed is nobody's; what somebody else took meanwhile is lost") {
  if (kThreadSanitized) return;
  const ChildEnd end = run_in_child([] {
    constexpr size_t kLeft = size_t{512} << 20;
    if (!limit_to(kLeft)) return 1;
    Window window;
    if (window.reserve_all(real_system(), 1) != 0) return 2;
    constexpr uint64_t kPages = (size_t{256} << 20) >> kPageShift;
    if (window.open_tables(0, window.node_pages()) != 0) return 3;
    if (window.open_closed(0, kPages, kNoNode) != Window::Opened::kYes) return 4;
    auto* const first = static_cast<volatile char*>(window.address_of(0));
    *first = 1;
    if (can_map(kLeft / 8 * 5)) return 5;  // it counts
    if (window.open_closed(kPages, window.node_pages() - kPages, kNoNode) != Window::Opened::kNo) return 6;  // with the tables, too much
    if (window.close(0, kPages, kNoNode) != kRetired || !can_map(kLeft / 8 * 7)) return 7;
    if (window.open_closed(0, kPages, kNoNode) != Window::Opened::kYes || *first != 0) return 8;
    if (window.close(0, kPages, kNoNode) != kRetired) return 9;
    void* const there = window.address_of(kPages / 2);
    if (mmap(there, kPageBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != there) return 10;
    if (window.open_closed(0, kPages, kNoNode) != Window::Opened::kLost) return 11;
    if (*static_cast<volatile char*>(there) != 0) return 12;  // still there
    return can_map(kLeft / 8 * 7) ? 0 : 13;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("the window is as large as the system grants; with less than the least there is none") {
  System system = SmallSystem::system();
  static size_t granted = 0;
  system.mmap = [](uintptr_t address, size_t bytes, int protection, int flags) -> intptr_t {
    return bytes > granted ? -ENOMEM : real_system().mmap(address, bytes, protection, flags);
  };
  for (granted = size_t{1} << 20; granted <= size_t{1} << 30; granted *= 4) {
    CAPTURE(granted);
    Window window;
    if (granted < size_t{8} << 20) {
      CHECK(window.reserve_all(system, 1) == -ENOMEM);
      continue;
    }
    REQUIRE(window.reserve_all(system, 1) == 0);
    CHECK(window.size_bytes() >= granted / 4);
    CHECK(window.size_bytes() < granted);
    munmap(reinterpret_cast<void*>(window.base()), window.size_bytes());
  }
}

TEST_CASE("pages are opened with their part of the tables; records come back") {
  Window window;
  REQUIRE(window.reserve_all(SmallSystem::system(), 1) == 0);
  const uint64_t last = (window.size_bytes() >> kPageShift) - 1;
  for (const uint64_t page : {uint64_t{0}, uint64_t{70000}, last}) {
    REQUIRE(window.open_pages(page, 1) == 0);
    *static_cast<volatile char*>(window.address_of(page)) = 1;
    window.set_entry(page, 7, kKindLarge, 99);
    CHECK(window.entry(page).kind() == kKindLarge);
    CHECK(window.entry(page).first_block == 99);
    CHECK(window.span_of(page) == 7);
    CHECK_FALSE(window.is_huge(page / kRegionPages));
    window.clear_entries(page, 1);
    CHECK(window.entry(page).kind() == kKindNone);
  }
  const uint32_t a = window.take_span();
  const uint32_t b = window.take_span();
  CHECK(a != 0);
  CHECK(b != a);
  window.give_span(a);
  CHECK(window.take_span() == a);
  for (uint32_t i = 0; i < 5000; ++i) REQUIRE(window.take_span() > b);
  SmallSystem::opens_left = 0;
  uint32_t more = 0;
  while (window.take_span() != 0) more++;
  CHECK(more < 1000);  // what was open already
  munmap(reinterpret_cast<void*>(window.base()), window.size_bytes());
}

TEST_CASE("a large window has records for spans of blocks up to half of it") {
  const auto most_spans = [](uint64_t window_bytes) { return Window::most_spans(window_bytes >> kPageShift); };
  constexpr uint64_t kGibi = uint64_t{1} << 30;
  constexpr uint64_t kShortBytes = 16 * 1024;  // the shortest span of most classes
  CHECK(most_spans(16 * 1024 * kGibi) * kShortBytes >= 8 * 1024 * kGibi);
  CHECK(most_spans(256 * kGibi) * kShortBytes >= 128 * kGibi);
  CHECK(most_spans(kGibi) == kGibi >> kPageShift);
}

TEST_CASE("where the page map cannot be made readable nothing stays reserved") {
  Window window;
  const System& system = SmallSystem::system();
  (void)address_space_bytes();  // what reading it takes
  const size_t before = address_space_bytes();
  SmallSystem::opens_left = 0;
  CHECK(window.reserve_all(system, 1) == -ENOMEM);
  SmallSystem::opens_left = -1;
  CHECK(address_space_bytes() == before);
}

}  // namespace
}  // namespace percpu::heap
