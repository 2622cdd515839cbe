// SPDX-License-Identifier: MIT
//
// What the heap wants to know of NUMA nodes. A file of its own, so that the tests can build a preload that sees nodes which
// the machine does not have (tests/preload/fake_nodes.cc).
#ifndef PERCPU_PRELOAD_HEAP_NODES_H
#define PERCPU_PRELOAD_HEAP_NODES_H

#include "base/cpu_mask.h"
#include "os/system.h"
#include "preload/heap/cpu_cache.h"

namespace percpu::heap {

// The nodes with memory, as numbers in a mask; where these are more than there can be page heaps, those of them that have CPUs, too.
// 0, or -errno: then there is one. Context: any, before libc is ready too.
[[nodiscard]] int read_memory_nodes(const System& system, CpuMask* nodes);

// The node that the CPU's copies came from; negative: unknown.
int node_of_cpu(const CpuCache& cache, uint32_t cpu);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_NODES_H
