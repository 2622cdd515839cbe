// SPDX-License-Identifier: MIT
//
// Where the kernel has no vDSO: this program says so in libc's name.
#include "os/clock.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <ctime>

#include <sys/auxv.h>

extern "C" unsigned long __getauxval(unsigned long type);  // libc's second name

namespace {
bool asked = false;
}

extern "C" unsigned long getauxval(unsigned long type) noexcept {
  if (type != AT_SYSINFO_EHDR) return __getauxval(type);
  asked = true;
  errno = ENOENT;
  return 0;
}

namespace percpu {
namespace {

uint64_t by_libc() {
  timespec now{};
  REQUIRE(clock_gettime(CLOCK_MONOTONIC_COARSE, &now) == 0);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

TEST_CASE("without a vDSO the time is the same, and errno is kept") {
  const uint64_t before = by_libc();
  errno = EILSEQ;
  const uint64_t now = coarse_ns();
  const int after = errno;
  CHECK(asked);
  CHECK(after == EILSEQ);
  CHECK(now >= before);
  CHECK(now <= by_libc());
}

}  // namespace
}  // namespace percpu
