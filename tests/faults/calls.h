// SPDX-License-Identifier: MIT
//
// What syscall_faults knows of system calls: how each can fail, which are left alone, and how one is read and answered in the
// registers of a thread that was stopped at it.
#ifndef PERCPU_TESTS_FAULTS_CALLS_H
#define PERCPU_TESTS_FAULTS_CALLS_H

#include <elf.h>
#include <linux/futex.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <iterator>

namespace faults {

// Each call fails as it can fail on a real system: the first errno is the likeliest.
constexpr int kMostErrors = 3;

struct CallErrors {
  long number;
  const char* name;
  int errors[kMostErrors];
};

constexpr CallErrors kErrors[] = {
    {SYS_mmap, "mmap", {ENOMEM, EAGAIN, 0}},
    {SYS_munmap, "munmap", {ENOMEM, 0, 0}},
    {SYS_mremap, "mremap", {ENOMEM, EAGAIN, 0}},
    {SYS_mprotect, "mprotect", {ENOMEM, 0, 0}},
    {SYS_munlock, "munlock", {ENOMEM, EPERM, 0}},
    {SYS_madvise, "madvise", {ENOMEM, EINVAL, EAGAIN}},
    {SYS_mincore, "mincore", {ENOMEM, EAGAIN, 0}},
    {SYS_mbind, "mbind", {EPERM, ENOSYS, ENOMEM}},
    {SYS_set_mempolicy, "set_mempolicy", {EPERM, ENOSYS, 0}},
    {SYS_get_mempolicy, "get_mempolicy", {EPERM, ENOSYS, 0}},
    {SYS_move_pages, "move_pages", {EPERM, ENOSYS, 0}},
    {SYS_membarrier, "membarrier", {EPERM, ENOSYS, EINVAL}},
    {SYS_sched_getaffinity, "sched_getaffinity", {EPERM, ENOSYS, 0}},
    {SYS_sched_setaffinity, "sched_setaffinity", {EPERM, EINVAL, 0}},
#ifdef SYS_open
    {SYS_open, "open", {ENOENT, EMFILE, EACCES}},
#endif
    {SYS_openat, "openat", {ENOENT, EMFILE, EACCES}},
    {SYS_read, "read", {EIO, EINTR, 0}},
    {SYS_newfstatat, "newfstatat", {EACCES, ENOMEM, 0}},
    {SYS_fstat, "fstat", {EACCES, ENOMEM, 0}},
    {SYS_sched_getscheduler, "sched_getscheduler", {EPERM, ENOSYS, 0}},
    {SYS_sched_getparam, "sched_getparam", {EPERM, ENOSYS, 0}},
    {SYS_futex, "futex", {EAGAIN, EINTR, 0}},  // waiting only: waking does not fail
    {SYS_clone, "clone", {EAGAIN, ENOMEM, 0}},
    {SYS_clone3, "clone3", {EAGAIN, ENOMEM, ENOSYS}},
    {SYS_prctl, "prctl", {EINVAL, 0, 0}},
    {SYS_prlimit64, "prlimit64", {EPERM, ENOSYS, 0}},
    {SYS_rseq, "rseq", {ENOSYS, EINVAL, EFAULT}},  // EPERM and EBUSY are the answers to a registered thread
    {SYS_tgkill, "tgkill", {EPERM, ENOSYS, 0}},  // asks whether a thread is there; ESRCH is an answer
    {SYS_write, "write", {EIO, EAGAIN, 0}},
    {SYS_writev, "writev", {EIO, EAGAIN, 0}},
};

// What cannot fail, or whose failure nobody could survive. (Not all of them are the libraries' own: libc makes some in between, in
// fork() and in threads that begin.)
constexpr long kPassedOver[] = {SYS_close,           SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_exit,
                                SYS_exit_group,      SYS_futex /* that wakes */,
                                SYS_getpid,          SYS_gettid,         SYS_wait4,        SYS_set_robust_list,
                                SYS_clock_nanosleep};
inline bool is_passed_over(long number) {
  return std::find(std::begin(kPassedOver), std::end(kPassedOver), number) != std::end(kPassedOver);
}

// ---- the registers of a thread that was stopped at a system call

inline bool get_registers(pid_t task, user_regs_struct* registers) {
  iovec part{registers, sizeof *registers};
  return ptrace(PTRACE_GETREGSET, task, reinterpret_cast<void*>(NT_PRSTATUS), &part) == 0;
}
inline void set_registers(pid_t task, user_regs_struct* registers) {
  iovec part{registers, sizeof *registers};
  ptrace(PTRACE_SETREGSET, task, reinterpret_cast<void*>(NT_PRSTATUS), &part);
}

struct Call {
  long number;
  uint64_t arguments[3];
  uint64_t at, stack;
  uint64_t link;  // where the innermost function returns to; 0: that is on the stack
};

#if defined(__x86_64__)
inline Call call_of(const user_regs_struct& registers) {
  return {static_cast<long>(registers.orig_rax), {registers.rdi, registers.rsi, registers.rdx}, registers.rip, registers.rsp, 0};
}
// The kernel is to do nothing.
inline void skip_call(pid_t task, user_regs_struct* registers) {
  registers->orig_rax = static_cast<unsigned long long>(-1);
  set_registers(task, registers);
}
inline void set_result(pid_t task, user_regs_struct* registers, long result) {
  registers->rax = static_cast<unsigned long long>(result);
  set_registers(task, registers);
}
#elif defined(__aarch64__)
inline Call call_of(const user_regs_struct& registers) {
  return {static_cast<long>(registers.regs[8]), {registers.regs[0], registers.regs[1], registers.regs[2]}, registers.pc, registers.sp,
          registers.regs[30]};
}
inline void skip_call(pid_t task, user_regs_struct*) {
  int none = -1;
  iovec part{&none, sizeof none};
  ptrace(PTRACE_SETREGSET, task, reinterpret_cast<void*>(NT_ARM_SYSTEM_CALL), &part);
}
inline void set_result(pid_t task, user_regs_struct* registers, long result) {
  registers->regs[0] = static_cast<unsigned long long>(result);
  set_registers(task, registers);
}
#else
#error "the registers of x86-64 and arm64 alone are known"
#endif

// Null: the call cannot fail.
inline const CallErrors* errors_of(const Call& call) {
  const long number = call.number;
  const auto operation = static_cast<int>(call.arguments[1]) & FUTEX_CMD_MASK;
  if (number == SYS_futex && operation != FUTEX_WAIT && operation != FUTEX_WAIT_BITSET) return nullptr;
  for (const CallErrors& row : kErrors) {
    if (row.number == number) return &row;
  }
  return nullptr;
}

}  // namespace faults

#endif
