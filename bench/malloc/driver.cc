// SPDX-License-Identifier: MIT
//
// Runs one pattern and prints its figure.
//
//   bench_malloc PATTERN [--scale FACTOR] [--threads N]     one line of JSON: {"pattern", "figure", "unit"}
//   bench_malloc --list                                     the patterns
#include "driver.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <string>
#include <thread>
#include <vector>

namespace bench {

void fail(const char* what) {
  std::fprintf(stderr, "bench_malloc: %s\n", what);
  std::_Exit(1);
}

double now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e9 * static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec);
}

double median_ns(int runs, const std::function<void()>& work) {
  std::vector<double> times;
  for (int i = 0; i <= runs; i++) {
    const double before = now_ns();
    work();
    if (i > 0) times.push_back(now_ns() - before);
  }
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[static_cast<size_t>(runs / 2)];
}

double run_threads(unsigned count, const std::function<void(unsigned)>& body) {
  std::atomic<unsigned> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < count; i++) {
    threads.emplace_back([&, i] {
      ready.fetch_add(1);
      go.wait(false);
      body(i);
    });
  }
  while (ready.load() != count) sched_yield();
  const double before = now_ns();
  go.store(true);
  go.notify_all();
  for (std::thread& thread : threads) thread.join();
  return now_ns() - before;
}

unsigned nr_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 2;
  return static_cast<unsigned>(CPU_COUNT(&set));
}

double resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long size = 0, resident = 0;
  if (file == nullptr || std::fscanf(file, "%lu %lu", &size, &resident) != 2) fail("cannot read /proc/self/statm");
  std::fclose(file);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

namespace {

constexpr Pattern kPatterns[] = {
    {"pair", "ns", pair},
    {"batch", "ns", batch},
    {"small_churn", "ns", small_churn},
    {"random_sizes", "ns", random_sizes},
    {"calloc", "ns", calloc_blocks},
    {"realloc_growth", "us", realloc_growth},
    {"large", "us", large},
    {"producer_consumer", "ns", producer_consumer},
    {"larson", "ms", larson},
    {"false_sharing_active", "ms", false_sharing_active},
    {"false_sharing_passive", "ms", false_sharing_passive},
    {"thread_storm", "us", thread_storm},
    {"idle_threads", "MiB", idle_threads},
    {"given_back", "MiB", given_back},
};

int usage(const char* program) {
  std::fprintf(stderr, "usage: %s --list | PATTERN [--scale FACTOR] [--threads N]\n", program);
  return 2;
}

}  // namespace
}  // namespace bench

int main(int argc, char** argv) {
  using namespace bench;
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
    for (const Pattern& pattern : kPatterns) std::printf("%s\n", pattern.name);
    return 0;
  }
  Scale scale{1, 0};
  for (int i = 2; i < argc; i += 2) {
    if (i + 1 == argc) return usage(argv[0]);
    char* end = nullptr;
    const double value = std::strtod(argv[i + 1], &end);
    if (*end != 0 || !(value > 0) || value > 1000) {
      std::fprintf(stderr, "bench_malloc: %s: expected a number above 0 and up to 1000, found \"%s\"\n", argv[i], argv[i + 1]);
      return 2;
    }
    if (std::strcmp(argv[i], "--scale") == 0) scale.factor = value;
    else if (std::strcmp(argv[i], "--threads") == 0) scale.threads = static_cast<unsigned>(value);
    else return usage(argv[0]);
  }
  for (const Pattern& pattern : kPatterns) {
    if (argc < 2 || std::strcmp(argv[1], pattern.name) != 0) continue;
    const double figure = pattern.run(scale);
    std::printf("{\"pattern\": \"%s\", \"figure\": %.6g, \"unit\": \"%s\"}\n", pattern.name, figure, pattern.unit);
    return 0;
  }
  return usage(argv[0]);
}
