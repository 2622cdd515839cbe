// SPDX-License-Identifier: MIT
// Allocation and free from signal handlers that interrupt allocation and free, as often as signals can be sent.
//
// usage: signals [SECONDS]      (3 by default; PERCPU_SEED is the seed)
//
// Threads allocate, free and count. Two kinds of signals hit them all the time: SIGUSR1 from a thread that also moves them
// from CPU to CPU, and one a thread from a timer that fires every 100 microseconds. Each handler allocates with PERCPU_ATOMIC,
// checks that the memory is zero, counts in it, and frees; the timer's may interrupt the other's. An atomic allocation may
// be refused, nothing else; nobody may hang; in the end each area is accounted for.
#include "expect.h"
#include "storm.h"

#include <csignal>
#include <cstring>
#include <ctime>
#include <sys/syscall.h>
#include <vector>

#include "../as_told.h"

namespace {

constexpr size_t kKept = 16;

struct Area {
  unsigned char *handle;
  uint32_t size_bytes;
};

// What one handler of one thread keeps: touched by that handler only, which is blocked while it runs.
struct Keeper {
  Area kept[kKept] = {};
  uint64_t random = 1;

  uint64_t next() { return random = random * 6364136223846793005u + 1442695040888963407u, random >> 33; }
  void step();
  void free_all();
};

thread_local Keeper by_signal;
thread_local Keeper by_timer;
uint64_t *count_handle;  // counted by handlers and threads
std::atomic<uint64_t> handled_total{0}, allocated_total{0}, refused_total{0};

void Keeper::step() {
  Area &area = kept[next() % kKept];
  if (area.handle != nullptr) {
    percpu_free(area.handle);
    area.handle = nullptr;
  } else {
    area.size_bytes = next() % 16 == 0 ? 2000 : static_cast<uint32_t>(4 + next() % 200);
    area.handle = static_cast<unsigned char *>(percpu_alloc_flags(area.size_bytes, 4, PERCPU_ATOMIC | PERCPU_NOWARN));
    if (area.handle == nullptr) {
      EXPECT(errno == ENOMEM || errno == EAGAIN);
      ++refused_total;
      return;
    }
    ++allocated_total;
    const unsigned char *copy = percpu_this_ptr(area.handle);
    for (uint32_t i = 0; i < area.size_bytes; ++i) EXPECT(copy[i] == 0);
    percpu_write(area.handle, static_cast<unsigned char>(0xaa));
  }
  percpu_inc(count_handle);
  ++handled_total;
}

void Keeper::free_all() {
  for (Area &area : kept) {
    if (area.handle != nullptr) percpu_free(area.handle);
    area.handle = nullptr;
  }
}

void on_usr1(int) {
  const int saved_errno = errno;
  by_signal.step();
  errno = saved_errno;
}
void on_timer(int) {
  const int saved_errno = errno;
  by_timer.step();
  errno = saved_errno;
}

void install(int number, void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(number, &action, nullptr);
}

class Timer {
 public:
  Timer() {
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN;
#ifdef sigev_notify_thread_id
    event.sigev_notify_thread_id = static_cast<pid_t>(syscall(SYS_gettid));
#else
    event._sigev_un._tid = static_cast<pid_t>(syscall(SYS_gettid));
#endif
    EXPECT(timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0);
    const itimerspec every = {{0, 100 * 1000}, {0, 100 * 1000}};
    EXPECT(timer_settime(timer_, 0, &every, nullptr) == 0);
  }
  ~Timer() { timer_delete(timer_); }

 private:
  timer_t timer_{};
};

std::atomic<bool> stop{false};
std::atomic<int> ready{0};
std::atomic<uint64_t> counted_by_threads{0};

void block(int how) {
  sigset_t both;
  sigemptyset(&both);
  sigaddset(&both, SIGUSR1);
  sigaddset(&both, SIGRTMIN);
  pthread_sigmask(how, &both, nullptr);
}

void work(uint64_t seed) {
  by_signal.random = seed * 3 + 1;
  by_timer.random = seed * 5 + 2;
  std::mt19937_64 random(seed);
  std::vector<Area> own;
  uint64_t counted = 0;
  ++ready;
  {
    const Timer timer;
    while (!stop) {
      if (own.size() < 200 && random() % 2 == 0) {
        const uint32_t size = 4 + static_cast<uint32_t>(random() % (random() % 32 == 0 ? 6000 : 120));
        auto *handle = static_cast<unsigned char *>(percpu_alloc(size, 4));
        EXPECT(handle != nullptr);
        const unsigned char *copy = percpu_this_ptr(handle);
        for (uint32_t i = 0; i < size; ++i) EXPECT(copy[i] == 0);
        percpu_write(handle, static_cast<unsigned char>(0x55));
        own.push_back({handle, size});
      } else if (!own.empty()) {
        const size_t index = random() % own.size();
        EXPECT(percpu_alloc_size(own[index].handle) == (own[index].size_bytes + 3) / 4 * 4);
        (random() % 16 == 0 ? percpu_free_rcu : percpu_free)(own[index].handle);
        own[index] = own.back();
        own.pop_back();
      }
      percpu_inc(count_handle);
      ++counted;
    }
    block(SIG_BLOCK);
  }
  for (const Area &area : own) percpu_free(area.handle);
  by_signal.free_all();
  by_timer.free_all();
  counted_by_threads += counted;
}

}  // namespace

int main(int argc, char **argv) {
  expect_preload_as_told();
  const double seconds = argc > 1 ? atof(argv[1]) : 3;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  count_handle = static_cast<uint64_t *>(percpu_alloc(8, 8));
  EXPECT(count_handle != nullptr);
  install(SIGUSR1, on_usr1);
  install(SIGRTMIN, on_timer);

  const size_t nr_threads = 2 * storm::allowed_cpus().size();
  std::vector<std::thread> threads;
  for (size_t t = 0; t < nr_threads; ++t) threads.emplace_back(work, seed + t);
  while (ready != static_cast<int>(nr_threads)) std::this_thread::yield();
  std::vector<pthread_t> victims;
  for (std::thread &thread : threads) victims.push_back(thread.native_handle());
  {
    storm::Storm torment(victims, seed);
    const storm::Deadline deadline(seconds);
    percpu_stats stats;
    while (!deadline.passed() || torment.blows() <= 100 || handled_total <= 100 || allocated_total == 0) {
      EXPECT(percpu_stats_read(&stats, sizeof stats) == 0);
      EXPECT(stats.nr_live <= stats.nr_allocs);
      percpu_balance();
    }
    torment.end();
  }
  stop = true;
  for (std::thread &thread : threads) thread.join();

  EXPECT(percpu_sum(count_handle) == counted_by_threads + handled_total);
  percpu_free(count_handle);
  percpu_pool_t *pool = percpu_pool_default();
  EXPECT(storm::eventually([&] { return storm::stats_of(pool).nr_live == 0; }));
  EXPECT(percpu_balance() == 0);
  EXPECT(percpu_pool_check(pool) == 0);
  EXPECT(storm::eventually([&] {
    percpu_balance();
    return storm::stats_of(pool).nr_chunks <= 2;
  }));
  printf("%" PRIu64 " signals, %" PRIu64 " areas allocated in handlers, %" PRIu64 " refused, %" PRIu64 " steps of threads\n",
         handled_total.load(), allocated_total.load(), refused_total.load(), counted_by_threads.load());
  return 0;
}
