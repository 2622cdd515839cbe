// SPDX-License-Identifier: MIT
#include "preload/heap/mappings.h"

#include <cstdint>

#include "os/file.h"

namespace percpu::heap {
namespace {

constexpr uint32_t kAsksBetweenLooks = 4096;
// Half of all is the program's.
constexpr uint32_t kMostMappings = 24 * 1024;

uint32_t asks = 0;
uint32_t asks_at_look = 0;
bool few = true;

// How many lines a file has; 0 where it cannot be read.
uint32_t count_lines(const System& system, const char* path) {
  const int file = system.open(path);
  if (file < 0) return 0;
  char text[1024];
  uint32_t count = 0;
  ssize_t length = 0;
  while ((length = system.read(file, text, sizeof text)) > 0) {
    for (ssize_t i = 0; i < length; ++i) count += text[i] == '\n';
  }
  (void)system.close(file);
  return length < 0 ? 0 : count;
}

// How many mappings the process has; 0 where that cannot be told.
uint32_t count_mappings(const System& system) {
  const uint32_t count = count_lines(system, kOwnMaps[0]);
  return count != 0 ? count : count_lines(system, kOwnMaps[1]);
}

}  // namespace

bool may_make_mappings() {
  const uint32_t asked = __atomic_add_fetch(&asks, 1, __ATOMIC_RELAXED);
  const auto since_look = static_cast<int32_t>(asked - __atomic_load_n(&asks_at_look, __ATOMIC_RELAXED));
  return __atomic_load_n(&few, __ATOMIC_RELAXED) && since_look < static_cast<int32_t>(3 * kAsksBetweenLooks);
}

void look_at_mappings(const System& system, bool may_look) {
  const uint32_t now = __atomic_load_n(&asks, __ATOMIC_RELAXED);
  const uint32_t last = __atomic_load_n(&asks_at_look, __ATOMIC_RELAXED);
  if (!may_look || now == 0 || (last != 0 && now - last < kAsksBetweenLooks)) return;
  const uint32_t count = count_mappings(system);
  if (count == 0) return;
  __atomic_store_n(&few, count < kMostMappings, __ATOMIC_RELAXED);
  __atomic_store_n(&asks_at_look, now, __ATOMIC_RELAXED);
}

}  // namespace percpu::heap
