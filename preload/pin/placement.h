// SPDX-License-Identifier: MIT
//
// Which thread has which place: the state behind pin.h, and its rules (docs/pinning.md).
//
// Invariants:
//   - A record stands for one thread that the program created through us, from before its creation until it ends. It has a
//     slot when the policy gives it a place, and a `place` from before its mask is set until after it is set back.
//   - users_[slot] is the number of records that have the slot; with pin:auto at most one.
//   - live_ counts the records that are `counted`: all but exempt threads.
// Locking: lock_ guards everything that is not written in start(). A thread reads of its own record without the lock only
// whether there is one. All signals are blocked while the lock is held, so that a handler that creates, asks or execs
// never finds it held by its own thread. fork does not take it: the child trusts only what single stores have made, the chain
// of slabs and the forking thread's own place, and makes the rest anew.
#ifndef PERCPU_PRELOAD_PIN_PLACEMENT_H
#define PERCPU_PRELOAD_PIN_PLACEMENT_H

#include <pthread.h>
#include <sys/types.h>

#include <atomic>

#include "base/annotations.h"
#include "base/cpu_mask.h"
#include "core/config.h"
#include "os/mutex.h"
#include "os/signals.h"
#include "preload/pin/order.h"
#include "preload/pin/records.h"

namespace percpu::heap {

// What a thread knows of its own place.
struct ThreadPlace {
  ThreadRecord* record = nullptr;
  int32_t last = kNoPlace;  // the place that it keeps while it ends, when its record is gone already
  uint32_t off = 0;         // how many OffPlace it is in
  bool passing = false;     // in the function behind ours, with the lock
};
extern __thread ThreadPlace t_place __attribute__((tls_model("initial-exec"), visibility("hidden")));

// The child, of vfork or _Fork on this thread's words, for which the program set a mask. A vfork child is gone when its parent goes on,
// which then has its own again (preload/abi/vfork.S, clone.cc).
extern "C" __thread pid_t own_mask_word __attribute__((tls_model("initial-exec"), visibility("hidden")));

// What the program asked of a thread that had not begun yet.
struct Claim {
  pthread_t thread;
  pid_t tid;  // 0: `thread` counts
  bool exempt;
};

// Holds the lock with all signals blocked.
class PERCPU_SCOPED_CAPABILITY PlacementGuard {
 public:
  explicit PlacementGuard(SleepMutex& mutex) PERCPU_ACQUIRE(mutex) : mutex_(mutex), signals_(set_blocked_signals(kAllSignals)) {
    mutex_.lock();
  }
  ~PlacementGuard() PERCPU_RELEASE() {
    mutex_.unlock();
    (void)set_blocked_signals(signals_);
  }
  PlacementGuard(const PlacementGuard&) = delete;
  PlacementGuard& operator=(const PlacementGuard&) = delete;

 private:
  SleepMutex& mutex_;
  uint64_t signals_;
};

// (Hidden where it is used too: code that runs before this object is relocated reaches it.)
class __attribute__((visibility("hidden"))) Placement {
 public:
  constexpr Placement() = default;

  // Reads the main thread's mask, once: before ours, other constructors may give it another one.
  bool note_initial();
  void start(const Config& config);
  bool active() const { return active_; }
  // Whether any thread ever had a place: before that, nothing needs hiding.
  bool any_placed() const { return any_placed_.load(std::memory_order_relaxed); }

  // Creation. prepare() returns null when it cannot be followed; failed() or created() come after, or neither for null.
  ThreadRecord* prepare(bool mask_in_attr) PERCPU_EXCLUDES(lock_);
  void failed(ThreadRecord* record) PERCPU_EXCLUDES(lock_);
  void created() PERCPU_EXCLUDES(lock_);
  void begin(ThreadRecord* record) PERCPU_EXCLUDES(lock_);
  static void end(void* record);

  // What the program does to a thread; `call` is libc's function, or the system call, made under the lock so that a beginning thread
  // sees all of it or nothing. A tid of 0 is the caller; kByThread: `thread` counts.
  template <class Call>
  auto set_mask(pid_t tid, pthread_t thread, Call call) PERCPU_EXCLUDES(lock_);
  template <class Call>
  int set_name(pthread_t thread, const char* name, Call call) PERCPU_EXCLUDES(lock_);
  // Puts the initial mask where that of the thread's place is.
  template <class Call>
  int ask(pid_t tid, pthread_t thread, size_t size_bytes, void* mask, Call call) PERCPU_EXCLUDES(lock_);
  // The same for the system call, which returns how many bytes of the mask it wrote.
  template <class Call>
  long ask_kernel(pid_t tid, void* mask, Call call) PERCPU_EXCLUDES(lock_);

  // The calling thread leaves its place, and takes it again. Returns: whether it had one.
  // Context: async-signal-safe in a process of one thread, and in a child of _Fork() (is_bare_child()).
  bool leave() PERCPU_EXCLUDES(lock_);
  void come_back() PERCPU_EXCLUDES(lock_);

  // Returns: whether a thread has a place, or got one since the last tick. After a false one, the next thread that gets a place wakes
  // who ticks.
  bool tick() PERCPU_EXCLUDES(lock_);
  void fork_child();

  static constexpr pid_t kByThread = -1;

 private:
  static constexpr size_t kMaxClaims = 16;

  bool make_ready() PERCPU_REQUIRES(lock_);
  void find_free_mask() PERCPU_REQUIRES(lock_);
  void drop(ThreadRecord* record) PERCPU_REQUIRES(lock_);
  ThreadRecord* find(pid_t tid, pthread_t thread) PERCPU_REQUIRES(lock_);
  void add_claim(pid_t tid, pthread_t thread, bool exempt) PERCPU_REQUIRES(lock_);
  void one_has_begun() PERCPU_REQUIRES(lock_);

  int32_t pick_slot(uint64_t now) PERCPU_REQUIRES(lock_);
  void release_slot(ThreadRecord* record) PERCPU_REQUIRES(lock_);
  void uncount(ThreadRecord* record) PERCPU_REQUIRES(lock_);
  static void vacate(ThreadRecord* record);
  void settle(ThreadRecord* record) PERCPU_REQUIRES(lock_);
  void set_free(ThreadRecord* record, const char* why) PERCPU_REQUIRES(lock_);
  void set_all_free() PERCPU_REQUIRES(lock_);
  void look(uint64_t now) PERCPU_REQUIRES(lock_);
  void note_mask(pid_t tid, pthread_t thread) PERCPU_REQUIRES(lock_);
  static void note_own_mask(pid_t tid, pthread_t thread);
  void hide(pid_t tid, pthread_t thread, size_t size_bytes, void* mask) PERCPU_REQUIRES(lock_);
  void look_at(ThreadRecord* record, uint64_t now) PERCPU_REQUIRES(lock_);
  void placed() PERCPU_REQUIRES(lock_);

  static bool is_self(pid_t tid, pthread_t thread);
  static bool is_gone(pid_t tid);  // not, or no longer, a thread of this process (0 and kByThread are)
  static bool has_own_mask();
  static int32_t own_place();
  bool is_mask_of(const CpuMask& mask, int32_t place) const;
  bool is_unbound(const CpuMask& mask) const;
  bool stands_at(pid_t tid, int32_t place) PERCPU_REQUIRES(lock_);
  int go_to(pid_t tid, int32_t place) PERCPU_REQUIRES(lock_);
  int go_free(pid_t tid) const;
  bool is_bare_child() const;
  bool leave_place() PERCPU_REQUIRES(lock_);

  bool active_ = false;
  bool verbose_ = false;
  PinPolicy policy_ = PinPolicy::kNone;
  CpuMask initial_;
  CpuMask free_;  // of a thread that has no place; before any has one, of no meaning
  PinList list_;
  PinSkip skip_;
  pthread_key_t key_ = 0;
  std::atomic<bool> any_placed_{false};

  SleepMutex lock_;
  bool ready_ PERCPU_GUARDED_BY(lock_) = false;
  CpuPlace* places_ = nullptr;  // as all that make_ready() makes: constant from then on
  SlotOrder order_;
  uint32_t* users_ = nullptr;
  uint64_t* shared_until_ns_ = nullptr;
  pid_t process_ = 0;      // that the lock and the records are of
  uint64_t random_[2] = {};  // the process's own, also its forked children's
  size_t first_slot_ = 0;  // where pin:auto begins among the cores

  CpuMask scratch_ PERCPU_GUARDED_BY(lock_);  // stacks may be small
  RecordList records_ PERCPU_GUARDED_BY(lock_);
  uint32_t live_ PERCPU_GUARDED_BY(lock_) = 0;
  uint32_t beginning_ PERCPU_GUARDED_BY(lock_) = 0;  // records whose threads have not begun
  uint32_t nr_created_ PERCPU_GUARDED_BY(lock_) = 0;
  bool any_has_slot_ PERCPU_GUARDED_BY(lock_) = false;  // or a place, since all were set free
  Claim claims_[kMaxClaims] PERCPU_GUARDED_BY(lock_) = {};
  uint32_t nr_claims_ PERCPU_GUARDED_BY(lock_) = 0;
  bool claims_lost_ PERCPU_GUARDED_BY(lock_) = false;  // there were more: all that have not begun are left alone
  uint64_t looked_ns_ PERCPU_GUARDED_BY(lock_) = 0;
  uint32_t nr_looks_ PERCPU_GUARDED_BY(lock_) = 0;
  bool placed_since_tick_ PERCPU_GUARDED_BY(lock_) = false;
  bool ticked_ PERCPU_GUARDED_BY(lock_) = false;  // the last tick said that it wants another, or somebody was woken for it
};

extern Placement placement __attribute__((visibility("hidden")));

// ---- what the program sets and asks -----------------------------------------------------------------------------------------

// Calls the function behind ours, under the lock. It may be another library's that asks ours in turn: these calls pass the lock.
template <class Call>
auto pass_on(Call call) {
  t_place.passing = true;
  const auto result = call();
  t_place.passing = false;
  return result;
}

// (A child of _Fork() or of the system call cannot have the lock; it has no threads of ours, but perhaps its parent's place.)
template <class Call>
auto Placement::set_mask(pid_t tid, pthread_t thread, Call call) {
  if (t_place.passing) return call();
  if (is_bare_child()) {
    const auto result = call();
    if (result == 0) note_own_mask(tid, thread);
    return result;
  }
  PlacementGuard guard(lock_);
  const auto result = pass_on(call);
  if (result == 0) note_mask(tid, thread);
  return result;
}

template <class Call>
int Placement::set_name(pthread_t thread, const char* name, Call call) {
  const int result = call();
  if (result != 0 || is_bare_child() || !(is_exempt_name(name) || skips_name(skip_.text, name))) return result;
  PlacementGuard guard(lock_);
  ThreadRecord* record = find(kByThread, thread);
  if (record == nullptr) {
    add_claim(kByThread, thread, true);
  } else {
    uncount(record);
    set_free(record, "its name");
  }
  return result;
}

// `call` reads the mask, under the lock: between reading and comparing nobody places the thread, or sets it free. A child of _Fork() or
// of the system call, which cannot have the lock, is told the truth.
template <class Call>
int Placement::ask(pid_t tid, pthread_t thread, size_t size_bytes, void* mask, Call call) {
  if (t_place.passing || is_bare_child()) return call();
  PlacementGuard guard(lock_);
  const int result = pass_on(call);
  if (result == 0) hide(tid, thread, size_bytes, mask);
  return result;
}

template <class Call>
long Placement::ask_kernel(pid_t tid, void* mask, Call call) {
  if (t_place.passing || is_bare_child()) return call();
  PlacementGuard guard(lock_);
  const long result = pass_on(call);
  if (result > 0) hide(tid, {}, static_cast<size_t>(result), mask);
  return result;
}

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_PIN_PLACEMENT_H
