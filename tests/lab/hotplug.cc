// SPDX-License-Identifier: MIT
// CPUs are taken offline and brought back while threads count: the sum stays exact, nobody changes the copy of a CPU that is
// offline, its copy of new areas is zero, and its front cache gives back what it held, while another CPU allocates and frees. To be
// run as root, in a machine of the lab.
//
// usage: hotplug ROUNDS
#include <percpu.h>

#include <atomic>

#include "hotplug.h"

namespace {

constexpr int kThreads = 4;
constexpr size_t kAreas = 200;

std::atomic<bool> stop{false};
uint64_t *events;
uint64_t nr_wrong = 0;

void expect(bool good, int cpu, const char *what, uint64_t expected, uint64_t found) {
  if (good) return;
  ++nr_wrong;
  std::printf("CPU %d: %s: expected %lu, found %lu\n", cpu, what, static_cast<unsigned long>(expected),
              static_cast<unsigned long>(found));
}

void count(uint64_t *tally) {
  while (!stop.load(std::memory_order_relaxed)) {
    for (int i = 0; i < 1000; ++i) percpu_inc(events);
    *tally += 1000;
    std::this_thread::yield();
  }
}

// Keeps one CPU's front cache in use, with a few areas: the pool as a whole is never idle.
std::atomic<int> churned_cpu{-1};
constexpr uint64_t kChurned = 40;  // a wide pool makes 32 ready
void churn() {
  int here = -1;
  while (!stop.load(std::memory_order_relaxed)) {
    if (const int cpu = churned_cpu; cpu != here && lab::go_to(cpu)) here = cpu;
    percpu_free(percpu_alloc(64, 8));
    usleep(1000);
  }
}

percpu_stats stats() {
  percpu_stats now;
  percpu_stats_read(&now, sizeof now);
  return now;
}

uint64_t nr_held = 0;  // times that areas were seen to wait in the front cache of the CPU that they were freed on

// On that CPU: counts, and frees areas, which then wait in its front cache with its copies not zero. Returns how many events.
uint64_t live_on(int cpu) {
  if (!lab::go_to(cpu)) return 0;
  const uint64_t before = stats().nr_cached;
  for (int i = 0; i < 100; ++i) percpu_inc(events);
  std::vector<uint64_t *> areas;
  for (size_t i = 0; i < kAreas; ++i) {
    areas.push_back(static_cast<uint64_t *>(percpu_alloc(64, 8)));
    percpu_add(areas.back(), 0x5555);
  }
  for (uint64_t *area : areas) percpu_free(area);
  nr_held += stats().nr_cached > before + kChurned;
  lab::go_anywhere();
  return 100;
}

void while_offline(int cpu, bool wait_for_caches) {
  // One that stays churns, on another this thread leaves areas, which are given back as well.
  const std::vector<int> others = lab::read_list("/sys/devices/system/cpu/online");
  churned_cpu = others.front();
  expect(lab::go_to(others.back()), others.back(), "this thread there", 1, 0);
  const uint64_t before = *percpu_ptr(events, static_cast<unsigned>(cpu));
  std::vector<uint64_t *> areas;
  for (size_t i = 0; i < kAreas; ++i) {
    areas.push_back(static_cast<uint64_t *>(percpu_alloc(64, 8)));
    const uint64_t found = *percpu_ptr(areas.back(), static_cast<unsigned>(cpu));
    expect(found == 0, cpu, "the copy of a new area", 0, found);
    percpu_inc(areas.back());
  }
  for (uint64_t *area : areas) {
    const uint64_t found = percpu_sum(area);
    expect(found == 1, cpu, "the sum of a new area", 1, found);
    percpu_free(area);
  }
  if (wait_for_caches) {
    const bool given_back = lab::eventually([] { return stats().nr_cached <= kChurned; });
    expect(given_back, cpu, "areas in front caches, at most", kChurned, stats().nr_cached);
  }
  lab::go_anywhere();
  const uint64_t after = *percpu_ptr(events, static_cast<unsigned>(cpu));
  expect(before == after, cpu, "its copy while it is offline", before, after);
}

}  // namespace

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 20;
  std::mt19937_64 random(lab::seed());
  const std::vector<int> cpus = lab::removable_cpus();
  if (cpus.empty() || lab::read_list("/sys/devices/system/cpu/online").size() < 3) {
    std::printf("lab: no CPU can be taken offline, or no two remain\n");
    return 77;
  }
  churned_cpu = lab::read_list("/sys/devices/system/cpu/online").front();
  events = static_cast<uint64_t *>(percpu_alloc(8, 8));
  // Front caches hold nothing before the balance thread is there, which the first frees ask for.
  const bool serves = lab::eventually([] {
    percpu_free(percpu_alloc(64, 8));
    return stats().nr_cached != 0;
  });
  expect(serves, -1, "areas in front caches before the first round", 1, 0);
  uint64_t tallies[kThreads] = {};
  std::vector<std::thread> threads;
  for (uint64_t &tally : tallies) threads.emplace_back(count, &tally);
  threads.emplace_back(churn);
  uint64_t expected = 0;
  int done = 0;
  for (int round = 0; round < rounds; ++round) {
    const int cpu = cpus[random() % cpus.size()];
    expected += live_on(cpu);
    if (!lab::set_online(cpu, false)) {
      ++nr_wrong;
      continue;
    }
    while_offline(cpu, round % 10 == 0 || round == rounds - 1);
    if (lab::set_online(cpu, true)) {
      ++done;
    } else {
      ++nr_wrong;
    }
    expected += live_on(cpu);
  }
  stop = true;
  for (std::thread &thread : threads) thread.join();
  for (uint64_t tally : tallies) expected += tally;
  const uint64_t found = percpu_sum(events);
  expect(found == expected, -1, "the sum of all events", expected, found);
  expect(nr_held != 0, -1, "rounds in which the CPU's front cache held areas", static_cast<uint64_t>(rounds), nr_held);
  percpu_free(events);
  percpu_pool_check(percpu_pool_default());
  std::printf("lab: %d times offline and back, %lu events, areas waited there %lu times, %lu wrong\n", done,
              static_cast<unsigned long>(expected), static_cast<unsigned long>(nr_held), static_cast<unsigned long>(nr_wrong));
  return nr_wrong == 0 && done > 0 ? 0 : 1;
}
