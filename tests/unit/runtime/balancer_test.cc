// SPDX-License-Identifier: MIT
#include "runtime/balancer.h"

#include <doctest/doctest.h>

#include <dirent.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <urcu-bp.h>
#include <vector>

#include <sys/wait.h>

#include "../child.h"
#include "world.h"

namespace percpu {
namespace {

struct Task {
  std::string name;
  std::string blocked;  // SigBlk of its status, in hexadecimal
};

std::vector<Task> tasks(pid_t process = getpid()) {
  const std::string directory = "/proc/" + std::to_string(process) + "/task";
  std::vector<Task> found;
  DIR* list = opendir(directory.c_str());
  REQUIRE(list != nullptr);
  while (const dirent* entry = readdir(list)) {
    if (entry->d_name[0] == '.') continue;
    std::ifstream status(directory + "/" + entry->d_name + "/status");
    Task task;
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("Name:\t", 0) == 0) task.name = line.substr(6);
      if (line.rfind("SigBlk:\t", 0) == 0) task.blocked = line.substr(8);
    }
    if (!task.name.empty()) found.push_back(task);
  }
  closedir(list);
  return found;
}

// Resident memory of this process, in bytes, as smaps counts it.
size_t resident_bytes() {
  std::ifstream smaps("/proc/self/smaps_rollup");
  for (std::string line; std::getline(smaps, line);) {
    if (line.rfind("Rss:", 0) == 0) return std::stoul(line.substr(4)) * 1024;
  }
  FAIL("no Rss in /proc/self/smaps_rollup");
  return 0;
}

// Frees all, and says how many pages of units are backed, over all chunks that may be.
size_t backed_pages(TestPool& pool, uint32_t nr_chunks) {
  size_t pages = 0;
  for (uint32_t chunk = 0; chunk < nr_chunks; chunk++) pages += pool.backed_pages_of_chunk(chunk);
  return pages;
}

// ---- modes -----------------------------------------------------------------------------------------------------------

constexpr TestSetup kSmall = {.unit_size_bytes = 32 << 10};

// Many chunks, all of whose pages are backed in the copies of the CPUs that may run us.
std::vector<void*> allocate_much(TestPool& pool, size_t nr_pages) {
  std::vector<void*> handles;
  for (size_t i = 0; i < nr_pages; i++) {
    handles.push_back(pool.alloc(4096));
    REQUIRE(handles.back() != nullptr);
    for (uint32_t id = 0; id < pool.nr_copies(); id++) {
      if (pool.hot(id)) CHECK(pool.backed_pages(pool.copy(handles.back(), id), 4096) >= 1);
    }
  }
  return handles;
}

TEST_CASE("balance:off: nothing is given back or kept ready but by an explicit round") {
  World world("balance:off");
  TestPool pool(world, kSmall);
  std::vector<void*> handles = allocate_much(pool, 200);
  const uint32_t chunks = static_cast<uint32_t>(pool.stats().nr_chunks);
  CHECK(pool.stats().nr_balance_rounds == 0);
  free_all(pool, handles);
  CHECK(pool.stats().nr_chunks == chunks);
  CHECK(backed_pages(pool, chunks) >= 200 * world.topology.allowed.count());
  CHECK(nr_balancers() == 0);
  pool->balance();
  CHECK(pool.stats().nr_balance_rounds == 1);
  CHECK(pool.stats().nr_chunks <= 2);
  CHECK(backed_pages(pool, chunks) <= 3 * 8 * world.topology.allowed.count());
}

TEST_CASE("balance:sync: the call that finds work due does it, without a thread") {
  World world("balance:sync");
  TestPool pool(world, kSmall);
  std::vector<void*> handles = allocate_much(pool, 200);
  const uint32_t chunks = static_cast<uint32_t>(pool.stats().nr_chunks);
  CHECK(pool.stats().empty_populated_pages >= world.config.empty_low_pages);
  free_all(pool, handles);
  CHECK(pool.stats().nr_chunks <= 2);
  CHECK(backed_pages(pool, chunks) <= 3 * 8 * world.topology.allowed.count());
  CHECK(pool.stats().nr_balance_rounds > 0);
  CHECK(nr_balancers() == 0);
}

TEST_CASE("balance:thread: the thread keeps pages ready, and gives back what is free within a second") {
  World world("balance:thread");
  TestPool pool(world, kSmall);
  CHECK(nr_balancers() == 0);  // not started before it is needed
  std::vector<void*> handles = allocate_much(pool, 200);
  // Not the high mark: what was allocated after the thread's last round may have left any number down to the low one.
  CHECK(eventually([&] { return pool.stats().empty_populated_pages >= world.config.empty_low_pages; }));
  CHECK(nr_balancers() == 1);
  const uint32_t chunks = static_cast<uint32_t>(pool.stats().nr_chunks);
  free_all(pool, handles);
  CHECK(eventually([&] { return pool.stats().nr_chunks <= 2; }));
  CHECK(eventually([&] { return backed_pages(pool, chunks) <= 3 * 8 * world.topology.allowed.count(); }));
}

TEST_CASE("the thread is called percpu-balance and has all signals blocked") {
  World world("balance:thread");
  TestPool pool(world, kSmall);
  std::vector<void*> handles = allocate_much(pool, 50);
  REQUIRE(eventually([&] { return nr_balancers() == 1; }));
  for (const Task& task : tasks()) {
    if (task.name != "percpu-balance") continue;
    // All but KILL, STOP, and the two that libc keeps for itself (32 and 33).
    const uint64_t blocked = std::stoull(task.blocked, nullptr, 16);
    const uint64_t excepted = uint64_t{1} << (SIGKILL - 1) | uint64_t{1} << (SIGSTOP - 1) | uint64_t{3} << 31;
    CHECK((blocked | excepted) == UINT64_MAX);
  }
  free_all(pool, handles);
}

TEST_CASE("one thread serves all pools") {
  World world("balance:thread");
  TestPool one(world, kSmall);
  TestPool other(world, kSmall);
  for (int round = 0; round < 5; round++) {
    std::vector<void*> in_one = allocate_much(one, 60);
    std::vector<void*> in_other = allocate_much(other, 60);
    free_all(one, in_one);
    free_all(other, in_other);
    CHECK(eventually([&] { return one.stats().nr_chunks <= 2 && other.stats().nr_chunks <= 2; }));
    CHECK(nr_balancers() == 1);
  }
}

TEST_CASE("a thread that cannot use the front caches does not wake the balance thread by each area that it frees") {
  World world("balance:thread");
  TestPool pool(world, kSmall);
  std::vector<void*> handles = allocate_much(pool, 50);
  REQUIRE(eventually([&] { return nr_balancers() == 1; }));
  free_all(pool, handles);
  void* small[50];
  for (void*& handle : small) REQUIRE((handle = pool.alloc(8)) != nullptr);
  const size_t before = world.faulty.count(Call::kFutexWake);
  for (void* handle : small) {
    percpu_thread_.offset = nullptr;  // as in a thread without rseq
    pool.free(handle);
    const timespec millisecond = {0, 1000 * 1000};
    nanosleep(&millisecond, nullptr);  // the thread sleeps again
  }
  CHECK(world.faulty.count(Call::kFutexWake) - before < 25);
}

// Sanitizers keep memory of their own for every byte that was ever touched.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kResidentMemoryIsOurs = false;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kResidentMemoryIsOurs = false;
#else
constexpr bool kResidentMemoryIsOurs = true;
#endif
#else
constexpr bool kResidentMemoryIsOurs = true;
#endif

TEST_CASE("after everything is freed, resident memory is back where it began, in every mode" *
          doctest::skip(!kResidentMemoryIsOurs)) {
  for (const char* conf : {"balance:thread", "balance:sync", "balance:off"}) {
    CAPTURE(conf);
    World world(conf);
    TestPool pool(world, {.unit_size_bytes = 128 << 10});
    // As many as 8 CPUs have room for in the window of a test, and in a small machine; on more CPUs so many fewer.
    const size_t nr_areas = 400000 * 8 / std::max<size_t>(8, world.topology.nr_cpu_ids);
    std::vector<void*> handles;
    handles.reserve(nr_areas);
    for (size_t i = 0; i < nr_areas; i++) handles.push_back(nullptr);  // backs the vector itself
    handles.clear();
    {
      std::vector<void*> warm = allocate_much(pool, 10);
      free_all(pool, warm);
      pool->balance();
    }
    const size_t before = resident_bytes();
    std::mt19937_64 random(17);
    while (handles.size() < nr_areas) {
      handles.push_back(pool.alloc(4 * (1 + random() % 32)));
      REQUIRE(handles.back() != nullptr);
    }
    const size_t full = resident_bytes();
    CHECK(full > before + (size_t{20} << 20));
    // A mebibyte; where CPUs are many, the empty pages that each of them keeps ready are as much by themselves.
    const size_t reserve = world.config.empty_high_pages * pool->page_bytes() * pool->memory().nr_hot();
    const size_t allowed = before + std::max(size_t{1} << 20, (size_t{512} << 10) + reserve);
    // In the order that leaves most holes for longest.
    std::shuffle(handles.begin(), handles.end(), random);
    free_all(pool, handles);
    if (world.config.balance == BalanceMode::kOff) pool->balance();
    size_t after = 0;
    CHECK(eventually([&] { return (after = resident_bytes()) <= allowed; }));
    CAPTURE(before);
    CAPTURE(after);
    CHECK(after <= allowed);
  }
}

// ---- waking and starting ---------------------------------------------------------------------------------------------

TEST_CASE("atomic allocations and frees start no thread; the next ordinary allocation does") {
  World world("balance:thread");
  TestPool pool(world, kSmall);
  std::vector<void*> handles;
  while (void* handle = pool.alloc(4096, 4, PERCPU_ATOMIC | PERCPU_NOWARN)) handles.push_back(handle);
  CHECK(world.faulty.count(Call::kStartThread) == 0);
  CHECK(nr_balancers() == 0);
  handles.push_back(pool.alloc(8));
  CHECK(world.faulty.count(Call::kStartThread) == 1);
  // What the atomic failure asked for is done.
  CHECK(eventually([&] {
    void* handle = pool.alloc(4096, 4, PERCPU_ATOMIC | PERCPU_NOWARN);
    if (handle != nullptr) handles.push_back(handle);
    return handle != nullptr;
  }));
  free_all(pool, handles);
}

TEST_CASE("where no thread runs, frees still give memory back, of small areas too") {
  World world("balance:thread");
  world.faulty.fail_always(Call::kStartThread, EAGAIN);
  CapturedStderr captured;
  TestPool pool(world, kSmall);
  for (size_t size : {4096, 64}) {
    std::vector<void*> handles;
    while (pool.stats().nr_chunks < 20) handles.push_back(pool.alloc(size));
    free_all(pool, handles);
    CHECK(pool.stats().nr_chunks <= 2);
    CHECK(pool.stats().nr_cached == 0);
    CHECK(world.faulty.count(Call::kStartThread) > 0);
    CHECK(nr_balancers() == 0);
  }
}

TEST_CASE("a thread that cannot be made for a moment, as while another one is in exec(), is made a moment later, without a word") {
  World world("balance:thread");
  static int tries;
  tries = 0;
  world.system.start_thread = [](pthread_t* thread, void* (*entry)(void*), void* argument) {
    return ++tries < 10 ? -EAGAIN : real_system().start_thread(thread, entry, argument);
  };
  CapturedStderr captured;
  TestPool pool(world, kSmall);
  std::vector<void*> handles = allocate_much(pool, 50);
  CHECK(eventually([] { return nr_balancers() == 1; }));
  CHECK(tries == 10);
  CHECK(captured.text() == "");
  free_all(pool, handles);
}

TEST_CASE("what is freed into a CPU's front cache goes back to the maps once it is left alone") {
  World world("balance:thread");
  TestPool pool(world, kSmall);
  std::vector<void*> handles;
  const auto use = [&] {
    for (int i = 0; i < 50; i++) handles.push_back(pool.alloc(64));
    free_all(pool, handles);
    return pool.stats().nr_cached > 0;
  };
  (void)use();  // the first free asks for the thread
  if (process_has_rseq() && PERCPU_HAVE_SEQUENCES) {
    // More than once only where this thread is kept from running for as long as it takes to empty them.
    CHECK(eventually(use));
    CHECK(eventually([] { return nr_balancers() == 1; }));
  }
  CHECK(eventually([&] { return pool.stats().nr_cached == 0; }));
  pool->check();
}

TEST_CASE("what is freed while its pool is locked is given back, though nobody calls anything afterwards") {
  World world("balance:thread");
  TestPool first(world, kSmall), second(world, kSmall);
  std::vector<void*> handles = allocate_much(first, 40);
  std::vector<void*> others = allocate_much(second, 40);
  world.balancer.start_now();
  REQUIRE(eventually([&] { return world.balancer.running(); }));
  usleep(50 * 1000);  // so that it sleeps, as far as this can be told
  // As a handler of fork() does, or a handler of a signal: the areas wait until the lock is free, and whoever had it frees them.
  for (TestPool* pool : {&first, &second}) (*pool)->fork_stop();
  for (TestPool* pool : {&first, &second}) (*pool)->fork_prepare();
  free_all(first, handles);
  free_all(second, others);
  for (TestPool* pool : {&first, &second}) (*pool)->fork_parent();
  CHECK(eventually([&] { return first.stats().nr_chunks <= 2 && second.stats().nr_chunks <= 2; }));
}

TEST_CASE("what was left to a thread that then cannot be made is done") {
  World world("balance:thread");
  static TestPool* pool_of_all;
  static std::vector<void*> left;
  // While it is being made, another thread frees, and counts on it.
  world.system.start_thread = [](pthread_t*, void* (*)(void*), void*) {
    std::thread([] { free_all(*pool_of_all, left); }).join();
    return -EAGAIN;
  };
  CapturedStderr told;
  TestPool pool(world, kSmall);
  pool_of_all = &pool;
  std::vector<void*> handles = allocate_much(pool, 40);
  for (int i = 0; i < 30; i++) handles.push_back(pool.alloc(8));
  left.swap(handles);
  world.balancer.start_now();
  CHECK(left.empty());
  CHECK(!world.balancer.serves());
  CHECK(backed_pages(pool, 40) <= 3 * 8 * world.topology.allowed.count());
  CHECK(pool.stats().nr_cached == 0);
  CHECK(pool.stats().nr_chunks <= 2);
  CHECK(count_lines(told.text(), "cannot be started") == 1);
}

TEST_CASE("a thread that cannot be started is told once, and its work done by those who allocate, until it can") {
  World world("balance:thread");
  world.faulty.fail_always(Call::kStartThread, EAGAIN);
  std::vector<void*> handles;
  TestPool pool(world, kSmall);
  {
    CapturedStderr captured;
    handles = allocate_much(pool, 100);
    CHECK(count_lines(captured.text(), "cannot be started") == 1);
    CHECK(count_lines(captured.text()) == 1);
  }
  CHECK(pool.stats().empty_populated_pages >= world.config.empty_low_pages);
  CHECK(pool.stats().nr_balance_rounds > 0);
  CHECK(nr_balancers() == 0);
  world.faulty.reset();
  for (void* handle : allocate_much(pool, 100)) handles.push_back(handle);
  CHECK(eventually([&] { return nr_balancers() == 1; }));
  free_all(pool, handles);
}

TEST_CASE("the thread is gone once it was told to stop, and is not started again") {
  World world("balance:thread");
  TestPool pool(world, kSmall);
  std::vector<void*> handles = allocate_much(pool, 50);
  REQUIRE(eventually([&] { return nr_balancers() == 1; }));
  world.balancer.stop();
  CHECK(eventually([&] { return nr_balancers() == 0; }));
  for (void* handle : allocate_much(pool, 50)) handles.push_back(handle);
  free_all(pool, handles);
  CHECK(nr_balancers() == 0);
}

// ---- grace periods -----------------------------------------------------------------------------------------------------

TEST_CASE("percpu_free_rcu waits for readers, frees afterwards, and the handle is gone at once, in every mode") {
  for (const char* conf : {"balance:thread", "balance:sync", "balance:off"}) {
    CAPTURE(conf);
    World world(conf);
    TestPool pool(world, kSmall);
    void* handle = pool.alloc(64);
    std::atomic<bool> reading{false};
    std::atomic<bool> leave{false};
    std::thread reader([&] {
      urcu_bp_read_lock();
      reading = true;
      while (!leave) std::this_thread::yield();
      CHECK(*pool.copy(handle, 0) == 0x5a);  // nobody took it meanwhile
      urcu_bp_read_unlock();
    });
    *pool.copy(handle, 0) = 0x5a;
    REQUIRE(eventually([&] { return reading.load(); }));
    pool->free_after_grace(handle);
    CHECK(pool->area_size(handle) == 0);
    std::vector<void*> handles;
    for (int i = 0; i < 200; i++) {
      handles.push_back(pool.alloc(64));
      CHECK(handles.back() != handle);
      pool.fill_copies(handles.back(), 64, 0xff);
    }
    CHECK(pool->grace_waiting());
    leave = true;
    reader.join();
    CHECK(eventually([&] { return !pool->grace_waiting(); }));
    void* again = pool.alloc(64);  // the lowest free place is taken first
    CHECK(again == handle);
    pool.free(again);
    free_all(pool, handles);
  }
}

TEST_CASE("percpu_free_rcu starts the balance thread in every mode, though nobody calls anything after it") {
  for (const char* conf : {"balance:thread", "balance:sync", "balance:off"}) {
    CAPTURE(conf);
    World world(conf);
    TestPool pool(world, kSmall);
    void* handle = pool.alloc(64);
    pool->free_after_grace(handle);
    CHECK(eventually([&] { return nr_balancers() == 1; }));
    CHECK(eventually([&] { return !pool->grace_waiting(); }));
  }
}

TEST_CASE("a pool with areas that wait for a grace period is emptied before it goes") {
  World world("balance:off");
  Pool* pool = nullptr;
  REQUIRE(Pool::create(world.environment, pool_setup(world, kSmall), &pool) == 0);
  world.balancer.add(*pool);
  int error = 0;
  for (int i = 0; i < 100; i++) pool->free_after_grace(pool->allocate(64, 4, 0, kNoDomain, &error));
  world.balancer.free_after_grace();
  CHECK(pool->nr_live() == 0);
  CHECK_FALSE(pool->grace_waiting());
  CHECK(world.balancer.remove(*pool));
  pool->destroy();
}

// ---- the list ----------------------------------------------------------------------------------------------------------

TEST_CASE("pools come and go while the thread works and others walk the list") {
  World world("balance:thread");
  std::atomic<bool> stop{false};
  std::thread walker([&] {
    while (!stop) {
      const Balancer::Reader reader(world.balancer);
      for (Pool& pool : world.balancer.pools()) CHECK(pool.page_bytes() == page_size_bytes());
    }
  });
  std::vector<std::thread> makers;
  for (int t = 0; t < 2; t++) {
    makers.emplace_back([&] {
      for (int i = 0; i < 40; i++) {
        Pool* pool = nullptr;
        if (Pool::create(world.environment, pool_setup(world, kSmall), &pool) != 0) return;
        world.balancer.add(*pool);
        int error = 0;
        std::vector<void*> handles;
        for (int j = 0; j < 20; j++) handles.push_back(pool->allocate(4096, 4, 0, kNoDomain, &error));
        for (void* handle : handles) pool->free(handle);
        CHECK(world.balancer.remove(*pool));
        pool->destroy();
      }
    });
  }
  for (std::thread& maker : makers) maker.join();
  stop = true;
  walker.join();
  CHECK(world.balancer.pools().empty());
}

TEST_CASE("a pool goes when the program's readers have left, who may have it from a pointer") {
  World world("balance:thread");
  Pool* pool = nullptr;
  REQUIRE(Pool::create(world.environment, pool_setup(world, kSmall), &pool) == 0);
  world.balancer.add(*pool);
  std::atomic<bool> reading{false};
  std::atomic<bool> leave{false};
  std::thread reader([&] {
    urcu_bp_read_lock();
    reading = true;
    while (!leave) sched_yield();
    CHECK(pool->page_bytes() == page_size_bytes());
    urcu_bp_read_unlock();
  });
  while (!reading) sched_yield();
  std::atomic<bool> gone{false};
  std::thread destroyer([&] {
    CHECK(world.balancer.remove(*pool));
    gone = true;
    pool->destroy();
  });
  const timespec some = {0, 50 * 1000 * 1000};
  nanosleep(&some, nullptr);
  CHECK_FALSE(gone);
  leave = true;
  reader.join();
  destroyer.join();
}

TEST_CASE("a thread that is cancelled while no balance thread can be made goes on, and leaves it to be made later") {
  World world("balance:thread");
  world.faulty.fail_always(Call::kStartThread, EAGAIN);
  CapturedStderr captured;
  TestPool pool(world, kSmall);
  std::atomic<bool> done{false};
  std::thread([&] {
    pthread_cancel(pthread_self());
    std::vector<void*> handles = allocate_much(pool, 50);
    free_all(pool, handles);
    int state = 0;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    done = state == PTHREAD_CANCEL_ENABLE;
  }).join();
  CHECK(done);
  world.faulty.reset();
  std::vector<void*> handles = allocate_much(pool, 50);
  CHECK(eventually([&] { return nr_balancers() == 1; }));
  free_all(pool, handles);
}

}  // namespace
}  // namespace percpu
