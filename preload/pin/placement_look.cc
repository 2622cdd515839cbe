// SPDX-License-Identifier: MIT
//
// Placement, looking after those that have places: their names, whether their CPUs are shared, whether they are there still.
#include <errno.h>
#include <sys/syscall.h>

#include <cstring>

#include "api/for_preload.h"
#include "base/errno_kept.h"
#include "base/raw_syscall.h"
#include "os/clock.h"
#include "os/file.h"
#include "preload/pin/placement.h"

namespace percpu::heap {
namespace {

constexpr uint64_t kSecondNs = 1000 * 1000 * 1000;
constexpr uint64_t kLookEveryNs = kSecondNs;
// A CPU that turned out to be shared is not given out for this long.
constexpr uint64_t kSharedForNs = 10 * kSecondNs;

}  // namespace

bool Placement::is_gone(pid_t tid) { return raw_syscall(SYS_tgkill, raw_syscall(SYS_getpid), tid, 0) == -ESRCH; }

void Placement::look_at(ThreadRecord* record, uint64_t now) {
  char path[64];
  char text[96];
  if (!record->name_read || name_is_due(record->number, nr_looks_, live_)) {
    record->name_read = true;
    Text name_path(path);
    name_path.format("/proc/self/task/%d/comm", static_cast<int>(record->tid));
    const ssize_t len = read_beginning(real_system(), path, text, sizeof text);
    if (len > 0 && text[len - 1] == '\n') text[len - 1] = 0;
    if (len > 0 && (is_exempt_name(text) || skips_name(skip_.text, text))) {
      uncount(record);
      return set_free(record, "its name");
    }
  }
  if (policy_ != PinPolicy::kAuto || now - record->looked_ns < kLookEveryNs) return;
  Text stat_path(path);
  stat_path.format("/proc/self/task/%d/schedstat", static_cast<int>(record->tid));
  const ssize_t told = read_beginning(real_system(), path, text, sizeof text);
  if (told == -EMFILE || told == -ENFILE || told == -ENOMEM) return;
  // Where the kernel does not say how long threads wait, none stays in the way of others.
  if (told <= 0) return set_free(record, "how long it waits for its CPU is not told");
  const char* behind = strchr(text, ' ');
  const uint64_t ran_ns = leading_number(text).value_or(0);
  const uint64_t waited_ns = behind != nullptr ? leading_number(behind + 1).value_or(0) : 0;
  const int32_t slot = record->slot;
  if (cpu_is_shared(now - record->looked_ns, ran_ns - record->ran_ns, waited_ns - record->waited_ns)) {
    if (slot != kNoSlot) shared_until_ns_[slot] = now + kSharedForNs;
    set_free(record, "its CPU is shared with others");
  }
  record->looked_ns = now;
  record->ran_ns = ran_ns;
  record->waited_ns = waited_ns;
}

void Placement::look(uint64_t now) {
  if (now - looked_ns_ < kLookEveryNs) return;
  looked_ns_ = now;
  nr_looks_++;
  for (ThreadRecord* record = records_.first(); record != nullptr;) {
    ThreadRecord* next = record->next;
    // One that left without a word (a raw exit) is no longer there.
    if (record->tid != 0 && is_gone(record->tid)) {
      drop(record);
    } else if (record->place != kNoPlace) {
      look_at(record, now);
    }
    record = next;
  }
}

// Threads that come and go while nobody ticks wake the balance thread once, not one by one: a tick that saw none since the last is the
// end of it.
void Placement::placed() {
  placed_since_tick_ = true;
  if (ticked_) return;
  ticked_ = true;
  (void)percpu_balance_wake_();
}

bool Placement::tick() {
  if (!any_placed()) return false;
  const ErrnoKept errno_kept;
  PlacementGuard guard(lock_);
  look(coarse_ns());
  ticked_ = placed_since_tick_;
  placed_since_tick_ = false;
  for (const ThreadRecord* record = records_.first(); record != nullptr && !ticked_; record = record->next)
    ticked_ = record->place != kNoPlace;
  return ticked_;
}

}  // namespace percpu::heap
