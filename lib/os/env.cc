// SPDX-License-Identifier: MIT
#include "os/env.h"

#include <sys/auxv.h>
#include <unistd.h>

#include <cstring>

#include "base/text.h"

namespace percpu {

size_t read_conf_from(const char* const* environment, bool secure, char* buffer, size_t capacity_bytes) {
  constexpr char kPrefix[] = "PERCPU_CONF=";
  constexpr size_t kPrefixLen = sizeof kPrefix - 1;
  Text value(buffer, capacity_bytes);
  if (environment == nullptr || secure) return 0;
  for (; *environment != nullptr; ++environment) {
    if (strncmp(*environment, kPrefix, kPrefixLen) != 0) continue;
    value.put(*environment + kPrefixLen);
    break;  // as getenv: the first counts
  }
  return value.needed_bytes();
}

size_t read_conf(char* buffer, size_t capacity_bytes) {
  return read_conf_from(environ, getauxval(AT_SECURE) != 0, buffer, capacity_bytes);
}

}  // namespace percpu
