// SPDX-License-Identifier: MIT
//
// The topology reader over any machine: files with any contents, files that cannot be opened or read, an affinity mask of any
// bits, a libnuma that answers anything. It finds at least one CPU and one node, a mask of allowed CPUs that is a part of the
// possible ones and not empty, and nodes and distances within their bounds; and of such a topology a layout can be made.
#include <cerrno>
#include <cstring>
#include <string>

#include "core/layout.h"
#include "fuzz.h"
#include "os/topology.h"

std::vector<std::string_view> fuzz_seeds() {
  return {std::string_view("\0\0\0\3\0\0\0\0" "0-3,8,10-11\n", 20), std::string_view("\1\2\3\4\5\6\7\10" "0-8191\n", 15),
          std::string_view("\0\0\0\0\0\0\0\0" "5-5\n", 12)};
}

namespace {

using namespace percpu;

// The machine of one input.
struct Machine {
  std::string_view file;
  size_t read_bytes = 0;
  uint8_t piece = 1;        // bytes a read gives
  int open_error = 0;
  int read_error = 0;
  int affinity_error = 0;
  uint64_t affinity[4] = {};
  uint8_t numbers[16] = {};
} machine;

int fake_open(const char*) {
  machine.read_bytes = 0;
  return machine.open_error != 0 ? -machine.open_error : 100;
}
ssize_t fake_read(int, void* buffer, size_t size_bytes) {
  if (machine.read_error != 0) return -machine.read_error;
  size_t bytes = machine.file.size() - machine.read_bytes;
  if (bytes > size_bytes) bytes = size_bytes;
  if (bytes > machine.piece) bytes = machine.piece;
  if (bytes != 0) std::memcpy(buffer, machine.file.data() + machine.read_bytes, bytes);
  machine.read_bytes += bytes;
  return static_cast<ssize_t>(bytes);
}
int fake_close(int) { return 0; }
int fake_getaffinity(pid_t, size_t mask_bytes, void* mask) {
  if (machine.affinity_error != 0) return -machine.affinity_error;
  std::memset(mask, 0, mask_bytes);
  const size_t bytes = mask_bytes < sizeof machine.affinity ? mask_bytes : sizeof machine.affinity;
  std::memcpy(mask, machine.affinity, bytes);
  return static_cast<int>(bytes);
}

bool numa_available() { return machine.numbers[0] % 4 != 0; }
int numa_max_node() { return machine.numbers[1] % 8 == 0 ? -1 : machine.numbers[1] % 40; }
bool numa_has_memory(int node) { return (machine.numbers[2] >> (static_cast<unsigned>(node) % 8) & 1) != 0; }
int numa_distance(int from, int to) { return machine.numbers[(static_cast<unsigned>(from) * 7 + static_cast<unsigned>(to)) % 16]; }

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size_bytes) {
  fuzz::Decisions decide(data, size_bytes);
  machine = {};
  constexpr int kErrors[] = {0, 0, 0, ENOENT, EACCES, EMFILE, EIO, EINTR};
  const uint8_t errors = decide.byte();
  machine.open_error = kErrors[errors % 8];
  machine.read_error = kErrors[errors / 8 % 8];
  machine.affinity_error = errors / 64 == 3 ? EPERM : 0;
  machine.piece = static_cast<uint8_t>(1 + decide.byte());
  for (uint64_t& word : machine.affinity) word = decide.byte() % 3 == 0 ? 0 : decide.word();
  for (uint8_t& number : machine.numbers) number = decide.byte();
  machine.file = decide.rest();

  System system = real_system();
  system.open = fake_open;
  system.read = fake_read;
  system.close = fake_close;
  system.sched_getaffinity = fake_getaffinity;
  const NumaSource numa{numa_available, numa_max_node, numa_has_memory, numa_distance};

  static Topology topology;
  topology = {};
  const TopologySize size = measure_topology(system, numa, &topology);
  FUZZ_EXPECT(size.nr_cpu_ids >= 1 && size.nr_cpu_ids <= kMaxCpus);
  FUZZ_EXPECT(size.nr_node_ids >= 1 && size.nr_node_ids <= kMaxNodes);
  std::vector<uint64_t> storage((topology_storage_bytes(size) + 7) / 8);
  read_topology(system, numa, storage.data(), &topology);
  FUZZ_EXPECT(topology.nr_cpu_ids == size.nr_cpu_ids && topology.nr_node_ids == size.nr_node_ids);
  FUZZ_EXPECT(topology.allowed.first().valid() && topology.possible.first().valid());
  FUZZ_EXPECT(topology.memory_nodes.first().valid());
  for (CpuId cpu = topology.allowed.first(); cpu.valid(); cpu = topology.allowed.after(cpu)) FUZZ_EXPECT(topology.possible.has(cpu));
  for (CpuId cpu = topology.possible.first(); cpu.valid(); cpu = topology.possible.after(cpu)) {
    FUZZ_EXPECT(cpu.value < static_cast<int>(topology.nr_cpu_ids));
    const NodeId node = topology.node_of_cpu(cpu);
    FUZZ_EXPECT(node.value >= 0 && node.value < static_cast<int>(topology.nr_node_ids));
    const NodeId memory = topology.nearest_memory_node(node);
    FUZZ_EXPECT(topology.memory_nodes.has(memory));
  }
  return 0;
}
