// SPDX-License-Identifier: MIT
//
// What programs see of the preload.
#ifndef PERCPU_PRELOAD_ABI_EXPORT_H
#define PERCPU_PRELOAD_ABI_EXPORT_H

#include <cstddef>

// A second name need not repeat what the first one promises.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmissing-attributes"
#endif

#define PRELOAD_EXPORT extern "C" __attribute__((visibility("default")))

namespace percpu::heap {

// No block is aligned better, by whatever name it is asked for.
inline constexpr size_t kLargestAlign = size_t{1} << 30;

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_ABI_EXPORT_H
