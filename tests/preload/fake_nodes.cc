// SPDX-License-Identifier: MIT
//
// A machine with three nodes, whose numbers go down where those of the CPUs go up: CPU n is on node 2 - n modulo 3, and a core of its own.
// (The kernel refuses to place memory on nodes that it does not have, and the heap goes on, as it does in containers that forbid it.)
#include "preload/heap/nodes.h"
#include "preload/pin/places.h"

namespace percpu::heap {

namespace {

int node_of(uint32_t cpu) { return 2 - static_cast<int>(cpu % 3); }

}  // namespace

int read_memory_nodes(const System&, CpuMask* nodes) {
  *nodes = {};
  for (int32_t node = 0; node < 3; ++node) nodes->add({node});
  return 0;
}

int node_of_cpu(const CpuCache&, uint32_t cpu) { return node_of(cpu); }

void read_cpu_places(const System&, const CpuMask& allowed, CpuPlace* places) {
  for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) {
    places[cpu.index()] = {};
    places[cpu.index()].core = static_cast<int16_t>(cpu.value);
    places[cpu.index()].node = static_cast<int16_t>(node_of(static_cast<uint32_t>(cpu.value)));
  }
}

}  // namespace percpu::heap
