// SPDX-License-Identifier: MIT
#include "os/gate.h"

#include <doctest/doctest.h>

#include <atomic>
#include <csignal>
#include <ctime>
#include <thread>
#include <vector>

#include <sys/time.h>

namespace percpu {
namespace {

void sleep_ms(int milliseconds) {
  const timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&time, nullptr);
}

TEST_CASE("a gate lets many in, and shutting it says whether somebody is inside") {
  Gate gate;
  CHECK_FALSE(gate.shut());
  gate.wait_empty();
  gate.open();
  gate.enter();
  gate.enter();
  CHECK(gate.shut());
  gate.leave();
  gate.leave();
  gate.wait_empty();
  gate.open();
  gate.enter();
  gate.leave();
}

TEST_CASE("a shut gate holds newcomers until it is opened, and is empty once all have left") {
  Gate gate;
  std::atomic<int> inside{0};
  std::atomic<bool> leave{false};
  const auto visit = [&] {
    gate.enter();
    inside++;
    while (!leave) sleep_ms(1);
    inside--;
    gate.leave();
  };
  std::thread first(visit);
  while (inside != 1) sleep_ms(1);
  CHECK(gate.shut());
  std::thread second(visit);
  sleep_ms(30);
  CHECK(inside == 1);
  leave = true;
  gate.wait_empty();
  CHECK(inside == 0);
  leave = false;
  gate.open();
  while (inside != 1) sleep_ms(1);  // the second comes in now
  leave = true;
  first.join();
  second.join();
}

TEST_CASE("many threads through a gate that is shut again and again: nobody is inside while it is empty") {
  Gate gate;
  std::atomic<int> inside{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> wrong{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; t++) {
    threads.emplace_back([&] {
      while (!stop) {
        gate.enter();
        inside++;
        inside--;
        gate.leave();
      }
    });
  }
  for (int i = 0; i < 2000; i++) {
    (void)gate.shut();
    gate.wait_empty();
    for (int look = 0; look < 20; look++) wrong = wrong || inside != 0;
    gate.open();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_FALSE(wrong);
}

TEST_CASE("a gate that several have shut is shut until the last of them opens it") {
  Gate gate;
  std::atomic<int> inside{0};
  std::atomic<int> shut{0};
  std::atomic<bool> stop{false};
  std::atomic<bool> wrong{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; t++) {
    threads.emplace_back([&] {
      while (!stop) {
        gate.enter();
        inside++;
        wrong = wrong || shut != 0;
        inside--;
        gate.leave();
      }
    });
  }
  std::vector<std::thread> closers;
  for (int t = 0; t < 2; t++) {
    closers.emplace_back([&] {
      for (int i = 0; i < 1000; i++) {
        (void)gate.shut();
        gate.wait_empty();
        shut++;
        for (int look = 0; look < 20; look++) wrong = wrong || inside != 0;
        shut--;
        gate.open();
      }
    });
  }
  for (std::thread& thread : closers) thread.join();
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_FALSE(wrong);
}

TEST_CASE("who waits for a gate to be empty may give up") {
  Gate gate;
  gate.enter();
  CHECK(gate.shut());
  CHECK_FALSE(gate.wait_empty(20));
  gate.leave();
  CHECK(gate.wait_empty(20));
  gate.open();
}

TEST_CASE("who gives up after a while does so, however often signals come") {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  action.sa_flags = SA_RESTART;
  struct sigaction before {};
  sigaction(SIGALRM, &action, &before);
  const itimerval often = {{0, 1000}, {0, 1000}};
  setitimer(ITIMER_REAL, &often, nullptr);
  Gate gate;
  gate.enter();
  CHECK(gate.shut());
  CHECK_FALSE(gate.wait_empty(100));  // hangs where it counts its sleeps
  gate.open();
  gate.leave();
  const itimerval never = {};
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &before, nullptr);
}

TEST_CASE("a gate that thousands have shut lets nobody in") {
  Gate gate;
  constexpr int kMany = 20000;
  for (int i = 0; i < kMany; i++) CHECK_FALSE(gate.shut());
  std::atomic<bool> inside{false};
  std::thread visitor([&] {
    gate.enter();
    inside = true;
    gate.leave();
  });
  sleep_ms(20);
  CHECK_FALSE(inside);
  for (int i = 0; i < kMany; i++) gate.open();
  visitor.join();
  CHECK(inside);
}

}  // namespace
}  // namespace percpu
