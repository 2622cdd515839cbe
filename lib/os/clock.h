// SPDX-License-Identifier: MIT
//
// The time, without libc: programs and their tools put functions of their own in front of libc's (libfaketime), and these may
// allocate, wait, or tell another time.
#ifndef PERCPU_OS_CLOCK_H
#define PERCPU_OS_CLOCK_H

#include <cstdint>

namespace percpu {

// Nanoseconds of CLOCK_MONOTONIC_COARSE, which moves every few milliseconds. By the kernel's vDSO, some ten nanoseconds; by a system
// call where there is none. Context: any, signal handlers included. Keeps errno.
uint64_t coarse_ns();
inline uint64_t coarse_ms() { return coarse_ns() / 1000000; }

}  // namespace percpu

#endif  // PERCPU_OS_CLOCK_H
