// SPDX-License-Identifier: MIT
// Under the preload: what malloc gives on a CPU lies on that CPU's node (or, where that has no memory, on the nearest that has),
// page by page, also when the blocks were freed on another CPU meanwhile.
//
// usage: heap_placement [late]      (late: CPUs that are offline when the program starts are brought online by it)
#include <cstring>

#include "../as_told.h"
#include "hotplug.h"

namespace {

struct Found {
  uint64_t pages = 0, wrong = 0, absent = 0;
};

void look_at(const lab::Nodes &nodes, int cpu, const void *block, size_t size_bytes, Found *found) {
  for (const int backing : lab::nodes_of_pages(block, size_bytes)) {
    ++found->pages;
    if (backing < 0) ++found->absent;
    if (backing >= 0 && nodes.right_for(cpu, backing)) continue;
    if (++found->wrong <= 20)
      std::printf("CPU %d, block of %zu bytes at %p: expected its pages on node %s, found one on %d\n", cpu, size_bytes, block,
                  nodes.expected(cpu).c_str(), backing);
  }
}

constexpr size_t kSizes[] = {16, 48, 100, 700, 4000, 20000, 32768, 100000, 3000000};

// Blocks of all sizes, made on that CPU: about 100 KiB of each size at least.
std::vector<void *> allocate_on(const lab::Nodes &nodes, int cpu, Found *found) {
  std::vector<void *> blocks;
  lab::go_to(cpu);
  for (const size_t size_bytes : kSizes) {
    for (size_t i = 0; i < 1 + 100000 / size_bytes; ++i) {
      void *block = std::malloc(size_bytes);
      std::memset(block, 1, size_bytes);
      blocks.push_back(block);
      look_at(nodes, cpu, block, size_bytes, found);
    }
  }
  return blocks;
}

}  // namespace

int main(int argc, char **argv) {
  expect_preload();
  const lab::Nodes nodes = lab::read_nodes();
  const std::vector<int> late = argc > 1 && std::strcmp(argv[1], "late") == 0 ? lab::offline_cpus() : std::vector<int>();
  for (int cpu : late)
    if (!lab::set_online(cpu, true)) return 1;
  std::vector<int> cpus;
  for (const auto &[cpu, node] : nodes.of_cpu_)
    if (lab::is_allowed(cpu)) cpus.push_back(cpu);
  Found found;
  for (int round = 0; round < 3; ++round) {
    std::vector<std::vector<void *>> blocks;
    for (int cpu : cpus) blocks.push_back(allocate_on(nodes, cpu, &found));
    // Freed elsewhere: round 0 half the CPUs away, then on the next, then on the same.
    for (size_t i = 0; i < cpus.size(); ++i) {
      const size_t away = round == 0 ? cpus.size() / 2 : round == 1 ? 1 : 0;
      lab::go_to(cpus[(i + away) % cpus.size()]);
      for (void *block : blocks[i]) std::free(block);
    }
  }
  lab::go_anywhere();
  for (int cpu : late) lab::set_online(cpu, false);
  std::printf("lab: %lu pages of blocks on %zu CPUs, %lu on a wrong node\n", static_cast<unsigned long>(found.pages), cpus.size(),
              static_cast<unsigned long>(found.wrong));
  return found.wrong == 0 && found.pages > 0 ? 0 : 1;
}
