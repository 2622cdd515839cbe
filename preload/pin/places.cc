// SPDX-License-Identifier: MIT
#include "preload/pin/places.h"

#include "base/text.h"
#include "os/file.h"
#include "os/topology.h"

namespace percpu::heap {

namespace {

// -1: there is none, or one that makes no sense.
int read_number(const System& system, const char* path) {
  char text[16];
  (void)read_beginning(system, path, text, sizeof text);
  const uint64_t number = leading_number(text).value_or(UINT64_MAX);
  return number <= kMaxCpus ? static_cast<int>(number) : -1;
}

void read_core(const System& system, const CpuMask& allowed, CpuId cpu, CpuPlace* places) {
  char path[96];
  Text siblings_path(path);
  siblings_path.format("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu.value);
  CpuMask siblings;
  if (read_cpu_list(system, path, &siblings) != 0 || !siblings.has(cpu)) {
    siblings = {};
    siblings.add(cpu);
  }
  Text package_path(path);
  package_path.format("/sys/devices/system/cpu/cpu%d/topology/physical_package_id", cpu.value);
  const int package = read_number(system, path);
  for (CpuId sibling = cpu; sibling.valid(); sibling = siblings.after(sibling)) {
    if (!allowed.has(sibling)) continue;
    places[sibling.index()].core = static_cast<int16_t>(siblings.first().value);
    places[sibling.index()].package = static_cast<int16_t>(package < 0 ? 0 : package);
  }
}

void read_node(const System& system, const CpuMask& allowed, CpuId node, CpuPlace* places) {
  char path[64];
  Text text(path);
  text.format("/sys/devices/system/node/node%d/cpulist", node.value);
  CpuMask cpus;
  if (read_cpu_list(system, path, &cpus) != 0) return;  // a node without CPUs has an empty list
  for (CpuId cpu = cpus.first(); cpu.valid(); cpu = cpus.after(cpu)) {
    if (allowed.has(cpu)) places[cpu.index()].node = static_cast<int16_t>(node.value);
  }
}

}  // namespace

void read_cpu_places(const System& system, const CpuMask& allowed, CpuPlace* places) {
  constexpr int16_t kUnknown = -1;
  for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) {
    places[cpu.index()] = {};
    places[cpu.index()].core = kUnknown;
  }
  for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) {
    if (places[cpu.index()].core == kUnknown) read_core(system, allowed, cpu, places);
  }
  CpuMask nodes;  // the file has the form of a CPU list
  if (read_cpu_list(system, "/sys/devices/system/node/online", &nodes) != 0) return;
  for (CpuId node = nodes.first(); node.valid() && node.index() < kMaxNodes; node = nodes.after(node))
    read_node(system, allowed, node, places);
}

}  // namespace percpu::heap
