// SPDX-License-Identifier: MIT
#include "runtime/grace.h"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>
#include <urcu-bp.h>
#include <vector>

#include <sys/wait.h>

#include "../child.h"
#include "world.h"

struct urcu_bp_reader;
extern "C" __thread urcu_bp_reader* urcu_bp_reader;  // what liburcu knows of the calling thread

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_UNLOCK 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OWN_UNLOCK 0
#endif
#endif
#ifndef OWN_UNLOCK
#define OWN_UNLOCK 1
#endif

#if OWN_UNLOCK
#include <dlfcn.h>

#include <cstring>

// In place of libc's: while it is set, liburcu keeps its locks for 3 ms longer, so that forks fall into that time.
static std::atomic<bool> liburcu_is_slow{false};

extern "C" int pthread_mutex_unlock(pthread_mutex_t* mutex) noexcept {
  static const auto next = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_unlock"));
  Dl_info caller;
  if (liburcu_is_slow.load(std::memory_order_relaxed) && dladdr(__builtin_return_address(0), &caller) != 0 &&
      caller.dli_fname != nullptr && strstr(caller.dli_fname, "urcu") != nullptr) {
    const timespec time = {0, 3000000};
    nanosleep(&time, nullptr);
  }
  return next(mutex);
}
#endif

namespace percpu {
namespace {

void read_once() {
  urcu_bp_read_lock();
  urcu_bp_read_unlock();
}

void sleep_ms(int milliseconds) {
  const timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&time, nullptr);
}

TEST_CASE("a grace period waits for the program's readers that began before it") {
  Grace grace;
  std::atomic<bool> reading{false};
  std::atomic<bool> leave{false};
  std::atomic<bool> left{false};
  std::thread reader([&] {
    urcu_bp_read_lock();
    reading = true;
    while (!leave) sleep_ms(1);
    left = true;
    urcu_bp_read_unlock();
  });
  REQUIRE(eventually([&] { return reading.load(); }));
  std::atomic<bool> waited{false};
  bool after_reader = false;
  std::thread waiter([&] {
    CHECK(grace.wait());
    after_reader = left;
    waited = true;
  });
  sleep_ms(50);
  CHECK_FALSE(waited);
  leave = true;
  waiter.join();
  reader.join();
  CHECK(after_reader);
}

TEST_CASE("after a fork while others wait, the child can wait too") {
  Grace grace;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; t++) {
    threads.emplace_back([&] {
      while (!stop) (void)grace.wait();
    });
  }
  for (int i = 0; i < 50; i++) {
    grace.fork_prepare();
    const pid_t child = fork();
    if (child == 0) {
      grace.fork_child();
      die_after(kHangSeconds);
      _exit(grace.wait() && !grace.lost() ? 0 : 1);
    }
    grace.fork_parent();
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(status == 0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

TEST_CASE("a fork inside the program's read section does not wait for the grace period that waits for that section") {
  Grace grace;
  std::atomic<bool> waited{false};
  urcu_bp_read_lock();
  std::thread waiter([&] {
    CHECK(grace.wait());
    waited = true;
  });
  constexpr int kNotLost = 2;
  int exit_code = kNotLost;
  // Until the waiter is inside.
  CHECK(eventually([&] {
    grace.fork_prepare();
    const pid_t child = fork();
    if (child == 0) {
      grace.fork_child();
      urcu_bp_read_unlock();
      die_after(kHangSeconds);
      if (!grace.lost()) _exit(kNotLost);
      bool good = !grace.wait();
      // Whatever liburcu's locks are in, who asks gets through, in new threads too.
      std::thread other([&] { good = good && !Grace::inside_section(); });
      other.join();
      _exit(good ? 0 : 1);
    }
    grace.fork_parent();
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return exit_code != kNotLost;
  }));
  CHECK(exit_code == 0);
  CHECK_FALSE(waited);
  urcu_bp_read_unlock();
  waiter.join();
  CHECK(waited);
  CHECK_FALSE(grace.lost());
}

TEST_CASE("a fork between urcu_bp_before_fork() and its twins ends, and its child can use the library") {
  const ChildEnd end = run_in_child([] {
    die_after(kHangSeconds);
    Grace grace;
    std::atomic<bool> stop{false};
    std::thread waiter([&] {
      while (!stop) (void)grace.wait();
    });
    // Each of these threads is new to liburcu, and so takes the lock that the forking thread holds.
    std::thread readers([&] {
      while (!stop) std::thread(read_once).join();
    });
    bool good = true;
    for (int i = 0; i < 5; i++) {
      sleep_ms(10);
      urcu_bp_before_fork();
      grace.fork_prepare();
      const pid_t child = fork();
      if (child == 0) {
        grace.fork_child();
        urcu_bp_after_fork_child();
        die_after(kHangSeconds);
        const bool waited = grace.wait() && !grace.lost();
        std::thread(read_once).join();
        _exit(waited ? 0 : 1);
      }
      grace.fork_parent();
      urcu_bp_after_fork_parent();
      int status = -1;
      good = good && waitpid(child, &status, 0) == child && status == 0;
    }
    stop = true;
    waiter.join();
    readers.join();
    return good && !grace.lost() ? 0 : 1;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("threads fork and end at the same time: none is inside liburcu at any of these forks") {
  const ChildEnd end = run_in_child([] {
    die_after(kHangSeconds);
    Grace grace;
    std::atomic<bool> stop{false};
    std::thread waiter([&] {
      while (!stop) (void)grace.wait();
    });
#if OWN_UNLOCK
    liburcu_is_slow = true;
#endif
    std::atomic<bool> good{true};
    std::vector<std::thread> forkers;
    for (int t = 0; t < 2; t++) {
      forkers.emplace_back([&] {
        for (int i = 0; i < 100; i++) {
          grace.fork_prepare();
          const pid_t child = fork();
          if (child == 0) {
            grace.fork_child();
            die_after(kHangSeconds);
            _exit(grace.wait() && !grace.lost() ? 0 : 1);
          }
          grace.fork_parent();
          int status = -1;
          if (waitpid(child, &status, 0) != child || status != 0) good = false;
          // A thread that liburcu knew would be forgotten under its lock when it ends.
          std::thread([&] { good = good && !Grace::inside_section(); }).join();
        }
      });
    }
    for (std::thread& forker : forkers) forker.join();
    stop = true;
    waiter.join();
    return good ? 0 : 1;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("who asks is not made known to liburcu, and who reads is told from who does not") {
  std::thread([] {
    CHECK_FALSE(Grace::inside_section());
    CHECK(urcu_bp_reader == nullptr);
    Grace grace;
    grace.fork_prepare();
    grace.fork_parent();
    CHECK(grace.wait());
    CHECK(urcu_bp_reader == nullptr);
    urcu_bp_read_lock();
    CHECK(Grace::inside_section());
    urcu_bp_read_unlock();
    CHECK_FALSE(Grace::inside_section());
    CHECK(urcu_bp_reader != nullptr);
  }).join();
}

TEST_CASE("a thread that is cancelled waits all the same, and leaves nothing behind") {
  Grace grace;
  std::atomic<bool> reading{false};
  std::atomic<bool> leave{false};
  std::thread reader([&] {
    urcu_bp_read_lock();
    reading = true;
    while (!leave) sleep_ms(1);
    urcu_bp_read_unlock();
  });
  REQUIRE(eventually([&] { return reading.load(); }));
  std::atomic<bool> waited{false};
  std::thread waiter([&] {
    waited = grace.wait();
    int state = 0;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    waited = waited && state == PTHREAD_CANCEL_ENABLE;
  });
  sleep_ms(50);  // so that it sleeps inside liburcu
  pthread_cancel(waiter.native_handle());
  sleep_ms(50);
  CHECK_FALSE(waited);
  leave = true;
  waiter.join();
  reader.join();
  CHECK(waited);
  // Who is still inside would hold this up for seconds, and the child would do without liburcu.
  grace.fork_prepare();
  grace.fork_child();
  CHECK_FALSE(grace.lost());
  CHECK(grace.wait());
}

}  // namespace
}  // namespace percpu
