// SPDX-License-Identifier: MIT
#include "preload/heap/nodes.h"

#include "os/topology.h"

namespace percpu::heap {

int read_memory_nodes(const System& system, CpuMask* nodes) {
  return read_cpu_list(system, "/sys/devices/system/node/has_memory", nodes);
}

int node_of_cpu(const CpuCache& cache, uint32_t cpu) { return cache.node_of(cpu); }

}  // namespace percpu::heap
