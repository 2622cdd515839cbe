// SPDX-License-Identifier: MIT
//
// What sysfs says of CPUs, read from files that are written down here: siblings, packages, nodes; and files that are missing, or say
// what makes no sense. To the end also in which order threads are placed then.
#include "preload/pin/places.h"

#include <doctest/doctest.h>
#include <errno.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace percpu::heap {
namespace {

// The files of one machine. Whatever is not here does not exist.
struct Files {
  static inline std::map<std::string, std::string> texts;
  static inline std::string open_text;
  static inline size_t at = 0;
  static inline int nr_open = 0;

  Files() { texts.clear(); }

  static std::string topology(int cpu, const char* file) {
    return "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/" + file;
  }
  void core(int cpu, const std::string& siblings) { texts[topology(cpu, "thread_siblings_list")] = siblings; }
  void package(int cpu, const std::string& number) { texts[topology(cpu, "physical_package_id")] = number; }
  void node(int node, const std::string& cpus) {
    texts["/sys/devices/system/node/node" + std::to_string(node) + "/cpulist"] = cpus;
  }
  void nodes(const std::string& online) { texts["/sys/devices/system/node/online"] = online; }

  static const System& system() {
    static System files = real_system();
    files.open = [](const char* path) {
      const auto found = texts.find(path);
      if (found == texts.end()) return -ENOENT;
      open_text = found->second;
      at = 0;
      ++nr_open;
      return 1000;
    };
    files.read = [](int, void* buffer, size_t size_bytes) -> ssize_t {
      const size_t now = std::min(size_bytes, open_text.size() - at);
      memcpy(buffer, open_text.data() + at, now);
      at += now;
      return static_cast<ssize_t>(now);
    };
    files.close = [](int) { return --nr_open, 0; };
    return files;
  }

  // Where the places of CPUs that are not allowed keep this, nobody wrote.
  static constexpr int16_t kUntouched = 77;

  static std::vector<CpuPlace> read(const CpuMask& allowed) {
    std::vector<CpuPlace> places(allowed.last().index() + 1);
    for (CpuPlace& place : places) place.core = place.package = place.node = kUntouched;
    read_cpu_places(system(), allowed, places.data());
    CHECK(nr_open == 0);
    for (size_t cpu = 0; cpu < places.size(); ++cpu) {
      if (allowed.has({static_cast<int32_t>(cpu)})) continue;
      CHECK(places[cpu].core == kUntouched);
      CHECK(places[cpu].package == kUntouched);
      CHECK(places[cpu].node == kUntouched);
    }
    return places;
  }
};

CpuMask cpus(int first, int last) {
  CpuMask mask;
  for (int cpu = first; cpu <= last; ++cpu) mask.add({cpu});
  return mask;
}

using Ints = std::vector<int>;

Ints members(const std::vector<CpuPlace>& places, int16_t CpuPlace::* member) {
  Ints found;
  for (const CpuPlace& place : places) found.push_back(place.*member);
  return found;
}

Ints order(PinPolicy policy, const CpuMask& allowed) {
  std::vector<CpuPlace> places = Files::read(allowed);
  std::vector<uint16_t> ids(allowed.count());
  SlotOrder slots{ids.data(), ids.size()};
  order_slots(policy, allowed, places.data(), {}, &slots);
  return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(slots.count)};
}

// Two packages, a node each, of two cores with two siblings: numbered as x86 servers do, or as neighbours.
struct Server : Files {
  Server() {
    for (int cpu = 0; cpu < 8; ++cpu) {
      core(cpu, std::to_string(cpu % 4) + "," + std::to_string(cpu % 4 + 4) + "\n");
      package(cpu, std::to_string(cpu % 4 / 2) + "\n");
    }
    nodes("0-1\n");
    node(0, "0-1,4-5\n");
    node(1, "2-3,6-7\n");
  }
};
struct Neighbours : Files {
  Neighbours() {
    for (int cpu = 0; cpu < 8; ++cpu) {
      const int first = cpu & ~1;
      core(cpu, std::to_string(first) + "-" + std::to_string(first + 1) + "\n");
      package(cpu, std::to_string(cpu / 4) + "\n");
    }
    nodes("0-1\n");
    node(0, "0-3\n");
    node(1, "4-7\n");
  }
};

struct Expected {
  Ints cores, packages, nodes, automatic, compact, scatter;
};

// Of a machine of eight CPUs, all of them allowed.
void check_machine(const Expected& expected) {
  const std::vector<CpuPlace> places = Files::read(cpus(0, 7));
  CHECK(members(places, &CpuPlace::core) == expected.cores);
  CHECK(members(places, &CpuPlace::package) == expected.packages);
  CHECK(members(places, &CpuPlace::node) == expected.nodes);
  CHECK(order(PinPolicy::kAuto, cpus(0, 7)) == expected.automatic);
  CHECK(order(PinPolicy::kCompact, cpus(0, 7)) == expected.compact);
  CHECK(order(PinPolicy::kScatter, cpus(0, 7)) == expected.scatter);
}

TEST_CASE("siblings, packages and nodes are read, whichever way CPUs are numbered") {
  {
    Server files;
    check_machine({.cores = {0, 1, 2, 3, 0, 1, 2, 3},
                   .packages = {0, 0, 1, 1, 0, 0, 1, 1},
                   .nodes = {0, 0, 1, 1, 0, 0, 1, 1},
                   .automatic = {0, 2, 1, 3, 4, 6, 5, 7},
                   .compact = {0, 1, 4, 5, 2, 3, 6, 7},
                   .scatter = {0, 2, 1, 3, 4, 6, 5, 7}});
  }
  {
    Neighbours files;
    check_machine({.cores = {0, 0, 2, 2, 4, 4, 6, 6},
                   .packages = {0, 0, 0, 0, 1, 1, 1, 1},
                   .nodes = {0, 0, 0, 0, 1, 1, 1, 1},
                   .automatic = {0, 4, 2, 6, 1, 5, 3, 7},
                   .compact = {0, 2, 1, 3, 4, 6, 5, 7},
                   .scatter = {0, 4, 2, 6, 1, 5, 3, 7}});
  }
}

TEST_CASE("siblings that are not allowed are not touched; the others keep their core's number, and are cores themselves") {
  Neighbours files;
  CpuMask allowed = cpus(1, 6);
  allowed.remove({4});
  const std::vector<CpuPlace> places = Files::read(allowed);
  CHECK(places[1].core == 0);
  CHECK(places[2].core == 2);
  CHECK(places[3].core == 2);
  CHECK(places[5].core == 4);
  CHECK(places[5].node == 1);
  CHECK(order(PinPolicy::kAuto, allowed) == Ints{1, 5, 2, 6, 3});
}

TEST_CASE("where nothing is known each CPU is a core, and all are on one node") {
  Files files;
  const std::vector<CpuPlace> places = Files::read(cpus(0, 3));
  CHECK(members(places, &CpuPlace::core) == Ints{0, 1, 2, 3});
  CHECK(members(places, &CpuPlace::package) == Ints{0, 0, 0, 0});
  CHECK(members(places, &CpuPlace::node) == Ints{0, 0, 0, 0});
  CHECK(order(PinPolicy::kCompact, cpus(0, 3)) == Ints{0, 1, 2, 3});
}

TEST_CASE("a list of siblings that makes no sense makes the CPU a core of its own, and says nothing of the others") {
  for (const std::string text : {"", "\n", "x", "0-", "1,0\n", "0,,1\n", "0 1\n", "0-8192\n", "99999999999999999999\n", "-1\n",
                                 "0-1x\n", "2\n"}) {
    CAPTURE(text);
    Neighbours files;
    files.core(0, text);
    CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::core) == Ints{0, 0, 2, 2, 4, 4, 6, 6});  // CPU 1's list says that they are one
    files.core(1, text);
    CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::core) == Ints{0, 1, 2, 2, 4, 4, 6, 6});
  }
  // Longer than any buffer.
  Files files;
  std::string even = "0";
  for (int cpu = 2; cpu < 8192; cpu += 2) even += "," + std::to_string(cpu);
  files.core(0, even + "\n");
  CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::core) == Ints{0, 1, 0, 3, 0, 5, 0, 7});
}

TEST_CASE("lists that contradict each other: the first one counts") {
  Neighbours files;
  files.core(1, "1,3\n");
  files.core(3, "3\n");
  CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::core) == Ints{0, 0, 2, 2, 4, 4, 6, 6});
  files.core(0, "0\n");
  files.core(2, "2\n");
  CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::core) == Ints{0, 1, 2, 1, 4, 4, 6, 6});
}

TEST_CASE("a package that is not known, or not numbered, is the first") {
  for (const std::string text : {"", "\n", "-1\n", "x\n", " 1\n", "8193\n", "99999999999999999999\n"}) {
    CAPTURE(text);
    Neighbours files;
    files.package(4, text);
    CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::package) == Ints{0, 0, 0, 0, 0, 0, 1, 1});
  }
  Neighbours files;
  files.package(4, "8192\n");
  CHECK(Files::read(cpus(0, 7))[4].package == 8192);
}

TEST_CASE("nodes have any numbers; one without CPUs, or whose list is missing or makes no sense, has none") {
  Neighbours files;
  files.nodes("0,2,5,7\n");
  files.node(5, "4-5\n");
  files.node(2, "\n");
  files.node(7, "6-\n");
  CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::node) == Ints{0, 0, 0, 0, 5, 5, 0, 0});
  CHECK(order(PinPolicy::kNode, cpus(0, 7)) == Ints{0, 5});
  files.nodes("5\n");
  CHECK(members(Files::read(cpus(4, 7)), &CpuPlace::node) == Ints{77, 77, 77, 77, 5, 5, 0, 0});
  for (const std::string text : {"", "x\n", "1024\n", "0-99999\n"}) {
    CAPTURE(text);
    files.nodes(text);
    CHECK(members(Files::read(cpus(0, 7)), &CpuPlace::node) == Ints{0, 0, 0, 0, 0, 0, 0, 0});
  }
}

TEST_CASE("a node's list names CPUs that the process may not use, and more than there are: these are passed over") {
  Neighbours files;
  files.node(1, "4-8191\n");
  CpuMask allowed = cpus(3, 5);
  const std::vector<CpuPlace> places = Files::read(allowed);
  CHECK(places[3].node == 0);
  CHECK(places[4].node == 1);
  CHECK(places[5].node == 1);
}

}  // namespace
}  // namespace percpu::heap
