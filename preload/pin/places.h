// SPDX-License-Identifier: MIT
//
// Reads from sysfs where the CPUs are that the process may use: the cores that they share, their packages and nodes.
#ifndef PERCPU_PRELOAD_PIN_PLACES_H
#define PERCPU_PRELOAD_PIN_PLACES_H

#include "os/system.h"
#include "preload/pin/order.h"

namespace percpu::heap {

// Fills places[0 .. last allowed CPU]. What cannot be read counts as a core of its own on package and node 0.
// Context: any; opens two files a core and one a node, on a stack of some 2 KiB.
void read_cpu_places(const System& system, const CpuMask& allowed, CpuPlace* places);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_PIN_PLACES_H
