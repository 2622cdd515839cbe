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

double median_of(int repetitions, const std::function<double()>& repetition) {
  std::vector<double> figures;
  for (int i = 0; i <= repetitions; i++) {
    const double figure = repetition();
    if (i > 0) figures.push_back(figure);
  }
  std::nth_element(figures.begin(), figures.begin() + repetitions / 2, figures.end());
  return figures[static_cast<size_t>(repetitions / 2)];
}

double median_ns(const Scale& scale, int repetitions, const std::function<void()>& work) {
  return median_of(repetitions, [&] {
    const double before = now_ns();
    double spent = 0, times = 0;
    for (; spent < scale.least_ns(); times++) {
      work();
      spent = now_ns() - before;
    }
    return spent / times;
  });
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
    {"pair_floor", "ns", pair_floor},
    {"batch", "ns", batch},
    {"small_churn", "ns", small_churn},
    {"random_sizes", "ns", random_sizes},
    {"calloc", "ns", calloc_blocks},
    {"realloc_growth", "us", realloc_growth},
    {"large", "us", large},
    {"producer_consumer", "ns", producer_consumer},
    {"larson", "ns", larson},
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
