// SPDX-License-Identifier: MIT
#include "os/futex.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include <unistd.h>

#include "../child.h"
#include "faulty_system.h"

namespace percpu {
namespace {

const System& sys = real_system();

TEST_CASE("a wait on a word that differs does not sleep") {
  FutexWord word{1};
  CHECK(futex_wait(word, 2) == -EAGAIN);
  timespec soon{0, 1000000};
  CHECK(futex_wait(word, 1, &soon) == -ETIMEDOUT);
}

TEST_CASE("a wake ends a wait") {
  FutexWord word{0};
  std::thread waker([&] {
    word.store(1, std::memory_order_release);
    futex_wake(word, 1);
  });
  while (word.load(std::memory_order_acquire) == 0) futex_wait(word, 0);
  waker.join();
  CHECK(word.load() == 1);
}

TEST_CASE("a ring before the wait is heard, once") {
  WakeWord bell;
  timespec soon{0, 1000000};
  CHECK_FALSE(bell.wait(sys, &soon));
  bell.ring(sys);
  bell.ring(sys);
  CHECK(bell.rung());
  CHECK(bell.wait(sys));
  CHECK_FALSE(bell.rung());
  CHECK_FALSE(bell.wait(sys, &soon));
}

TEST_CASE("no ring is lost, and what was written before it is seen") {
  constexpr int kRounds = 20000;
  WakeWord bell;
  WakeWord answer;
  int written = 0;  // plain: the bells alone must order it (the thread sanitizer checks that)
  std::thread ringer([&] {
    for (int i = 1; i <= kRounds; ++i) {
      written = i;
      bell.ring(sys);
      while (!answer.wait(sys)) {
      }
    }
  });
  int wrong = 0;
  for (int i = 1; i <= kRounds; ++i) {
    while (!bell.wait(sys)) {
    }
    if (written != i) ++wrong;
    answer.ring(sys);
  }
  ringer.join();
  CHECK(wrong == 0);
}

TEST_CASE("many ringers wake one sleeper, whatever the interleaving") {
  WakeWord bell;
  std::atomic<int> rings{0};
  std::thread ringers[3];
  for (std::thread& ringer : ringers) {
    ringer = std::thread([&] {
      for (int i = 0; i < 5000; ++i) {
        rings.fetch_add(1, std::memory_order_relaxed);
        bell.ring(sys);
      }
    });
  }
  int seen = 0;
  while (seen < 15000) {
    while (!bell.wait(sys)) {
    }
    seen = rings.load(std::memory_order_relaxed);
  }
  for (std::thread& ringer : ringers) ringer.join();
  CHECK(seen == 15000);
}

TEST_CASE("ringing a bell that nobody sleeps on makes no system call") {
  FaultySystem& faulty = FaultySystem::reset();
  WakeWord bell;
  bell.ring(faulty.system());
  CHECK(bell.wait(faulty.system()));
  CHECK(faulty.total() == 0);
}

TEST_CASE("a wait that a signal interrupts says so, and a failing futex does not hang it") {
  FaultySystem& faulty = FaultySystem::reset();
  WakeWord bell;
  faulty.fail_nth(Call::kFutexWait, 1, EINTR);
  CHECK_FALSE(bell.wait(faulty.system()));
  faulty.fail_always(Call::kFutexWait, ENOSYS);
  CHECK_FALSE(bell.wait(faulty.system()));
  bell.ring(faulty.system());
  CHECK(bell.wait(faulty.system()));
}

TEST_CASE("the child of a fork can use the bell that its parent slept on") {
  WakeWord bell;
  std::thread sleeper([&] {
    while (!bell.wait(sys)) {
    }
  });
  usleep(20000);
  ChildEnd end = run_in_child([&] {
    bell.reset_after_fork_in_child();
    if (bell.rung()) return 1;
    bell.ring(sys);
    return bell.wait(sys) ? 0 : 2;
  });
  bell.ring(sys);
  sleeper.join();
  CHECK(end.exit_code == 0);
}

}  // namespace
}  // namespace percpu
