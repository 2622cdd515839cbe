// SPDX-License-Identifier: MIT
#include "os/system.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "faulty_system.h"

namespace percpu {
namespace {

const System& sys = real_system();

TEST_CASE("failures come back as negative errno, and errno is left alone") {
  errno = EXDEV;
  const size_t page = page_size_bytes();
  CHECK(sys.mmap(0, 0, PROT_NONE, 0) == -EINVAL);
  CHECK(sys.mmap(0, size_t{1} << 62, PROT_NONE, MAP_NORESERVE) == -ENOMEM);
  CHECK(sys.munmap(1, page) == -EINVAL);
  CHECK(sys.mprotect(1, page, PROT_NONE) == -EINVAL);
  CHECK(sys.madvise(0, page, MADV_DONTNEED) == -ENOMEM);
  CHECK(sys.munlock(0, page) == -ENOMEM);
  unsigned char in_core = 0;
  CHECK(sys.mincore(0, page, &in_core) == -ENOMEM);
  CHECK(sys.mremap(0, page, 2 * page, 0) == -EFAULT);
  CHECK(sys.touch_word(page) == -EFAULT);
  CHECK(sys.sched_getaffinity(0, 1, &in_core) == -EINVAL);
  CHECK(sys.sched_setaffinity(0, 0, nullptr) == -EINVAL);
  CHECK(sys.membarrier(-1, 0, 0) == -EINVAL);
  uint32_t word = 7;
  CHECK(sys.futex_wait(&word, 8, nullptr) == -EAGAIN);
  timespec soon{0, 1000};
  CHECK(sys.futex_wait(&word, 7, &soon) == -ETIMEDOUT);
  CHECK(sys.futex_wake(&word, 1) == 0);
  CHECK(sys.open("/nowhere/at all") == -ENOENT);
  char byte = 0;
  CHECK(sys.read(-1, &byte, 1) == -EBADF);
  CHECK(sys.close(-1) == -EBADF);
  CHECK(errno == EXDEV);
}

TEST_CASE("a pipe in a file's place is not waited for") {
  char path[] = "/tmp/percpu_fifo_XXXXXX";
  REQUIRE(mkdtemp(path) != nullptr);
  const std::string fifo = std::string(path) + "/cgroup";
  REQUIRE(mkfifo(fifo.c_str(), 0600) == 0);
  const int file = sys.open(fifo.c_str());
  CHECK(file >= 0);
  char byte = 0;
  CHECK(sys.read(file, &byte, 1) == 0);
  CHECK(sys.close(file) == 0);
  CHECK(unlink(fifo.c_str()) == 0);
  CHECK(rmdir(path) == 0);
}

TEST_CASE("what works returns what was asked for") {
  const size_t page = page_size_bytes();
  CHECK(page == static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  intptr_t mapped = sys.mmap(0, page, PROT_READ | PROT_WRITE, 0);
  REQUIRE(mapped > 0);
  CHECK(sys.touch_word(static_cast<uintptr_t>(mapped)) == 0);
  unsigned char in_core = 0;
  CHECK(sys.mincore(static_cast<uintptr_t>(mapped), page, &in_core) == 0);
  CHECK((in_core & 1) == 1);
  CHECK(sys.munmap(static_cast<uintptr_t>(mapped), page) == 0);
  unsigned cpu = 12345;
  CHECK(sys.getcpu(&cpu, nullptr) == 0);
  CHECK(cpu != 12345);
  int file = sys.open("/proc/self/comm");
  REQUIRE(file >= 0);
  char buffer[32];
  CHECK(sys.read(file, buffer, sizeof buffer) > 0);
  CHECK(sys.close(file) == 0);
}

struct Seen {
  sigset_t blocked;
};

TEST_CASE("a thread starts with all signals blocked, and leaves the starter's mask as it was") {
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, nullptr, &before);
  pthread_t thread{};
  static Seen seen;
  REQUIRE(sys.start_thread(
              &thread,
              [](void*) -> void* {
                pthread_sigmask(SIG_BLOCK, nullptr, &seen.blocked);
                return nullptr;
              },
              nullptr) == 0);
  REQUIRE(sys.join_thread(thread) == 0);
  for (int number : {SIGINT, SIGTERM, SIGUSR1, SIGPROF, SIGRTMIN + 3}) CHECK(sigismember(&seen.blocked, number) == 1);
  sigset_t after;
  pthread_sigmask(SIG_BLOCK, nullptr, &after);
  for (int number = 1; number < NSIG; ++number) CHECK(sigismember(&before, number) == sigismember(&after, number));
}

struct Begun {
  int policy;
  cpu_set_t mask;
};

// What a thread begins with that a creator of its own with this policy, on one CPU, starts.
Begun begun_by_creator(int policy) {
  Begun begun{};
  std::thread creator([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<unsigned>(sched_getcpu()), &one);
    REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
    const sched_param priority{policy == SCHED_OTHER ? 0 : 1};
    if (pthread_setschedparam(pthread_self(), policy, &priority) != 0) {
      begun.policy = -1;
      return;
    }
    pthread_t thread{};
    REQUIRE(sys.start_thread(
                &thread,
                [](void* to) -> void* {
                  auto& seen = *static_cast<Begun*>(to);
                  seen.policy = sched_getscheduler(0);
                  sched_getaffinity(0, sizeof seen.mask, &seen.mask);
                  return nullptr;
                },
                &begun) == 0);
    REQUIRE(sys.join_thread(thread) == 0);
  });
  creator.join();
  return begun;
}

TEST_CASE("a thread is an ordinary one, on the main thread's CPUs, whoever starts it") {
  cpu_set_t mains;
  REQUIRE(sched_getaffinity(getpid(), sizeof mains, &mains) == 0);
  for (const int policy : {SCHED_OTHER, SCHED_FIFO, SCHED_RR}) {
    CAPTURE(policy);
    const Begun begun = begun_by_creator(policy);
    if (begun.policy == -1) {
      MESSAGE("left out: no right to this policy");
      continue;
    }
    CHECK(begun.policy == SCHED_OTHER);
    CHECK(CPU_EQUAL(&begun.mask, &mains));
  }
}

TEST_CASE("the n-th call can be made to fail, by kind and over all, once or always") {
  FaultySystem& faulty = FaultySystem::reset();
  const System& system = faulty.system();
  faulty.fail_nth(Call::kClose, 2, EIO);
  CHECK(system.close(-1) == -EBADF);
  CHECK(system.close(-1) == -EIO);
  CHECK(system.close(-1) == -EBADF);
  CHECK(faulty.count(Call::kClose) == 3);
  CHECK(faulty.failures() == 1);

  FaultySystem::reset().fail_nth_of_all(2, ENOMEM).fails_giving_back(false);
  unsigned cpu = 0;
  CHECK(system.getcpu(&cpu, nullptr) == 0);
  CHECK(system.close(-1) == -EBADF);  // gives back: does not count
  CHECK(system.getcpu(&cpu, nullptr) == -ENOMEM);
  CHECK(system.getcpu(&cpu, nullptr) == 0);

  FaultySystem::reset().fail_always(Call::kGetcpu, ENOSYS);
  CHECK(system.getcpu(&cpu, nullptr) == -ENOSYS);
  CHECK(system.getcpu(&cpu, nullptr) == -ENOSYS);
  CHECK(faulty.total() == 2);
}

}  // namespace
}  // namespace percpu
