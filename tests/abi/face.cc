// SPDX-License-Identifier: MIT
//
// The same face in C++.
#include <percpu.h>

#include <cstdint>

PERCPU_DEFINE(long, requests) = 5;
PERCPU_DEFINE_STATIC(double, seconds) = 0.5;

int main() {
  auto *hits = static_cast<std::uint64_t *>(percpu_alloc(sizeof(std::uint64_t), alignof(std::uint64_t)));
  percpu_add(hits, 1);
  const std::uint64_t total = percpu_sum(hits);
  const std::uint64_t on3 = *percpu_ptr(hits, CPU_THREE);
  percpu_free(hits);

  percpu_inc(percpu_static(requests));
  percpu_add(percpu_static(seconds), 0.25);

  unsigned possible = 0;
  for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) possible += percpu_cpu_possible(cpu) != 0;
  if (total != 1 || on3 > 1) return 1;
  if (percpu_sum(percpu_static(requests)) != 5 * static_cast<long>(possible) + 1) return 2;
  if (percpu_sum(percpu_static(seconds)) != 0.5 * possible + 0.25) return 3;
  return requests == 5 ? 0 : 4;
}
