// SPDX-License-Identifier: MIT
#include "os/rseq.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../child.h"
#include "faulty_system.h"
#include "os/topology.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define PERCPU_TEST_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define PERCPU_TEST_SANITIZED 1
#endif

namespace percpu {
namespace {

const System& sys = real_system();

#if defined(__x86_64__)
constexpr uint32_t kSignature = 0x53053053;
#else
constexpr uint32_t kSignature = 0xd428bc00;
#endif

TEST_CASE("threads that libc made are registered, and are on the CPU that their area says") {
  if (!process_has_rseq()) return;
  CHECK(thread_registered(sys));
  std::thread([] {
    CHECK(thread_registered(sys));
    CpuMask allowed;
    REQUIRE(read_allowed_cpus(sys, &allowed, nullptr) == 0);
    for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) {
      CpuMask one;
      one.add(cpu);
      REQUIRE(sys.sched_setaffinity(0, sizeof one.words, one.words) == 0);
      CHECK(rseq_cpu_id() == cpu.value);
    }
  }).join();
}

TEST_CASE("asking changes nothing, and keeps errno") {
  if (!process_has_rseq()) return;
  errno = EXDEV;
  for (int i = 0; i < 1000; ++i) CHECK(thread_registered(sys));
  CHECK(errno == EXDEV);
  // Registering a second time is refused as long as the first stands.
  CHECK(sys.rseq(rseq_area(), 32, 0, kSignature) < 0);
  CHECK(thread_registered(sys));
}

// Unregisters the calling thread, as glibc does for a thread that ends.
bool unregister() {
  for (uint32_t len_bytes = 20; len_bytes <= 256; ++len_bytes) {
    if (sys.rseq(rseq_area(), len_bytes, 1, kSignature) == 0) return true;
  }
  return false;
}

TEST_CASE("a thread that was unregistered is not registered, whatever its area says") {
  if (!process_has_rseq()) return;
  std::thread([] {
    REQUIRE(unregister());
    CHECK_FALSE(thread_registered(sys));
    *reinterpret_cast<volatile int32_t*>(static_cast<char*>(rseq_area()) + 4) = 0;
    CHECK_FALSE(thread_registered(sys));
  }).join();
  CHECK(thread_registered(sys));
}

TEST_CASE("a sandbox that refuses everything does not pass for a registration") {
  FaultySystem& faulty = FaultySystem::reset();
  for (int error : {EPERM, ENOSYS, EINVAL, EACCES}) {
    FaultySystem::reset().fail_always(Call::kRseq, error);
    CHECK_FALSE(thread_registered(faulty.system()));
  }
}

#if !defined(PERCPU_TEST_SANITIZED)

// A thread behind libc's back. Its thread-local memory is of its own, and zero but for what compilers need.
struct RawThread {
  static constexpr size_t kBlockBytes = 256 * 1024;
  std::atomic<int> registered{-1};
  std::atomic<int> cpu_id{-1};
  std::atomic<int> tid{0};
};

int run_raw(void* argument) {
  RawThread* raw = static_cast<RawThread*>(argument);
  raw->cpu_id = rseq_cpu_id();
  raw->registered = thread_registered(real_system()) ? 1 : 0;
  syscall(SYS_exit, 0);
  return 0;
}

TEST_CASE("a raw clone with zeroed thread-local memory is not registered, although its area says CPU 0") {
  if (!process_has_rseq()) return;
  RawThread raw;
  char* block = static_cast<char*>(
      mmap(nullptr, RawThread::kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  char* stack = static_cast<char*>(
      mmap(nullptr, RawThread::kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  char* thread_pointer = block + RawThread::kBlockBytes / 2;
#if defined(__x86_64__)
  const uintptr_t self = reinterpret_cast<uintptr_t>(thread_pointer);
  memcpy(thread_pointer, &self, sizeof self);       // where %fs points finds itself
  memcpy(thread_pointer + 16, &self, sizeof self);  // and so does libc's thread structure
#endif
  raw.tid = 1;
  int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
              CLONE_CHILD_CLEARTID;
  REQUIRE(clone(run_raw, stack + RawThread::kBlockBytes, flags, &raw, nullptr, thread_pointer,
                reinterpret_cast<pid_t*>(&raw.tid)) > 0);
  // The kernel clears the word when the thread has gone, and wakes (not privately, so it is polled).
  while (raw.tid != 0) usleep(100);
  CHECK(raw.cpu_id == 0);
  CHECK(raw.registered == 0);
  munmap(block, RawThread::kBlockBytes);
  munmap(stack, RawThread::kBlockBytes);
}

TEST_CASE("a child that shares memory and thread-local memory is not registered, although its area is its parent's") {
  if (!process_has_rseq()) return;
  char* stack = static_cast<char*>(
      mmap(nullptr, RawThread::kBlockBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  auto body = [](void*) -> int { return thread_registered(real_system()) ? 1 : 0; };
  pid_t child = clone(body, stack + RawThread::kBlockBytes, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
  REQUIRE(child > 0);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  CHECK(thread_registered(sys));
  munmap(stack, RawThread::kBlockBytes);
}

#endif  // !PERCPU_TEST_SANITIZED

TEST_CASE("without rseq in the process" * doctest::skip()) {
  CHECK_FALSE(process_has_rseq());
  CHECK(rseq_area() == nullptr);
  CHECK_FALSE(thread_registered(sys));
  std::thread([] { CHECK_FALSE(thread_registered(sys)); }).join();
  Fence fence;
  CHECK(fence.cpu(sys, {0}) == 0);
  CHECK(fence.kind() == Fence::Kind::kNotNeeded);
  CHECK(fence.all(sys, {}) == 0);
}

TEST_CASE("with rseq turned off in glibc, no thread is registered, and fences are not needed") {
  CHECK(run_again("without rseq in the process", {"GLIBC_TUNABLES=glibc.pthread.rseq=0"}).exit_code == 0);
}

TEST_CASE("the child of a fork is registered, and its fence works without a new registration") {
  if (!process_has_rseq()) return;
  Fence fence;
  if (fence.prepare(sys) != Fence::Kind::kMembarrier) return;
  FaultySystem::reset();
  ChildEnd end = run_in_child([&] {
    FaultySystem& faulty = FaultySystem::reset();
    if (!thread_registered(sys)) return 1;
    if (fence.cpu(faulty.system(), {0}) != 0 || fence.all(faulty.system(), {}) != 0) return 2;
    return faulty.count(Call::kMembarrier) == 2 ? 0 : 3;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("after an exec" * doctest::skip()) {
  // Not registered with membarrier any more: what a Fence without prepare() would meet.
  CHECK(sys.membarrier(1 << 7, 0, 0) == -EPERM);
  Fence fence;
  CHECK(fence.cpu(sys, {0}) == 0);
  CHECK(fence.kind() == Fence::Kind::kMembarrier);
}

TEST_CASE("an exec loses the registration, and the new program's fence makes it anew") {
  Fence fence;
  if (fence.prepare(sys) != Fence::Kind::kMembarrier) return;
  CHECK(run_again("after an exec", {}).exit_code == 0);
}

TEST_CASE("a registration that was lost is made again") {
  Fence fence;
  if (fence.prepare(sys) != Fence::Kind::kMembarrier) return;
  FaultySystem& faulty = FaultySystem::reset().fail_nth(Call::kMembarrier, 1, EPERM);
  CHECK(fence.cpu(faulty.system(), {0}) == 0);
  CHECK(faulty.count(Call::kMembarrier) == 3);
}

CpuMask own_affinity() {
  CpuMask mask;
  REQUIRE(sys.sched_getaffinity(0, sizeof mask.words, mask.words) > 0);
  return mask;
}

TEST_CASE("fences reach each CPU; numbers that do not exist are no failure") {
  Fence fence;
  CpuMask allowed = own_affinity();
  for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) CHECK(fence.cpu(sys, cpu) == 0);
  CHECK(fence.cpu(sys, {8000}) == 0);
  CHECK(fence.cpu(sys, {8192}) == 0);
  CHECK(fence.cpu(sys, {-1}) == 0);
  CHECK(fence.all(sys, allowed) == 0);
}

TEST_CASE("a query that fails is not read as bits, and a refused registration is not relied on") {
  if (!process_has_rseq()) return;
  FaultySystem& faulty = FaultySystem::reset();
  {
    faulty.fail_always(Call::kMembarrier, EPERM);  // -1
    Fence fence;
    CHECK(fence.prepare(faulty.system()) == Fence::Kind::kMigrate);
    CHECK(faulty.count(Call::kMembarrier) == 1);
  }
  {
    FaultySystem::reset().fail_nth(Call::kMembarrier, 2, EINVAL);
    Fence fence;
    CHECK(fence.prepare(faulty.system()) == Fence::Kind::kMigrate);
  }
}

TEST_CASE("where membarrier is refused later on, as in a sandbox, a fence moves to the CPU from then on, and says so once") {
  if (!process_has_rseq()) return;
  const ChildEnd end = run_in_child([] {
    FaultySystem& faulty = FaultySystem::reset();
    Fence fence;
    if (fence.prepare(faulty.system()) != Fence::Kind::kMembarrier) return 77;
    const CpuMask before = own_affinity();
    faulty.fail_always(Call::kMembarrier, ENOSYS);
    if (fence.cpu(faulty.system(), before.last()) != 0 || fence.all(faulty.system(), before) != 0) return 1;
    if (own_affinity() != before) return 2;
    // There and back, then to each and back.
    if (faulty.count(Call::kSchedSetaffinity) != 2 + static_cast<int>(before.count()) + 1) return 3;
    return fence.prepare(faulty.system()) == Fence::Kind::kMigrate ? 0 : 4;
  });
  if (end.exit_code == 77) return;
  CHECK(end.exit_code == 0);
  CHECK(end.standard_error.find("any more (error 38)") != std::string::npos);
  CHECK(end.standard_error.find('\n') == end.standard_error.size() - 1);
}

TEST_CASE("without membarrier a fence moves to the CPU and back; where it cannot, and the CPU is online, it says so") {
  if (!process_has_rseq()) return;
  FaultySystem& faulty = FaultySystem::reset();
  faulty.fail_always(Call::kMembarrier, ENOSYS);
  Fence fence;
  const CpuMask before = own_affinity();
  CHECK(fence.cpu(faulty.system(), before.last()) == 0);
  CHECK(faulty.count(Call::kSchedSetaffinity) == 2);
  CHECK(own_affinity() == before);
  CHECK(fence.all(faulty.system(), before) == 0);
  CHECK(own_affinity() == before);
  CHECK(fence.cpu(faulty.system(), {8000}) == 0);  // not online: runs nothing
  CHECK(own_affinity() == before);

  faulty.fail_nth(Call::kSchedSetaffinity, 1, EINVAL);
  CHECK(fence.cpu(faulty.system(), before.first()) == -EINVAL);
  CHECK(own_affinity() == before);
  // A refusal for one CPU does not keep the others from being fenced.
  int calls = faulty.count(Call::kSchedSetaffinity);
  faulty.fail_nth(Call::kSchedSetaffinity, 1, EPERM);
  CHECK(fence.all(faulty.system(), before) == -EPERM);
  CHECK(faulty.count(Call::kSchedSetaffinity) - calls == static_cast<int>(before.count()) + 1);
  CHECK(own_affinity() == before);
  // The way back is barred (a cpuset changed): it goes wherever it may, and has fenced.
  faulty.fail_nth(Call::kSchedSetaffinity, 2, EINVAL);
  CHECK(fence.cpu(faulty.system(), before.first()) == 0);
  CHECK(own_affinity().count() >= before.count());
  REQUIRE(sys.sched_setaffinity(0, sizeof before.words, before.words) == 0);
  faulty.fail_nth(Call::kSchedGetaffinity, 1, EPERM);
  CHECK(fence.cpu(faulty.system(), before.first()) == -EPERM);
  // Where nobody says who is online, failing is the safe answer.
  faulty.fail_always(Call::kOpen, ENOENT);
  CHECK(fence.cpu(faulty.system(), {8000}) == -EINVAL);
}

#if defined(__x86_64__)

enum class SectionEnd { kCommitted, kStopped, kAborted };

// A restartable sequence that looks at `stop`, dawdles, and commits by adding one.
SectionEnd run_section(long* committed, const int* stop, int dawdle) {
  ptrdiff_t offset = static_cast<char*>(rseq_area()) - static_cast<char*>(__builtin_thread_pointer());
  asm goto(
      ".pushsection __rseq_cs, \"aw\"\n"
      ".balign 32\n"
      "3: .long 0, 0\n"
      ".quad 1f, 2f - 1f, 4f\n"
      ".popsection\n"
      "leaq 3b(%%rip), %%rax\n"
      "movq %%rax, %%fs:8(%[offset])\n"
      "1:\n"
      "cmpl $0, (%[stop])\n"
      "jne %l[stopped]\n"
      "movl %[dawdle], %%ecx\n"
      "5: decl %%ecx\n"
      "jnz 5b\n"
      "incq (%[committed])\n"
      "2:\n"
      ".pushsection __rseq_failure, \"ax\"\n"
      ".byte 0x0f, 0xb9, 0x3d\n"
      ".long 0x53053053\n"
      "4: jmp %l[aborted]\n"
      ".popsection\n"
      :
      : [offset] "r"(offset), [stop] "r"(stop), [committed] "r"(committed), [dawdle] "r"(dawdle)
      : "rax", "rcx", "memory", "cc"
      : stopped, aborted);
  return SectionEnd::kCommitted;
stopped:
  return SectionEnd::kStopped;
aborted:
  return SectionEnd::kAborted;
}

// After `stop` and a fence, no sequence that saw it unset may commit.
void check_that_fence_holds(const System& system, Fence::Kind expected) {
  const CpuMask allowed = own_affinity();
  const CpuId cpu = allowed.last();
  static long committed;
  static int stop;
  std::atomic<int> phase{0};  // three a round: 0 the worker may begin, 1 it is at it, 2 it has stopped
  constexpr int kRounds = 300;
  std::thread worker([&] {
    CpuMask one;
    one.add(cpu);
    REQUIRE(sys.sched_setaffinity(0, sizeof one.words, one.words) == 0);
    for (int round = 0; round < kRounds; ++round) {
      while (phase.load() != 3 * round) sched_yield();
      ++phase;
      while (run_section(&committed, &stop, 2000) != SectionEnd::kStopped) {
      }
      ++phase;
    }
  });
  Fence fence;
  CHECK(fence.prepare(system) == expected);
  int late = 0;
  int worked = 0;
  for (int round = 0; round < kRounds; ++round) {
    while (phase.load() != 3 * round + 1) sched_yield();
    long begun = __atomic_load_n(&committed, __ATOMIC_RELAXED);
    while (__atomic_load_n(&committed, __ATOMIC_RELAXED) < begun + 3) sched_yield();
    __atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
    CHECK(fence.cpu(system, cpu) == 0);
    long after_fence = __atomic_load_n(&committed, __ATOMIC_RELAXED);
    while (phase.load() != 3 * round + 2) sched_yield();
    if (__atomic_load_n(&committed, __ATOMIC_RELAXED) != after_fence) ++late;
    if (after_fence > begun) ++worked;
    __atomic_store_n(&stop, 0, __ATOMIC_SEQ_CST);
    ++phase;
  }
  worker.join();
  CHECK(late == 0);
  CHECK(worked == kRounds);
}

TEST_CASE("no sequence that began before a fence commits after it, with membarrier") {
  if (!process_has_rseq()) return;
  FaultySystem::reset();
  check_that_fence_holds(sys, Fence::Kind::kMembarrier);
}

TEST_CASE("no sequence that began before a fence commits after it, by moving") {
  if (!process_has_rseq()) return;
  FaultySystem& faulty = FaultySystem::reset();
  faulty.fail_always(Call::kMembarrier, ENOSYS);
  check_that_fence_holds(faulty.system(), Fence::Kind::kMigrate);
}

#endif  // __x86_64__

}  // namespace
}  // namespace percpu
