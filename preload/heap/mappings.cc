// SPDX-License-Identifier: MIT
#include "preload/heap/mappings.h"

#include <cstdint>

namespace percpu::heap {
namespace {

// How many mappings the process has; UINT32_MAX where that cannot be told.
uint32_t count_mappings(const System& system) {
  const int file = system.open("/proc/self/maps");
  if (file < 0) return UINT32_MAX;
  char text[4096];
  uint32_t count = 0;
  ssize_t length = 0;
  while ((length = system.read(file, text, sizeof text)) > 0) {
    for (ssize_t i = 0; i < length; ++i) count += text[i] == '\n';
  }
  (void)system.close(file);
  return length < 0 ? UINT32_MAX : count;
}

}  // namespace

// Half of all is the program's.
bool may_make_mappings(const System& system, bool may_look) {
  constexpr uint32_t kAsksBetweenLooks = 4096;
  constexpr uint32_t kMostMappings = 24 * 1024;
  static uint32_t asks = 0;
  static bool allowed = true;
  const uint32_t asked = __atomic_add_fetch(&asks, 1, __ATOMIC_RELAXED);
  if (asked == 1 || asked % kAsksBetweenLooks == 0) {
    const bool few = may_look ? count_mappings(system) < kMostMappings : asked < 3 * kAsksBetweenLooks;
    __atomic_store_n(&allowed, few, __ATOMIC_RELAXED);
  }
  return __atomic_load_n(&allowed, __ATOMIC_RELAXED);
}

}  // namespace percpu::heap
