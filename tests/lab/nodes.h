// SPDX-License-Identifier: MIT
// Where CPUs and pages are, as the kernel tells: for tests that compare it with what the library made of it.
#ifndef PERCPU_TESTS_LAB_NODES_H
#define PERCPU_TESTS_LAB_NODES_H

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace lab {

inline std::string read_file(const std::string &path) {
  std::string text;
  FILE *file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return text;
  for (int c; (c = std::fgetc(file)) != EOF;) text += static_cast<char>(c);
  std::fclose(file);
  return text;
}

// "0-3,8" as numbers.
inline std::vector<int> read_list(const std::string &path) {
  std::vector<int> numbers;
  const std::string text = read_file(path);
  for (const char *at = text.c_str(); *at != '\0' && *at != '\n';) {
    char *end;
    const long first = std::strtol(at, &end, 10);
    const long last = *end == '-' ? std::strtol(end + 1, &end, 10) : first;
    for (long n = first; n <= last; ++n) numbers.push_back(static_cast<int>(n));
    at = *end == ',' ? end + 1 : end;
  }
  return numbers;
}

inline bool is_allowed(int cpu) {
  cpu_set_t *set = CPU_ALLOC(8192);
  const size_t bytes = CPU_ALLOC_SIZE(8192);
  CPU_ZERO_S(bytes, set);
  sched_getaffinity(0, bytes, set);
  const bool allowed = CPU_ISSET_S(static_cast<size_t>(cpu), bytes, set);
  CPU_FREE(set);
  return allowed;
}

// Moves the calling thread. Returns whether it is there now.
inline bool go_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<size_t>(cpu), &set);
  return sched_setaffinity(0, sizeof set, &set) == 0;
}

// Which node backs each page of a range: -1 where none does, or where that is the page of zeros that all share.
inline std::vector<int> nodes_of_pages(const void *start, size_t size_bytes) {
  const uintptr_t page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(start) & ~(page_bytes - 1);
  std::vector<void *> pages;
  for (uintptr_t at = first; at < reinterpret_cast<uintptr_t>(start) + size_bytes; at += page_bytes)
    pages.push_back(reinterpret_cast<void *>(at));
  std::vector<int> status(pages.size(), -1);
  if (syscall(SYS_move_pages, 0, pages.size(), pages.data(), nullptr, status.data(), 0) != 0) {
    std::perror("move_pages");
    std::exit(2);
  }
  for (int &node : status)
    if (node < 0) node = -1;
  return status;
}

class Nodes {
 public:
  // Whether memory of this CPU may lie on that node: its own, or, where that has none, one of the nearest that have.
  bool right_for(int cpu, int node) const { return right_.at(cpu).count(node) != 0; }

  std::string expected(int cpu) const {
    std::string text;
    for (int node : right_.at(cpu)) text += (text.empty() ? "" : " or ") + std::to_string(node);
    return text;
  }

  void print() const {
    for (const auto &[cpu, node] : of_cpu_) std::printf("CPU %d: node %d, memory on %s\n", cpu, node, expected(cpu).c_str());
  }

  std::map<int, int> of_cpu_;
  std::map<int, std::set<int>> right_;
};

// The node of a CPU: the name of the link to it, which is there for offline CPUs, too.
inline int node_of_cpu(int cpu, const std::vector<int> &nodes) {
  const std::string directory = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/node";
  for (int node : nodes)
    if (access((directory + std::to_string(node)).c_str(), F_OK) == 0) return node;
  return nodes.empty() ? 0 : nodes.front();
}

// Those that the process may take memory from (cpuset).
inline std::vector<int> allowed_nodes(const std::vector<int> &nodes) {
  constexpr unsigned kMemsAllowed = 1 << 2;  // MPOL_F_MEMS_ALLOWED
  unsigned long mask[1024 / 64] = {};
  if (syscall(SYS_get_mempolicy, nullptr, mask, 1024, nullptr, kMemsAllowed) != 0) return nodes;
  std::vector<int> allowed;
  for (int node : nodes)
    if ((mask[node / 64] >> (node % 64) & 1) != 0) allowed.push_back(node);
  return allowed;
}

inline Nodes read_nodes() {
  const std::string base = "/sys/devices/system/node/";
  const std::vector<int> online = read_list(base + "online");
  std::vector<int> with_memory = allowed_nodes(read_list(base + "has_memory"));
  if (with_memory.empty()) with_memory = {0};
  Nodes all;
  for (int cpu : read_list("/sys/devices/system/cpu/possible")) {
    const int node = node_of_cpu(cpu, online);
    all.of_cpu_[cpu] = node;
    const std::string told = read_file(base + "node" + std::to_string(node) + "/distance");
    // One number for each node that is online, in their order.
    std::map<int, long> distance;
    const char *at = told.c_str();
    for (int other : online) {
      char *end;
      distance[other] = std::strtol(at, &end, 10);
      at = end;
    }
    long nearest = -1;
    for (int other : with_memory) {
      const long d = other == node ? 0 : distance[other];
      if (nearest < 0 || d < nearest) nearest = d;
    }
    for (int other : with_memory)
      if ((other == node ? 0 : distance[other]) == nearest) all.right_[cpu].insert(other);
  }
  return all;
}

}  // namespace lab

#endif  // PERCPU_TESTS_LAB_NODES_H
