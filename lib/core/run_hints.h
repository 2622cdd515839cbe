// SPDX-License-Identifier: MIT
//
// What a record remembers of the free runs in a stretch of a bitmap, and the rules by which it learns of a new one or
// loses one. The same rules serve a block (16-bit fields) and a whole chunk (32-bit fields), so they are templates over
// the record; all positions and lengths are in fragments, counted from the start of the stretch.
//
//   contig_hint, contig_hint_start   the largest free run
//   scan_hint, scan_hint_start       a second run; 0: none is known
//   first_free                       the first free fragment; the end of the stretch where there is none
//
// Invariants (exact; the tests recompute them):
//   - no free run is larger than contig_hint, and the contig run is a whole free run: bounded by taken fragments or by
//     the ends of the stretch. The same holds of the scan run.
//   - the scan run lies before the contig run, unless both have the same size.
//   - "largest of those passed by": where the scan run lies before the contig run, no run before the contig run is
//     larger than scan_hint. So a larger request need not look there. Where no scan run is known, that is known all the
//     same if first_free is the contig run's start: there is no run before it.
//
// A run "is offered" when it became free or was found by a scan. It is given whole: joined with its neighbours.
#ifndef PERCPU_CORE_RUN_HINTS_H
#define PERCPU_CORE_RUN_HINTS_H

#include <bit>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "base/bits.h"

namespace percpu {

// A free run: [start, start + len).
struct Run {
  uint32_t start;
  uint32_t len;
  [[nodiscard]] constexpr uint32_t end() const { return start + len; }
  constexpr bool operator==(const Run&) const = default;
};

// The record of a whole chunk. (A chunk's runs join no neighbour, so it needs no left_free and right_free.)
struct ChunkHints {
  uint32_t contig_hint;
  uint32_t contig_hint_start;
  uint32_t scan_hint;
  uint32_t scan_hint_start;
  uint32_t first_free;
  constexpr bool operator==(const ChunkHints&) const = default;
};

template <class Hints>
[[nodiscard]] constexpr Run contig_run(const Hints& hints) {
  return {hints.contig_hint_start, hints.contig_hint};
}

template <class Hints>
[[nodiscard]] constexpr Run scan_run(const Hints& hints) {
  return {hints.scan_hint_start, hints.scan_hint};
}

template <class Hints>
constexpr void set_contig(Hints& hints, Run run) {
  hints.contig_hint = static_cast<decltype(hints.contig_hint)>(run.len);
  hints.contig_hint_start = static_cast<decltype(hints.contig_hint_start)>(run.start);
}

template <class Hints>
constexpr void set_scan(Hints& hints, Run run) {
  hints.scan_hint = static_cast<decltype(hints.scan_hint)>(run.len);
  hints.scan_hint_start = static_cast<decltype(hints.scan_hint_start)>(run.start);
}

template <class Hints>
constexpr void drop_scan(Hints& hints) {
  set_scan(hints, {0, 0});
}

// Whether a run that starts at `start` is better aligned than one that starts at `other`. Start 0 is the best of all.
[[nodiscard]] constexpr bool better_aligned(uint32_t start, uint32_t other) {
  return std::countr_zero(start) > std::countr_zero(other);
}

[[nodiscard]] constexpr bool overlap(Run run, uint32_t begin, uint32_t end) {
  return begin < run.end() && run.start < end;
}

// Where a request of `len`, aligned to `align` (a power of two), goes at the front of a run. Returns: its start, or
// nothing where the run is too short.
[[nodiscard]] constexpr std::optional<uint32_t> place_in(Run run, uint32_t len, uint32_t align) {
  const uint32_t start = round_up(run.start, align);
  if (start + len > run.end()) return std::nullopt;
  return start;
}

// The length that no free run before the contig run exceeds. Returns: nothing where that is not known.
template <class Hints>
[[nodiscard]] constexpr std::optional<uint32_t> largest_before_contig(const Hints& hints) {
  if (hints.first_free == hints.contig_hint_start) return 0;
  if (hints.scan_hint != 0 && hints.scan_hint_start < hints.contig_hint_start) return hints.scan_hint;
  return std::nullopt;
}

// A run larger than contig_hint takes its place.
template <class Hints>
constexpr void take_in_larger(Hints& hints, Run run) {
  const Run old = contig_run(hints);
  const Run scan = scan_run(hints);
  const bool swallows_old = run.start <= old.start && old.end() <= run.end();
  const bool swallows_scan = scan.len != 0 && run.start <= scan.start && scan.end() <= run.end();
  if (old.len == 0 || swallows_old) {
    // The old run grew. What lies before the new one was before the old one too, and is as small as it was.
    if (scan.start >= run.start) drop_scan(hints);
  } else if (run.start > old.start) {
    if (old.len > scan.len || swallows_scan)
      set_scan(hints, old);
    else if (run.start < scan.start)
      drop_scan(hints);
  } else {
    drop_scan(hints);
  }
  set_contig(hints, run);
}

// A run as large as contig_hint: the better aligned one becomes the contig run.
template <class Hints>
constexpr void take_in_equal(Hints& hints, Run run) {
  const Run old = contig_run(hints);
  const Run scan = scan_run(hints);
  if (!better_aligned(run.start, old.start)) {
    if (run.len > scan.len || run.start > scan.start) set_scan(hints, run);
    return;
  }
  // The old run is a second one of the same size. It has to be remembered where the scan run would no longer be the
  // largest before the contig run, or would not lie before it at all.
  if (run.start > old.start || scan.len == 0 || scan.start >= run.start) set_scan(hints, old);
  set_contig(hints, run);
}

// A run smaller than contig_hint is worth remembering only before the contig run, and only as the largest there: where
// no scan run is known it may be remembered only if there was no run before the contig run at all.
template <class Hints>
constexpr void take_in_smaller(Hints& hints, Run run) {
  if (run.start >= hints.contig_hint_start) return;
  const Run scan = scan_run(hints);
  const bool known = scan.len != 0 || hints.first_free == hints.contig_hint_start;
  if (known && (run.len > scan.len || (run.len == scan.len && run.start > scan.start))) set_scan(hints, run);
}

// Offers a run. Requires: it is free, whole, and either new or not remembered; first_free is that from before the run
// was freed, or already at most run.start.
template <class Hints>
inline void take_in(Hints& hints, Run run) {
  if (run.len > hints.contig_hint)
    take_in_larger(hints, run);
  else if (run.len == hints.contig_hint)
    take_in_equal(hints, run);
  else
    take_in_smaller(hints, run);
  if (run.start < hints.first_free) hints.first_free = static_cast<decltype(hints.first_free)>(run.start);
}

// How far break_contig() got.
enum class Broken : uint8_t {
  exact,         // the record is right
  offer_behind,  // it will be once the runs behind the old contig run have been offered, in order
  rescan,        // it will be once all runs have been offered, in order, to an empty record
};

// Takes [begin, end), which overlaps the contig run, out of it: promotes the scan run and offers what is left of the
// old run. Requires: the scan run does not overlap [begin, end) (it was dropped); first_free is up to date.
template <class Hints>
[[nodiscard]] constexpr Broken break_contig(Hints& hints, uint32_t begin, uint32_t end) {
  const Run old = contig_run(hints);
  const Run scan = scan_run(hints);
  const bool passed_by_known = hints.first_free >= old.start || (scan.len != 0 && scan.start < old.start);
  if (begin == old.start && passed_by_known && scan.len < old.end() - end && scan.len < old.len) {
    // The usual case, made short: the front of a run is taken, and the rest is still the largest of those known.
    set_contig(hints, {end, old.end() - end});
    return Broken::offer_behind;
  }
  set_contig(hints, scan);
  drop_scan(hints);
  if (scan.len != old.len && !passed_by_known) return Broken::rescan;
  if (begin > old.start) take_in(hints, {old.start, begin - old.start});
  if (end < old.end()) take_in(hints, {end, old.end() - end});
  return scan.len == old.len ? Broken::exact : Broken::offer_behind;
}

}  // namespace percpu

#endif  // PERCPU_CORE_RUN_HINTS_H
