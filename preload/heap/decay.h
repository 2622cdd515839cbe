// SPDX-License-Identifier: MIT
//
// How much of what is free is kept for so long: half of it a half-life. Without floating point, which would bring libm.
#ifndef PERCPU_PRELOAD_HEAP_DECAY_H
#define PERCPU_PRELOAD_HEAP_DECAY_H

#include <cstddef>
#include <cstdint>

namespace percpu::heap {

// A share is in 2^-32: an hour's half-life takes 4 in 100,000 a tick, and that to one in a hundred.
inline constexpr uint64_t kWhole = uint64_t{1} << 32;

struct HalfLifeRoots {
  static constexpr size_t kBits = 32;
  uint64_t root[kBits];  // 2^(-1/2), 2^(-1/4), ...

  constexpr HalfLifeRoots() : root() {
    uint64_t last = kWhole / 2;
    for (uint64_t& each : root) each = last = square_root(last << 32);
  }

 private:
  // Rounded down.
  static constexpr uint64_t square_root(uint64_t value) {
    uint64_t found = 0;
    for (uint64_t bit = uint64_t{1} << 31; bit != 0; bit /= 2) {
      if ((found + bit) * (found + bit) <= value) found += bit;
    }
    return found;
  }
};
inline constexpr HalfLifeRoots kHalfLifeRoots{};

// 2^(-since / half-life), as the product of the roots whose bits the exponent has.
constexpr uint64_t kept_share(uint64_t since_ms, uint64_t half_life_ms) {
  if (half_life_ms == 0 || since_ms / half_life_ms >= HalfLifeRoots::kBits) return 0;
  const uint64_t whole = since_ms / half_life_ms;
  const uint64_t rest_ms = since_ms % half_life_ms;
  const uint64_t exponent = rest_ms < kWhole ? (rest_ms << 32) / half_life_ms : 0;
  uint64_t share = kWhole;
  for (size_t i = 0; i < HalfLifeRoots::kBits; ++i) {
    if ((exponent >> (HalfLifeRoots::kBits - 1 - i) & 1) != 0) share = (share * kHalfLifeRoots.root[i] + kWhole / 2) >> 32;
  }
  return share >> whole;
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_DECAY_H
