// SPDX-License-Identifier: MIT
//
// Threads may be cancelled. One that ended inside the library would leave a lock, a gate or half of a change behind for ever,
// and the calls of the public headers are no cancellation points: so where libc, libnuma or liburcu may sleep, read or write on
// our behalf, the calling thread is not cancelled.
#ifndef PERCPU_OS_CANCEL_H
#define PERCPU_OS_CANCEL_H

#include <pthread.h>

namespace percpu {

// While it lives, the calling thread is not cancelled; a request stays pending. Nests. Context: not a signal handler.
class NotCancelled {
 public:
  NotCancelled() { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~NotCancelled() { pthread_setcancelstate(before_, nullptr); }
  NotCancelled(const NotCancelled&) = delete;
  NotCancelled& operator=(const NotCancelled&) = delete;

 private:
  int before_ = PTHREAD_CANCEL_ENABLE;
};

}  // namespace percpu

#endif  // PERCPU_OS_CANCEL_H
