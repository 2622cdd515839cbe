// SPDX-License-Identifier: MIT
//
// Under the preload: threads and processes that come about in other ways than by pthread_create and fork, threads that lose
// what the fast paths stand on, and handlers that interrupt them.
#include <doctest/doctest.h>

#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>

#include "../balance_thread.h"
#include "../patience.h"
#include "../unit/child.h"
#include "one_cpu.h"

namespace {

// Allocates, writes, checks and frees. Returns how many blocks were not as they should be. Calls nothing but malloc and free.
int work(uint32_t seed, int rounds) {
  enum { kBlocks = 64 };
  uint32_t* blocks[kBlocks] = {};
  uint32_t sizes[kBlocks] = {};
  int wrong = 0;
  for (int i = 0; i < rounds; ++i) {
    seed = seed * 1664525 + 1013904223;
    const uint32_t at = seed >> 8 & (kBlocks - 1);
    if (blocks[at] != nullptr) {
      wrong += blocks[at][0] != sizes[at] * 2654435761u + at;
      free(blocks[at]);
    }
    sizes[at] = i % 500 == 0 ? 40000 + (seed >> 16) : 8 + (seed >> 16 & 1023);
    blocks[at] = static_cast<uint32_t*>(malloc(sizes[at]));
    if (blocks[at] == nullptr) return -1;
    blocks[at][0] = sizes[at] * 2654435761u + at;
  }
  for (uint32_t at = 0; at < kBlocks; ++at) free(blocks[at]);
  return wrong;
}

size_t cached_bytes() { return mallinfo2().fsmblks; }

char* new_stack(size_t bytes) {
  void* stack = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  REQUIRE(stack != MAP_FAILED);
  return static_cast<char*>(stack);
}

constexpr size_t kStack = 256 * 1024;

// Fresh, zeroed thread-local memory that the dynamic linker lays out, as runtimes use that bring their own threads. Null: it does not say how.
void* new_tls() {
  const auto allocate_tls = reinterpret_cast<void* (*)(void*)>(dlsym(RTLD_DEFAULT, "_dl_allocate_tls"));
  if (allocate_tls == nullptr) return nullptr;
  void** tls = static_cast<void**>(allocate_tls(nullptr));
#if defined(__x86_64__)
  tls[0] = tls[2] = tls;  // the thread control block's pointers to itself
  uintptr_t guard = 0;
  asm("movq %%fs:0x28,%0" : "=r"(guard));
  tls[5] = reinterpret_cast<void*>(guard);
#endif
  return tls;
}

bool has_balance_thread() { return balance_thread() != 0; }

void allow_files(bool allowed) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(1);
  limit.rlim_cur = allowed ? limit.rlim_max : 0;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(1);
}

}  // namespace

TEST_CASE("threads of a raw clone, with thread-local memory of their own") {
  static std::atomic<int> wrong{0};
  struct One {
    int tid = 0;
    char* stack = nullptr;
  };
  One ones[4];
  for (One& one : ones) {
    void* tls = new_tls();
    REQUIRE(tls != nullptr);
    one.stack = new_stack(kStack);
    one.tid = 1;
    const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS |
                      CLONE_CHILD_CLEARTID;
    const int child = clone(
        [](void*) -> int {
          wrong += work(static_cast<uint32_t>(syscall(SYS_gettid)), 20000);
          syscall(SYS_exit, 0);
          return 0;
        },
        one.stack + kStack, flags, nullptr, nullptr, tls, &one.tid);
    REQUIRE(child > 0);
  }
  wrong += work(1, 20000);
  for (One& one : ones) {
    while (const int tid = __atomic_load_n(&one.tid, __ATOMIC_ACQUIRE)) syscall(SYS_futex, &one.tid, FUTEX_WAIT, tid, nullptr);
  }
  CHECK(wrong == 0);
}

TEST_CASE("a child that shares memory and thread-local words, while its parent sleeps") {
  for (int i = 0; i < 50; ++i) {
    char* stack = new_stack(kStack);
    void* mine = malloc(48);
    const int child = clone([](void*) -> int { _exit(work(7, 2000) == 0 ? 0 : 1); }, stack + kStack,
                            CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
    REQUIRE(child > 0);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    free(mine);
    munmap(stack, kStack);
  }
  // The parent has its caches again.
  malloc_trim(0);
  CHECK(patience::eventually([] {
    CHECK(work(3, 2000) == 0);
    return cached_bytes() > 0;  // unless they were emptied, as idle ones are
  }));
}

TEST_CASE("a child that shares memory and thread-local words, while its parent waits for it") {
  // In a process of its own: the thread does without caches afterwards.
  const pid_t outer = fork();
  REQUIRE(outer >= 0);
  if (outer == 0) {
    char* stack = new_stack(kStack);
    static std::atomic<int> ended{-1};
    const int child = clone(
        [](void*) -> int {
          ended = work(11, 30000);
          syscall(SYS_exit_group, 0);
          return 0;
        },
        stack + kStack, CLONE_VM | SIGCHLD, nullptr);
    if (child < 0) _exit(2);
    // (Both at once could not even keep errno apart.)
    int status = -1;
    while (waitpid(child, &status, 0) != child) {}
    const int wrong = work(13, 30000);
    _exit(wrong == 0 && ended == 0 && status == 0 ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(outer, &status, 0) == outer);
  CHECK(status == 0);
}

TEST_CASE("who shares its thread-local words with another process stays away from the caches, whatever it forks") {
  const pid_t outer = fork();
  REQUIRE(outer >= 0);
  if (outer == 0) {
    char* stack = new_stack(kStack);
    static std::atomic<bool> leave{false};
    const int child = clone(
        [](void*) -> int {
          while (!leave) syscall(SYS_sched_yield);
          syscall(SYS_exit_group, 0);
          return 0;
        },
        stack + kStack, CLONE_VM | SIGCHLD, nullptr);
    if (child < 0) _exit(2);
    malloc_trim(0);
    int wrong = work(13, 1000) != 0 || cached_bytes() != 0;
    for (int i = 0; i < 3; ++i) {
      const pid_t inner = vfork();
      if (inner == 0) _exit(0);
      wrong |= inner < 0 || waitpid(inner, nullptr, 0) != inner;
      wrong |= work(17, 1000) != 0 || cached_bytes() != 0;
    }
    leave = true;
    wrong |= waitpid(child, nullptr, 0) != child;
    _exit(wrong);
  }
  int status = -1;
  REQUIRE(waitpid(outer, &status, 0) == outer);
  CHECK(status == 0);
}

// Then libc calls no exit(). What the process ends with is what its last thread says, or with kernels before 5.18 always the main one.
TEST_CASE("a main thread that ends by the system call: the process ends with the last of the program's threads") {
  for (const bool outlived : {false, true}) {
    CAPTURE(outlived);
    const percpu::ChildEnd end = percpu::run_in_child([outlived]() -> int {
      percpu::die_after(percpu::kHangSeconds);
      (void)atexit([] { _exit(3); });
      static bool waits = outlived;
      pthread_t thread;
      const auto run = [](void*) -> void* {
        (void)work(19, 1000);
        const timespec time{0, 300'000'000};
        if (waits) nanosleep(&time, nullptr);
        if (waits && work(23, 1000) == 0) (void)!write(STDERR_FILENO, "worked", 6);
        return nullptr;
      };
      if (pthread_create(&thread, nullptr, run, nullptr) != 0) return 1;
      if (!outlived) {
        // Joined, a thread may be among the process's tasks for a moment yet; and then this one would not be the last of the program's.
        pthread_join(thread, nullptr);
        struct stat tasks;  // has a link for each, and two of its own
        if (!patience::eventually([&] { return stat("/proc/self/task", &tasks) == 0 && tasks.st_nlink <= 4; })) return 4;
      }
      syscall(SYS_exit, 7);
      return 2;
    });
    CHECK((end.exit_code == 7 || (outlived && end.exit_code == 0)));
    CHECK(end.standard_error == (outlived ? "worked" : ""));
  }
}

// The balance thread looks then whether it is the last, by a file of /proc, and cannot: it ends, by a thread that has the main thread's mask.
TEST_CASE("a main thread that ends by the system call, where no file can be opened: signals that it blocks stay blocked") {
  const percpu::ChildEnd end = percpu::run_in_child([]() -> int {
    percpu::die_after(percpu::kHangSeconds);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    pthread_t thread;
    const auto run = [](void*) -> void* {
      (void)work(19, 1000);
      const timespec time{0, 300'000'000};
      nanosleep(&time, nullptr);
      if (work(23, 1000) == 0) (void)!write(STDERR_FILENO, "worked", 6);
      _exit(7);
    };
    if (pthread_create(&thread, nullptr, run, nullptr) != 0) return 1;
    if (!patience::eventually(has_balance_thread)) return 2;
    kill(getpid(), SIGUSR1);
    allow_files(false);
    syscall(SYS_exit, 7);
    return 3;
  });
  CHECK(end.exit_code == 7);
  CHECK(end.standard_error == "worked");
}

TEST_CASE("a child with thread-local memory of its own ends by the system call: its parent, whose memory it shares, has not") {
  const percpu::ChildEnd end = percpu::run_in_child([]() -> int {
    pthread_t thread;
    const auto run = [](void*) -> void* { return nullptr; };
    if (pthread_create(&thread, nullptr, run, nullptr) != 0 || pthread_join(thread, nullptr) != 0) return 1;
    if (!patience::eventually(has_balance_thread)) return 2;
    void* tls = new_tls();
    char* stack = new_stack(kStack);
    allow_files(false);  // else it could not be told: the balance thread would look whether it is the last, for ever
    const int child = clone([](void*) -> int { return static_cast<int>(syscall(SYS_exit, 0)); }, stack + kStack,
                            CLONE_VM | CLONE_SETTLS | SIGCHLD, nullptr, nullptr, tls, nullptr);
    if (child < 0 || waitpid(child, nullptr, 0) != child) return 3;
    const timespec time{0, 300'000'000};
    nanosleep(&time, nullptr);
    allow_files(true);
    return has_balance_thread() ? 0 : 4;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("a vfork child of a process without threads ends by the system call") {
  const percpu::ChildEnd end = percpu::run_in_child([]() -> int {
    const pid_t child = vfork();
    if (child == 0) syscall(SYS_exit, 0);
    if (child < 0 || waitpid(child, nullptr, 0) != child) return 1;
    allow_files(false);  // as above
    pthread_t thread;
    const auto run = [](void*) -> void* { return nullptr; };
    if (pthread_create(&thread, nullptr, run, nullptr) != 0 || pthread_join(thread, nullptr) != 0) return 2;
    const timespec time{0, 300'000'000};
    nanosleep(&time, nullptr);
    allow_files(true);
    return patience::eventually(has_balance_thread) ? 0 : 3;
  });
  CHECK(end.exit_code == 0);
}

std::atomic<int> nr_cloned{0};
char* clone_stack = nullptr;

void cloning_handler(int) {
  const int saved_errno = errno;
  const int child = clone([](void*) -> int { _exit(0); }, clone_stack + kStack, CLONE_VM | CLONE_VFORK | SIGCHLD, nullptr);
  int status = -1;
  if (child > 0 && waitpid(child, &status, 0) == child && status == 0) nr_cloned++;
  errno = saved_errno;
}

TEST_CASE("handlers that make such children interrupt malloc and free anywhere") {
  clone_stack = new_stack(kStack);
  struct sigaction action {};
  action.sa_handler = cloning_handler;
  REQUIRE(sigaction(SIGALRM, &action, nullptr) == 0);
  const itimerval often{{0, 150}, {0, 150}};
  const itimerval never{{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &often, nullptr);
  long wrong = 0;
  for (uint64_t i = 0; nr_cloned < 4000; ++i) {
    auto* const block = static_cast<volatile uint64_t*>(malloc(64));
    *block = i;
    wrong += *block != i;
    free(const_cast<uint64_t*>(block));
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  signal(SIGALRM, SIG_DFL);
  munmap(clone_stack, kStack);
  CHECK(wrong == 0);
}

TEST_CASE("children of posix_spawn and system") {
  for (int i = 0; i < 20; ++i) {
    char* argv[] = {const_cast<char*>("true"), nullptr};
    pid_t child = 0;
    REQUIRE(posix_spawnp(&child, "true", nullptr, nullptr, argv, environ) == 0);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
  CHECK(system("true") == 0);
  CHECK(work(5, 1000) == 0);
}

TEST_CASE("threads that unregister rseq in the middle of their work") {
  pthread_t threads[4];
  for (pthread_t& thread : threads) {
    const auto run = [](void*) -> void* {
      int wrong = work(17, 5000);
      char* area = static_cast<char*>(__builtin_thread_pointer()) + __rseq_offset;
      const long done = syscall(SYS_rseq, area, __rseq_size < 32 ? 32 : __rseq_size, 1 /* RSEQ_FLAG_UNREGISTER */, RSEQ_SIG);
      wrong += work(19, 5000);
      return reinterpret_cast<void*>(static_cast<intptr_t>(__rseq_size != 0 && done != 0 ? -1 : wrong));
    };
    REQUIRE(pthread_create(&thread, nullptr, run, nullptr) == 0);
  }
  for (pthread_t thread : threads) {
    void* result = nullptr;
    pthread_join(thread, &result);
    CHECK(result == nullptr);
  }
}

TEST_CASE("threads that are cancelled, and free in their cleanup handlers") {
  for (int i = 0; i < 100; ++i) {
    static std::atomic<int> begun{0};
    begun = 0;
    const auto run = [](void*) -> void* {
      void* block = malloc(100);
      pthread_cleanup_push(free, block);
      for (;;) {
        (void)work(23, 100);
        begun = 1;
        pthread_testcancel();
      }
      pthread_cleanup_pop(1);
      return nullptr;
    };
    pthread_t thread;
    REQUIRE(pthread_create(&thread, nullptr, run, nullptr) == 0);
    while (begun == 0) sched_yield();
    CHECK(pthread_cancel(thread) == 0);
    void* result = nullptr;
    pthread_join(thread, &result);
    CHECK(result == PTHREAD_CANCELED);
  }
  CHECK(work(29, 5000) == 0);
}

TEST_CASE("threads that free in the destructors of their thread-specific data") {
  static pthread_key_t key;
  REQUIRE(pthread_key_create(&key, [](void* block) {
            free(block);
            free(malloc(200));
          }) == 0);
  for (int i = 0; i < 200; ++i) {
    pthread_t thread;
    const auto run = [](void*) -> void* {
      pthread_setspecific(key, malloc(5000));
      return malloc(64);
    };
    REQUIRE(pthread_create(&thread, nullptr, run, nullptr) == 0);
    void* block = nullptr;
    pthread_join(thread, &block);
    free(block);
  }
}

TEST_CASE("threads with the smallest stacks, on every slow path") {
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  REQUIRE(pthread_attr_setstacksize(&attr, static_cast<size_t>(sysconf(_SC_THREAD_STACK_MIN))) == 0);
  for (int i = 0; i < 8; ++i) {
    const auto run = [](void*) -> void* {
      int wrong = work(31, 3000);
      for (int k = 0; k < 20; ++k) {
        void* large = malloc(size_t{3} << 20);
        wrong += large == nullptr;
        large = realloc(large, size_t{9} << 20);
        wrong += large == nullptr;
        free(large);
      }
      malloc_trim(0);
      return reinterpret_cast<void*>(static_cast<intptr_t>(wrong));
    };
    pthread_t thread;
    REQUIRE(pthread_create(&thread, &attr, run, nullptr) == 0);
    void* result = nullptr;
    pthread_join(thread, &result);
    CHECK(result == nullptr);
  }
  pthread_attr_destroy(&attr);
}

namespace {

std::atomic<long> handled{0};
std::atomic<long> handled_wrong{0};

// Of the size that is being allocated: served by the same stack.
void allocating_handler(int) {
  const int saved_errno = errno;
  void* a = malloc(64);
  void* b = malloc(64);
  if (a == nullptr || a == b) handled_wrong++;
  memset(a, 0x5a, 64);
  memset(b, 0xa5, 64);
  free(a);
  free(b);
  handled++;
  errno = saved_errno;
}

}  // namespace

// With balance:off (meson.build): while another thread has this CPU's caches closed, calls take the slow paths, which have locks.
TEST_CASE("handlers that allocate interrupt the fast paths anywhere" * doctest::skip()) {
  // The fast paths hold no lock; blocks enough for both sides lie on this CPU's stack, so nothing else is reached.
  REQUIRE(stay_on_this_cpu());
  struct sigaction action {};
  action.sa_handler = allocating_handler;
  REQUIRE(sigaction(SIGALRM, &action, nullptr) == 0);
  void* warm[32];
  for (int round = 0; round < 8; ++round) {
    for (void*& block : warm) block = malloc(64);
    for (void* block : warm) free(block);
  }
  const itimerval often{{0, 60}, {0, 60}};
  const itimerval never{{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &often, nullptr);
  long wrong = 0;
  while (handled < 3000) {
    uint64_t* mine[8];
    for (uint64_t i = 0; i < 8; ++i) {
      mine[i] = static_cast<uint64_t*>(malloc(64));
      for (int k = 0; k < 8; ++k) mine[i][k] = reinterpret_cast<uint64_t>(mine[i]) + i;
    }
    for (uint64_t i = 0; i < 8; ++i) {
      for (int k = 0; k < 8; ++k) wrong += mine[i][k] != reinterpret_cast<uint64_t>(mine[i]) + i;
      free(mine[i]);
    }
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  signal(SIGALRM, SIG_DFL);
  CHECK(wrong == 0);
  CHECK(handled_wrong == 0);
}

TEST_CASE("a stack overflow comes to the program's own handler on its alternate stack, which may allocate") {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    static char alternate[64 * 1024];
    stack_t stack{};
    stack.ss_sp = alternate;
    stack.ss_size = sizeof alternate;
    sigaltstack(&stack, nullptr);
    struct sigaction action {};
    action.sa_flags = SA_ONSTACK;
    action.sa_handler = [](int) { _exit(work(41, 1000) == 0 ? 42 : 1); };
    sigaction(SIGSEGV, &action, nullptr);
    struct Deep {
      static int go(int depth) {
        volatile char room[4096];
        room[0] = static_cast<char>(depth);
        return depth == -1 ? 0 : go(depth + 1) + room[0];
      }
    };
    _exit(Deep::go(0));
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 42);
}
