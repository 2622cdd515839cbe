// SPDX-License-Identifier: MIT
//
// A machine with three nodes: CPU n is on node n modulo 3. (The kernel refuses to place memory on nodes that it does not
// have, and the heap goes on, as it does in containers that forbid it.)
#include "preload/heap/nodes.h"

namespace percpu::heap {

int read_memory_nodes(const System&, CpuMask* nodes) {
  *nodes = {};
  for (int32_t node = 0; node < 3; ++node) nodes->add({node});
  return 0;
}

int node_of_cpu(const CpuCache&, uint32_t cpu) { return static_cast<int>(cpu % 3); }

}  // namespace percpu::heap
