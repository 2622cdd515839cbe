// SPDX-License-Identifier: MIT
//
// Facts about restartable sequences (rseq), and fences against them. Registering is libc's business (glibc since 2.35
// does it for each thread it makes): nothing here registers, unregisters, or writes to the area that the kernel reads.
//
// Is this thread registered? The area of a thread that libc did not make (a raw clone) may be zeroed memory, which reads
// as "on CPU 0", or its parent's, which reads as the parent's CPU: the number alone proves nothing. So the kernel is asked,
// by a call that cannot change anything: unregister with the right address and length but a wrong signature. The kernel
// looks, in this order, at address (EINVAL), length (EINVAL) and signature (EPERM), so EPERM says that this thread is
// registered with exactly this area. A sandbox may answer EPERM to everything; so a wrong length is tried as well, which
// the kernel answers by EINVAL. The length that libc registered with is not told by anything (__rseq_size is the number
// of bytes in use): 32 up to glibc 2.39 or so, later the feature size that the kernel gives (AT_RSEQ_FEATURE_SIZE),
// rounded up to its alignment (AT_RSEQ_ALIGN); the candidates are tried in turn.
//
// A fence on a CPU: when it returns, each sequence of this process that was under way on that CPU has been committed (and
// what it wrote is visible) or will start again. Sequences that begin later are not its business. Where the kernel offers
// membarrier's rseq command, that is used. Where not (before 5.10, or a sandbox), the calling thread moves to the CPU and
// back: when it runs there, every other thread has been scheduled out, and that restarts its sequence. A CPU that is
// offline runs nothing: success. If it is online but this thread may not go there, other threads of the process might
// (they may have other affinity masks or cpusets): the fence cannot be guaranteed, and fails.
#ifndef PERCPU_OS_RSEQ_H
#define PERCPU_OS_RSEQ_H

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "base/ids.h"
#include "os/system.h"

namespace percpu {

// Whether libc registers the threads that it makes: false before glibc 2.35, with GLIBC_TUNABLES=glibc.pthread.rseq=0, and
// where the kernel or a sandbox refused. Constant while the process lives.
bool process_has_rseq();

// The calling thread's area, null if the process has no rseq.
void* rseq_area();

// The number in this thread's area: the CPU it runs on, if the thread is registered; -1 or -2 if libc says that it isn't;
// anything (stale) if libc did not make the thread. Requires: process_has_rseq().
int32_t rseq_cpu_id();

// Whether the kernel restarts this thread's sequences: the proof described above, two system calls or a few more. Stays
// true or false for the life of the thread, unless it registers or unregisters by itself.
// Context: any; async-signal-safe; preserves errno.
[[nodiscard]] bool thread_registered(const System& system);

class Fence {
 public:
  enum class Kind : uint8_t {
    kUnprepared,
    kNotNeeded,   // the process has no rseq, all operations are atomic instructions
    kMembarrier,  // membarrier, one CPU or all
    kMigrate,     // moving from CPU to CPU
  };

  constexpr Fence() = default;

  // Finds out what there is, and registers the process with membarrier. May be called more than once. Holds across fork
  // (the kernel copies the registration); an exec loses registration and this object together.
  // Says once on stderr where there is no membarrier. Returns: what there is. Context: any; async-signal-safe.
  Kind prepare(const System& system);
  Kind kind() const { return kind_.load(std::memory_order_relaxed); }

  // Fences one CPU; prepares first where that was not done. For a CPU number that does not exist or is offline: 0.
  // Errors: -EINVAL or -EPERM: the CPU is online and this thread may not go there (Kind::kMigrate only).
  // Context: any but critical sections: it may sleep. With kMigrate the calling thread's affinity is changed for a moment;
  // a change of it from outside at that very moment is lost.
  [[nodiscard]] int cpu(const System& system, CpuId cpu);

  // Fences all CPUs; `possible` is what there are. Errors: as above; then the other CPUs have been fenced all the same.
  [[nodiscard]] int all(const System& system, const CpuMask& possible);

 private:
  Kind prepared(const System& system) {
    Kind known = kind();
    return known != Kind::kUnprepared ? known : prepare(system);
  }
  static int membarrier(const System& system, unsigned flags, int cpu);
  bool restarted(const System& system, unsigned flags, int cpu);
  void go_without_membarrier(int error);

  std::atomic<Kind> kind_{Kind::kUnprepared};
};

}  // namespace percpu

#endif  // PERCPU_OS_RSEQ_H
