// SPDX-License-Identifier: MIT
//
// The environment, as far as this library reads it: the one variable PERCPU_CONF.
//
// It is read from `environ`, not by getenv: programs define their own getenv and setenv (bash does), which a library that
// works before main must not call. The text is copied at once, since the program may change its environment.
//
// `environ` is null until libc has been initialised, and after clearenv(). Code that runs before libc's initialisation is
// a resolver of indirect functions or an audit module; neither can call us, for we need libc ourselves, so it has been
// initialised before us. Reading /proc/self/environ in that case would therefore gain nothing, and would be wrong after
// clearenv(): the program took its environment away on purpose.
//
// A program that runs with more rights than its caller (setuid, file capabilities: AT_SECURE) ignores the variable.
#ifndef PERCPU_OS_ENV_H
#define PERCPU_OS_ENV_H

#include <cstddef>

namespace percpu {

// Copies the value of PERCPU_CONF, terminated, into the buffer; "" when it isn't set, or not to be trusted.
// Returns: the length of the value, which was cut if this is not below `capacity_bytes`. Requires: capacity_bytes > 0.
// Context: any; async-signal-safe. As with getenv, the program must not change its environment meanwhile.
size_t read_conf(char* buffer, size_t capacity_bytes);

// The same with the environment and the verdict given. `environment` is null, or ends with a null pointer.
size_t read_conf_from(const char* const* environment, bool secure, char* buffer, size_t capacity_bytes);

}  // namespace percpu

#endif  // PERCPU_OS_ENV_H
