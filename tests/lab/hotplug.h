// SPDX-License-Identifier: MIT
// Taking CPUs offline and back (root only), for the tests that do so while others work.
#ifndef PERCPU_TESTS_LAB_HOTPLUG_H
#define PERCPU_TESTS_LAB_HOTPLUG_H

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "nodes.h"

namespace lab {

inline std::string online_file(int cpu) { return "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/online"; }

// The CPUs that are online and may be taken offline.
inline std::vector<int> removable_cpus() {
  std::vector<int> cpus;
  for (int cpu : read_list("/sys/devices/system/cpu/online"))
    if (access(online_file(cpu).c_str(), W_OK) == 0) cpus.push_back(cpu);
  return cpus;
}

// Those that are not, and can be brought online.
inline std::vector<int> offline_cpus() {
  std::vector<int> cpus;
  for (int cpu : read_list("/sys/devices/system/cpu/possible"))
    if (read_file(online_file(cpu)) == "0\n") cpus.push_back(cpu);
  return cpus;
}

// The kernel may be busy with another change for a moment. Returns whether the CPU is as wanted now.
inline bool set_online(int cpu, bool online) {
  for (int tries = 0; tries < 100; ++tries) {
    const int file = open(online_file(cpu).c_str(), O_WRONLY | O_CLOEXEC);
    const bool done = file >= 0 && write(file, online ? "1" : "0", 1) == 1;
    if (file >= 0) close(file);
    if (done) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  std::printf("CPU %d: expected it to go %s, and the kernel refused\n", cpu, online ? "online" : "offline");
  return false;
}

// The calling thread may run anywhere again.
inline void go_anywhere() {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

// Waits for it, half a minute at most. Returns whether it came true.
template <class Condition>
bool eventually(Condition condition) {
  for (int tries = 0; tries < 600; ++tries) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return condition();
}

inline uint64_t seed() {
  const char *given = std::getenv("PERCPU_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  std::printf("PERCPU_SEED=%lu\n", static_cast<unsigned long>(seed));
  return seed;
}

}  // namespace lab

#endif  // PERCPU_TESTS_LAB_HOTPLUG_H
