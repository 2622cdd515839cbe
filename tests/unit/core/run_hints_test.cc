// SPDX-License-Identifier: MIT
//
// The rules by which a record learns of a free run and loses one: a row a rule, with the record before and after.
#include "core/run_hints.h"

#include <doctest/doctest.h>

#include <ostream>

namespace percpu {

static std::ostream& operator<<(std::ostream& out, const ChunkHints& hints) {
  return out << "contig " << hints.contig_hint << "@" << hints.contig_hint_start << " scan " << hints.scan_hint << "@"
             << hints.scan_hint_start << " first " << hints.first_free;
}

namespace {

// {contig_hint, contig_hint_start, scan_hint, scan_hint_start, first_free}
TEST_CASE("a record takes in a free run by the rules") {
  struct {
    const char* rule;
    ChunkHints before;
    Run run;
    ChunkHints after;
  } const rows[] = {
      {"the first run is the largest", {0, 0, 0, 0, 100}, {40, 8}, {8, 40, 0, 0, 40}},

      {"larger, behind: the old run, larger than the scan run, becomes the scan run",
       {8, 20, 3, 10, 10}, {40, 9}, {9, 40, 8, 20, 10}},
      {"larger, behind: the old run becomes the scan run where none was known",
       {8, 20, 0, 0, 10}, {40, 9}, {9, 40, 8, 20, 10}},
      {"larger, behind: a scan run as large as the old run stays if it lies before the new one",
       {8, 20, 8, 30, 20}, {40, 9}, {9, 40, 8, 30, 20}},
      {"larger, behind: a scan run as large as the old run is dropped if the new one starts before it",
       {8, 20, 8, 60, 20}, {40, 9}, {9, 40, 0, 0, 20}},
      {"larger, behind: a scan run that became part of the new one makes room for the old run",
       {8, 20, 8, 41, 20}, {40, 9}, {9, 40, 8, 20, 20}},
      {"larger, before: the scan run is dropped", {8, 40, 3, 30, 30}, {10, 9}, {9, 10, 0, 0, 10}},
      {"larger, before: the scan run is dropped, even one before the new run",
       {8, 40, 3, 10, 10}, {20, 9}, {9, 20, 0, 0, 10}},
      {"the old run grew to the left: a scan run before it stays", {8, 40, 3, 10, 10}, {38, 10}, {10, 38, 3, 10, 10}},
      {"the old run grew to the right: a scan run before it stays", {8, 40, 3, 10, 10}, {40, 9}, {9, 40, 3, 10, 10}},
      {"the old run grew: a second run of its size, behind it, is too small now",
       {8, 40, 8, 60, 40}, {40, 9}, {9, 40, 0, 0, 40}},
      {"the old run grew over the scan run", {8, 40, 3, 30, 30}, {30, 18}, {18, 30, 0, 0, 30}},

      {"as large, better aligned, behind: it is the start now, the old run a second one",
       {8, 20, 3, 10, 10}, {32, 8}, {8, 32, 8, 20, 10}},
      {"as large, better aligned, before: it is the start now, a scan run before it stays",
       {8, 36, 3, 10, 10}, {16, 8}, {8, 16, 3, 10, 10}},
      {"as large, better aligned, before: a scan run behind it makes room for the old run",
       {8, 36, 3, 30, 30}, {16, 8}, {8, 16, 8, 36, 16}},
      {"as large at start 0, which is the best aligned of all", {8, 64, 0, 0, 64}, {0, 8}, {8, 0, 8, 64, 0}},
      {"start 0 is not given up for any other", {8, 0, 0, 0, 0}, {512, 8}, {8, 0, 8, 512, 0}},
      {"as large, not better aligned, larger than the scan run", {8, 16, 3, 10, 10}, {40, 8}, {8, 16, 8, 40, 10}},
      {"as large, not better aligned, farther than a scan run as large",
       {8, 16, 8, 40, 16}, {60, 8}, {8, 16, 8, 60, 16}},
      {"as large, not better aligned, nearer than a scan run as large",
       {8, 16, 8, 60, 16}, {40, 8}, {8, 16, 8, 60, 16}},
      {"as large, not better aligned, before the contig run", {8, 16, 0, 0, 16}, {4, 8}, {8, 16, 8, 4, 4}},

      {"smaller, before, larger than the scan run", {8, 40, 3, 10, 10}, {20, 4}, {8, 40, 4, 20, 10}},
      {"smaller, before, as large as the scan run and farther", {8, 40, 3, 10, 10}, {20, 3}, {8, 40, 3, 20, 10}},
      {"smaller, before, as large as the scan run and nearer", {8, 40, 3, 20, 20}, {10, 3}, {8, 40, 3, 20, 10}},
      {"smaller, before, smaller than the scan run", {8, 40, 3, 10, 10}, {20, 2}, {8, 40, 3, 10, 10}},
      {"smaller, before, the first one there", {8, 40, 0, 0, 40}, {20, 2}, {8, 40, 2, 20, 20}},
      {"smaller, before, where others are of which nothing is known", {8, 40, 0, 0, 10}, {20, 2}, {8, 40, 0, 0, 10}},
      {"smaller, before, no reason to forget a second run of the largest size",
       {8, 40, 8, 60, 40}, {20, 2}, {8, 40, 8, 60, 20}},
      {"smaller, behind: not worth remembering", {8, 40, 3, 10, 10}, {60, 7}, {8, 40, 3, 10, 10}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    ChunkHints hints = row.before;
    take_in(hints, row.run);
    CHECK(hints == row.after);
  }
}

TEST_CASE("a broken contig run makes the scan run the next candidate") {
  struct {
    const char* rule;
    ChunkHints before;  // first_free as after the change
    uint32_t begin, end;
    ChunkHints after;
    Broken outcome;
  } const rows[] = {
      {"the front taken, the rest still the largest known", {20, 40, 3, 10, 10}, 40, 44, {16, 44, 3, 10, 10},
       Broken::offer_behind},
      {"the front taken, no run before", {20, 40, 0, 0, 44}, 40, 44, {16, 44, 0, 0, 44}, Broken::offer_behind},
      {"the rest smaller than the scan run", {20, 40, 18, 10, 10}, 40, 44, {18, 10, 0, 0, 10}, Broken::offer_behind},
      {"the rest as large as the scan run, which is not as well aligned", {20, 40, 16, 10, 10}, 40, 44,
       {16, 44, 16, 10, 10}, Broken::offer_behind},
      {"the end taken", {20, 40, 3, 10, 10}, 56, 60, {16, 40, 3, 10, 10}, Broken::offer_behind},
      {"the middle taken: the larger part behind", {20, 40, 3, 10, 10}, 44, 50, {10, 50, 4, 40, 10},
       Broken::offer_behind},
      {"the middle taken: the larger part before", {20, 40, 3, 10, 10}, 50, 56, {10, 40, 3, 10, 10},
       Broken::offer_behind},
      {"all taken, and a scan run is known", {20, 40, 3, 10, 10}, 40, 60, {3, 10, 0, 0, 10}, Broken::offer_behind},
      {"all taken, and nothing is left", {20, 40, 0, 0, 100}, 40, 60, {0, 0, 0, 0, 100}, Broken::offer_behind},
      {"a second run of the same size behind", {20, 40, 20, 70, 40}, 44, 46, {20, 70, 0, 0, 40}, Broken::exact},
      {"a second run of the same size before", {20, 40, 20, 10, 10}, 40, 60, {20, 10, 0, 0, 10}, Broken::exact},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    ChunkHints hints = row.before;
    CHECK(break_contig(hints, row.begin, row.end) == row.outcome);
    CHECK(hints == row.after);
  }
  ChunkHints unknown = {20, 40, 0, 0, 10};  // something lies before the contig run, and how large it is was forgotten
  CHECK(break_contig(unknown, 40, 44) == Broken::rescan);
}

TEST_CASE("what lies before the contig run is known or not") {
  CHECK(largest_before_contig(ChunkHints{8, 40, 3, 10, 10}) == 3u);
  CHECK(largest_before_contig(ChunkHints{8, 40, 0, 0, 40}) == 0u);
  CHECK(largest_before_contig(ChunkHints{8, 40, 8, 60, 40}) == 0u);
  CHECK_FALSE(largest_before_contig(ChunkHints{8, 40, 0, 0, 10}).has_value());
  CHECK_FALSE(largest_before_contig(ChunkHints{8, 40, 8, 60, 10}).has_value());
}

TEST_CASE("a request has a place in a run if it fits behind the next aligned fragment") {
  CHECK(place_in({8, 8}, 8, 1) == 8u);
  CHECK(place_in({8, 8}, 8, 8) == 8u);
  CHECK(place_in({9, 8}, 1, 8) == 16u);
  CHECK_FALSE(place_in({9, 7}, 1, 8).has_value());
  CHECK_FALSE(place_in({9, 8}, 2, 8).has_value());
  CHECK_FALSE(place_in({8, 8}, 9, 1).has_value());
}

}  // namespace
}  // namespace percpu
