// SPDX-License-Identifier: MIT
#include "preload/heap/nodes.h"

#include "os/topology.h"

namespace percpu::heap {

int read_memory_nodes(const System& system, CpuMask* nodes) {
  const int result = read_cpu_list(system, "/sys/devices/system/node/has_memory", nodes);
  if (result != 0 || nodes->count() <= kMaxHeapNodes) return result;
  CpuMask with_cpus;
  if (read_cpu_list(system, "/sys/devices/system/node/has_cpu", &with_cpus) != 0) return 0;
  CpuMask both;
  for (CpuId node = nodes->first(); node.valid(); node = nodes->after(node)) {
    if (with_cpus.has(node)) both.add(node);
  }
  if (both.count() != 0) *nodes = both;
  return 0;
}

int node_of_cpu(const CpuCache& cache, uint32_t cpu) { return cache.node_of(cpu); }

}  // namespace percpu::heap
