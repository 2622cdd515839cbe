// SPDX-License-Identifier: MIT
//
// A profiler inside the process: SIGPROF as often as the kernel sends it, by the process's CPU time and by each thread's
// own, to threads that do nothing but count. Its handler counts as well. Nothing is lost, and some signals came.
//
//   profiled EVENTS
#include <percpu.h>

#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

uint64_t *events, *samples;
uint64_t nr_samples;

void take_sample(int) {
  percpu_inc(samples);
  __atomic_fetch_add(&nr_samples, 1, __ATOMIC_RELAXED);
}

// The calling thread gets the signal every 50 microseconds of its CPU time, or as often as the kernel's tick allows.
timer_t profile_this_thread() {
  sigevent event{};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGPROF;
  event._sigev_un._tid = gettid();
  timer_t timer{};
  timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
  const itimerspec every{{0, 50'000}, {0, 50'000}};
  timer_settime(timer, 0, &every, nullptr);
  return timer;
}

}  // namespace

int main(int argc, char **argv) {
  const uint64_t wanted = argc == 2 ? std::strtoull(argv[1], nullptr, 10) : 0;
  events = static_cast<uint64_t *>(percpu_alloc(sizeof(uint64_t), 8));
  samples = static_cast<uint64_t *>(percpu_alloc(sizeof(uint64_t), 8));
  if (wanted == 0 || events == nullptr || samples == nullptr) {
    std::fprintf(stderr, "usage: profiled EVENTS\n");
    return 2;
  }
  struct sigaction action {};
  action.sa_handler = take_sample;
  action.sa_flags = SA_RESTART;
  sigaction(SIGPROF, &action, nullptr);
  const itimerval every{{0, 100}, {0, 100}};
  setitimer(ITIMER_PROF, &every, nullptr);

  const unsigned nr_threads = 2 * std::thread::hardware_concurrency();
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < nr_threads; ++i)
    threads.emplace_back([&] {
      const timer_t timer = profile_this_thread();
      for (uint64_t n = 0; n < wanted / nr_threads; ++n) percpu_inc(events);
      timer_delete(timer);
    });
  for (std::thread &thread : threads) thread.join();
  const itimerval never{};
  setitimer(ITIMER_PROF, &never, nullptr);

  const uint64_t counted = percpu_sum(events), sampled = percpu_sum(samples);
  std::printf("%llu events, %llu samples\n", static_cast<unsigned long long>(counted), static_cast<unsigned long long>(sampled));
  if (counted != wanted / nr_threads * nr_threads || sampled != nr_samples) {
    std::printf("wrong: expected %llu events, %llu samples\n", static_cast<unsigned long long>(wanted / nr_threads * nr_threads),
                static_cast<unsigned long long>(nr_samples));
    return 1;
  }
  if (sampled == 0) std::printf("wrong: no signal came\n");
  return sampled == 0;
}
