// SPDX-License-Identifier: MIT
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
#include "preload/pin.h"

#include <dlfcn.h>
#include <errno.h>
#include <percpu/abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/annotations.h"
#include "base/check.h"
#include "os/mutex.h"
#include "preload/pin_order.h"
#include "preload/pin_places.h"

// The bounds of this module's code, made by the linker.
extern "C" {
__attribute__((visibility("hidden"))) extern const char __ehdr_start[];
__attribute__((visibility("hidden"))) extern const char etext[];
}

namespace percpu::heap {

namespace {

constexpr int32_t kNoPlace = -1;
constexpr int32_t kNoSlot = -1;
constexpr uint64_t kSecondNs = 1000 * 1000 * 1000;
constexpr uint64_t kLookEveryNs = kSecondNs;
// A CPU that turned out to be shared is not given out for this long.
constexpr uint64_t kSharedForNs = 10 * kSecondNs;

struct Record {
  Record* next = nullptr;  // in the list of live records, or of free ones
  Record* before = nullptr;
  void* (*start)(void*) = nullptr;
  thrd_start_t c11_start = nullptr;
  void* argument = nullptr;
  pthread_t thread = {};
  pid_t tid = 0;  // 0: the thread has not begun
  uint32_t number = 0;
  int32_t slot = kNoSlot;
  int32_t place = kNoPlace;
  int32_t inherited = kNoPlace;  // its creator's place
  bool counted = false;
  bool mask_in_attr = false;
  bool name_read = false;
  uint64_t looked_ns = 0;
  uint64_t ran_ns = 0;
  uint64_t waited_ns = 0;
};

// What the program asked of a thread that had not begun yet.
struct Claim {
  pthread_t thread;
  pid_t tid;  // 0: `thread` counts
  bool exempt;
};

struct Slab {
  static constexpr size_t kBytes = 16384;
  static constexpr size_t kRecords = (kBytes - sizeof(void*)) / sizeof(Record);

  Slab* next;
  Record records[kRecords];
};
static_assert(sizeof(Slab) <= Slab::kBytes);

__attribute__((tls_model("initial-exec"))) thread_local Record* t_record = nullptr;
// The place that a thread keeps while it ends, when its record is gone already.
__attribute__((tls_model("initial-exec"))) thread_local int32_t t_last_place = kNoPlace;
__attribute__((tls_model("initial-exec"))) thread_local uint32_t t_off_place = 0;

const System& os() { return real_system(); }

uint64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * kSecondNs + static_cast<uint64_t>(now.tv_nsec);
}

pid_t this_tid() { return static_cast<pid_t>(syscall(SYS_gettid)); }

// libc's own function would leave two signals unblocked.
uint64_t set_signals(uint64_t blocked) {
  uint64_t before = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &blocked, &before, sizeof before);
  return before;
}

class PERCPU_SCOPED_CAPABILITY PinGuard {
 public:
  explicit PinGuard(SleepMutex& mutex) PERCPU_ACQUIRE(mutex) : mutex_(mutex), signals_(set_signals(~uint64_t{0})) {
    mutex_.lock();
  }
  ~PinGuard() PERCPU_RELEASE() {
    mutex_.unlock();
    set_signals(signals_);
  }
  PinGuard(const PinGuard&) = delete;
  PinGuard& operator=(const PinGuard&) = delete;

 private:
  SleepMutex& mutex_;
  uint64_t signals_;
};

bool is_our_code(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return (at >= reinterpret_cast<uintptr_t>(__ehdr_start) && at < reinterpret_cast<uintptr_t>(etext)) ||
         percpu_own_code_(address) != 0;
}

// An attribute without a mask answers with all CPUs. Anything that does not fit our masks is a mask.
bool has_mask(const pthread_attr_t* attr) {
  if (attr == nullptr) return false;
  CpuMask mask;
  if (pthread_attr_getaffinity_np(attr, sizeof mask.words, reinterpret_cast<cpu_set_t*>(mask.words)) != 0) return true;
  for (uint64_t word : mask.words) {
    if (word != ~uint64_t{0}) return true;
  }
  return false;
}

class Pin {
 public:
  constexpr Pin() = default;

  void start(const Config& config);
  bool active() const { return active_; }
  // Whether any thread ever had a place: before that, nothing needs hiding.
  bool any_placed() const { return any_placed_.load(std::memory_order_relaxed); }

  // Creation. prepare() returns null when it cannot be followed; failed() or created() come after, or neither for null.
  Record* prepare(bool mask_in_attr) PERCPU_EXCLUDES(lock_);
  void failed(Record* record) PERCPU_EXCLUDES(lock_);
  void created() PERCPU_EXCLUDES(lock_);
  void begin(Record* record) PERCPU_EXCLUDES(lock_);
  static void end(void* record);

  // What the program does to a thread; `call` is libc's function, made under the lock so that a beginning thread sees all
  // of it or nothing. A tid of 0 is the caller; kByThread: `thread` counts.
  template <class Call>
  int set_mask(pid_t tid, pthread_t thread, Call call) PERCPU_EXCLUDES(lock_);
  template <class Call>
  int set_name(pthread_t thread, const char* name, Call call) PERCPU_EXCLUDES(lock_);
  // Puts the initial mask where that of the thread's place is.
  template <class Call>
  int ask(pid_t tid, pthread_t thread, size_t size_bytes, void* mask, Call call) PERCPU_EXCLUDES(lock_);

  // The calling thread leaves its place, and takes it again. Returns: whether it had one.
  bool leave() PERCPU_EXCLUDES(lock_);
  void come_back() PERCPU_EXCLUDES(lock_);

  bool tick() PERCPU_EXCLUDES(lock_);
  void fork_child();

  static constexpr pid_t kByThread = -1;

 private:
  static constexpr size_t kMaxClaims = 16;

  bool make_ready() PERCPU_REQUIRES(lock_);
  bool new_slab() PERCPU_REQUIRES(lock_);
  void add_to_free(Slab* slab) PERCPU_REQUIRES(lock_);
  Record* new_record() PERCPU_REQUIRES(lock_);
  void drop(Record* record) PERCPU_REQUIRES(lock_);
  Record* find(pid_t tid, pthread_t thread) PERCPU_REQUIRES(lock_);
  void add_claim(pid_t tid, pthread_t thread, bool exempt) PERCPU_REQUIRES(lock_);
  void begun(Record* record) PERCPU_REQUIRES(lock_);

  int32_t pick_slot(uint64_t now) PERCPU_REQUIRES(lock_);
  void release_slot(Record* record) PERCPU_REQUIRES(lock_);
  void uncount(Record* record) PERCPU_REQUIRES(lock_);
  void settle(Record* record) PERCPU_REQUIRES(lock_);
  void set_free(Record* record, const char* why) PERCPU_REQUIRES(lock_);
  void set_all_free() PERCPU_REQUIRES(lock_);
  void look(uint64_t now) PERCPU_REQUIRES(lock_);
  void hide(pid_t tid, pthread_t thread, size_t size_bytes, void* mask) PERCPU_REQUIRES(lock_);
  void look_at(Record* record, uint64_t now) PERCPU_REQUIRES(lock_);

  int32_t own_place() const;
  bool is_mask_of(const CpuMask& mask, int32_t place) const;
  bool stands_at(pid_t tid, int32_t place) PERCPU_REQUIRES(lock_);
  int go_to(pid_t tid, int32_t place) PERCPU_REQUIRES(lock_);
  int go_free(pid_t tid) const;

  bool active_ = false;
  bool verbose_ = false;
  PinPolicy policy_ = PinPolicy::kNone;
  CpuMask initial_;
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
  size_t first_slot_ = 0;  // where pin:auto begins among the cores

  CpuMask scratch_ PERCPU_GUARDED_BY(lock_);  // stacks may be small
  std::atomic<Slab*> slabs_{nullptr};
  Record* free_ PERCPU_GUARDED_BY(lock_) = nullptr;
  Record* records_ PERCPU_GUARDED_BY(lock_) = nullptr;
  uint32_t live_ PERCPU_GUARDED_BY(lock_) = 0;
  uint32_t beginning_ PERCPU_GUARDED_BY(lock_) = 0;  // records whose threads have not begun
  uint32_t nr_created_ PERCPU_GUARDED_BY(lock_) = 0;
  Claim claims_[kMaxClaims] PERCPU_GUARDED_BY(lock_) = {};
  uint32_t nr_claims_ PERCPU_GUARDED_BY(lock_) = 0;
  bool claims_lost_ PERCPU_GUARDED_BY(lock_) = false;  // there were more: all that have not begun are left alone
  uint64_t looked_ns_ PERCPU_GUARDED_BY(lock_) = 0;
};

constinit Pin g_pin;

// ---- masks and places ----------------------------------------------------------------------------------------------------

bool Pin::is_mask_of(const CpuMask& mask, int32_t place) const {
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

bool Pin::stands_at(pid_t tid, int32_t place) {
  if (place == kNoPlace) return false;
  scratch_ = {};
  return os().sched_getaffinity(tid, sizeof scratch_.words, scratch_.words) > 0 && is_mask_of(scratch_, place);
}

int Pin::go_to(pid_t tid, int32_t place) {
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

int Pin::go_free(pid_t tid) const { return os().sched_setaffinity(tid, sizeof initial_.words, initial_.words); }

int32_t Pin::own_place() const { return t_record != nullptr ? t_record->place : t_last_place; }

// ---- the machine ---------------------------------------------------------------------------------------------------------

void Pin::start(const Config& config) {
  if (config.pin == PinPolicy::kNone) return;
  if (os().sched_getaffinity(0, sizeof initial_.words, initial_.words) <= 0) return;
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
  active_ = pthread_key_create(&key_, end) == 0;
}

// Looks at the machine, once, when the first thread is created.
bool Pin::make_ready() {
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
  read_cpu_places(os(), initial_, places_);
  order_slots(policy_, initial_, places_, list_, &order_);
  // Several processes on one machine begin at different cores.
  first_slot_ = policy_ == PinPolicy::kAuto ? static_cast<size_t>(getpid()) % order_.nr_cores : 0;
  looked_ns_ = now_ns();
  if (verbose_) report("pin: %zu CPUs allowed, %zu places", initial_.count(), order_.count);
  ready_ = true;
  return true;
}

// ---- records -------------------------------------------------------------------------------------------------------------

void Pin::add_to_free(Slab* slab) {
  for (Record& record : slab->records) {
    record = {};
    record.next = free_;
    free_ = &record;
  }
}

bool Pin::new_slab() {
  const intptr_t at = os().mmap(0, Slab::kBytes, PROT_READ | PROT_WRITE, 0);
  if (at < 0) return false;
  Slab* slab = reinterpret_cast<Slab*>(at);
  slab->next = slabs_.load(std::memory_order_relaxed);
  slabs_.store(slab, std::memory_order_release);
  add_to_free(slab);
  return true;
}

Record* Pin::new_record() {
  if (free_ == nullptr && !new_slab()) return nullptr;
  Record* record = free_;
  free_ = record->next;
  *record = {};
  record->next = records_;
  if (records_ != nullptr) records_->before = record;
  records_ = record;
  return record;
}

void Pin::drop(Record* record) {
  release_slot(record);
  uncount(record);
  (record->before != nullptr ? record->before->next : records_) = record->next;
  if (record->next != nullptr) record->next->before = record->before;
  *record = {};
  record->next = free_;
  free_ = record;
}

Record* Pin::find(pid_t tid, pthread_t thread) {
  if (tid == 0) {
    // A child of vfork runs on its parent's thread-local words.
    return t_record != nullptr && t_record->tid == this_tid() ? t_record : nullptr;
  }
  for (Record* record = records_; record != nullptr; record = record->next) {
    if (record->tid == 0) continue;
    if (tid == kByThread ? pthread_equal(record->thread, thread) != 0 : record->tid == tid) return record;
  }
  return nullptr;
}

void Pin::add_claim(pid_t tid, pthread_t thread, bool exempt) {
  if (beginning_ == 0) return;
  if (nr_claims_ == kMaxClaims) {
    claims_lost_ = true;
    return;
  }
  claims_[nr_claims_++] = {thread, tid == kByThread ? 0 : tid, exempt};
}

// ---- slots ---------------------------------------------------------------------------------------------------------------

// pin:auto: the first slot that nobody has. Others: the first of those that fewest have.
int32_t Pin::pick_slot(uint64_t now) {
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

void Pin::release_slot(Record* record) {
  if (record->slot == kNoSlot) return;
  users_[record->slot]--;
  record->slot = kNoSlot;
}

void Pin::uncount(Record* record) {
  if (record->counted) live_--;
  record->counted = false;
}

void Pin::set_free(Record* record, const char* why) {
  release_slot(record);
  if (record->place == kNoPlace) return;
  if (stands_at(record->tid, record->place)) {
    (void)go_free(record->tid);
    if (verbose_) report("pin: thread %d is free: %s", static_cast<int>(record->tid), why);
  }
  record->place = kNoPlace;
}

void Pin::set_all_free() {
  for (Record* record = records_; record != nullptr; record = record->next) set_free(record, "more threads than CPUs");
}

// ---- creation ------------------------------------------------------------------------------------------------------------

Record* Pin::prepare(bool mask_in_attr) {
  PinGuard guard(lock_);
  if (!make_ready()) return nullptr;
  const uint64_t now = now_ns();
  look(now);
  Record* record = new_record();
  if (record == nullptr) return nullptr;
  record->number = ++nr_created_;
  record->inherited = own_place();
  record->mask_in_attr = mask_in_attr;
  record->looked_ns = now;
  beginning_++;
  if (skips_number(skip_.text, record->number)) return record;
  record->counted = true;
  live_++;
  if (!mask_in_attr) record->slot = pick_slot(now);
  return record;
}

void Pin::begun(Record* record) {
  (void)record;
  if (--beginning_ > 0) return;
  nr_claims_ = 0;
  claims_lost_ = false;
}

void Pin::failed(Record* record) {
  PinGuard guard(lock_);
  if (record->number == nr_created_) nr_created_--;
  drop(record);
  begun(record);
}

void Pin::created() {
  PinGuard guard(lock_);
  if (policy_ == PinPolicy::kAuto && live_ > order_.count) set_all_free();
}

// In the new thread: takes its place, if it is ours to place.
void Pin::settle(Record* record) {
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
  if (!inherited && (os().sched_getaffinity(0, sizeof scratch_.words, scratch_.words) <= 0 || scratch_ != initial_))
    return release_slot(record);
  if (exempt) release_slot(record);
  if (record->slot != kNoSlot) {
    record->place = order_.ids[record->slot];
    if (go_to(0, record->place) == 0) {
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

void Pin::begin(Record* record) {
  const bool followed = pthread_setspecific(key_, record) == 0;
  PinGuard guard(lock_);
  record->thread = pthread_self();
  record->tid = this_tid();
  if (!followed) {
    release_slot(record);
    uncount(record);
  }
  settle(record);
  begun(record);
  if (followed) {
    t_record = record;
  } else {
    drop(record);  // nobody would tell us when it ends
  }
}

// The destructor of the key: the thread ends, by whatever way. (A child of fork has the key's value, but not the record.)
void Pin::end(void* value) {
  Record* record = static_cast<Record*>(value);
  PinGuard guard(g_pin.lock_);
  if (t_record != record) return;
  t_last_place = record->place;
  t_record = nullptr;
  g_pin.drop(record);
}

// ---- what the program sets and asks -----------------------------------------------------------------------------------------

template <class Call>
int Pin::set_mask(pid_t tid, pthread_t thread, Call call) {
  PinGuard guard(lock_);
  const int result = call();
  if (result != 0) return result;
  Record* record = find(tid, thread);
  if (record != nullptr) {
    release_slot(record);
    record->place = kNoPlace;
  } else if (tid != 0) {
    add_claim(tid, thread, false);
  } else if (t_record == nullptr) {
    t_last_place = kNoPlace;
  }
  return result;
}

template <class Call>
int Pin::set_name(pthread_t thread, const char* name, Call call) {
  const int result = call();
  if (result != 0 || !(is_exempt_name(name) || skips_name(skip_.text, name))) return result;
  PinGuard guard(lock_);
  Record* record = find(kByThread, thread);
  if (record == nullptr) {
    add_claim(kByThread, thread, true);
  } else {
    uncount(record);
    set_free(record, "its name");
  }
  return result;
}

// `call` reads the mask, under the lock: between reading and comparing nobody places the thread, or sets it free.
template <class Call>
int Pin::ask(pid_t tid, pthread_t thread, size_t size_bytes, void* mask, Call call) {
  PinGuard guard(lock_);
  const int result = call();
  if (result == 0) hide(tid, thread, size_bytes, mask);
  return result;
}

void Pin::hide(pid_t tid, pthread_t thread, size_t size_bytes, void* mask) {
  const size_t bytes = size_bytes < sizeof scratch_.words ? size_bytes : sizeof scratch_.words;
  scratch_ = {};
  memcpy(scratch_.words, mask, bytes);
  bool ours = false;
  const bool self = tid == 0 || (tid == kByThread && pthread_equal(thread, pthread_self()) != 0);
  const Record* record = self ? t_record : find(tid, thread);
  if (self || record != nullptr) {
    ours = is_mask_of(scratch_, self ? own_place() : record->place);
  } else if (tid != getpid()) {
    // Perhaps one that has not begun, and still has what it inherited.
    for (record = records_; record != nullptr && !ours; record = record->next)
      ours = record->tid == 0 && !record->mask_in_attr && is_mask_of(scratch_, record->inherited);
  }
  if (!ours) return;
  memset(mask, 0, size_bytes);
  memcpy(mask, initial_.words, bytes);
}

bool Pin::leave() {
  PinGuard guard(lock_);
  if (!stands_at(0, own_place())) return false;
  return go_free(0) == 0;
}

// Only if the place is still the thread's: meanwhile it may have been set free, or given a mask by the program.
void Pin::come_back() {
  PinGuard guard(lock_);
  if (t_record != nullptr && t_record->place != kNoPlace) (void)go_to(0, t_record->place);
}

// ---- looking after them -----------------------------------------------------------------------------------------------------

void Pin::look_at(Record* record, uint64_t now) {
  char path[64];
  char text[96];
  if (!record->name_read) {
    record->name_read = true;
    Text name_path(path);
    name_path.format("/proc/self/task/%d/comm", static_cast<int>(record->tid));
    const ssize_t len = read_beginning(os(), path, text, sizeof text);
    if (len > 0 && text[len - 1] == '\n') text[len - 1] = 0;
    if (len > 0 && (is_exempt_name(text) || skips_name(skip_.text, text))) {
      uncount(record);
      return set_free(record, "its name");
    }
  }
  if (policy_ != PinPolicy::kAuto || now - record->looked_ns < kLookEveryNs) return;
  Text stat_path(path);
  stat_path.format("/proc/self/task/%d/schedstat", static_cast<int>(record->tid));
  if (read_beginning(os(), path, text, sizeof text) <= 0) return;
  uint64_t numbers[2] = {};  // ran and waited, in nanoseconds
  const char* c = text;
  for (uint64_t& number : numbers) {
    for (; *c >= '0' && *c <= '9'; ++c) number = number * 10 + static_cast<uint64_t>(*c - '0');
    if (*c == ' ') ++c;
  }
  const int32_t slot = record->slot;
  if (cpu_is_shared(now - record->looked_ns, numbers[0] - record->ran_ns, numbers[1] - record->waited_ns)) {
    if (slot != kNoSlot) shared_until_ns_[slot] = now + kSharedForNs;
    set_free(record, "its CPU is shared with others");
  }
  record->looked_ns = now;
  record->ran_ns = numbers[0];
  record->waited_ns = numbers[1];
}

void Pin::look(uint64_t now) {
  if (now - looked_ns_ < kLookEveryNs) return;
  looked_ns_ = now;
  for (Record* record = records_; record != nullptr;) {
    Record* next = record->next;
    // One that left without a word (a raw exit) is no longer there.
    if (record->tid != 0 && syscall(SYS_tgkill, getpid(), record->tid, 0) != 0 && errno == ESRCH) {
      drop(record);
    } else if (record->place != kNoPlace) {
      look_at(record, now);
    }
    record = next;
  }
}

bool Pin::tick() {
  if (!any_placed()) return false;
  const int saved_errno = errno;
  PinGuard guard(lock_);
  look(now_ns());
  errno = saved_errno;
  return true;
}

// The process has this thread only; the lock may be a thread's that is gone, and what it guards half changed.
void Pin::fork_child() PERCPU_NO_THREAD_SAFETY_ANALYSIS {
  lock_.reset_after_fork_in_child();
  if (stands_at(0, own_place())) (void)go_free(0);
  t_record = nullptr;
  t_last_place = kNoPlace;
  t_off_place = 0;
  records_ = nullptr;
  free_ = nullptr;
  for (Slab* slab = slabs_.load(std::memory_order_relaxed); slab != nullptr; slab = slab->next) add_to_free(slab);
  live_ = 0;
  beginning_ = 0;
  nr_created_ = 0;
  nr_claims_ = 0;
  claims_lost_ = false;
  if (!ready_) return;
  for (size_t slot = 0; slot < order_.count; ++slot) users_[slot] = 0;
  first_slot_ = policy_ == PinPolicy::kAuto ? static_cast<size_t>(getpid()) % order_.nr_cores : 0;
}

// ---- the way in --------------------------------------------------------------------------------------------------------------

constinit PinNext g_next = {};
constinit std::atomic<bool> g_next_found{false};

template <class Function>
void find_next(const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

// What libc has is always found. Twice does no harm: the same is stored again.
void find_all_next() {
#define PERCPU_FIND_(name) find_next(#name, &g_next.name)
  PERCPU_FIND_(pthread_create);
  PERCPU_FIND_(thrd_create);
  PERCPU_FIND_(pthread_setname_np);
  PERCPU_FIND_(sched_setaffinity);
  PERCPU_FIND_(sched_getaffinity);
  PERCPU_FIND_(pthread_setaffinity_np);
  PERCPU_FIND_(pthread_getaffinity_np);
  PERCPU_FIND_(pthread_getattr_np);
  PERCPU_FIND_(system);
  PERCPU_FIND_(popen);
  PERCPU_FIND_(posix_spawn);
  PERCPU_FIND_(posix_spawnp);
  PERCPU_FIND_(execve);
  PERCPU_FIND_(execvpe);
  PERCPU_FIND_(fexecve);
  PERCPU_FIND_(execveat);
#undef PERCPU_FIND_
  g_next_found.store(true, std::memory_order_release);
}

void* run_thread(void* value) {
  Record* record = static_cast<Record*>(value);
  void* (*start)(void*) = record->start;
  void* argument = record->argument;
  g_pin.begin(record);
  return start(argument);
}

int run_c11_thread(void* value) {
  Record* record = static_cast<Record*>(value);
  thrd_start_t start = record->c11_start;
  void* argument = record->argument;
  g_pin.begin(record);
  return start(argument);
}

// `call(record)` creates the thread: through us, or for null as if we weren't there, by a caller that is in no place.
template <class Call>
int create(bool mask_in_attr, bool ours, Call call) {
  if (!g_pin.active()) return call(nullptr);
  Record* record = ours ? nullptr : g_pin.prepare(mask_in_attr);
  if (record == nullptr) {
    OffPlace off;
    return call(nullptr);
  }
  const int result = call(record);
  if (result == 0) {
    g_pin.created();
  } else {
    g_pin.failed(record);
  }
  return result;
}

}  // namespace

void pin_start(const Config& config) {
  find_all_next();
  g_pin.start(config);
}

void pin_fork_child() {
  if (g_pin.active()) g_pin.fork_child();
}

bool pin_tick() { return g_pin.active() && g_pin.tick(); }

const PinNext& pin_next() {
  if (!g_next_found.load(std::memory_order_acquire)) find_all_next();
  return g_next;
}

int pin_pthread_create(pthread_t* thread, const pthread_attr_t* attr, void* (*start)(void*), void* argument) {
  const bool ours = is_our_code(reinterpret_cast<const void*>(start));
  return create(g_pin.active() && has_mask(attr), ours, [=](Record* record) {
    if (record == nullptr) return pin_next().pthread_create(thread, attr, start, argument);
    record->start = start;
    record->argument = argument;
    return pin_next().pthread_create(thread, attr, run_thread, record);
  });
}

int pin_thrd_create(thrd_t* thread, thrd_start_t start, void* argument) {
  return create(false, false, [=](Record* record) {
    if (record == nullptr) return pin_next().thrd_create(thread, start, argument);
    record->c11_start = start;
    record->argument = argument;
    return pin_next().thrd_create(thread, run_c11_thread, record);
  });
}

int pin_pthread_setname(pthread_t thread, const char* name) {
  const auto call = [=] { return pin_next().pthread_setname_np(thread, name); };
  return g_pin.active() ? g_pin.set_name(thread, name, call) : call();
}

int pin_sched_setaffinity(pid_t tid, size_t size_bytes, const cpu_set_t* mask) {
  const auto call = [=] { return pin_next().sched_setaffinity(tid, size_bytes, mask); };
  return g_pin.active() ? g_pin.set_mask(tid, {}, call) : call();
}

int pin_pthread_setaffinity(pthread_t thread, size_t size_bytes, const cpu_set_t* mask) {
  const auto call = [=] { return pin_next().pthread_setaffinity_np(thread, size_bytes, mask); };
  return g_pin.active() ? g_pin.set_mask(Pin::kByThread, thread, call) : call();
}

int pin_sched_getaffinity(pid_t tid, size_t size_bytes, cpu_set_t* mask) {
  const auto call = [=] { return pin_next().sched_getaffinity(tid, size_bytes, mask); };
  return g_pin.active() && g_pin.any_placed() ? g_pin.ask(tid, {}, size_bytes, mask, call) : call();
}

int pin_pthread_getaffinity(pthread_t thread, size_t size_bytes, cpu_set_t* mask) {
  const auto call = [=] { return pin_next().pthread_getaffinity_np(thread, size_bytes, mask); };
  return g_pin.active() && g_pin.any_placed() ? g_pin.ask(Pin::kByThread, thread, size_bytes, mask, call) : call();
}

int pin_pthread_getattr(pthread_t thread, pthread_attr_t* attr) {
  const int result = pin_next().pthread_getattr_np(thread, attr);
  if (result != 0 || !g_pin.active() || !g_pin.any_placed()) return result;
  CpuMask mask;
  cpu_set_t* words = reinterpret_cast<cpu_set_t*>(mask.words);
  if (pthread_attr_getaffinity_np(attr, sizeof mask.words, words) != 0) return result;
  const CpuMask before = mask;
  // What libc read may be old by now: it is read again, and shown as it would be.
  const auto call = [=] { return pin_next().pthread_getaffinity_np(thread, sizeof mask.words, words); };
  if (g_pin.ask(Pin::kByThread, thread, sizeof mask.words, words, call) != 0) return result;
  // If there is no memory for it, the attributes tell the place: better than none.
  if (mask != before) (void)pthread_attr_setaffinity_np(attr, sizeof mask.words, words);
  return result;
}

OffPlace::OffPlace()
    : left_(g_pin.active() && (t_record != nullptr || t_last_place != kNoPlace) && (t_off_place > 0 || g_pin.leave())) {
  if (left_) ++t_off_place;
}

OffPlace::~OffPlace() {
  if (left_ && --t_off_place == 0) g_pin.come_back();
}

OffPlaceForExec::OffPlaceForExec()
    : left_(g_pin.active() && (t_record != nullptr || t_last_place != kNoPlace) && g_pin.leave()) {}

OffPlaceForExec::~OffPlaceForExec() {
  if (left_ && t_off_place == 0) g_pin.come_back();
}

}  // namespace percpu::heap
