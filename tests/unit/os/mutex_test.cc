// SPDX-License-Identifier: MIT
#include "os/mutex.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <thread>
#include <vector>

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../child.h"

namespace percpu {
namespace {

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PERCPU_TEST_SLOW 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(PERCPU_TEST_SLOW)
constexpr int kRounds = 20000;
#else
constexpr int kRounds = 500000;
#endif
constexpr int kThreads = 6;

template <class Lock>
struct Guarded {
  Lock lock;
  long count PERCPU_GUARDED_BY(lock) = 0;
  // A second copy: a torn section shows as a difference.
  long mirror PERCPU_GUARDED_BY(lock) = 0;

  bool step() PERCPU_EXCLUDES(lock) {
    LockGuard<Lock> guard(lock);
    bool whole = count == mirror;
    ++count;
    ++mirror;
    return whole;
  }
  long total() PERCPU_EXCLUDES(lock) {
    LockGuard<Lock> guard(lock);
    return count == mirror ? count : -1;
  }
};

template <class Body>
void run_threads(int how_many, Body body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < how_many; ++i) threads.emplace_back(body);
  for (std::thread& thread : threads) thread.join();
}

TEST_CASE_TEMPLATE("sections do not overlap: counts are exact", Lock, MapLock, SleepMutex) {
  Guarded<Lock> guarded;
  std::atomic<int> torn{0};
  run_threads(kThreads, [&] {
    for (int i = 0; i < kRounds; ++i) {
      if (!guarded.step()) ++torn;
    }
  });
  CHECK(guarded.total() == long{kThreads} * kRounds);
  CHECK(torn == 0);
}

TEST_CASE_TEMPLATE("counts are exact when holders sleep, so that waiters do", Lock, MapLock, SleepMutex) {
  Guarded<Lock> guarded;
  run_threads(kThreads, [&] {
    for (int i = 0; i < 100; ++i) {
      LockGuard<Lock> guard(guarded.lock);
      long before = guarded.count;
      usleep(50);
      guarded.count = before + 1;
      ++guarded.mirror;
    }
  });
  CHECK(guarded.total() == 100 * kThreads);
}

TEST_CASE_TEMPLATE("try_lock and lock exclude each other", Lock, MapLock, SleepMutex) {
  Guarded<Lock> guarded;
  std::atomic<long> taken{0};
  run_threads(kThreads, [&] {
    for (int i = 0; i < kRounds / 4; ++i) {
      if (i % 3 == 0) {
        guarded.step();
        ++taken;
      } else if (guarded.lock.try_lock()) {
        ++guarded.count;
        ++guarded.mirror;
        guarded.lock.unlock();
        ++taken;
      }
    }
  });
  CHECK(guarded.total() == taken);
}

TEST_CASE_TEMPLATE("try_lock fails at once while another thread holds it", Lock, MapLock, SleepMutex) {
  Lock lock;
  LockGuard<Lock> guard(lock);
  bool taken = true;
  std::thread([&] {
    taken = lock.try_lock();
    if (taken) lock.unlock();
  }).join();
  CHECK_FALSE(taken);
}

// From here on the kernel kills the process at any system call but this one, which ends it. (_exit() will not do:
// the address sanitizer makes calls before a function that does not return.)
void leave() { syscall(SYS_exit_group, 0); }

void forbid_system_calls() {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  sock_fprog filter = {sizeof program / sizeof program[0], program};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0) abort();
}

TEST_CASE_TEMPLATE("locks that nobody contends for make no system call", Lock, MapLock, SleepMutex) {
  ChildEnd end = run_in_child([]() -> int {
    Lock lock;
    forbid_system_calls();
    for (int i = 0; i < 1000; ++i) {
      lock.lock();
      lock.unlock();
      if (lock.try_lock()) lock.unlock();
    }
    leave();
    return 1;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}

TEST_CASE("the sandbox of the test above does catch a wake") {
  ChildEnd end = run_in_child([]() -> int {
    FutexWord word{0};
    forbid_system_calls();
    futex_wake(word, 1);
    leave();
    return 1;
  });
  CHECK(end.signal == SIGSYS);
}

TEST_CASE("a map lock knows its holder") {
  MapLock lock;
  CHECK_FALSE(lock.held_by_this_thread());
  lock.lock();
  CHECK(lock.held_by_this_thread());
  bool elsewhere = true;
  std::thread([&] { elsewhere = lock.held_by_this_thread(); }).join();
  CHECK_FALSE(elsewhere);
  lock.unlock();
  CHECK_FALSE(lock.held_by_this_thread());
}

TEST_CASE("the holder's own bounded attempt fails at once, whatever the bound") {
  MapLock lock;
  lock.lock();
  // Would last for minutes if it spun.
  bool taken = lock.lock_bounded(UINT32_MAX);
  if (taken) lock.unlock();
  CHECK_FALSE(taken);
  lock.unlock();
}

TEST_CASE("a bounded attempt gives up while another holds the lock, and succeeds once it is free") {
  MapLock lock;
  std::atomic<int> phase{0};
  std::thread holder([&] {
    lock.lock();
    phase = 1;
    while (phase != 2) usleep(100);
    lock.unlock();
    phase = 3;
  });
  while (phase != 1) usleep(100);
  bool taken = lock.lock_bounded(100);
  if (taken) lock.unlock();
  CHECK_FALSE(taken);
  phase = 2;
  while (phase != 3) usleep(100);
  taken = lock.lock_bounded(0);
  if (taken) lock.unlock();
  CHECK(taken);
  holder.join();
}

TEST_CASE("taking a map lock twice is said, not slept on") {
  ChildEnd end = run_in_child([]() -> int {
    MapLock lock;
    MapLock* same = &lock;
    lock.lock();
    same->lock();
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error.find("must not be taken twice") != std::string::npos);
}

// A handler that interrupts anything, holders and waiters included.
MapLock stormed;
long stormed_count PERCPU_GUARDED_BY(stormed) = 0;
std::atomic<long> handler_took{0};
std::atomic<long> handler_gave_up{0};

void on_storm(int) {
  int saved_errno = errno;
  if (stormed.lock_bounded(50)) {
    ++stormed_count;
    stormed.unlock();
    handler_took.fetch_add(1, std::memory_order_relaxed);
  } else {
    handler_gave_up.fetch_add(1, std::memory_order_relaxed);
  }
  errno = saved_errno;
}

TEST_CASE("in a storm of signals no handler deadlocks and no count is lost") {
  struct sigaction action = {};
  struct sigaction before = {};
  action.sa_handler = on_storm;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, &before);
  std::atomic<bool> stop{false};
  std::atomic<long> sections{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      long own = 0;
      for (; !stop.load(std::memory_order_relaxed); ++own) {
        MapLockGuard guard(stormed);
        ++stormed_count;
      }
      sections += own;
    });
  }
  // Until handlers met both: a free lock, and their own thread as the holder (or a holder that was not running).
  while (handler_took < 1000 || handler_gave_up < 200) {
    for (std::thread& thread : threads) pthread_kill(thread.native_handle(), SIGUSR1);
    usleep(20);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  sigaction(SIGUSR1, &before, nullptr);
  long count = 0;
  {
    MapLockGuard guard(stormed);
    count = stormed_count;
  }
  CHECK(count == sections + handler_took);
}

TEST_CASE("the child of a fork gets the locks that other threads held") {
  MapLock map_lock;
  SleepMutex sleep_mutex;
  std::atomic<int> phase{0};
  std::thread holder([&] {
    map_lock.lock();
    sleep_mutex.lock();
    phase = 1;
    while (phase != 2) usleep(100);
    sleep_mutex.unlock();
    map_lock.unlock();
  });
  while (phase != 1) usleep(100);
  ChildEnd end = run_in_child([&] {
    map_lock.reset_after_fork_in_child();
    sleep_mutex.reset_after_fork_in_child();
    if (!map_lock.try_lock()) return 1;
    map_lock.unlock();
    if (!sleep_mutex.try_lock()) return 2;
    sleep_mutex.unlock();
    return 0;
  });
  phase = 2;
  holder.join();
  CHECK(end.exit_code == 0);
}

TEST_CASE("of many that ask at once, one does the work, and all see what it wrote") {
  for (int round = 0; round < 200; ++round) {
    OnceFlag flag;
    int made = 0;  // plain: the flag alone must order it
    std::atomic<int> wrong{0};
    run_threads(4, [&] {
      int result = flag.run([&] {
        ++made;
        return 0;
      });
      if (result != 0 || made != 1) ++wrong;
    });
    CHECK(made == 1);
    CHECK(wrong == 0);
    CHECK(flag.done());
  }
}

TEST_CASE("work that fails is tried again by the next, until it succeeds") {
  OnceFlag flag;
  std::atomic<int> attempts{0};
  std::atomic<int> failures{0};
  run_threads(8, [&] {
    int result = flag.run([&] {
      usleep(500);
      return ++attempts < 5 ? -ENOMEM : 0;
    });
    if (result == -ENOMEM) ++failures;
  });
  CHECK(attempts == 5);
  CHECK(failures == 4);
  CHECK(flag.done());
  CHECK(flag.run([] { return -EIO; }) == 0);
}

TEST_CASE("work that asks for itself is told so") {
  OnceFlag flag;
  int inner = 0;
  CHECK(flag.run([&] {
    inner = flag.run([] { return 0; });
    return 0;
  }) == 0);
  CHECK(inner == -EDEADLK);
  CHECK(flag.done());
}

OnceFlag interrupted;
OnceFlag::Begin seen_by_handler = OnceFlag::Begin::kDone;

TEST_CASE("a handler that interrupts the work is told so, and never sleeps") {
  struct sigaction action = {};
  struct sigaction before = {};
  action.sa_handler = [](int) { seen_by_handler = interrupted.begin(); };
  sigaction(SIGUSR1, &action, &before);
  CHECK(interrupted.run([] {
    raise(SIGUSR1);
    return 0;
  }) == 0);
  sigaction(SIGUSR1, &before, nullptr);
  CHECK(seen_by_handler == OnceFlag::Begin::kReentered);
}

TEST_CASE("what another thread is in the middle of, the child begins anew") {
  OnceFlag flag;
  std::atomic<int> phase{0};
  std::thread worker([&] {
    CHECK(flag.run([&] {
      phase = 1;
      while (phase != 2) usleep(100);
      return 0;
    }) == 0);
  });
  while (phase != 1) usleep(100);
  CHECK_FALSE(flag.done());
  ChildEnd end = run_in_child([&] {
    flag.reset_after_fork_in_child();  // the worker does not exist here
    return flag.run([] { return 0; }) == 0 && flag.done() ? 0 : 1;
  });
  CHECK(end.exit_code == 0);
  phase = 2;
  worker.join();
  CHECK(flag.begin() == OnceFlag::Begin::kDone);
}

TEST_CASE("a fork in the middle of the work leaves it in the middle in the child") {
  OnceFlag flag;
  int exit_code = -1;
  CHECK(flag.run([&] {
    exit_code = run_in_child([&] {
                  flag.reset_after_fork_in_child();
                  if (flag.begin() != OnceFlag::Begin::kReentered) return 1;
                  flag.end(true);
                  return flag.done() ? 0 : 2;
                }).exit_code;
    return 0;
  }) == 0);
  CHECK(exit_code == 0);
}

TEST_CASE("errno survives contention") {
  Guarded<MapLock> guarded;
  std::atomic<int> changed{0};
  run_threads(kThreads, [&] {
    errno = EXDEV;
    for (int i = 0; i < 2000; ++i) guarded.step();
    if (errno != EXDEV) ++changed;
  });
  CHECK(changed == 0);
}

}  // namespace
}  // namespace percpu
