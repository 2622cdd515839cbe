// SPDX-License-Identifier: MIT
#include "preload/pin/placement.h"

#include <errno.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#include "api/for_preload.h"
#include "base/check.h"
#include "base/raw_syscall.h"
#include "os/clock.h"
#include "os/file.h"
#include "preload/heap/heap.h"  // in_vfork_word
#include "preload/pin/places.h"

namespace percpu::heap {

__thread ThreadPlace t_place __attribute__((tls_model("initial-exec"), visibility("hidden"))) = {};
extern "C" {
__thread pid_t own_mask_word __attribute__((tls_model("initial-exec"), visibility("hidden"))) = 0;
}
constinit Placement placement;

namespace {

const System& os() { return real_system(); }

pid_t this_tid() { return static_cast<pid_t>(raw_syscall(SYS_gettid)); }
pid_t this_process() { return static_cast<pid_t>(raw_syscall(SYS_getpid)); }

}  // namespace

// Whether a call is about the thread that makes it, by whichever of its numbers.
bool Placement::is_self(pid_t tid, pthread_t thread) {
  return tid == kByThread ? pthread_equal(thread, pthread_self()) != 0 : tid == 0 || tid == this_tid();
}

// ---- masks and places ----------------------------------------------------------------------------------------------------

// One that the program set, and that is the very same, is told from ours by who set it: set_mask() sees that.
bool Placement::is_mask_of(const CpuMask& mask, int32_t place) const {
  if (place == kNoPlace) return false;
  if (policy_ != PinPolicy::kNode) return mask.first().value == place && !mask.after({place}).valid();
  for (CpuId cpu = mask.first(); cpu.valid(); cpu = mask.after(cpu)) {
    if (!initial_.has(cpu)) return false;
  }
  for (CpuId cpu = initial_.first(); cpu.valid(); cpu = initial_.after(cpu)) {
    if (mask.has(cpu) != (places_[cpu.index()].node == place)) return false;
  }
  return true;
}

bool Placement::stands_at(pid_t tid, int32_t place) {
  if (place == kNoPlace) return false;
  scratch_ = {};
  return os().sched_getaffinity(tid, sizeof scratch_.words, scratch_.words) > 0 && is_mask_of(scratch_, place);
}

int Placement::go_to(pid_t tid, int32_t place) {
  scratch_ = {};
  if (policy_ == PinPolicy::kNode) {
    for (CpuId cpu = initial_.first(); cpu.valid(); cpu = initial_.after(cpu)) {
      if (places_[cpu.index()].node == place) scratch_.add(cpu);
    }
  } else {
    scratch_.add({place});
  }
  any_placed_.store(true, std::memory_order_relaxed);
  return os().sched_setaffinity(tid, sizeof scratch_.words, scratch_.words);
}

int Placement::go_free(pid_t tid) const { return os().sched_setaffinity(tid, sizeof free_.words, free_.words); }

// A mask that a thread was given once holds for it for ever, also where its cpuset grows. So where the initial mask is no more than the
// cpuset (no taskset), who is set free gets all CPUs, of which the kernel leaves it those of the cpuset. To find out, the caller
// gets them for a moment.
void Placement::find_free_mask() {
  free_ = initial_;
  CpuMask before;
  if (os().sched_getaffinity(0, sizeof before.words, before.words) <= 0) return;
  for (uint64_t& word : free_.words) word = ~uint64_t{0};
  scratch_ = {};
  const bool told = go_free(0) == 0 && os().sched_getaffinity(0, sizeof scratch_.words, scratch_.words) > 0;
  if (!told || scratch_ != initial_) free_ = initial_;
  if (scratch_ != before) (void)os().sched_setaffinity(0, sizeof before.words, before.words);
}

// What a thread has that nobody bound: the initial mask, or a cpuset that has grown.
bool Placement::is_unbound(const CpuMask& mask) const { return mask == initial_ || (free_ != initial_ && mask.has_all(initial_)); }

bool Placement::has_own_mask() { return own_mask_word != 0 && own_mask_word == this_tid(); }

int32_t Placement::own_place() {
  if (has_own_mask()) return kNoPlace;
  return t_place.record != nullptr ? t_place.record->place : t_place.last;
}

// ---- the machine ---------------------------------------------------------------------------------------------------------

// By the instruction: a resolver that sets its mask may come by before this object is relocated (syscall.S).
bool Placement::note_initial() {
  if (initial_.empty())
    (void)raw_syscall(SYS_sched_getaffinity, this_process(), sizeof initial_.words, reinterpret_cast<long>(initial_.words));
  return !initial_.empty();
}

void Placement::start(const Config& config) {
  if (config.pin == PinPolicy::kNone || !note_initial()) return;
  policy_ = config.pin;
  list_ = config.pin_list;
  skip_ = config.pin_skip;
  verbose_ = config.pin_verbose;
  if (policy_ == PinPolicy::kList) {
    const CpuId refused = first_not_allowed(list_, initial_);
    if (refused.valid()) {
      report("pin:list: expected CPUs that the process may use (%d..%d, %zu of them), found %d", initial_.first().value,
             initial_.last().value, initial_.count(), refused.value);
      _exit(1);
    }
  }
  if (initial_.count() < 2) return;  // one CPU: everybody is placed
  const unsigned long random = getauxval(AT_RANDOM);
  if (random != 0) memcpy(random_, reinterpret_cast<const void*>(random), sizeof random_);
  active_ = pthread_key_create(&key_, end) == 0;
}

// Looks at the machine, once, when the first thread is created.
bool Placement::make_ready() {
  if (ready_) return true;
  size_t listed = 0;
  for (uint32_t i = 0; i < list_.count; ++i) listed += size_t{list_.ranges[i].last} - list_.ranges[i].first + 1;
  const size_t nr_cpus = initial_.last().index() + 1;
  const size_t capacity = listed > initial_.count() ? listed : initial_.count();
  const size_t bytes = capacity * (sizeof *shared_until_ns_ + sizeof *users_ + sizeof *order_.ids) + nr_cpus * sizeof *places_;
  const intptr_t at = os().mmap(0, bytes, PROT_READ | PROT_WRITE, 0);
  if (at < 0) return false;
  shared_until_ns_ = reinterpret_cast<uint64_t*>(at);
  users_ = reinterpret_cast<uint32_t*>(shared_until_ns_ + capacity);
  order_.ids = reinterpret_cast<uint16_t*>(users_ + capacity);
  order_.capacity = capacity;
  places_ = reinterpret_cast<CpuPlace*>(order_.ids + capacity);
  find_free_mask();
  read_cpu_places(os(), initial_, places_);
  order_slots(policy_, initial_, places_, list_, &order_);
  process_ = this_process();
  first_slot_ = policy_ == PinPolicy::kAuto ? first_core(random_, process_, order_.nr_cores) : 0;
  looked_ns_ = coarse_ns();
  if (verbose_) report("pin: %zu CPUs allowed, %zu places", initial_.count(), order_.count);
  ready_ = true;
  return true;
}

// ---- records -------------------------------------------------------------------------------------------------------------

void Placement::drop(ThreadRecord* record) {
  release_slot(record);
  uncount(record);
  records_.remove(record);
}

ThreadRecord* Placement::find(pid_t tid, pthread_t thread) {
  if (tid == 0) {
    // A child of vfork runs on its parent's thread-local words.
    return t_place.record != nullptr && t_place.record->tid == this_tid() ? t_place.record : nullptr;
  }
  for (ThreadRecord* record = records_.first(); record != nullptr; record = record->next) {
    if (record->tid == 0) continue;
    if (tid == kByThread ? pthread_equal(record->thread, thread) != 0 : record->tid == tid) return record;
  }
  return nullptr;
}

void Placement::add_claim(pid_t tid, pthread_t thread, bool exempt) {
  if (beginning_ == 0) return;
  const Claim claim{thread, tid == kByThread ? 0 : tid, exempt};
  for (uint32_t i = 0; i < nr_claims_; ++i) {
    const Claim& other = claims_[i];
    if (other.exempt == exempt && other.tid == claim.tid && (claim.tid != 0 || pthread_equal(other.thread, thread) != 0)) return;
  }
  if (nr_claims_ == kMaxClaims) {
    claims_lost_ = true;
    return;
  }
  claims_[nr_claims_++] = claim;
}

// ---- slots ---------------------------------------------------------------------------------------------------------------

// pin:auto: the first slot that nobody has. Others: the first of those that fewest have.
int32_t Placement::pick_slot(uint64_t now) {
  const bool own = policy_ == PinPolicy::kAuto;
  if (own && live_ > order_.count) return kNoSlot;
  int32_t best = kNoSlot;
  for (size_t i = 0; i < order_.count; ++i) {
    const size_t slot = i < order_.nr_cores ? (i + first_slot_) % order_.nr_cores : i;
    if (own && (users_[slot] != 0 || shared_until_ns_[slot] > now)) continue;
    if (best == kNoSlot || users_[slot] < users_[best]) best = static_cast<int32_t>(slot);
    if (users_[slot] == 0) break;
  }
  if (best != kNoSlot) users_[best]++;
  return best;
}

void Placement::release_slot(ThreadRecord* record) {
  if (record->slot == kNoSlot) return;
  users_[record->slot]--;
  record->slot = kNoSlot;
}

void Placement::uncount(ThreadRecord* record) {
  if (record->counted) store_relaxed(&live_, live_ - 1);
  record->counted = false;
}

// In a child's copy of the record, made while this happens, one of the two says what was the thread's place.
void Placement::vacate(ThreadRecord* record) { __atomic_store_n(&record->place, kNoPlace, __ATOMIC_RELEASE); }

void Placement::set_free(ThreadRecord* record, const char* why) {
  release_slot(record);
  if (record->place == kNoPlace) return;
  if (stands_at(record->tid, record->place)) {
    record->left = record->place;
    (void)go_free(record->tid);
    if (verbose_) report("pin: thread %d is free: %s", static_cast<int>(record->tid), why);
  }
  vacate(record);
}

void Placement::set_all_free() {
  store_relaxed(&any_has_slot_, false);
  for (ThreadRecord* record = records_.first(); record != nullptr; record = record->next) set_free(record, "more threads than CPUs");
}

// ---- creation ------------------------------------------------------------------------------------------------------------

ThreadRecord* Placement::prepare(bool mask_in_attr) {
  PlacementGuard guard(lock_);
  if (!make_ready()) return nullptr;
  const uint64_t now = coarse_ns();
  look(now);
  ThreadRecord* record = records_.add(os());
  if (record == nullptr) return nullptr;
  record->number = ++nr_created_;
  record->inherited = own_place();
  record->mask_in_attr = mask_in_attr;
  record->looked_ns = now;
  beginning_++;
  if (skips_number(skip_.text, record->number)) return record;
  record->counted = true;
  store_relaxed(&live_, live_ + 1);
  if (!mask_in_attr) record->slot = pick_slot(now);
  if (record->slot != kNoSlot) store_relaxed(&any_has_slot_, true);
  return record;
}

void Placement::one_has_begun() {
  if (--beginning_ > 0) return;
  nr_claims_ = 0;
  claims_lost_ = false;
}

void Placement::failed(ThreadRecord* record) {
  PlacementGuard guard(lock_);
  if (record->number == nr_created_) nr_created_--;
  drop(record);
  one_has_begun();
}

// Mostly there is nothing to do, and the new thread wants the lock just now. What is read without it is as new as this thread's prepare().
void Placement::created() {
  if (policy_ != PinPolicy::kAuto || load_relaxed(&live_) <= order_.count || !load_relaxed(&any_has_slot_)) return;
  PlacementGuard guard(lock_);
  if (live_ > order_.count) set_all_free();
}

// In the new thread: takes its place, if it is ours to place.
void Placement::settle(ThreadRecord* record) {
  bool claimed = claims_lost_;
  bool exempt = false;
  for (uint32_t i = 0; i < nr_claims_; ++i) {
    const Claim& claim = claims_[i];
    if (claim.tid != 0 ? claim.tid != record->tid : pthread_equal(claim.thread, record->thread) == 0) continue;
    (claim.exempt ? exempt : claimed) = true;
  }
  if (exempt) uncount(record);
  if (record->mask_in_attr || claimed) return release_slot(record);
  const bool inherited = stands_at(0, record->inherited);
  if (!inherited && record->slot == kNoSlot) return;
  if (!inherited && (os().sched_getaffinity(0, sizeof scratch_.words, scratch_.words) <= 0 || !is_unbound(scratch_)))
    return release_slot(record);
  if (exempt) release_slot(record);
  if (record->slot != kNoSlot) {
    record->place = order_.ids[record->slot];
    if (go_to(0, record->place) == 0) {
      placed();
      if (verbose_) {
        report("pin: thread %d, number %u, on %s %d", static_cast<int>(record->tid), record->number,
               policy_ == PinPolicy::kNode ? "node" : "CPU", record->place);
      }
      return;
    }
    record->place = kNoPlace;
    release_slot(record);
  }
  if (inherited) (void)go_free(0);
}

void Placement::begin(ThreadRecord* record) {
  const bool followed = pthread_setspecific(key_, record) == 0;
  PlacementGuard guard(lock_);
  record->thread = pthread_self();
  record->tid = this_tid();
  if (!followed) {
    release_slot(record);
    uncount(record);
  }
  settle(record);
  one_has_begun();
  if (followed) {
    t_place.record = record;
  } else {
    drop(record);  // nobody would tell us when it ends
  }
}

// The destructor of the key: the thread ends, by whatever way. (A child of fork has the key's value, but not the record.)
void Placement::end(void* value) {
  ThreadRecord* record = static_cast<ThreadRecord*>(value);
  PlacementGuard guard(placement.lock_);
  if (t_place.record != record) return;
  t_place.last = record->place;
  t_place.record = nullptr;
  placement.drop(record);
}

// The program set the thread's mask: what stands from now on is the program's.
void Placement::note_mask(pid_t tid, pthread_t thread) {
  ThreadRecord* record = find(tid, thread);
  if (record != nullptr) {
    release_slot(record);
    const int32_t ours = record->place != kNoPlace ? record->place : record->left;
    record->left = stands_at(record->tid, ours) ? kNoPlace : ours;  // where the program wants it to be just there, so it is for children
    vacate(record);
    return;
  }
  if (this_process() != process_) return note_own_mask(tid, thread);  // a child of vfork, and no thread of ours
  if (is_self(tid, thread)) {
    t_place.last = kNoPlace;
    tid = this_tid();  // a handler of a thread that has not begun
  }
  add_claim(tid, thread, false);
}

// The same in a child: its parent's record, on whose thread-local words it may run, stays as it is.
void Placement::note_own_mask(pid_t tid, pthread_t thread) {
  if (is_self(tid, thread)) own_mask_word = this_tid();
}

void Placement::hide(pid_t tid, pthread_t thread, size_t size_bytes, void* mask) {
  const size_t bytes = size_bytes < sizeof scratch_.words ? size_bytes : sizeof scratch_.words;
  scratch_ = {};
  memcpy(scratch_.words, mask, bytes);
  const bool self = is_self(tid, thread);
  const ThreadRecord* record = self ? t_place.record : find(tid, thread);
  const int32_t place = self ? own_place() : record != nullptr ? record->place : kNoPlace;
  bool ours = is_mask_of(scratch_, place);
  if (record == nullptr && (self ? this_tid() : tid) != this_process() && !is_gone(tid)) {
    // Perhaps a thread that has not begun, and still has what it inherited; its signal handlers may ask already.
    for (record = records_.first(); record != nullptr && !ours; record = record->next)
      ours = record->tid == 0 && !record->mask_in_attr && is_mask_of(scratch_, record->inherited);
  }
  if (!ours) return;
  memset(mask, 0, size_bytes);
  memcpy(mask, initial_.words, bytes);
}

// A child of _Fork(), or of the system call: no handler has begun anew for it, so the lock may be that of a thread which is not there.
// (A child of vfork shares the lock with the threads of its parent, which are.)
bool Placement::is_bare_child() const { return in_vfork_word == 0 && this_process() != process_; }

// A child, of vfork too, has the mask that its parent had when the fork began. If another thread set the parent free since then, or the
// program gave it a mask, the memory, which is copied later or never, says of that place only that it was left.
bool Placement::leave_place() {
  if (has_own_mask()) return false;
  const bool child = this_process() != process_;
  const int32_t left = child && t_place.record != nullptr ? t_place.record->left : kNoPlace;
  return (stands_at(0, own_place()) || stands_at(0, left)) && go_free(0) == 0;
}

bool Placement::leave() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  if (is_bare_child()) return leave_place();
  PlacementGuard guard(lock_);
  return leave_place();
}

// Only if the place is still the thread's: meanwhile it may have been set free, or given a mask by the program.
void Placement::come_back() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  if (is_bare_child()) return;  // it has no place to come back to, as a child of fork() has none
  PlacementGuard guard(lock_);
  if (t_place.record != nullptr && t_place.record->place != kNoPlace) (void)go_to(0, t_place.record->place);
}

// The process has this thread only; the lock may be a thread's that is gone, and what it guards half changed.
void Placement::fork_child() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  lock_.reset_after_fork_in_child();
  (void)leave_place();
  process_ = this_process();
  t_place = {};
  own_mask_word = 0;
  records_.reset_after_fork_in_child();
  live_ = 0;
  beginning_ = 0;
  nr_created_ = 0;
  any_has_slot_ = false;
  nr_claims_ = 0;
  claims_lost_ = false;
  placed_since_tick_ = false;
  ticked_ = false;
  if (!ready_) return;
  for (size_t slot = 0; slot < order_.count; ++slot) users_[slot] = 0;
  first_slot_ = policy_ == PinPolicy::kAuto ? first_core(random_, process_, order_.nr_cores) : 0;
}

}  // namespace percpu::heap
