// SPDX-License-Identifier: MIT
#include "core/placement.h"

#include <climits>

#include "base/bits.h"

namespace percpu {

namespace {

constexpr uint64_t kMaxReservationBytes = uint64_t{1} << 63;

}  // namespace

std::optional<Placement> place(const Layout& layout, uint32_t max_chunks) {
  const uint64_t stride = layout.stride_bytes();
  const uint64_t windows = 1 + uint64_t{layout.nr_groups()};
  const uint64_t atom = layout.atom_size_bytes();
  if (max_chunks == 0 || max_chunks > (kMaxReservationBytes / windows - atom) / stride) return std::nullopt;
  Placement placement;
  placement.window_bytes = round_up_to_multiple(max_chunks * stride, atom);
  placement.stride_bytes = stride;
  placement.unit_size_bytes = layout.unit_size_bytes();
  placement.max_chunks = max_chunks;
  placement.nr_groups = layout.nr_groups();
  return placement;
}

uint32_t max_chunks_in(const Layout& layout, uint64_t bytes) {
  const uint64_t window = bytes / (1 + uint64_t{layout.nr_groups()});
  const uint64_t chunks = window / layout.atom_size_bytes() * layout.atom_size_bytes() / layout.stride_bytes();
  return chunks < INT32_MAX ? static_cast<uint32_t>(chunks) : INT32_MAX;
}

std::optional<AddressPlace> find_address(const Layout& layout, const Placement& placement, uint64_t address) {
  const uint64_t distance = address - placement.base;
  if (distance < placement.window_bytes || distance >= placement.reservation_bytes()) return std::nullopt;
  const GroupId id{static_cast<int32_t>(distance / placement.window_bytes - 1)};
  const uint64_t in_window = distance % placement.window_bytes;
  const uint64_t chunk = in_window / placement.stride_bytes;
  const uint64_t in_area = in_window % placement.stride_bytes;
  const uint64_t unit = in_area / placement.unit_size_bytes;
  const Group& group = layout.group(id);
  if (chunk >= placement.max_chunks || unit >= group.nr_units_with_extra()) return std::nullopt;
  return AddressPlace{id,
                      {static_cast<uint32_t>(chunk)},
                      {group.first_unit.value + static_cast<int32_t>(unit)},
                      in_area % placement.unit_size_bytes};
}

}  // namespace percpu
