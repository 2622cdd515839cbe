// SPDX-License-Identifier: MIT
//
// Places the threads that a program creates on CPUs, by the policy of PERCPU_CONF's `pin` (docs/pinning.md), and hides it:
// what the program and its children see through libc is what they would see without us.
//
// A *place* is what a thread of ours is held to: one CPU, or a node's CPUs with pin:node. A thread is *ours to place* when
// the affinity it begins with is the process's initial mask, or a place of ours that it inherited from its creator; any
// other mask was set by the program, or by somebody outside, and stands. So every thread that has a place would have the
// initial mask without us: that one mask is the answer to all questions, and what all children begin with.
//
// What we did is only ever undone where it still stands: before a mask is set back or hidden, the thread's mask is read, and
// must be that of its place.
//
// Context of everything here: any thread, signal handlers included (all signals are blocked while the one lock is held);
// nothing allocates but what libc's own functions do. A child of vfork may call what is needed to exec.
#ifndef PERCPU_PRELOAD_PIN_PIN_H
#define PERCPU_PRELOAD_PIN_PIN_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <threads.h>
#include <time.h>

#include "core/config.h"

namespace percpu::heap {

// From the preload's constructor, before there is a second thread. Reads the initial mask; nothing else of the machine is
// looked at before a thread is created. Ends the process with one line and status 1 when pin:list names a CPU that it may
// not use.
void pin_start(const Config& config);

// In the child of a fork, when the preload's locks are good again: it begins with the initial mask and no threads of ours.
// (_Fork runs no handlers: whoever interposes it calls this too.)
void pin_fork_child();

// From background work, as often as it likes: at most once a second this looks whether placed threads share their CPUs.
// Returns whether there are any to look after; once there are none, the next thread that gets a place wakes the balance thread.
bool pin_tick();

// The functions behind those that we interpose.
struct PinNext {
  decltype(&::pthread_create) pthread_create;
  decltype(&::thrd_create) thrd_create;
  decltype(&::pthread_setattr_default_np) pthread_setattr_default_np;
  decltype(&::pthread_setname_np) pthread_setname_np;
  decltype(&::sched_setaffinity) sched_setaffinity;
  decltype(&::sched_getaffinity) sched_getaffinity;
  decltype(&::pthread_setaffinity_np) pthread_setaffinity_np;
  decltype(&::pthread_getaffinity_np) pthread_getaffinity_np;
  decltype(&::pthread_getattr_np) pthread_getattr_np;
  decltype(&::clone) clone;
  int (*system)(const char*);
  FILE* (*popen)(const char*, const char*);
  decltype(&::posix_spawn) posix_spawn;
  decltype(&::posix_spawnp) posix_spawnp;
  int (*execve)(const char*, char* const*, char* const*);
  int (*execvp)(const char*, char* const*);
  int (*execvpe)(const char*, char* const*, char* const*);
  int (*fexecve)(int, char* const*, char* const*);
  int (*execveat)(int, const char*, char* const*, char* const*, int);
};
const PinNext& pin_next();

// What the interposed functions do, each as the function of libc that it is named after.
int pin_pthread_create(pthread_t* thread, const pthread_attr_t* attr, void* (*start)(void*), void* argument);
int pin_thrd_create(thrd_t* thread, thrd_start_t start, void* argument);
int pin_pthread_setattr_default(const pthread_attr_t* attr);
int pin_pthread_setname(pthread_t thread, const char* name);
int pin_sched_setaffinity(pid_t tid, size_t size_bytes, const cpu_set_t* mask);
int pin_sched_getaffinity(pid_t tid, size_t size_bytes, cpu_set_t* mask);
int pin_pthread_setaffinity(pthread_t thread, size_t size_bytes, const cpu_set_t* mask);
int pin_pthread_getaffinity(pthread_t thread, size_t size_bytes, cpu_set_t* mask);
int pin_pthread_getattr(pthread_t thread, pthread_attr_t* attr);

// While one of these exists, the calling thread has the initial mask instead of its place: what libc clones meanwhile
// inherits it. If the thread is cancelled, or jumps out, it stays free.
class OffPlace {
 public:
  OffPlace();
  ~OffPlace();
  OffPlace(const OffPlace&) = delete;
  OffPlace& operator=(const OffPlace&) = delete;

 private:
  bool left_;
};

// The same for exec. It leaves no trace in memory, which the child of a vfork shares with its parent: the destructor runs
// only when exec failed.
class OffPlaceForExec {
 public:
  OffPlaceForExec();
  ~OffPlaceForExec();
  OffPlaceForExec(const OffPlaceForExec&) = delete;
  OffPlaceForExec& operator=(const OffPlaceForExec&) = delete;

 private:
  bool left_;
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_PIN_PIN_H
