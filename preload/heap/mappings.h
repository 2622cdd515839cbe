// SPDX-License-Identifier: MIT
//
// A process has 65,530 mappings at most (vm.max_map_count), and what needs one more fails then: threads, libraries. So the heap makes
// those that it could do without only as long as there are few.
#ifndef PERCPU_PRELOAD_HEAP_MAPPINGS_H
#define PERCPU_PRELOAD_HEAP_MAPPINGS_H

#include "os/system.h"

namespace percpu::heap {

// Whether the caller may do something that makes two mappings more at most, and that may stay so. Context: any.
bool may_make_mappings();

// Looks at how many there are, where some thousand were asked for, wished or done, since the last look; nobody looks, some thousand
// more are all. may_look: whether files may be opened for that (limit:off). Context: no lock of ours is held.
void look_at_mappings(const System& system, bool may_look);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_MAPPINGS_H
