// SPDX-License-Identifier: MIT
// A storm over the threads of a test: while it blows, one more thread moves them from CPU to CPU and sends them
// signals, as fast as it gets to run, before others where it may; and a timer interrupts whichever of them runs.
// Random numbers come from the seed that the test prints (PERCPU_SEED).
//
// Locking: none. Threads enter before the storm begins and leave after it ended; the list does not change meanwhile.
#ifndef PERCPU_TESTS_STRESS_STORM_H
#define PERCPU_TESTS_STRESS_STORM_H

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace storm {

// A storm ends with whoever started it: nobody else would end it where a test runner was killed.
inline const bool ends_with_its_parent = prctl(PR_SET_PDEATHSIG, SIGKILL) == 0;

inline uint64_t seed() {
  const char *given = std::getenv("PERCPU_SEED");
  if (given != nullptr) return std::strtoull(given, nullptr, 0);
  return (static_cast<uint64_t>(std::random_device{}()) << 32) | std::random_device{}();
}

// The CPUs that the process may use.
inline std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof set, &set);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<unsigned>(cpu), &set)) cpus.push_back(cpu);
  return cpus;
}

inline void pin(pthread_t thread, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<unsigned>(cpu), &set);
  pthread_setaffinity_np(thread, sizeof set, &set);
}

struct Options {
  bool migrate = true;
  bool signals = true;
  unsigned pause_us = 20;  // between two blows
};

class Storm {
 public:
  // Threads: those that suffer; they must outlive the storm. Returns once each may have been hit: it blows from the beginning on.
  Storm(std::vector<pthread_t> threads, uint64_t seed, Options options = {})
      : threads_(std::move(threads)),
        cpus_(allowed_cpus()),
        options_(options),
        mask_(block_signal()),
        tormentor_([this, seed] { run(seed); }) {
    while (blows() < 2 * threads_.size()) usleep(100);
  }
  ~Storm() { end(); }
  Storm(const Storm &) = delete;
  Storm &operator=(const Storm &) = delete;

  // Returns once no more signal will be sent; all threads may run everywhere again.
  void end() {
    if (!tormentor_.joinable()) return;
    stop_.store(true);
    tormentor_.join();
    sigset_t signal;
    sigemptyset(&signal);
    sigaddset(&signal, SIGUSR1);
    const timespec at_once{};
    while (sigtimedwait(&signal, nullptr, &at_once) == SIGUSR1) {
    }
    pthread_sigmask(SIG_SETMASK, &mask_, nullptr);
  }
  [[nodiscard]] uint64_t blows() const { return blows_.load(); }

 private:
  // Keeps the signal from the thread that makes the storm, and the one that is it. Returns what was blocked before.
  static sigset_t block_signal() {
    sigset_t signal, before;
    sigemptyset(&signal);
    sigaddset(&signal, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signal, &before);
    return before;
  }

  // A signal to the process every 97 microseconds: the kernel gives it to the threads in turn.
  static timer_t start_timer() {
    sigevent event{};
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGUSR1;
    timer_t timer{};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    const itimerspec every{{0, 97'000}, {0, 97'000}};
    timer_settime(timer, 0, &every, nullptr);
    return timer;
  }

  void run(uint64_t seed) {
    std::mt19937_64 random(seed);
    setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), -10);  // needs a privilege: without it, slower
    const timer_t timer = options_.signals ? start_timer() : timer_t{};
    while (!stop_.load(std::memory_order_relaxed)) {
      const pthread_t victim = threads_[random() % threads_.size()];
      if (options_.migrate) pin(victim, cpus_[random() % cpus_.size()]);
      if (options_.signals) pthread_kill(victim, SIGUSR1);
      blows_.fetch_add(1, std::memory_order_relaxed);
      if (options_.pause_us != 0 && random() % 4 == 0) usleep(static_cast<useconds_t>(random() % options_.pause_us));
    }
    if (options_.signals) timer_delete(timer);
    cpu_set_t all;
    CPU_ZERO(&all);
    for (int cpu : cpus_) CPU_SET(static_cast<unsigned>(cpu), &all);
    if (options_.migrate)
      for (pthread_t victim : threads_) pthread_setaffinity_np(victim, sizeof all, &all);
  }

  std::vector<pthread_t> threads_;
  std::vector<int> cpus_;
  Options options_;
  sigset_t mask_;
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> blows_{0};
  std::thread tormentor_;  // last: starts when all the rest is there
};

// Makes `handler` run on SIGUSR1, without interrupting system calls for good.
inline void on_signal(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  sigaction(SIGUSR1, &action, nullptr);
}

}  // namespace storm

#endif  // PERCPU_TESTS_STRESS_STORM_H
