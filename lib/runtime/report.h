// SPDX-License-Identifier: MIT
//
// Reports of a pool for people (layout, text) and for programs (JSON). Written into a bounded buffer; nothing is allocated.
#ifndef PERCPU_RUNTIME_REPORT_H
#define PERCPU_RUNTIME_REPORT_H

#include "base/text.h"
#include "runtime/pool.h"

namespace percpu {

void report_layout(const Pool& pool, Text& text);
void report_text(Pool& pool, Text& text);
void report_json(Pool& pool, Text& text);

}  // namespace percpu

#endif  // PERCPU_RUNTIME_REPORT_H
