// SPDX-License-Identifier: MIT
//
// What areas cost in memory, and what is left of it one second after all of them were freed. Each scenario runs in a process
// of its own, so that it starts from the same state. Resident bytes are those of the whole process (/proc/self/statm).
#include <sys/wait.h>
#include <unistd.h>

#include <percpu.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

struct Scenario {
  size_t count;
  size_t bytes;
  unsigned nr_cpus;  // 0: those of the machine
};
constexpr Scenario kScenarios[] = {{1000000, 8, 0}, {100000, 64, 0}, {100000, 64, 64}, {10000, 1024, 0}};

double resident_kib() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long size = 0, resident = 0;
  if (file == nullptr || std::fscanf(file, "%lu %lu", &size, &resident) != 2) std::exit(1);
  std::fclose(file);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1024;
}

void run(const Scenario& scenario) {
  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.nr_cpus = scenario.nr_cpus;
  percpu_pool_t* pool = percpu_pool_create(&attr);
  if (pool == nullptr) std::exit(1);
  std::vector<void*> areas(scenario.count);
  for (void*& area : areas) area = reinterpret_cast<void*>(&areas);  // the vector's own pages are there from the start
  const double before = resident_kib();
  for (void*& area : areas) {
    area = percpu_pool_alloc(pool, scenario.bytes, 8, 0);
    if (area == nullptr) std::exit(1);
  }
  const double full = resident_kib();
  percpu_stats stats;
  percpu_pool_stats_read(pool, &stats, sizeof stats);
  std::minstd_rand random(1);
  for (size_t i = areas.size(); i > 1; i--) std::swap(areas[i - 1], areas[random() % i]);
  for (void* area : areas) percpu_pool_free(pool, area);
  sleep(1);
  std::printf("%9zu %7zu %6lu %12.0f %12.2f %12.0f %13.2f\n", scenario.count, scenario.bytes,
              static_cast<unsigned long>(stats.nr_cpus), full - before,
              (full - before) * 1024 / (static_cast<double>(scenario.count * scenario.bytes) * 2), resident_kib() - before,
              100.0 * static_cast<double>(stats.metadata_bytes) / static_cast<double>(stats.populated_bytes));
}

}  // namespace

int main() {
  std::printf("%9s %7s %6s %12s %12s %12s %13s\n", "areas", "bytes", "CPUs", "full KiB", "per byte x2", "after 1 s", "metadata %");
  std::fflush(stdout);
  for (const Scenario& scenario : kScenarios) {
    const pid_t child = fork();
    if (child == 0) {
      run(scenario);
      std::fflush(stdout);
      _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
  }
  return 0;
}
