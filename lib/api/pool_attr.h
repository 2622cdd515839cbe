// SPDX-License-Identifier: MIT
//
// What the caller of percpu_pool_create() asks for: checked, and told to the runtime in its own words.
#ifndef PERCPU_API_POOL_ATTR_H
#define PERCPU_API_POOL_ATTR_H

#include <percpu.h>

#include <cstddef>

#include "core/config.h"
#include "runtime/pool.h"

namespace percpu {

// What no pool's units exceed.
inline constexpr size_t kMaxUnitSizeBytes = size_t{1} << 30;

// Members that are 0 become what `config` says. setup->name is the caller's text.
// Returns: 0, or -EINVAL and one line on stderr that names the member, what was expected and what was found.
[[nodiscard]] int read_pool_attr(const percpu_pool_attr& given, const Config& config, PoolSetup* setup);

}  // namespace percpu

#endif  // PERCPU_API_POOL_ATTR_H
