// SPDX-License-Identifier: MIT
//
// A process has 65,530 mappings at most (vm.max_map_count), and what needs one more fails then: threads, libraries. So the heap makes
// those that it could do without only as long as there are few.
#ifndef PERCPU_PRELOAD_HEAP_MAPPINGS_H
#define PERCPU_PRELOAD_HEAP_MAPPINGS_H

#include "os/system.h"

namespace percpu::heap {

// Whether the caller may do something that makes two mappings more at most, and that may stay so. Looks at how many there are
// when it is asked first, and each time it was asked some thousand times, wished or done.
// may_look: whether files may be opened for that (limit:off); else some thousand are all. Context: any thread.
bool may_make_mappings(const System& system, bool may_look);

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_HEAP_MAPPINGS_H
