// SPDX-License-Identifier: MIT
#include "preload/pin/pin.h"

#include <sys/syscall.h>

#include <atomic>

#include "api/for_preload.h"
#include "base/cpu_mask.h"
#include "base/raw_syscall.h"
#include "preload/abi/next.h"
#include "preload/pin/placement.h"

namespace percpu::heap {
namespace {

// Whether threads that are created without attributes begin with a mask of the program's.
constinit std::atomic<bool> mask_by_default{false};

bool is_our_code(const void* address) { return is_own_code(address) || percpu_own_code_(address) != 0; }

// An attribute without a mask answers with all CPUs. Anything that does not fit our masks is a mask.
bool has_mask(const pthread_attr_t* attr) {
  CpuMask mask;
  if (pthread_attr_getaffinity_np(attr, sizeof mask.words, reinterpret_cast<cpu_set_t*>(mask.words)) != 0) return true;
  for (uint64_t word : mask.words) {
    if (word != ~uint64_t{0}) return true;
  }
  return false;
}

}  // namespace

// What syscall.S goes by.
extern "C" {
using NextSyscall = long (*)(long, ...);
__attribute__((visibility("hidden"))) constinit NextSyscall pin_next_syscall = nullptr;  // until it is found
__attribute__((visibility("hidden"))) long pin_kernel_syscall(long number, ...);  // by the instruction
__attribute__((visibility("hidden"))) long pin_syscall_sched_setaffinity(long number, long tid, long size_bytes, void* mask) {
  const NextSyscall next = __atomic_load_n(&pin_next_syscall, __ATOMIC_RELAXED);
  const auto call = [=] { return (next != nullptr ? next : pin_kernel_syscall)(number, tid, size_bytes, mask); };
  return placement.active() ? placement.set_mask(static_cast<pid_t>(tid), {}, call) : (placement.note_initial(), call());
}
__attribute__((visibility("hidden"))) long pin_syscall_sched_getaffinity(long number, long tid, long size_bytes, void* mask) {
  const auto call = [=] { return __atomic_load_n(&pin_next_syscall, __ATOMIC_RELAXED)(number, tid, size_bytes, mask); };
  return placement.active() && placement.any_placed() ? placement.ask_kernel(static_cast<pid_t>(tid), mask, call) : call();
}
// A main thread that ends leaves the balance thread behind, which is to end with the last of the program's.
__attribute__((visibility("hidden"))) long pin_syscall_exit(long number, long status) {
  if (percpu::is_main_thread() && percpu_main_leaves_() != 0) number = SYS_exit_group;
  return __atomic_load_n(&pin_next_syscall, __ATOMIC_RELAXED)(number, status);
}
}

namespace {

constinit PinNext g_next = {};
constinit std::atomic<bool> g_next_found{false};

template <class Function>
void find_next(const char* name, Function* function) {
  *function = reinterpret_cast<Function>(next_function(name));
}

// What libc has is always found. Twice does no harm: the same is stored again.
void find_all_next() {
#define PERCPU_FIND_(name) find_next(#name, &g_next.name)
  PERCPU_FIND_(pthread_create);
  PERCPU_FIND_(thrd_create);
  PERCPU_FIND_(pthread_setattr_default_np);
  PERCPU_FIND_(pthread_setname_np);
  PERCPU_FIND_(sched_setaffinity);
  PERCPU_FIND_(sched_getaffinity);
  PERCPU_FIND_(pthread_setaffinity_np);
  PERCPU_FIND_(pthread_getaffinity_np);
  PERCPU_FIND_(pthread_getattr_np);
  PERCPU_FIND_(clone);
  PERCPU_FIND_(system);
  PERCPU_FIND_(popen);
  PERCPU_FIND_(posix_spawn);
  PERCPU_FIND_(posix_spawnp);
  PERCPU_FIND_(execve);
  PERCPU_FIND_(execvp);
  PERCPU_FIND_(execvpe);
  PERCPU_FIND_(fexecve);
  PERCPU_FIND_(execveat);
#undef PERCPU_FIND_
  NextSyscall next_syscall;
  find_next("syscall", &next_syscall);
  __atomic_store_n(&pin_next_syscall, next_syscall, __ATOMIC_RELAXED);
  g_next_found.store(true, std::memory_order_release);
}

void* run_thread(void* value) {
  ThreadRecord* record = static_cast<ThreadRecord*>(value);
  void* (*start)(void*) = record->start;
  void* argument = record->argument;
  placement.begin(record);
  return start(argument);
}

int run_c11_thread(void* value) {
  ThreadRecord* record = static_cast<ThreadRecord*>(value);
  thrd_start_t start = record->c11_start;
  void* argument = record->argument;
  placement.begin(record);
  return start(argument);
}

// `call(record)` creates the thread: through us, or for null as if we weren't there, by a caller that is in no place.
template <class Call>
int create(bool mask_in_attr, bool ours, Call call) {
  if (!placement.active()) return call(nullptr);
  ThreadRecord* record = ours ? nullptr : placement.prepare(mask_in_attr);
  if (record == nullptr) {
    OffPlace off;
    return call(nullptr);
  }
  const int result = call(record);
  if (result == 0) {
    placement.created();
  } else {
    placement.failed(record);
  }
  return result;
}

}  // namespace

void pin_start(const Config& config) {
  find_all_next();
  placement.start(config);
}

void pin_fork_child() {
  if (placement.active()) placement.fork_child();
}

bool pin_tick() { return placement.active() && placement.tick(); }

const PinNext& pin_next() {
  if (!g_next_found.load(std::memory_order_acquire)) find_all_next();
  return g_next;
}

int pin_pthread_create(pthread_t* thread, const pthread_attr_t* attr, void* (*start)(void*), void* argument) {
  const bool ours = is_our_code(reinterpret_cast<const void*>(start));
  const bool mask = attr != nullptr ? placement.active() && has_mask(attr) : mask_by_default.load(std::memory_order_relaxed);
  return create(mask, ours, [=](ThreadRecord* record) {
    if (record == nullptr) return pin_next().pthread_create(thread, attr, start, argument);
    record->start = start;
    record->argument = argument;
    return pin_next().pthread_create(thread, attr, run_thread, record);
  });
}

int pin_thrd_create(thrd_t* thread, thrd_start_t start, void* argument) {
  return create(mask_by_default.load(std::memory_order_relaxed), false, [=](ThreadRecord* record) {
    if (record == nullptr) return pin_next().thrd_create(thread, start, argument);
    record->c11_start = start;
    record->argument = argument;
    return pin_next().thrd_create(thread, run_c11_thread, record);
  });
}

int pin_pthread_setattr_default(const pthread_attr_t* attr) {
  const int result = pin_next().pthread_setattr_default_np(attr);
  if (result == 0) mask_by_default.store(has_mask(attr), std::memory_order_relaxed);
  return result;
}

int pin_pthread_setname(pthread_t thread, const char* name) {
  const auto call = [=] { return pin_next().pthread_setname_np(thread, name); };
  return placement.active() ? placement.set_name(thread, name, call) : call();
}

int pin_sched_setaffinity(pid_t tid, size_t size_bytes, const cpu_set_t* mask) {
  const auto call = [=] { return pin_next().sched_setaffinity(tid, size_bytes, mask); };
  return placement.active() ? placement.set_mask(tid, {}, call) : (placement.note_initial(), call());
}

int pin_pthread_setaffinity(pthread_t thread, size_t size_bytes, const cpu_set_t* mask) {
  const auto call = [=] { return pin_next().pthread_setaffinity_np(thread, size_bytes, mask); };
  return placement.active() ? placement.set_mask(Placement::kByThread, thread, call) : (placement.note_initial(), call());
}

int pin_sched_getaffinity(pid_t tid, size_t size_bytes, cpu_set_t* mask) {
  const auto call = [=] { return pin_next().sched_getaffinity(tid, size_bytes, mask); };
  return placement.active() && placement.any_placed() ? placement.ask(tid, {}, size_bytes, mask, call) : call();
}

int pin_pthread_getaffinity(pthread_t thread, size_t size_bytes, cpu_set_t* mask) {
  const auto call = [=] { return pin_next().pthread_getaffinity_np(thread, size_bytes, mask); };
  return placement.active() && placement.any_placed() ? placement.ask(Placement::kByThread, thread, size_bytes, mask, call) : call();
}

int pin_pthread_getattr(pthread_t thread, pthread_attr_t* attr) {
  const int result = pin_next().pthread_getattr_np(thread, attr);
  if (result != 0 || !placement.active() || !placement.any_placed()) return result;
  CpuMask mask;
  cpu_set_t* words = reinterpret_cast<cpu_set_t*>(mask.words);
  if (pthread_attr_getaffinity_np(attr, sizeof mask.words, words) != 0) return result;
  const CpuMask before = mask;
  // What libc read may be old by now: it is read again, and shown as it would be.
  const auto call = [=] { return pin_next().pthread_getaffinity_np(thread, sizeof mask.words, words); };
  if (placement.ask(Placement::kByThread, thread, sizeof mask.words, words, call) != 0) return result;
  // If there is no memory for it, the attributes tell the place: better than none.
  if (mask != before) (void)pthread_attr_setaffinity_np(attr, sizeof mask.words, words);
  return result;
}

OffPlace::OffPlace()
    : left_(placement.active() && (t_place.record != nullptr || t_place.last != kNoPlace) && (t_place.off > 0 || placement.leave())) {
  if (left_) ++t_place.off;
}

OffPlace::~OffPlace() {
  if (left_ && --t_place.off == 0) placement.come_back();
}

OffPlaceForExec::OffPlaceForExec()
    : left_(placement.active() && (t_place.record != nullptr || t_place.last != kNoPlace) && placement.leave()) {}

OffPlaceForExec::~OffPlaceForExec() {
  if (left_ && t_place.off == 0) placement.come_back();
}

}  // namespace percpu::heap
