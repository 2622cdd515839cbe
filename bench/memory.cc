// SPDX-License-Identifier: MIT
//
// What areas cost in memory, and what is left of it one second after all of them were freed, beside what else there is
// (alloc_subjects.h). Each scenario and subject runs in a process of its own, so that it starts from the same state. Resident
// bytes are those of the whole process (/proc/self/statm). A live byte is a byte of an area in one unit.
//
//   metadata   bytes of the allocator's own state a live byte, %        (percpu only: nobody else says)
//   resident   resident bytes a live byte while all areas live, %; 100 is as many as there are
//   left       resident KiB more than at the start, one second after everything was freed
//
// Where it says "written", all units' copies are written to while the areas live: then all of them are backed. Elsewhere only
// those of CPUs that may run this process are.
//
// Options: --json FILE (json_rows.h), --quick: a tenth of the areas.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <random>
#include <vector>

#include "alloc_subjects.h"
#include "json_rows.h"

namespace {

struct Scenario {
  size_t count;
  size_t bytes;
  unsigned units;
  bool written;
};
constexpr Scenario kScenarios[] = {
    {1000000, 8, 2, false}, {100000, 64, 2, false}, {10000, 1024, 2, false}, {100000, 64, 64, false}, {100000, 64, 64, true},
};

struct Figures {
  double metadata;  // %; negative: not known
  double populated;  // metadata in % of what the pool says is populated; negative: not known
  double resident;  // %
  double left_kib;
};

double resident_kib() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long size = 0, resident = 0;
  if (file == nullptr || std::fscanf(file, "%lu %lu", &size, &resident) != 2) std::exit(1);
  std::fclose(file);
  return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1024;
}

Figures measure(Subject& subject, const Scenario& scenario) {
  std::vector<void*> items(scenario.count);
  for (void*& item : items) item = reinterpret_cast<void*>(&items);  // the vector's own pages are there from the start
  const double before = resident_kib();
  for (void*& item : items) item = subject.take();
  for (size_t i = 0; scenario.written && i < items.size(); i++) {
    for (unsigned unit = 0; unit < scenario.units; unit++) std::memset(subject.copy(items[i], unit), 1, scenario.bytes);
  }
  const double live_kib = static_cast<double>(scenario.count * scenario.bytes * scenario.units) / 1024;
  Figures figures{};
  figures.resident = 100 * (resident_kib() - before) / live_kib;
  const double metadata = subject.metadata_bytes();
  figures.metadata = metadata < 0 ? -1 : 100 * metadata / 1024 / live_kib;
  figures.populated = -1;
  if (auto* percpu = dynamic_cast<PercpuSubject*>(&subject); percpu != nullptr) {
    percpu_stats stats;
    percpu_pool_stats_read(percpu->pool(), &stats, sizeof stats);
    const double populated =
        static_cast<double>(stats.populated_pages) * static_cast<double>(stats.page_bytes) * scenario.units;
    figures.populated = 100 * metadata / populated;
  }
  std::minstd_rand random(1);
  for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random() % i]);
  for (void* item : items) subject.give(item);
  sleep(1);
  figures.left_kib = resident_kib() - before;
  return figures;
}

// In a child. False: the subject is not here.
bool run(const char* name, const Scenario& scenario, Figures* figures) {
  int ends[2];
  if (pipe(ends) != 0) std::exit(1);
  const pid_t child = fork();
  if (child == 0) {
    const std::shared_ptr<Subject> subject = Subject::make(name, {scenario.bytes, 8, scenario.units});
    if (subject == nullptr) _exit(3);
    const Figures found = measure(*subject, scenario);
    _exit(write(ends[1], &found, sizeof found) == sizeof found ? 0 : 1);
  }
  close(ends[1]);
  int status = 0;
  const bool told = read(ends[0], figures, sizeof *figures) == static_cast<ssize_t>(sizeof *figures);
  close(ends[0]);
  if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) ||
      (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 3)) {
    std::fprintf(stderr, "bench_memory: %s, %zu areas of %zu bytes: the process failed\n", name, scenario.count, scenario.bytes);
    std::exit(1);
  }
  return told;
}

}  // namespace

int main(int argc, char** argv) {
  make_room_for_jemalloc(argv);
  JsonRows json(&argc, argv);
  const bool quick = argc == 2 && std::strcmp(argv[1], "--quick") == 0;
  if (argc > 1 && !quick) {
    std::fprintf(stderr, "bench_memory: expected --quick or --json FILE, found '%s'\n", argv[1]);
    return 2;
  }
  std::printf("%9s %6s %6s %8s  %-9s %11s %14s %11s %12s\n", "areas", "bytes", "units", "written", "", "metadata %",
              "of populated %", "resident %", "left KiB");
  std::fflush(stdout);
  for (Scenario scenario : kScenarios) {
    if (quick) scenario.count /= 10;
    for (const char* name : kSubjects) {
      Figures figures{};
      if (!run(name, scenario, &figures)) continue;
      const std::string row = std::to_string(scenario.count) + " x " + std::to_string(scenario.bytes) + " x " +
                              std::to_string(scenario.units) + (scenario.written ? " written " : " ");
      std::printf("%9zu %6zu %6u %8s  %-9s ", scenario.count, scenario.bytes, scenario.units, scenario.written ? "yes" : "no",
                  name);
      if (figures.metadata >= 0) {
        std::printf("%11.3f %14.3f ", figures.metadata, figures.populated);
        json.add(row + "metadata " + name, "%", {figures.metadata});
        json.add(row + "of populated " + name, "%", {figures.populated});
      } else {
        std::printf("%11s %14s ", "-", "-");
      }
      std::printf("%11.1f %12.0f\n", figures.resident, figures.left_kib);
      std::fflush(stdout);
      json.add(row + "resident " + name, "%", {figures.resident});
      json.add(row + "left " + name, "KiB", {figures.left_kib});
    }
  }
  return json.write() ? 0 : 1;
}
