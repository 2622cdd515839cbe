// SPDX-License-Identifier: MIT
#include "os/system.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <type_traits>

#include "base/cpu_mask.h"
#include "base/errno_kept.h"
#include "base/raw_syscall.h"
#include "os/cancel.h"

namespace percpu {

namespace {

long word(const void* pointer) { return reinterpret_cast<long>(pointer); }
template <class Number>
  requires std::is_integral_v<Number>
long word(Number number) {
  return static_cast<long>(number);
}
long word(std::nullptr_t) { return 0; }

// Most calls do not go by libc's functions of the same names: these are cancellation points (open, read, close), do not exist (futex,
// rseq), or are replaced by sanitizers with ones that do nothing (munlock).
template <class... Args>
long raw(long number, Args... args) {
  return raw_syscall(number, word(args)...);
}

template <class Call>
int without_errno(Call call) {
  const ErrnoKept errno_kept;
  const int result = call();
  return result == -1 ? -errno : result;
}

// What changes mappings goes by libc's functions: sanitizers, and libraries that register memory with a network card, have to see it,
// and replace these or patch them. Those which the program sees, unless told otherwise.
constexpr MappingCalls kBoundCalls = {::mmap, ::munmap, ::mremap, ::mprotect, ::madvise};
constinit std::atomic<const MappingCalls*> mapping_calls{&kBoundCalls};

// Null: by the instruction.
const MappingCalls* by_libc() { return mapping_calls.load(std::memory_order_acquire); }

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

// mmap and mremap return MAP_FAILED, which is -1 too.
template <class Call>
intptr_t address_or_error(Call call) {
  const ErrnoKept errno_kept;
  const auto result = reinterpret_cast<intptr_t>(call());
  return result == -1 ? -errno : result;
}

intptr_t do_mmap(uintptr_t address, size_t size_bytes, int protection, int flags) {
  flags |= MAP_PRIVATE | MAP_ANONYMOUS;
  const MappingCalls* libc = by_libc();
  if (libc == nullptr) return raw(SYS_mmap, address, size_bytes, protection, flags, -1, 0);
  return address_or_error([=] { return libc->mmap(pointer(address), size_bytes, protection, flags, -1, 0); });
}

int do_munmap(uintptr_t address, size_t size_bytes) {
  const MappingCalls* libc = by_libc();
  if (libc == nullptr) return static_cast<int>(raw(SYS_munmap, address, size_bytes));
  return without_errno([=] { return libc->munmap(pointer(address), size_bytes); });
}

intptr_t do_mremap(uintptr_t address, size_t old_size_bytes, size_t new_size_bytes, int flags) {
  return remap_to(address, old_size_bytes, new_size_bytes, flags, 0);
}

int do_mprotect(uintptr_t address, size_t size_bytes, int protection) {
  const MappingCalls* libc = by_libc();
  if (libc == nullptr) return static_cast<int>(raw(SYS_mprotect, address, size_bytes, protection));
  return without_errno([=] { return libc->mprotect(pointer(address), size_bytes, protection); });
}

int do_madvise(uintptr_t address, size_t size_bytes, int advice) {
  const MappingCalls* libc = by_libc();
  if (libc == nullptr) return static_cast<int>(raw(SYS_madvise, address, size_bytes, advice));
  return without_errno([=] { return libc->madvise(pointer(address), size_bytes, advice); });
}

int do_munlock(uintptr_t address, size_t size_bytes) {
  return static_cast<int>(raw(SYS_munlock, address, size_bytes));
}

int do_mincore(uintptr_t address, size_t size_bytes, unsigned char* pages) {
  return static_cast<int>(raw(SYS_mincore, address, size_bytes, pages));
}

// The kernel takes one bit less than it is told.
int do_mbind(uintptr_t address, size_t size_bytes, int mode, const uint64_t* nodes, size_t nodes_len_bits, unsigned flags) {
  return static_cast<int>(raw(SYS_mbind, address, size_bytes, mode, nodes, nodes_len_bits + 1, flags));
}

int do_get_mempolicy(int* mode, uint64_t* nodes, size_t nodes_len_bits, uintptr_t address, unsigned flags) {
  return static_cast<int>(raw(SYS_get_mempolicy, mode, nodes, nodes_len_bits + 1, address, flags));
}

int do_query_page(uintptr_t address, int* status) {
  void* page = reinterpret_cast<void*>(address);
  return static_cast<int>(raw(SYS_move_pages, 0, 1UL, &page, nullptr, status, 0));
}

int do_touch_word(uintptr_t address) {
  // Wakes the sleepers of a word of our own (there are none), and one of the touched word if that holds 0x7ff: a wake for
  // no reason, which every user of a futex must expect.
  static const uint32_t nobody_sleeps_here = 0;
  long result = raw(SYS_futex, &nobody_sleeps_here, FUTEX_WAKE_OP_PRIVATE, 0, nullptr, address,
                    FUTEX_OP(FUTEX_OP_ADD, 0, FUTEX_OP_CMP_EQ, 0x7ff));
  return result < 0 ? static_cast<int>(result) : 0;
}

int do_sched_getaffinity(pid_t thread, size_t mask_bytes, void* mask) {
  return static_cast<int>(raw(SYS_sched_getaffinity, thread, mask_bytes, mask));
}

int do_sched_setaffinity(pid_t thread, size_t mask_bytes, const void* mask) {
  return static_cast<int>(raw(SYS_sched_setaffinity, thread, mask_bytes, mask));
}

int do_getcpu(unsigned* cpu, unsigned* node) {
  return without_errno([=] { return getcpu(cpu, node); });
}

int do_membarrier(int command, unsigned flags, int cpu) {
  return static_cast<int>(raw(SYS_membarrier, command, flags, cpu));
}

int do_rseq(void* area, uint32_t len_bytes, int flags, uint32_t signature) {
  return static_cast<int>(raw(SYS_rseq, area, len_bytes, flags, signature));
}

int do_futex_wait(const uint32_t* word, uint32_t expected, const timespec* timeout) {
  return static_cast<int>(raw(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, timeout, nullptr, 0));
}

int do_futex_wake(const uint32_t* word, int how_many) {
  return static_cast<int>(raw(SYS_futex, word, FUTEX_WAKE_PRIVATE, how_many, nullptr, nullptr, 0));
}

int do_open(const char* path) {
  // What lies there may be a pipe of somebody else's, in a program that called chroot(): it is not waited for.
  return static_cast<int>(raw(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0));
}

ssize_t do_read(int file, void* buffer, size_t size_bytes) { return raw(SYS_read, file, buffer, size_bytes); }

int do_close(int file) { return static_cast<int>(raw(SYS_close, file)); }

// A balancer needs little stack, and address space may be scarce (ulimit -v); but the thread-local data of all loaded
// objects lie on it too.
constexpr size_t kStackBytes = 256 * 1024;

// A thread begins with what its creator has, which may be a real-time thread that polls on a CPU of its own: work in the background would
// never run there, or be in the way. So it begins as an ordinary thread, and may run where the main thread may if that is on more CPUs.
// (A nice or idle creator wants its background work to be nice or idle too.) Returns: 0 or a positive error, as the pthread functions do.
int leave_creators_place(pthread_attr_t* attributes) {
  int policy = SCHED_OTHER;
  sched_param priority{};
  int error = pthread_getschedparam(pthread_self(), &policy, &priority);
  if (error == 0 && (policy == SCHED_FIFO || policy == SCHED_RR)) {
    priority.sched_priority = 0;
    error = pthread_attr_setinheritsched(attributes, PTHREAD_EXPLICIT_SCHED);
    if (error == 0) error = pthread_attr_setschedpolicy(attributes, SCHED_OTHER);
    if (error == 0) error = pthread_attr_setschedparam(attributes, &priority);
  }
  CpuMask own;
  CpuMask mains;
  const auto main_thread = static_cast<pid_t>(raw(SYS_getpid));
  if (do_sched_getaffinity(0, sizeof own.words, own.words) <= 0) return error;
  if (do_sched_getaffinity(main_thread, sizeof mains.words, mains.words) <= 0 || mains.count() <= own.count()) return error;
  const int refused = pthread_attr_setaffinity_np(attributes, sizeof mains.words, reinterpret_cast<const cpu_set_t*>(mains.words));
  return error != 0 ? error : refused;
}

// as_ordinary: see above.
int create_with_stack(pthread_t* thread, size_t stack_bytes, bool as_ordinary, void* (*run)(void*), void* argument) {
  pthread_attr_t attributes;
  int error = pthread_attr_init(&attributes);
  if (error != 0) return error;
  if (stack_bytes > 0) error = pthread_attr_setstacksize(&attributes, stack_bytes);
  if (error == 0 && as_ordinary) error = leave_creators_place(&attributes);
  if (error == 0) error = pthread_create(thread, &attributes, run, argument);
  pthread_attr_destroy(&attributes);
  return error;
}

int do_start_thread(pthread_t* thread, void* (*run)(void*), void* argument) {
  const ErrnoKept errno_kept;
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // a thread begins with the mask of the one that makes it
  int error = create_with_stack(thread, kStackBytes, true, run, argument);
  if (error == EINVAL) error = create_with_stack(thread, 0, true, run, argument);  // too small for its thread-local data
  // The kernel refuses another policy, or other CPUs.
  if (error == EINVAL || error == EPERM) error = create_with_stack(thread, 0, false, run, argument);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return -error;
}

int do_join_thread(pthread_t thread) {
  const NotCancelled not_cancelled;
  const ErrnoKept errno_kept;
  return -pthread_join(thread, nullptr);
}

constexpr System kRealSystem = {
    .mmap = do_mmap,
    .munmap = do_munmap,
    .mremap = do_mremap,
    .mprotect = do_mprotect,
    .madvise = do_madvise,
    .munlock = do_munlock,
    .mincore = do_mincore,
    .mbind = do_mbind,
    .get_mempolicy = do_get_mempolicy,
    .query_page = do_query_page,
    .touch_word = do_touch_word,
    .sched_getaffinity = do_sched_getaffinity,
    .sched_setaffinity = do_sched_setaffinity,
    .getcpu = do_getcpu,
    .membarrier = do_membarrier,
    .rseq = do_rseq,
    .futex_wait = do_futex_wait,
    .futex_wake = do_futex_wake,
    .open = do_open,
    .read = do_read,
    .close = do_close,
    .start_thread = do_start_thread,
    .join_thread = do_join_thread,
};

}  // namespace

const System& real_system() { return kRealSystem; }

void use_mapping_calls(const MappingCalls* calls) { mapping_calls.store(calls, std::memory_order_release); }

intptr_t remap_to(uintptr_t address, size_t old_size_bytes, size_t new_size_bytes, int flags, uintptr_t to) {
  const MappingCalls* libc = by_libc();
  if (libc == nullptr) return raw(SYS_mremap, address, old_size_bytes, new_size_bytes, flags, to);
  return address_or_error([=] { return libc->mremap(pointer(address), old_size_bytes, new_size_bytes, flags, pointer(to)); });
}

size_t page_size_bytes() { return getauxval(AT_PAGESZ); }

}  // namespace percpu
