// SPDX-License-Identifier: MIT
#include "os/rseq.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <stddef.h>
#include <sys/auxv.h>

#include <cstring>

#include "base/bits.h"
#include "base/check.h"
#include "base/errno_kept.h"
#include "os/mutex.h"
#include "os/topology.h"

// glibc's, since 2.35; null where libc has none.
extern "C" {
extern const ptrdiff_t __rseq_offset __attribute__((weak));
extern const unsigned int __rseq_size __attribute__((weak));
}

// Newer than some headers.
#ifndef AT_RSEQ_FEATURE_SIZE
#define AT_RSEQ_FEATURE_SIZE 27
#endif
#ifndef AT_RSEQ_ALIGN
#define AT_RSEQ_ALIGN 28
#endif

namespace percpu {

namespace {

constexpr int kMembarrierRegister = 1 << 8;  // MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ
constexpr int kMembarrierRseq = 1 << 7;      // MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ
constexpr unsigned kMembarrierOneCpu = 1;    // MEMBARRIER_CMD_FLAG_CPU

constexpr size_t kCpuIdAt = 4;               // in the kernel's struct rseq
constexpr uint32_t kOriginalLenBytes = 32;   // the smallest area that can be registered
constexpr int kUnregister = 1;               // RSEQ_FLAG_UNREGISTER
constexpr uint32_t kWrongSignature = 0;      // libc's are not 0 (0x53053053 on x86, 0xd428bc00 on arm64)

// Never unregisters, since the signature is wrong.
int probe(const System& system, uint32_t len_bytes) {
  return system.rseq(rseq_area(), len_bytes, kUnregister, kWrongSignature);
}

// 0 for what the kernel does not say. (getauxval then sets errno.)
uint32_t auxiliary_value(unsigned long type) {
  const ErrnoKept errno_kept;
  return static_cast<uint32_t>(getauxval(type));
}

// Which CPUs are online, read when that is first asked: a container may be refused most of them.
class Online {
 public:
  explicit Online(const System& system) : system_(&system) {}
  bool has(CpuId cpu) {
    if (!asked_) told_ = read_cpu_list(*system_, "/sys/devices/system/cpu/online", &cpus_) == 0;
    asked_ = true;
    return !told_ || cpus_.has(cpu);  // where nobody tells, it counts as online: a fence then fails, which is safe
  }

 private:
  const System* system_;
  bool asked_ = false;
  bool told_ = false;
  CpuMask cpus_;
};

// Makes the calling thread run on that CPU.
int visit(const System& system, CpuId cpu, Online* online) {
  CpuMask target;
  target.add(cpu);
  int error = system.sched_setaffinity(0, sizeof target.words, target.words);
  return error != 0 && online->has(cpu) ? error : 0;
}

// Visits each CPU of the set, and comes back. Returns: 0, or the first error; the other CPUs are visited all the same.
int visit_all(const System& system, const CpuMask& cpus) {
  CpuMask own;
  int got = system.sched_getaffinity(0, sizeof own.words, own.words);
  if (got < 0) return got;
  int first_error = 0;
  Online online(system);
  for (CpuId cpu = cpus.first(); cpu.valid(); cpu = cpus.after(cpu)) {
    int error = visit(system, cpu, &online);
    if (first_error == 0) first_error = error;
  }
  int error = system.sched_setaffinity(0, sizeof own.words, own.words);
  // All CPUs of the old mask were taken from the process meanwhile: go wherever is left.
  if (error != 0) {
    memset(own.words, 0xff, sizeof own.words);
    error = system.sched_setaffinity(0, sizeof own.words, own.words);
  }
  return first_error != 0 ? first_error : error;
}

}  // namespace

bool process_has_rseq() { return &__rseq_size != nullptr && &__rseq_offset != nullptr && __rseq_size > 0; }

void* rseq_area() {
  if (!process_has_rseq()) return nullptr;
  return reinterpret_cast<void*>(this_thread() + static_cast<uintptr_t>(__rseq_offset));
}

int32_t rseq_cpu_id() {
  return *reinterpret_cast<const volatile int32_t*>(static_cast<const char*>(rseq_area()) + kCpuIdAt);
}

bool thread_registered(const System& system) {
  if (!process_has_rseq() || rseq_cpu_id() < 0) return false;
  uint32_t feature_bytes = auxiliary_value(AT_RSEQ_FEATURE_SIZE);
  uint32_t align_bytes = auxiliary_value(AT_RSEQ_ALIGN);
  if (align_bytes == 0) align_bytes = kOriginalLenBytes;
  const uint32_t candidates[] = {
      kOriginalLenBytes,
      static_cast<uint32_t>(round_up_to_multiple(feature_bytes, align_bytes)),
      static_cast<uint32_t>(round_up_to_multiple(feature_bytes, kOriginalLenBytes)),
      feature_bytes,
      __rseq_size,
  };
  // A length that nobody registers with: EINVAL from the kernel; anything else comes from a sandbox that knows nothing.
  if (probe(system, 1) != -EINVAL) return false;
  for (uint32_t len_bytes : candidates) {
    if (len_bytes >= kCpuIdAt + sizeof(int32_t) && probe(system, len_bytes) == -EPERM) return true;
  }
  return false;
}

Fence::Kind Fence::prepare(const System& system) {
  Kind found = Kind::kMigrate;
  int refused = 0;
  if (!process_has_rseq()) {
    found = Kind::kNotNeeded;
  } else {
    int commands = system.membarrier(MEMBARRIER_CMD_QUERY, 0, 0);
    // A failed query is negative, and would read as having every bit.
    if (commands < 0) {
      refused = commands;
    } else if ((commands & kMembarrierRseq) == 0 || (commands & kMembarrierRegister) == 0) {
      refused = -EINVAL;
    } else {
      refused = system.membarrier(kMembarrierRegister, 0, 0);
    }
    if (refused == 0) found = Kind::kMembarrier;
  }
  if (kind_.exchange(found, std::memory_order_relaxed) != found && found == Kind::kMigrate)
    report("membarrier cannot restart other CPUs' sequences (error %d); threads visit those CPUs instead, which is slower", -refused);
  return found;
}

int Fence::membarrier(const System& system, unsigned flags, int cpu) {
  int error = system.membarrier(kMembarrierRseq, flags, cpu);
  // EPERM: the registration is gone, which takes an exec or a checkpoint that was restored without it.
  if (error == -EPERM && system.membarrier(kMembarrierRegister, 0, 0) == 0)
    error = system.membarrier(kMembarrierRseq, flags, cpu);
  return error < 0 ? error : 0;
}

void Fence::go_without_membarrier(int error) {
  if (kind_.exchange(Kind::kMigrate, std::memory_order_relaxed) == Kind::kMigrate) return;
  report("membarrier cannot restart other CPUs' sequences any more (error %d); threads visit those CPUs instead, which is slower", -error);
}

// Where it is refused, as in a sandbox that the program entered since, the CPUs are visited from now on; after any other error this once.
bool Fence::restarted(const System& system, unsigned flags, int cpu) {
  const int error = membarrier(system, flags, cpu);
  if (error == -EPERM || error == -ENOSYS) go_without_membarrier(error);
  return error == 0;
}

int Fence::cpu(const System& system, CpuId cpu) {
  if (!CpuMask::in_range(cpu)) return 0;
  switch (prepared(system)) {
    case Kind::kUnprepared:
    case Kind::kNotNeeded: std::atomic_thread_fence(std::memory_order_seq_cst); return 0;
    case Kind::kMembarrier:
      if (restarted(system, kMembarrierOneCpu, cpu.value)) return 0;
      break;
    case Kind::kMigrate: break;
  }
  CpuMask only;
  only.add(cpu);
  return visit_all(system, only);
}

int Fence::all(const System& system, const CpuMask& possible) {
  switch (prepared(system)) {
    case Kind::kUnprepared:
    case Kind::kNotNeeded: std::atomic_thread_fence(std::memory_order_seq_cst); return 0;
    case Kind::kMembarrier:
      if (restarted(system, 0, 0)) return 0;
      break;
    case Kind::kMigrate: break;
  }
  return visit_all(system, possible);
}

}  // namespace percpu
