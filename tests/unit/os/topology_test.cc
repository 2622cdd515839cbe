// SPDX-License-Identifier: MIT
#include "os/topology.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../seed.h"
#include "faulty_system.h"

namespace percpu {
namespace {

std::string list_of(const CpuMask& mask) {
  std::string text;
  for (CpuId cpu = mask.first(); cpu.valid(); cpu = mask.after(cpu)) text += std::to_string(cpu.value) + " ";
  return text;
}

const char* parse(const std::string& text, CpuMask* mask) { return parse_cpu_list(text.data(), text.size(), mask); }

TEST_CASE("lists as the kernel writes them are read") {
  const std::pair<const char*, const char*> cases[] = {
      {"0\n", "0 "},
      {"0-3,8,10-11\n", "0 1 2 3 8 10 11 "},
      {"0-1", "0 1 "},
      {"5-5\n", "5 "},
      {"8190-8191\n", "8190 8191 "},
      {"0,2,4,6\n", "0 2 4 6 "},
      {"007", "7 "},
  };
  for (const auto& [list, expected] : cases) {
    CpuMask mask;
    const char* text = list;
    CAPTURE(text);
    CHECK(parse(text, &mask) == nullptr);
    CHECK(list_of(mask) == expected);
  }
}

TEST_CASE("anything else is refused, with what is wrong") {
  const std::pair<const char*, const char*> cases[] = {
      {"", "an empty list"},
      {"\n", "expected a digit"},
      {"-1", "expected a digit"},
      {"0-", "the list ends where a number must follow"},
      {"0-\n", "expected a digit"},
      {"0,", "the list ends where a number must follow"},
      {"0,,2", "expected a digit"},
      {"0 -3", "expected a digit, '-' or ','"},
      {" 0", "expected a digit"},
      {"0-3-5", "expected a digit or ','"},
      {"3-1", "a range that ends before it begins"},
      {"0-3,2", "numbers that do not ascend"},
      {"1,1", "numbers that do not ascend"},
      {"4,2\n", "numbers that do not ascend"},
      {"8192", "a CPU number above 8191"},
      {"0-99999999999999999999", "a CPU number above 8191"},
      {"0-3\n4", "text behind the end of the line"},
      {"0\n\n", "text behind the end of the line"},
      {"0-31:2/4", "expected a digit or ','"},
      {"0x1", "expected a digit, '-' or ','"},
      {"+1", "expected a digit"},
  };
  for (const auto& [list, expected] : cases) {
    CpuMask mask;
    const char* text = list;
    CAPTURE(text);
    const char* error = parse(text, &mask);
    REQUIRE(error != nullptr);
    CHECK(std::string(error) == expected);
  }
  CpuMask mask;
  CHECK(parse_cpu_list("0\0", 2, &mask) != nullptr);
  CpuListParser parser(&mask);
  CHECK_FALSE(parser.feed("0-3,x", 5));
  CHECK(parser.error_at() == 4);
}

std::string written_as_list(const CpuMask& mask) {
  std::string text;
  for (CpuId first = mask.first(); first.valid();) {
    CpuId last = first;
    while (mask.has({last.value + 1})) ++last.value;
    if (!text.empty()) text += ',';
    text += std::to_string(first.value);
    if (last != first) text += '-' + std::to_string(last.value);
    first = mask.after(last);
  }
  return text + "\n";
}

TEST_CASE("any set survives being written as a list and read in pieces") {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 300; ++round) {
    CpuMask mask;
    size_t limit = 1 + random() % kMaxCpus;
    for (size_t i = 0, adds = 1 + random() % 400; i < adds; ++i) mask.add({static_cast<int32_t>(random() % limit)});
    std::string text = written_as_list(mask);
    CpuMask read;
    CpuListParser parser(&read);
    for (size_t at = 0; at < text.size();) {
      size_t piece = std::min<size_t>(text.size() - at, 1 + random() % 9);
      CHECK(parser.feed(text.data() + at, piece));
      at += piece;
    }
    CHECK(parser.finish());
    CHECK(read == mask);
  }
}

// A machine made of text: the files it has, the affinity masks of its threads, and what its libnuma says.
struct Machine {
  std::map<std::string, std::string> files;
  std::string read_so_far;
  size_t at = 0;
  bool affinity_works = true;
  CpuMask main_mask;
  CpuMask caller_mask;
  int kernel_mask_bytes = 8;
  bool numa = true;
  std::vector<std::vector<int>> distances;  // by node; a node that does not exist has an empty row
  std::map<int, int> node_of;  // what the nodes' lists of CPUs say
  NodeMask with_memory;
  NodeMask cpuset_nodes;
  bool cpuset_known = true;
  int policy_error = 0;  // what a thread gets that asks for its own memory policy
};
Machine* machine;

System machine_system() {
  System system = FaultySystem::reset().system();
  system.open = [](const char* path) {
    machine->at = 0;
    if (int node = 0; sscanf(path, "/sys/devices/system/node/node%d/cpulist", &node) == 1) {
      CpuMask own;
      for (const auto& [cpu, its_node] : machine->node_of) {
        if (its_node == node) own.add({cpu});
      }
      machine->read_so_far = written_as_list(own);
      return machine->numa ? 1000 : -ENOENT;
    }
    auto found = machine->files.find(path);
    if (found == machine->files.end()) return -ENOENT;
    machine->read_so_far = found->second;
    return 1000;
  };
  system.read = [](int, void* buffer, size_t size_bytes) -> ssize_t {
    size_t now = std::min({size_bytes, machine->read_so_far.size() - machine->at, size_t{7}});
    memcpy(buffer, machine->read_so_far.data() + machine->at, now);
    machine->at += now;
    return static_cast<ssize_t>(now);
  };
  system.close = [](int) { return 0; };
  system.sched_getaffinity = [](pid_t thread, size_t mask_bytes, void* mask) {
    if (!machine->affinity_works || mask_bytes < static_cast<size_t>(machine->kernel_mask_bytes)) return -EINVAL;
    const CpuMask& chosen = thread == 0 ? machine->caller_mask : machine->main_mask;
    memcpy(mask, chosen.words, static_cast<size_t>(machine->kernel_mask_bytes));
    return machine->kernel_mask_bytes;
  };
  system.get_mempolicy = [](int*, uint64_t* nodes, size_t, uintptr_t, unsigned flags) {
    if (flags == 0) return machine->policy_error;
    if (flags != MPOL_F_MEMS_ALLOWED || !machine->cpuset_known) return -EPERM;
    memcpy(nodes, machine->cpuset_nodes.words, sizeof machine->cpuset_nodes.words);
    return 0;
  };
  return system;
}

const NumaSource kMachineNuma = {
    .available = [] { return machine->numa; },
    .max_node = [] { return static_cast<int>(machine->distances.size()) - 1; },
    .has_memory = [](int node) { return machine->with_memory.has({node}); },
    .distance =
        [](int from, int to) {
          const std::vector<int>& row = machine->distances[static_cast<size_t>(from)];
          return static_cast<size_t>(to) < row.size() ? row[static_cast<size_t>(to)] : 0;
        },
};

struct Read {
  std::vector<uint64_t> storage;
  Topology topology;

  Read(Machine& described) {
    machine = &described;
    System system = machine_system();
    TopologySize size = measure_topology(system, kMachineNuma, &topology);
    storage.assign(topology_storage_bytes(size) / 8 + 2, 0x5a5a5a5a5a5a5a5a);
    read_topology(system, kMachineNuma, storage.data(), &topology);
    CHECK(storage.back() == 0x5a5a5a5a5a5a5a5a);  // stayed within what was asked for
    machine = nullptr;
  }
};

NodeMask nodes(std::initializer_list<int> ids) {
  NodeMask mask;
  for (int id : ids) mask.add({id});
  return mask;
}

CpuMask cpus(std::initializer_list<int> ids) {
  CpuMask mask;
  for (int id : ids) mask.add({id});
  return mask;
}

constexpr char kPossible[] = "/sys/devices/system/cpu/possible";
constexpr char kOnline[] = "/sys/devices/system/cpu/online";

// Four nodes with holes in their numbers; node 4 has no memory; distances are not symmetric.
Machine sparse_machine() {
  Machine m;
  m.files[kPossible] = "0-3,8-9,16\n";
  m.files[kOnline] = "0-1\n";
  m.main_mask = cpus({0, 1});
  m.caller_mask = cpus({1, 9});
  m.distances = {{10, 0, 15, 0, 30, 0, 40}, {}, {21, 0, 10, 0, 17, 0, 27}, {}, {31, 0, 19, 0, 10, 0, 18}, {},
                 {41, 0, 29, 0, 16, 0, 10}};
  m.node_of = {{0, 0}, {1, 0}, {2, 2}, {3, 4}, {8, 6}, {9, 6}};  // 16 is absent
  m.with_memory = nodes({0, 2, 6});
  m.cpuset_nodes = nodes({0, 2, 4, 6});
  return m;
}

TEST_CASE("sparse CPUs and nodes, and distances that are not symmetric, are read as they are") {
  Machine m = sparse_machine();
  Read read(m);
  const Topology& t = read.topology;
  CHECK(t.source == CpuSource::kPossible);
  CHECK(t.nr_cpu_ids == 17);
  CHECK(t.nr_node_ids == 7);
  CHECK(list_of(t.possible) == "0 1 2 3 8 9 16 ");
  CHECK(t.node_of_cpu({2}) == NodeId{2});
  CHECK(t.node_of_cpu({3}) == NodeId{4});
  CHECK(t.node_of_cpu({9}) == NodeId{6});
  CHECK_FALSE(t.node_of_cpu({4}).valid());
  CHECK_FALSE(t.node_of_cpu({17}).valid());
  CHECK_FALSE(t.node_of_cpu({-1}).valid());
  CHECK(t.distance({0}, {2}) == 15);
  CHECK(t.distance({2}, {0}) == 21);
  CHECK(t.distance({4}, {4}) == 10);
  CHECK(t.distance({0}, {1}) == kUnknownDistance);
  CHECK(t.distance({0}, {7}) == kUnknownDistance);
}

TEST_CASE("the process may use what its main thread or the calling thread may, of what is possible") {
  Machine m = sparse_machine();
  CHECK(list_of(Read(m).topology.allowed) == "0 1 9 ");
  m.affinity_works = false;
  CHECK(list_of(Read(m).topology.allowed) == "0 1 2 3 8 9 16 ");
}

TEST_CASE("a list of possible CPUs that lacks one which the process may use is not believed") {
  Machine m = sparse_machine();
  m.caller_mask = cpus({1, 9, 40});
  Read read(m);
  CHECK(read.topology.source == CpuSource::kPossible);
  CHECK(read.topology.nr_cpu_ids == 64);  // the kernel's masks have 8 bytes
  CHECK(read.topology.possible.count() == 64);
  CHECK(list_of(read.topology.allowed) == "0 1 9 40 ");
  CHECK(read.topology.node_of_cpu({40}) == NodeId{0});
  m.main_mask = cpus({70});
  m.kernel_mask_bytes = 16;
  CHECK(Read(m).topology.nr_cpu_ids == 128);
}

TEST_CASE("a CPU that is absent is put on the lowest node with memory") {
  Machine m = sparse_machine();
  CHECK(Read(m).topology.node_of_cpu({16}) == NodeId{0});
  m.with_memory = nodes({2, 6});
  CHECK(Read(m).topology.node_of_cpu({16}) == NodeId{2});
  m.node_of[16] = 99;  // nonsense
  CHECK(Read(m).topology.node_of_cpu({16}) == NodeId{2});
}

TEST_CASE("a CPU that is offline is on the node that its directory names") {
  Machine m = sparse_machine();
  m.files["/sys/devices/system/cpu/cpu16/node6"] = "";
  m.files["/sys/devices/system/cpu/present"] = "0-3,8-9\n";  // then it has no directory, and none is looked for
  CHECK(Read(m).topology.node_of_cpu({16}) == NodeId{0});
  m.files["/sys/devices/system/cpu/present"] = "0-3,8-9,16\n";
  CHECK(Read(m).topology.node_of_cpu({16}) == NodeId{6});
  CHECK(Read(m).topology.memory_node_of_cpu({16}) == NodeId{6});
  CHECK(Read(m).topology.node_of_cpu({0}) == NodeId{0});
  m.files["/sys/devices/system/cpu/cpu0/node6"] = "";  // what libnuma knows is not asked again
  CHECK(Read(m).topology.node_of_cpu({0}) == NodeId{0});
}

TEST_CASE("memory comes from the nearest node that has some, as seen from the CPU, and that the cpuset allows") {
  Machine m = sparse_machine();
  Read read(m);
  CHECK(read.topology.nearest_memory_node({2}) == NodeId{2});
  CHECK(read.topology.nearest_memory_node({4}) == NodeId{6});  // 18 to node 6, 19 to node 2
  CHECK(read.topology.memory_node_of_cpu({3}) == NodeId{6});
  CHECK(read.topology.memory_node_of_cpu({0}) == NodeId{0});
  CHECK_FALSE(read.topology.memory_node_of_cpu({5}).valid());
  m.cpuset_nodes = nodes({0, 2, 4});
  CHECK(Read(m).topology.memory_node_of_cpu({8}) == NodeId{2});  // 29 to node 2, 41 to node 0
  m.cpuset_known = false;
  CHECK(Read(m).topology.memory_node_of_cpu({8}) == NodeId{6});
  m.distances[4][2] = 18;  // a tie takes the lowest
  CHECK(Read(m).topology.memory_node_of_cpu({3}) == NodeId{2});
}

TEST_CASE("with one node with memory there is nothing to choose") {
  Machine m = sparse_machine();
  m.with_memory = nodes({2});
  Read read(m);
  CHECK(read.topology.one_memory_node());
  CHECK_FALSE(read.topology.memory_node_of_cpu({0}).valid());
  CHECK(read.topology.nearest_memory_node({6}) == NodeId{2});
}

TEST_CASE("no node with memory at all counts as node 0 having it") {
  Machine m = sparse_machine();
  m.with_memory = {};
  Read read(m);
  CHECK(read.topology.memory_nodes == nodes({0}));
  CHECK(read.topology.nearest_memory_node({6}) == NodeId{0});
}

TEST_CASE("without libnuma the machine is one node") {
  Machine m = sparse_machine();
  m.numa = false;
  Read read(m);
  CHECK(read.topology.nr_node_ids == 1);
  CHECK(read.topology.node_of_cpu({9}) == NodeId{0});
  CHECK(read.topology.one_memory_node());
  CHECK(read.topology.distance({0}, {0}) == kLocalDistance);
}

TEST_CASE("that a sandbox hides the nodes is told of a machine that has several, and of no other") {
  constexpr char kNodes[] = "/sys/devices/system/node/online";
  struct Case {
    bool numa;
    int policy_error;
    const char* nodes;
    int expected;
  };
  for (const Case& one : {Case{false, -ENOSYS, "0-3\n", -ENOSYS}, {false, -EPERM, "0,2\n", -EPERM}, {false, -ENOSYS, "0\n", 0},
                          {false, -ENOSYS, "", 0}, {false, 0, "0-3\n", 0}, {true, 0, "0-3\n", 0}}) {
    CAPTURE(one.policy_error);
    CAPTURE(one.nodes);
    Machine m = sparse_machine();
    m.numa = one.numa;
    m.policy_error = one.policy_error;
    if (*one.nodes != 0) m.files[kNodes] = one.nodes;
    CHECK(Read(m).topology.nodes_error == one.expected);
  }
}

TEST_CASE("without a list of possible CPUs, every number that may turn up is possible") {
  Machine m = sparse_machine();
  m.files.erase(kPossible);
  m.caller_mask = cpus({1, 9});
  SUBCASE("the online file") {
    Read read(m);
    CHECK(read.topology.source == CpuSource::kOnline);
    CHECK(read.topology.nr_cpu_ids == 64);  // the kernel's masks have 8 bytes
    CHECK(read.topology.possible.count() == 64);
    CHECK(list_of(read.topology.allowed) == "0 1 9 ");
  }
  SUBCASE("a list that is broken is as none") {
    m.files[kPossible] = "0-1,\n";
    CHECK(Read(m).topology.source == CpuSource::kOnline);
    m.files[kPossible] = "0-9999\n";
    CHECK(Read(m).topology.source == CpuSource::kOnline);
    m.files[kPossible] = "";
    CHECK(Read(m).topology.source == CpuSource::kOnline);
  }
  SUBCASE("no file, the affinity mask") {
    m.files.clear();
    m.kernel_mask_bytes = 24;
    m.main_mask.add({130});
    Read read(m);
    CHECK(read.topology.source == CpuSource::kAffinity);
    CHECK(read.topology.nr_cpu_ids == 192);
    CHECK(list_of(read.topology.allowed) == "0 1 9 130 ");
  }
  SUBCASE("nothing at all: one CPU") {
    m.files.clear();
    m.affinity_works = false;
    Read read(m);
    CHECK(read.topology.source == CpuSource::kNone);
    CHECK(list_of(read.topology.possible) == "0 ");
    CHECK(list_of(read.topology.allowed) == "0 ");
  }
}

TEST_CASE("masks of the largest kernels are read, and those beyond refused") {
  Machine m = sparse_machine();
  m.files[kPossible] = "0-8191\n";
  m.kernel_mask_bytes = 1024;
  m.main_mask.add({8191});
  Read read(m);
  CHECK(read.topology.nr_cpu_ids == 8192);
  CHECK(read.topology.allowed.has({8191}));
  CHECK(read.topology.node_of_cpu({8191}) == NodeId{0});
  m.kernel_mask_bytes = 2048;  // as a kernel for 16384 CPUs: EINVAL
  CHECK(Read(m).topology.allowed.count() == 8192);
}

TEST_CASE("reading a list gives the file's error, and retries what a signal interrupted") {
  FaultySystem& faulty = FaultySystem::reset();
  CpuMask mask;
  CHECK(read_cpu_list(faulty.system(), "/nowhere", &mask) == -ENOENT);
  CHECK(read_cpu_list(faulty.system(), "/proc/self/comm", &mask) == -EINVAL);
  faulty.fail_nth(Call::kRead, 1, EINTR);
  int usual = read_cpu_list(real_system(), kPossible, &mask);
  if (usual != 0) return;  // no sysfs here
  CpuMask again;
  CHECK(read_cpu_list(faulty.system(), kPossible, &again) == 0);
  CHECK(again == mask);
  FaultySystem::reset().fail_nth(Call::kRead, 1, EIO);
  CHECK(read_cpu_list(faulty.system(), kPossible, &again) == -EIO);
  CHECK(faulty.count(Call::kClose) == 1);
  FaultySystem::reset().fail_always(Call::kRead, EINTR);
  CHECK(read_cpu_list(faulty.system(), kPossible, &again) == -EINTR);
}

TEST_CASE("this machine is read: its own CPU is possible, allowed, and on a node") {
  errno = EXDEV;
  Topology topology;
  TopologySize size = measure_topology(real_system(), libnuma_source(), &topology);
  std::vector<uint64_t> storage(topology_storage_bytes(size) / 8 + 1);
  read_topology(real_system(), libnuma_source(), storage.data(), &topology);
  CHECK(errno == EXDEV);
  CpuId here{sched_getcpu()};
  CHECK(topology.possible.has(here));
  CHECK(topology.allowed.has(here));
  CHECK(topology.node_of_cpu(here).valid());
  unsigned cpu = 0;
  unsigned node = 0;
  REQUIRE(real_system().getcpu(&cpu, &node) == 0);
  CHECK(topology.node_of_cpu({static_cast<int>(cpu)}) == NodeId{static_cast<int>(node)});
  CHECK(topology.memory_nodes.has(topology.nearest_memory_node(topology.node_of_cpu(here))));
  CHECK(static_cast<long>(topology.possible.count()) >= sysconf(_SC_NPROCESSORS_ONLN));
}

TEST_CASE("a thread that is pinned sees the main thread's CPUs as well") {
  CpuMask whole;
  REQUIRE(read_allowed_cpus(real_system(), &whole, nullptr) == 0);
  CpuMask pinned_sees;
  std::thread([&] {
    CpuMask one;
    one.add(whole.first());
    REQUIRE(real_system().sched_setaffinity(0, sizeof one.words, one.words) == 0);
    REQUIRE(read_allowed_cpus(real_system(), &pinned_sees, nullptr) == 0);
  }).join();
  CHECK(pinned_sees == whole);
}

}  // namespace
}  // namespace percpu
