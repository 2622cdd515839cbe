// SPDX-License-Identifier: MIT
//
// A System that fails on demand: every call is counted, by name and altogether, and the n-th of one kind, the n-th of all,
// or every one of a kind can be made to fail with a given errno instead of reaching the kernel. One per process (functions
// in a table have no object of their own); tests that use it call reset() first.
//
//   FaultySystem& faulty = FaultySystem::reset();
//   faulty.fail_nth(Call::kMprotect, 2, ENOMEM);      // the second mprotect from now on
//   faulty.fail_nth_of_all(7, ENOMEM);
//   faulty.fail_always(Call::kMbind, EPERM);
//   ... code that is handed faulty.system() ...
//   CHECK(faulty.count(Call::kMmap) == 1);
//
// To try every place where something can fail:
//   for (int n = 1;; ++n) { FaultySystem::reset().fail_nth_of_all(n, ENOMEM); run(); if (!faulty.failed_any()) break; }
//
// Counting is thread-safe; setting up is for when nobody calls. Calls that give back (munmap, close, futex_wake, munlock,
// join_thread) can fail too: ask with fails_giving_back(false) to leave them out of fail_nth_of_all.
#ifndef PERCPU_TESTS_OS_FAULTY_SYSTEM_H
#define PERCPU_TESTS_OS_FAULTY_SYSTEM_H

#include <atomic>
#include <cstddef>
#include <utility>

#include "os/system.h"

namespace percpu {

enum class Call : unsigned {
  kMmap,
  kMunmap,
  kMremap,
  kMprotect,
  kMadvise,
  kMunlock,
  kMincore,
  kMbind,
  kGetMempolicy,
  kQueryPage,
  kTouchWord,
  kSchedGetaffinity,
  kSchedSetaffinity,
  kGetcpu,
  kMembarrier,
  kRseq,
  kFutexWait,
  kFutexWake,
  kOpen,
  kRead,
  kClose,
  kStartThread,
  kJoinThread,
  kCount,  // not a call: how many there are
};

class FaultySystem {
 public:
  static constexpr size_t kCalls = static_cast<size_t>(Call::kCount);

  static FaultySystem& instance() {
    static FaultySystem only;
    return only;
  }

  // Forgets all counts and faults.
  static FaultySystem& reset() {
    FaultySystem& faulty = instance();
    for (Kind& kind : faulty.kinds_) {
      kind.count = 0;
      kind.fail_at = 0;
      kind.fail_always = 0;
      kind.error = 0;
    }
    faulty.total_ = 0;
    faulty.fail_total_at_ = 0;
    faulty.failures_ = 0;
    faulty.giving_back_fails_ = true;
    return faulty;
  }

  const System& system() const { return table(); }

  // The n-th (from 1) call of this kind from now on.
  FaultySystem& fail_nth(Call call, int n, int error_number) {
    Kind& kind = kind_of(call);
    kind.fail_at = kind.count + n;
    kind.error = error_number;
    return *this;
  }
  // The n-th (from 1) call of any kind from now on.
  FaultySystem& fail_nth_of_all(int n, int error_number) {
    fail_total_at_ = total_ + n;
    total_error_ = error_number;
    return *this;
  }
  FaultySystem& fail_always(Call call, int error_number) {
    kind_of(call).fail_always = error_number;
    return *this;
  }
  FaultySystem& fails_giving_back(bool fails) {
    giving_back_fails_ = fails;
    return *this;
  }

  int count(Call call) const { return kinds_[static_cast<size_t>(call)].count; }
  int total() const { return total_; }
  int failures() const { return failures_; }
  bool failed_any() const { return failures_ > 0; }

  // Counts a call. Returns: 0 to let it through, or the negative error that it shall fail with.
  int judge(Call call) {
    Kind& kind = kind_of(call);
    int nth = ++kind.count;
    int nth_of_all = counts_in_total(call) ? ++total_ : -1;
    int error = kind.fail_always;
    if (nth == kind.fail_at) error = kind.error;
    if (nth_of_all == fail_total_at_) error = total_error_;
    if (error != 0) ++failures_;
    return -error;
  }

 private:
  struct Kind {
    std::atomic<int> count{0};
    std::atomic<int> fail_at{0};
    std::atomic<int> fail_always{0};
    std::atomic<int> error{0};
  };

  FaultySystem() = default;

  Kind& kind_of(Call call) { return kinds_[static_cast<size_t>(call)]; }

  bool counts_in_total(Call call) const {
    if (giving_back_fails_) return true;
    switch (call) {
      case Call::kMunmap:
      case Call::kMunlock:
      case Call::kFutexWake:
      case Call::kClose:
      case Call::kJoinThread: return false;
      default: return true;
    }
  }

  // One entry of the table: judged, then the real one.
  template <Call call, auto member, class Function>
  struct Judged;
  template <Call call, auto member, class Result, class... Args>
  struct Judged<call, member, Result (*)(Args...)> {
    static Result run(Args... args) {
      int error = instance().judge(call);
      if (call == Call::kClose && error != 0) (void)(real_system().*member)(args...);  // Linux closes a file also where it says an error
      return error != 0 ? static_cast<Result>(error) : (real_system().*member)(args...);
    }
  };
  template <Call call, auto member>
  static constexpr auto judged() {
    using Function = std::remove_cvref_t<decltype(std::declval<System>().*member)>;
    return &Judged<call, member, Function>::run;
  }

  static const System& table() {
    static constexpr System faulty = {
        .mmap = judged<Call::kMmap, &System::mmap>(),
        .munmap = judged<Call::kMunmap, &System::munmap>(),
        .mremap = judged<Call::kMremap, &System::mremap>(),
        .mprotect = judged<Call::kMprotect, &System::mprotect>(),
        .madvise = judged<Call::kMadvise, &System::madvise>(),
        .munlock = judged<Call::kMunlock, &System::munlock>(),
        .mincore = judged<Call::kMincore, &System::mincore>(),
        .mbind = judged<Call::kMbind, &System::mbind>(),
        .get_mempolicy = judged<Call::kGetMempolicy, &System::get_mempolicy>(),
        .query_page = judged<Call::kQueryPage, &System::query_page>(),
        .touch_word = judged<Call::kTouchWord, &System::touch_word>(),
        .sched_getaffinity = judged<Call::kSchedGetaffinity, &System::sched_getaffinity>(),
        .sched_setaffinity = judged<Call::kSchedSetaffinity, &System::sched_setaffinity>(),
        .getcpu = judged<Call::kGetcpu, &System::getcpu>(),
        .membarrier = judged<Call::kMembarrier, &System::membarrier>(),
        .rseq = judged<Call::kRseq, &System::rseq>(),
        .futex_wait = judged<Call::kFutexWait, &System::futex_wait>(),
        .futex_wake = judged<Call::kFutexWake, &System::futex_wake>(),
        .open = judged<Call::kOpen, &System::open>(),
        .read = judged<Call::kRead, &System::read>(),
        .close = judged<Call::kClose, &System::close>(),
        .start_thread = judged<Call::kStartThread, &System::start_thread>(),
        .join_thread = judged<Call::kJoinThread, &System::join_thread>(),
    };
    return faulty;
  }

  Kind kinds_[kCalls];
  std::atomic<int> total_{0};
  std::atomic<int> fail_total_at_{0};
  std::atomic<int> total_error_{0};
  std::atomic<int> failures_{0};
  std::atomic<bool> giving_back_fails_{true};  // reset while the balance thread makes calls
};

}  // namespace percpu

#endif  // PERCPU_TESTS_OS_FAULTY_SYSTEM_H
