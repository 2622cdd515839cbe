// SPDX-License-Identifier: MIT
#include "preload/pin/order.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace percpu::heap {
namespace {

// A machine written down: which CPUs may be used, and where each is.
struct Machine {
  CpuMask allowed;
  std::vector<CpuPlace> places = std::vector<CpuPlace>(kMaxCpus);

  void add(int cpu, int core, int package, int node) {
    allowed.add({cpu});
    places[static_cast<size_t>(cpu)].core = static_cast<int16_t>(core);
    places[static_cast<size_t>(cpu)].package = static_cast<int16_t>(package);
    places[static_cast<size_t>(cpu)].node = static_cast<int16_t>(node);
  }

  std::vector<int> order(PinPolicy policy, const PinList& list = {}, size_t* nr_cores = nullptr) const {
    std::vector<CpuPlace> work = places;
    std::vector<uint16_t> ids(kMaxCpus);
    SlotOrder slots{ids.data(), ids.size()};
    order_slots(policy, allowed, work.data(), list, &slots);
    if (nr_cores != nullptr) *nr_cores = slots.nr_cores;
    return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(slots.count)};
  }
};

// As Linux numbers x86 servers: all first siblings, node by node, then all second ones.
Machine server(int nodes, int cores_a_node) {
  Machine machine;
  const int cores = nodes * cores_a_node;
  for (int cpu = 0; cpu < 2 * cores; ++cpu) machine.add(cpu, cpu % cores, cpu % cores / cores_a_node, cpu % cores / cores_a_node);
  return machine;
}

// As others do: siblings have neighbouring numbers.
Machine neighbours(int nodes, int cores_a_node) {
  Machine machine;
  for (int cpu = 0; cpu < 2 * nodes * cores_a_node; ++cpu) {
    const int node = cpu / 2 / cores_a_node;
    machine.add(cpu, cpu & ~1, node, node);
  }
  return machine;
}

using Ints = std::vector<int>;

TEST_CASE("physical cores are given out before their siblings, whichever way they are numbered") {
  size_t nr_cores = 0;
  CHECK(server(2, 2).order(PinPolicy::kAuto, {}, &nr_cores) == Ints{0, 2, 1, 3, 4, 6, 5, 7});
  CHECK(nr_cores == 4);
  CHECK(neighbours(2, 2).order(PinPolicy::kAuto, {}, &nr_cores) == Ints{0, 4, 2, 6, 1, 5, 3, 7});
  CHECK(nr_cores == 4);
}

TEST_CASE("compact fills node by node, cores first") {
  CHECK(server(2, 2).order(PinPolicy::kCompact) == Ints{0, 1, 4, 5, 2, 3, 6, 7});
  CHECK(neighbours(2, 2).order(PinPolicy::kCompact) == Ints{0, 2, 1, 3, 4, 6, 5, 7});
}

TEST_CASE("scatter takes the nodes in turn, cores first") {
  CHECK(server(2, 2).order(PinPolicy::kScatter) == Ints{0, 2, 1, 3, 4, 6, 5, 7});
  CHECK(neighbours(2, 2).order(PinPolicy::kScatter) == Ints{0, 4, 2, 6, 1, 5, 3, 7});
}

TEST_CASE("scatter goes on with the larger node when the smaller one has no more") {
  Machine machine;
  for (int cpu = 0; cpu < 4; ++cpu) machine.add(cpu, cpu, 0, 0);
  machine.add(4, 4, 1, 1);
  CHECK(machine.order(PinPolicy::kScatter) == Ints{0, 4, 1, 2, 3});
}

TEST_CASE("node gives out the nodes that have allowed CPUs") {
  Machine machine = server(4, 2);
  for (int cpu : {2, 3, 10, 11}) machine.allowed.remove({cpu});  // all of node 1
  CHECK(machine.order(PinPolicy::kNode) == Ints{0, 2, 3});
}

TEST_CASE("only allowed CPUs are given out, and a sibling whose core's first CPU is not allowed counts as a core") {
  Machine machine = neighbours(1, 4);
  machine.allowed.remove({0});
  machine.allowed.remove({5});
  size_t nr_cores = 0;
  CHECK(machine.order(PinPolicy::kAuto, {}, &nr_cores) == Ints{1, 4, 2, 6, 3, 7});
  CHECK(nr_cores == 4);
}

TEST_CASE("packages of one node stay together by compact, and are far apart by auto") {
  Machine machine;
  for (int cpu = 0; cpu < 6; ++cpu) machine.add(cpu, cpu, cpu % 2, 0);
  CHECK(machine.order(PinPolicy::kCompact) == Ints{0, 2, 4, 1, 3, 5});
  CHECK(machine.order(PinPolicy::kAuto) == Ints{0, 3, 4, 2, 5, 1});
}

TEST_CASE("wherever auto begins, what it gives out next is spread over the nodes, and in each over its cores") {
  const size_t nr_nodes = 4;
  const size_t nr_cores = 16;  // of a node; each four share a cache
  Machine machine = server(static_cast<int>(nr_nodes), static_cast<int>(nr_cores));
  const Ints order = machine.order(PinPolicy::kAuto);
  for (size_t begin = 0; begin + 16 <= nr_nodes * nr_cores; begin++) {
    std::map<int, int> of_node;
    std::map<int, int> of_cache;
    for (size_t i = begin; i < begin + 16; i++) {
      of_node[machine.places[static_cast<size_t>(order[i])].node]++;
      of_cache[order[i] / 4]++;
    }
    CHECK(of_node.size() == nr_nodes);
    for (const auto& [node, count] : of_node) CHECK(count == 4);
    CHECK(of_cache.size() == 16);
  }
}

TEST_CASE("512 CPUs on 8 nodes with holes: every policy gives each allowed CPU out once") {
  Machine machine = server(8, 32);
  for (int cpu = 0; cpu < 512; cpu += 7) machine.allowed.remove({cpu});
  Ints all;
  for (CpuId cpu = machine.allowed.first(); cpu.valid(); cpu = machine.allowed.after(cpu)) all.push_back(cpu.value);
  for (PinPolicy policy : {PinPolicy::kAuto, PinPolicy::kCompact, PinPolicy::kScatter}) {
    Ints order = machine.order(policy);
    std::sort(order.begin(), order.end());
    CHECK(order == all);
  }
  // No sibling of a core before the last core.
  size_t nr_cores = 0;
  const Ints order = machine.order(PinPolicy::kAuto, {}, &nr_cores);
  CHECK(nr_cores == 256);  // no core lost both of its CPUs: 256 is no multiple of 7
  std::vector<bool> met(512);
  for (size_t i = 0; i < order.size(); ++i) {
    const auto core = static_cast<size_t>(machine.places[static_cast<size_t>(order[i])].core);
    CHECK(met[core] == (i >= nr_cores));
    met[core] = true;
  }
  // The first eight of scatter are on eight nodes.
  const Ints scattered = machine.order(PinPolicy::kScatter);
  for (size_t i = 0; i < 8; ++i) CHECK(machine.places[static_cast<size_t>(scattered[i])].node == static_cast<int>(i));
}

TEST_CASE("CPU numbers with holes, up to the last one") {
  Machine machine;
  machine.add(3, 3, 0, 0);
  machine.add(4000, 4000, 0, 900);
  machine.add(8191, 4000, 0, 900);
  CHECK(machine.order(PinPolicy::kAuto) == Ints{3, 4000, 8191});
  CHECK(machine.order(PinPolicy::kNode) == Ints{0, 900});
}

TEST_CASE("a core number that makes no sense makes the CPU a core of its own") {
  Machine machine;
  machine.add(0, -1, 0, 0);
  machine.add(1, 5000, 0, 0);
  CHECK(machine.order(PinPolicy::kAuto) == Ints{0, 1});
}

TEST_CASE("a list is given out as written") {
  Machine machine = server(1, 4);
  PinList list;
  list.count = 3;
  list.ranges[0] = {5, 5};
  list.ranges[1] = {0, 2};
  list.ranges[2] = {5, 5};
  CHECK(machine.order(PinPolicy::kList, list) == Ints{5, 0, 1, 2, 5});
  CHECK_FALSE(first_not_allowed(list, machine.allowed).valid());
  machine.allowed.remove({1});
  machine.allowed.remove({5});
  CHECK(first_not_allowed(list, machine.allowed) == CpuId{5});
  list.ranges[0] = {2, 2};
  CHECK(first_not_allowed(list, machine.allowed) == CpuId{1});
}

TEST_CASE("processes of the same number begin with any core, forked children one after another with cores that follow") {
  constexpr size_t kCores = 8;
  size_t times[kCores] = {};
  uint64_t state = 1;
  for (int i = 0; i < 8000; ++i) {
    const uint64_t random[2] = {state *= 0xd1342543de82ef95, state *= 0xd1342543de82ef95};
    const size_t first = first_core(random, 1, kCores);
    REQUIRE(first < kCores);
    ++times[first];
    CHECK(first_core(random, 2, kCores) == (first + 1) % kCores);
  }
  for (size_t core = 0; core < kCores; ++core) CHECK(times[core] == doctest::Approx(1000).epsilon(0.2));
  // Each half counts.
  CHECK(first_core({1, 2}, 1, 1 << 20) != first_core({1, 3}, 1, 1 << 20));
  CHECK(first_core({1, 2}, 1, 1 << 20) != first_core({4, 2}, 1, 1 << 20));
  CHECK(first_core({0, 0}, 7, 1) == 0);
}

TEST_CASE("a CPU counts as shared when its thread waits for it, not when it hardly does") {
  constexpr uint64_t kMs = 1000 * 1000;
  CHECK_FALSE(cpu_is_shared(1000 * kMs, 990 * kMs, 4 * kMs));
  CHECK_FALSE(cpu_is_shared(1000 * kMs, 960 * kMs, 40 * kMs));
  CHECK(cpu_is_shared(1000 * kMs, 500 * kMs, 500 * kMs));
  CHECK(cpu_is_shared(1000 * kMs, 900 * kMs, 60 * kMs));
  CHECK(cpu_is_shared(1000 * kMs, 10 * kMs, 10 * kMs));
  CHECK_FALSE(cpu_is_shared(1000 * kMs, 1 * kMs, 4 * kMs));
  CHECK_FALSE(cpu_is_shared(1000 * kMs, 0, 0));
}

TEST_CASE("threads are skipped by name, by the beginning of a name, and by number") {
  const char* skip = "writer+3+io*";
  CHECK(skips_name(skip, "writer"));
  CHECK(skips_name(skip, "io"));
  CHECK(skips_name(skip, "io-7"));
  CHECK_FALSE(skips_name(skip, "writer2"));
  CHECK_FALSE(skips_name(skip, "write"));
  CHECK_FALSE(skips_name(skip, ""));
  CHECK(skips_number(skip, 3));
  CHECK_FALSE(skips_number(skip, 30));
  CHECK_FALSE(skips_number(skip, 1));
  CHECK_FALSE(skips_name("", ""));
  CHECK_FALSE(skips_name("", "writer"));
  CHECK_FALSE(skips_name("+", ""));
}

TEST_CASE("names are read at each look while threads are few, else in turn, so that a look costs as little") {
  for (uint32_t look = 0; look < 20; ++look) CHECK(name_is_due(7, look, 63));
  for (const uint32_t threads : {64U, 1000U, 5000U}) {
    CAPTURE(threads);
    std::vector<uint32_t> times(threads);
    const uint32_t turns = threads / 64 + 1;
    for (uint32_t look = 100; look < 100 + turns; ++look) {
      uint32_t read = 0;
      for (uint32_t i = 0; i < threads; ++i) {
        if (!name_is_due(i + 1, look, threads)) continue;
        ++times[i];
        ++read;
      }
      CHECK(read <= 64);
    }
    CHECK(std::count(times.begin(), times.end(), 1U) == threads);
  }
}

TEST_CASE("the runtime's own threads and jemalloc's are exempt") {
  CHECK(is_exempt_name("percpu-balance"));
  CHECK(is_exempt_name("jemalloc_bg_thd"));
  CHECK_FALSE(is_exempt_name("percpu"));
  CHECK_FALSE(is_exempt_name("worker"));
}

}  // namespace
}  // namespace percpu::heap
