// SPDX-License-Identifier: MIT
#ifndef PERCPU_BASE_ERRNO_KEPT_H
#define PERCPU_BASE_ERRNO_KEPT_H

#include <errno.h>

namespace percpu {

// While one lives errno may change; when it ends errno is as it was when it began.
class ErrnoKept {
 public:
  ErrnoKept() : saved_(errno) {}
  ~ErrnoKept() { errno = saved_; }
  ErrnoKept(const ErrnoKept&) = delete;
  ErrnoKept& operator=(const ErrnoKept&) = delete;

 private:
  const int saved_;
};

}  // namespace percpu

#endif  // PERCPU_BASE_ERRNO_KEPT_H
