// SPDX-License-Identifier: MIT
//
// The one global object among threads that fork and are cancelled: in the middle of its first use, which a slow system makes
// long, and later. It may not have been used before: each case has a process of its own.
#include <doctest/doctest.h>

#include <atomic>
#include <pthread.h>
#include <thread>
#include <urcu-bp.h>

#include <sys/wait.h>
#include <unistd.h>

#include "../../balance_thread.h"
#include "../api/fresh.h"
#include "api/library.h"
#include "os/fork_depth.h"
#include "percpu.h"

struct urcu_bp_reader;
extern "C" __thread urcu_bp_reader* urcu_bp_reader;  // what liburcu knows of the calling thread

namespace percpu {
namespace {

std::atomic<bool> slow{false};
std::atomic<int> inside{0};

void be_slow() {
  if (!slow) return;
  inside++;
  usleep(200 * 1000);
}

int slow_open(const char* path) {
  be_slow();
  return real_system().open(path);
}

intptr_t slow_mmap(uintptr_t address, size_t size_bytes, int protection, int flags) {
  be_slow();
  return real_system().mmap(address, size_bytes, protection, flags);
}

// Does `work` in a second thread, forks while the system is slow in it, and does it again in the child.
template <class Work>
int fork_in_the_middle(Work work) {
  alarm(kHangSeconds);
  static System system = real_system();  // the balance thread calls it until the process has ended
  system.open = slow_open;
  system.mmap = slow_mmap;
  library.use_system(system);
  slow = true;
  std::atomic<bool> good{true};
  std::thread first([&] { good = work(); });
  while (inside == 0) usleep(1000);
  const pid_t child = fork();
  if (child == 0) {
    alarm(kHangSeconds);
    slow = false;
    _exit(work() ? 0 : 1);
  }
  slow = false;
  int status = -1;
  const bool ended = waitpid(child, &status, 0) == child && status == 0;
  first.join();
  return ended && good && work() ? 0 : 1;
}

bool allocate_and_free() {
  auto* handle = static_cast<uint64_t*>(percpu_alloc(8, 8));
  if (handle == nullptr) return false;
  percpu_add(handle, 1);
  const bool good = percpu_sum(handle) == 1;
  percpu_free(handle);
  return good;
}

TEST_CASE("a fork while another thread makes the first pool leaves a child that can make its own") {
  CHECK_FINE(run_in_child([] { return fork_in_the_middle(allocate_and_free); }));
}

TEST_CASE("a fork while another thread makes the first domain, before there is a pool, leaves a child that can make its own") {
  const auto make_domain = [] { return percpu_domain_create("domain", PERCPU_NO_LIMIT, nullptr) != nullptr; };
  CHECK_FINE(run_in_child([&] { return fork_in_the_middle(make_domain); }));
}

TEST_CASE("a thread that is cancelled makes the first pool all the same") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    std::atomic<bool> allocated{false};
    std::thread first([&] {
      pthread_cancel(pthread_self());
      allocated = allocate_and_free();
      int state = 0;
      pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
      if (state != PTHREAD_CANCEL_ENABLE) allocated = false;
    });
    first.join();
    return allocated && allocate_and_free() ? 0 : 1;
  });
  CHECK_FINE(end);
}

pthread_mutex_t programs_lock = PTHREAD_MUTEX_INITIALIZER;
int allocated_in_handlers = 0;

TEST_CASE("a lock that the program holds around allocations may be taken by its own fork handlers, which allocate, too") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    // Installed before the library is used.
    const auto allocate = [] { allocated_in_handlers += allocate_and_free() ? 1 : 0; };
    pthread_atfork(allocate, allocate, allocate);
    pthread_atfork([] { pthread_mutex_lock(&programs_lock); }, [] { pthread_mutex_unlock(&programs_lock); },
                   [] { pthread_mutex_unlock(&programs_lock); });
    std::atomic<bool> stop{false};
    std::thread allocates([&] {
      while (!stop) {
        pthread_mutex_lock(&programs_lock);
        void* handle = percpu_alloc(1024, 8);  // by way of the maps
        if (handle == nullptr) abort();
        percpu_free(handle);
        pthread_mutex_unlock(&programs_lock);
        usleep(1);
      }
    });
    constexpr int kForks = kSanitized ? 50 : 200;  // each takes long under a sanitizer
    bool good = true;
    for (int i = 0; i < kForks; i++) {
      const pid_t child = fork();
      if (child == 0) _exit(allocate_and_free() ? 0 : 1);
      int status = -1;
      good = good && waitpid(child, &status, 0) == child && status == 0;
    }
    stop = true;
    allocates.join();
    return good && allocated_in_handlers == 2 * kForks ? 0 : 1;
  });
  CHECK_FINE(end);
}

std::atomic<uint32_t> nr_wakes{0};
int counted_wake(const uint32_t* word, int how_many) {
  nr_wakes++;
  return real_system().futex_wake(word, how_many);
}

TEST_CASE("a child that may not wait for grace periods keeps what it frees after one, and is left in peace") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    static System system = real_system();  // as above
    system.futex_wake = counted_wake;
    library.use_system(system);
    urcu_bp_read_lock();
    percpu_free_rcu(percpu_alloc(8, 8));
    (void)allocate_and_free();  // starts the thread, which waits for us
    await_grace_period();
    const pid_t child = fork();
    if (child == 0) {
      alarm(kHangSeconds);
      urcu_bp_read_unlock();
      percpu_free_rcu(percpu_alloc(8, 8));
      (void)allocate_and_free();
      usleep(100 * 1000);
      nr_wakes = 0;
      for (int i = 0; i < 50; i++) {
        (void)allocate_and_free();
        usleep(1000);
      }
      _exit(nr_wakes < 25 ? 0 : 1);  // not one a call
    }
    urcu_bp_read_unlock();
    int status = -1;
    return waitpid(child, &status, 0) == child && status == 0 ? 0 : 1;
  });
  CHECK_FINE(end);
}

// liburcu forgets a thread that ends under its lock; a child forked by another thread in that moment would never get it.
TEST_CASE("no call makes a thread known to liburcu") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    bool known = false;
    std::thread([&] {
      percpu_pool_t* pool = percpu_pool_create(nullptr);
      void* area = percpu_pool_alloc(pool, 8, 8, 0);
      percpu_address info{};
      (void)percpu_address_info(percpu_ptr(area, 0), &info);
      percpu_pool_free_rcu(pool, area);
      percpu_free_rcu(percpu_alloc(8, 8));
      (void)percpu_balance();
      (void)percpu_pool_destroy(pool);
      const pid_t child = fork();
      if (child == 0) _exit(0);
      (void)waitpid(child, nullptr, 0);
      known = urcu_bp_reader != nullptr;
      urcu_bp_read_lock();
      urcu_bp_read_unlock();
      if (urcu_bp_reader == nullptr) known = true;  // then this test says nothing
    }).join();
    return known ? 1 : 0;
  });
  CHECK_FINE(end);
}

// In the child its copy of liburcu is lost: it cannot tell when its readers have left, so what they may read stays.
TEST_CASE("a child that may not wait for grace periods keeps the memory of a pool that it destroys") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    percpu_pool_t* pool = percpu_pool_create(nullptr);
    void* area = percpu_pool_alloc(pool, 64, 8, 0);
    auto* copy = static_cast<uint64_t*>(percpu_pool_ptr(pool, area, 0));
    urcu_bp_read_lock();
    percpu_free_rcu(percpu_alloc(8, 8));
    (void)allocate_and_free();  // starts the thread, which waits for us
    await_grace_period();
    const pid_t child = fork();
    if (child == 0) {
      alarm(kHangSeconds);
      urcu_bp_read_unlock();
      *copy = 7;
      percpu_pool_free_rcu(pool, area);
      if (percpu_pool_destroy(pool) != 0) _exit(2);
      _exit(*static_cast<volatile uint64_t*>(copy) == 7 ? 0 : 1);
    }
    urcu_bp_read_unlock();
    int status = -1;
    const bool good = waitpid(child, &status, 0) == child && status == 0;
    percpu_pool_free(pool, area);
    return good && percpu_pool_destroy(pool) == 0 ? 0 : 1;
  });
  CHECK_FINE(end);
}

// It must not: but where it does, that is its parent's memory.
TEST_CASE("exit() in a child of vfork leaves its parent the balance thread") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    void* area = percpu_alloc(8, 8);
    percpu_free_rcu(area);
    while (balance_thread() == 0) usleep(1000);
    const pid_t child = vfork();
    if (child == 0) exit(7);
    int status = -1;
    const bool ended = waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7;
    return ended && !library.exiting() && balance_thread() != 0 ? 0 : 1;
  });
  CHECK_FINE(end);
}

// Handlers of the program's that are older than ours prepare after ours: the child of a fork that one makes goes on with the outer
// fork, and is the parent in that. It is a child for us all the same.
TEST_CASE("the child of a fork that an older handler makes works, also where it goes on with the fork that it is in") {
  const ChildEnd end = run_in_child([] {
    alarm(kHangSeconds);
    ForkDepth depth;
    std::atomic<bool> stop{false};
    std::thread other([&] {
      while (!stop) usleep(1000);
    });
    const uint64_t blocked = blocked_signals();
    bool good = depth.prepare() && depth.in_its_process() && !depth.all_were_blocked();
    const pid_t child = fork();
    if (child == 0) {
      good = !depth.prepare() && !depth.resume() && depth.resume() && !depth.in_its_process();
      _exit(good ? 0 : 1);
    }
    int status = -1;
    good = good && waitpid(child, &status, 0) == child && status == 0;
    good = good && all_are_blocked(blocked_signals()) && depth.resume() && depth.in_its_process() && all_are_blocked(blocked_signals());
    depth.done();
    good = good && blocked_signals() == blocked && !depth.resume();
    stop = true;
    other.join();
    return good ? 0 : 1;
  });
  CHECK_FINE(end);
}

}  // namespace
}  // namespace percpu
