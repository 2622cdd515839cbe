// SPDX-License-Identifier: MIT
// What the sweep must know about a processor: breakpoints, and where the registers of a stopped thread have the program
// counter.
#ifndef PERCPU_TESTS_FIRE_ARCH_H
#define PERCPU_TESTS_FIRE_ARCH_H

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#include <cstdint>

namespace fire {

#if defined(__x86_64__)
using Registers = user_regs_struct;
constexpr uint64_t kBreakpoint = 0xcc;       // int3
constexpr uint64_t kBreakpointMask = 0xff;   // of the word at the instruction
constexpr uint64_t kAfterBreakpoint = 1;     // how far the program counter is behind it when it stops
constexpr uint64_t kLongestInstruction = 15;
// How long a conditional jump is, by its first bytes; 0 for what is none.
inline uint64_t jump_bytes(uint64_t word) {
  if ((word & 0xf0) == 0x70) return 2;
  return (word & 0xf0ff) == 0x800f ? 6 : 0;
}
inline auto &program_counter(Registers *registers) { return registers->rip; }
#elif defined(__aarch64__)
using Registers = user_regs_struct;
constexpr uint64_t kBreakpoint = 0xd4200000;  // brk #0
constexpr uint64_t kBreakpointMask = 0xffffffff;
constexpr uint64_t kAfterBreakpoint = 0;
constexpr uint64_t kLongestInstruction = 4;
inline uint64_t jump_bytes(uint64_t) { return 4; }
inline auto &program_counter(Registers *registers) { return registers->pc; }
#else
#error "the sweep knows x86-64 and aarch64"
#endif

inline bool get_registers(int pid, Registers *registers) {
  iovec part{registers, sizeof *registers};
  return ptrace(PTRACE_GETREGSET, pid, reinterpret_cast<void *>(NT_PRSTATUS), &part) == 0;
}
inline bool set_registers(int pid, Registers *registers) {
  iovec part{registers, sizeof *registers};
  return ptrace(PTRACE_SETREGSET, pid, reinterpret_cast<void *>(NT_PRSTATUS), &part) == 0;
}

}  // namespace fire

#endif
