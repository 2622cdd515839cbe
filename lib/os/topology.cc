// SPDX-License-Identifier: MIT
#include "os/topology.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <numa.h>
#include <unistd.h>

#include <cstring>

#include "base/check.h"
#include "base/errno_kept.h"
#include "base/text.h"

namespace percpu {

namespace {

// libnuma reports a failure to stderr, never by leaving, unless the program wants that; what is asked here is answered by
// files that it may read.
bool numa_is_available() { return ::numa_available() >= 0; }
int numa_highest_node() { return ::numa_max_node(); }
bool numa_node_has_memory(int node) { return ::numa_node_size64(node, nullptr) > 0; }
int numa_node_distance(int from, int to) { return ::numa_distance(from, to); }

template <auto ask, class... Arguments>
auto keeping_errno(Arguments... arguments) {
  const ErrnoKept errno_kept;
  return ask(arguments...);
}

constexpr NumaSource kLibnuma = {
    .available = keeping_errno<numa_is_available>,
    .max_node = keeping_errno<numa_highest_node>,
    .has_memory = keeping_errno<numa_node_has_memory, int>,
    .distance = keeping_errno<numa_node_distance, int, int>,
};

void add_range(CpuMask* mask, size_t count) {
  for (size_t cpu = 0; cpu < count && cpu < kMaxCpus; ++cpu) mask->add({static_cast<int32_t>(cpu)});
}

void find_possible_cpus(const System& system, const CpuMask& allowed, size_t kernel_bits, Topology* topology) {
  constexpr char kPossible[] = "/sys/devices/system/cpu/possible";
  constexpr char kOnline[] = "/sys/devices/system/cpu/online";
  CpuMask& possible = topology->possible;
  if (read_cpu_list(system, kPossible, &possible) == 0) {
    topology->source = CpuSource::kPossible;
    // A container's own /sys may show fewer than the kernel has: then it is not to be believed.
    if (possible.has_all(allowed)) return;
    possible |= allowed;
  } else if (read_cpu_list(system, kOnline, &possible) == 0) {
    topology->source = CpuSource::kOnline;
    possible |= allowed;
  } else {
    topology->source = allowed.empty() ? CpuSource::kNone : CpuSource::kAffinity;
    possible = allowed;
  }
  add_range(&possible, kernel_bits);
  if (possible.empty()) possible.add({0});
}

// libnuma says that there are no nodes where the kernel has none, and where a sandbox refuses the calls about them. sysfs tells
// the two apart.
int refusal_of_nodes(const System& system) {
  const int error = system.get_mempolicy(nullptr, nullptr, 0, 0, 0);
  if (error == 0) return 0;
  CpuMask online;
  if (read_cpu_list(system, "/sys/devices/system/node/online", &online) != 0) return 0;
  return online.first() == online.last() ? 0 : error;
}

// The nodes that the process may take memory from; all where the kernel does not tell.
NodeMask nodes_allowed(const System& system) {
  NodeMask allowed;
  if (system.get_mempolicy(nullptr, allowed.words, NodeMask::kLenBits, 0, MPOL_F_MEMS_ALLOWED) != 0 || allowed.empty())
    memset(allowed.words, 0xff, sizeof allowed.words);
  return allowed;
}

void find_memory_nodes(const System& system, const NumaSource& numa, bool numa_available, Topology* topology) {
  topology->memory_nodes = {};
  if (numa_available) {
    NodeMask allowed = nodes_allowed(system);
    for (int32_t node = 0; node < static_cast<int32_t>(topology->nr_node_ids); ++node) {
      if (allowed.has({node}) && numa.has_memory(node)) topology->memory_nodes.add({node});
    }
  }
  if (topology->memory_nodes.empty()) topology->memory_nodes.add({0});
}

uint8_t usable_distance(int from, int to, int told) {
  if (from == to) return kLocalDistance;
  if (told <= 0 || told > kUnknownDistance) return kUnknownDistance;
  return static_cast<uint8_t>(told);
}

void find_distances(const NumaSource& numa, bool numa_available, Topology* topology) {
  const int count = static_cast<int>(topology->nr_node_ids);
  uint8_t* next = topology->distances;
  for (int from = 0; from < count; ++from) {
    for (int to = 0; to < count; ++to)
      *next++ = usable_distance(from, to, numa_available && from != to ? numa.distance(from, to) : 0);
  }
}

// The node's name in the directory of a CPU. The nodes' own lists leave out CPUs that are offline; this is there as long as
// the machine has the CPU.
int linked_node(const System& system, int cpu, int nr_nodes) {
  for (int node = 0; node < nr_nodes; ++node) {
    char path[64];
    int file = system.open(Text(path).format("/sys/devices/system/cpu/cpu%d/node%d", cpu, node).c_str());
    if (file < 0) continue;
    static_cast<void>(system.close(file));
    return node;
  }
  return -1;
}

void find_nodes_of_cpus(const System& system, bool numa_available, Topology* topology) {
  const int nr_nodes = static_cast<int>(topology->nr_node_ids);
  const CpuMask& possible = topology->possible;
  for (uint32_t cpu = 0; cpu < topology->nr_cpu_ids; ++cpu) topology->node_ids[cpu] = static_cast<int16_t>(NodeId{}.value);
  for (int node = 0; numa_available && node < nr_nodes; ++node) {
    char path[64];
    CpuMask own;  // those that are online
    if (read_cpu_list(system, Text(path).format("/sys/devices/system/node/node%d/cpulist", node).c_str(), &own) != 0) continue;
    for (CpuId cpu = own.first(); cpu.valid(); cpu = own.after(cpu)) {
      if (possible.has(cpu)) topology->node_ids[cpu.index()] = static_cast<int16_t>(node);
    }
  }
  // Most CPUs that are in no list may never have been there: virtual machines have room for many.
  const bool linked = numa_available && nr_nodes > 1;
  CpuMask present;
  if (linked && read_cpu_list(system, "/sys/devices/system/cpu/present", &present) != 0) present = possible;
  for (CpuId cpu = possible.first(); cpu.valid(); cpu = possible.after(cpu)) {
    if (topology->node_ids[cpu.index()] >= 0) continue;
    const int node = linked && present.has(cpu) ? linked_node(system, cpu.value, nr_nodes) : -1;
    topology->node_ids[cpu.index()] = static_cast<int16_t>(node >= 0 ? node : topology->memory_nodes.first().value);
  }
}

}  // namespace

const NumaSource& libnuma_source() { return kLibnuma; }

NodeId Topology::node_of_cpu(CpuId cpu) const {
  if (!cpu.valid() || cpu.index() >= nr_cpu_ids) return {};
  return {node_ids[cpu.index()]};
}

uint8_t Topology::distance(NodeId from, NodeId to) const {
  if (!from.valid() || !to.valid() || from.index() >= nr_node_ids || to.index() >= nr_node_ids) return kUnknownDistance;
  return distances[from.index() * nr_node_ids + to.index()];
}

NodeId Topology::nearest_memory_node(NodeId node) const {
  if (memory_nodes.has(node)) return node;
  NodeId nearest = memory_nodes.first();
  for (NodeId candidate = nearest; candidate.valid(); candidate = memory_nodes.after(candidate)) {
    if (distance(node, candidate) < distance(node, nearest)) nearest = candidate;
  }
  return nearest;
}

NodeId Topology::memory_node_of_cpu(CpuId cpu) const {
  NodeId node = node_of_cpu(cpu);
  if (!node.valid() || one_memory_node()) return {};
  return nearest_memory_node(node);
}

bool CpuListParser::fail(const char* error) {
  error_ = error;
  return false;
}

bool CpuListParser::add_digit(char c, int32_t* number) {
  *number = *number * 10 + (c - '0');
  if (*number < static_cast<int32_t>(kMaxCpus)) return true;
  return fail("a CPU number above 8191");
}

// The numbers from first_ to last_ are complete.
bool CpuListParser::close_range() {
  if (last_ < first_) return fail("a range that ends before it begins");
  if (first_ < lowest_allowed_) return fail("numbers that do not ascend");
  for (int32_t cpu = first_; cpu <= last_; ++cpu) mask_->add({cpu});
  lowest_allowed_ = last_ + 1;
  return true;
}

bool CpuListParser::feed_one(char c) {
  const bool digit = c >= '0' && c <= '9';
  switch (state_) {
    case State::kBeforeFirst:
    case State::kBeforeLast: {
      if (!digit) return fail("expected a digit");
      bool begins = state_ == State::kBeforeFirst;
      state_ = begins ? State::kFirst : State::kLast;
      int32_t* number = begins ? &first_ : &last_;
      *number = 0;
      return add_digit(c, number);
    }
    case State::kFirst:
    case State::kLast: {
      bool first = state_ == State::kFirst;
      if (digit) return add_digit(c, first ? &first_ : &last_);
      if (first && c == '-') {
        state_ = State::kBeforeLast;
        return true;
      }
      if (c != ',' && c != '\n') return fail(first ? "expected a digit, '-' or ','" : "expected a digit or ','");
      if (first) last_ = first_;
      state_ = c == ',' ? State::kBeforeFirst : State::kEnded;
      return close_range();
    }
    case State::kEnded: break;
  }
  return fail("text behind the end of the line");
}

bool CpuListParser::feed(const char* chars, size_t len_bytes) {
  for (size_t i = 0; i < len_bytes && error_ == nullptr; ++i) {
    if (feed_one(chars[i])) ++at_;
  }
  return error_ == nullptr;
}

bool CpuListParser::finish() {
  if (error_ != nullptr) return false;
  if (state_ == State::kEnded) return true;
  if (state_ == State::kBeforeFirst || state_ == State::kBeforeLast)
    return fail(at_ == 0 ? "an empty list" : "the list ends where a number must follow");
  if (state_ == State::kFirst) last_ = first_;
  state_ = State::kEnded;
  return close_range();
}

const char* parse_cpu_list(const char* chars, size_t len_bytes, CpuMask* mask) {
  CpuListParser parser(mask);
  parser.feed(chars, len_bytes);
  return parser.finish() ? nullptr : parser.error();
}

int read_cpu_list(const System& system, const char* path, CpuMask* mask) {
  CpuListParser parser(mask);
  int file = system.open(path);
  if (file < 0) return file;
  char buffer[256];  // small stacks are met: this may run on any thread
  ssize_t got = 0;
  int interrupted = 0;
  for (;;) {
    got = system.read(file, buffer, sizeof buffer);
    if (got == -EINTR && ++interrupted < kMaxRetries) continue;
    if (got <= 0 || !parser.feed(buffer, static_cast<size_t>(got))) break;
  }
  static_cast<void>(system.close(file));
  if (got < 0) return static_cast<int>(got);
  return parser.finish() ? 0 : -EINVAL;
}

int read_allowed_cpus(const System& system, CpuMask* allowed, size_t* kernel_bits) {
  CpuMask of_main;
  CpuMask of_caller;
  // A kernel with room for more CPUs than this answers EINVAL.
  int main_bytes = system.sched_getaffinity(getpid(), sizeof of_main.words, of_main.words);
  int caller_bytes = system.sched_getaffinity(0, sizeof of_caller.words, of_caller.words);
  *allowed = {};
  if (main_bytes > 0) *allowed |= of_main;
  if (caller_bytes > 0) *allowed |= of_caller;
  int most_bytes = main_bytes > caller_bytes ? main_bytes : caller_bytes;
  if (kernel_bits != nullptr) *kernel_bits = most_bytes > 0 ? static_cast<size_t>(most_bytes) * 8 : 0;
  if (most_bytes > 0) return 0;
  return caller_bytes < 0 ? caller_bytes : -EINVAL;
}

TopologySize measure_topology(const System& system, const NumaSource& numa, Topology* topology, const CpuMask& at_load) {
  *topology = {};
  CpuMask allowed;
  size_t kernel_bits = 0;
  int error = read_allowed_cpus(system, &allowed, &kernel_bits);
  allowed |= at_load;
  find_possible_cpus(system, allowed, kernel_bits, topology);
  topology->allowed = allowed;
  topology->allowed &= topology->possible;
  // Nothing is known of what is allowed, or nothing that makes sense: then all may be.
  if ((error != 0 && at_load.empty()) || topology->allowed.empty()) topology->allowed = topology->possible;
  topology->nr_cpu_ids = static_cast<uint32_t>(topology->possible.last().index()) + 1;

  const bool available = numa.available();
  if (!available) topology->nodes_error = refusal_of_nodes(system);
  int max_node = available ? numa.max_node() : 0;
  if (max_node < 0) max_node = 0;
  if (max_node >= static_cast<int>(kMaxNodes)) max_node = static_cast<int>(kMaxNodes) - 1;
  topology->nr_node_ids = static_cast<uint32_t>(max_node) + 1;
  return {topology->nr_cpu_ids, topology->nr_node_ids};
}

size_t topology_storage_bytes(TopologySize size) {
  return size.nr_cpu_ids * sizeof(int16_t) + size_t{size.nr_node_ids} * size.nr_node_ids;
}

void read_topology(const System& system, const NumaSource& numa, void* storage, Topology* topology) {
  PERCPU_CHECK(topology->nr_cpu_ids > 0 && topology->nr_node_ids > 0, "a topology must be measured before it is read");
  topology->node_ids = static_cast<int16_t*>(storage);
  topology->distances = static_cast<uint8_t*>(storage) + topology->nr_cpu_ids * sizeof(int16_t);
  const bool available = numa.available();
  find_memory_nodes(system, numa, available, topology);
  find_distances(numa, available, topology);
  find_nodes_of_cpus(system, available, topology);
}

}  // namespace percpu
