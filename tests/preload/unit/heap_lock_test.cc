// SPDX-License-Identifier: MIT
//
// The lock that the forking thread passes.
#include "preload/heap/heap_lock.h"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

namespace percpu::heap {
namespace {

TEST_CASE("one at a time") {
  HeapLock lock;
  long count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int k = 0; k < 20000; ++k) {
        HeapGuard guard(lock);
        count++;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(count == 80000);
}

TEST_CASE("the thread that forks passes locks that it holds, and leaves them locked; others do not pass") {
  HeapLock lock;
  lock.lock();
  forking_thread.store(this_thread());
  lock.lock();
  lock.unlock();
  CHECK(lock.try_lock());
  lock.unlock();
  std::thread([&] { CHECK_FALSE(lock.try_lock()); }).join();
  forking_thread.store(0);
  CHECK_FALSE(lock.try_lock());
  lock.unlock();
  CHECK(lock.try_lock());
  lock.unlock();
}

TEST_CASE("in a fork's child it is free") {
  HeapLock lock;
  lock.lock();
  lock.reset_after_fork_in_child();
  CHECK(lock.try_lock());
  lock.unlock();
}

}  // namespace
}  // namespace percpu::heap
