// SPDX-License-Identifier: MIT
#ifndef PERCPU_TESTS_SANITIZED_H
#define PERCPU_TESTS_SANITIZED_H

#include <percpu/arch/select.h>  // PERCPU_UNDER_ASAN and its like

namespace percpu {

// ThreadSanitizer allows addresses in some ranges only, and ends the process where a mapping is asked for elsewhere.
#ifdef PERCPU_UNDER_TSAN
inline constexpr bool kThreadSanitized = true;
#else
inline constexpr bool kThreadSanitized = false;
#endif
#ifdef PERCPU_UNDER_ASAN
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = kThreadSanitized;
#endif

}  // namespace percpu

#endif  // PERCPU_TESTS_SANITIZED_H
