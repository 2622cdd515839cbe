// SPDX-License-Identifier: MIT
//
// The topology reader over any machine: files with any contents, files that cannot be opened or read, an affinity mask of any
// bits, a libnuma that answers anything. It finds at least one CPU and one node, a mask of allowed CPUs that is a part of the
// possible ones and not empty, and nodes and distances within their bounds; and of such a topology a layout can be made, with either kind
// of first chunk.
#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <string>

#include "core/layout.h"
#include "fuzz.h"
#include "os/topology.h"

// Errors, and bytes a read; four words of affinity, each behind a byte that says whether there is one; sixteen numbers: whether there is a
// libnuma, its highest node, the nodes with memory, and with these all distances; the list of CPUs, and those of the nodes. In the
// machine of many CPUs nodes 0 and 1 are local to each other, and 1 and 2, but not 0 and 2.
std::vector<std::string_view> fuzz_seeds() {
  static constexpr char kNodes[] =
      "\0\20" "\1\0\0\15\17" "\0\0\0" "\1\3\377\24\25\37\12\24" "\24\37\25\12\24\24\37\37" "0-3,8,10-11\n;0-1\n;2-3\n;8\n;10-11\n";
  static constexpr char kMostCpus[] =
      "\0\20" "\1\0\0\0\377" "\0\0\0" "\1\5\377\24\24\24\24\12" "\24\12\24\24\24\24\24\12" "0-8191\n;0-4095\n;5004-8190\n;4096-5003";
  static constexpr char kOneCpu[] = "\0\0" "\1\0\0\0\40" "\0\0\0" "\0\0\0\0\0\0\0\0" "\0\0\0\0\0\0\0\0" "5\n";
  return {{kNodes, sizeof kNodes - 1}, {kMostCpus, sizeof kMostCpus - 1}, {kOneCpu, sizeof kOneCpu - 1}};
}

namespace {

using namespace percpu;

// The machine of one input.
struct Machine {
  std::string_view files;   // separated by ';'
  std::string_view file;    // the one that is open
  size_t read_bytes = 0;
  uint8_t piece = 1;        // bytes a read gives
  int open_error = 0;
  int read_error = 0;
  int affinity_error = 0;
  uint64_t affinity[4] = {};
  uint8_t numbers[16] = {};
} machine;

// The first file is what every path leads to, but for those of the nodes: each has one of the next.
int fake_open(const char* path) {
  if (machine.open_error != 0) return -machine.open_error;
  machine.read_bytes = 0;
  int node = -1;
  (void)sscanf(path, "/sys/devices/system/node/node%d", &node);
  std::string_view rest = machine.files;
  for (; node >= 0; --node) {
    const size_t end = rest.find(';');
    if (end == std::string_view::npos) return -ENOENT;
    rest.remove_prefix(end + 1);
  }
  machine.file = rest.substr(0, rest.find(';'));
  return 100;
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

unsigned distance_of(const void* context, CpuId from, CpuId to) {
  const auto& topology = *static_cast<const Topology*>(context);
  return topology.distance(topology.node_of_cpu(from), topology.node_of_cpu(to));
}

// As a pool makes its own, in the default configuration.
void lay_out(const Topology& topology, FirstChunk first_chunk) {
  LayoutInput input;
  input.possible = &topology.possible;
  input.distance = distance_of;
  input.distance_context = &topology;
  input.reserved_size_bytes = size_t{8} << 10;
  input.dynamic_size_bytes = size_t{28} << 10;
  input.min_unit_size_bytes = size_t{128} << 10;
  input.page_size_bytes = 4096;
  input.huge_page_size_bytes = size_t{2} << 20;
  input.transparent_huge_pages = true;
  input.first_chunk = first_chunk;
  std::vector<uint64_t> storage((layout_storage_bytes(topology.possible) + 7) / 8);
  const Layout* layout = nullptr;
  LayoutProblem problem = build_layout(input, storage.data(), storage.size() * 8, &layout);
  if (!problem) problem = check_layout(*layout, topology.possible);
  if (!problem) return;
  fprintf(stderr, "layout: %s: expected %llu, found %llu\n", problem.what, static_cast<unsigned long long>(problem.expected),
          static_cast<unsigned long long>(problem.found));
  abort();
}

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
  machine.files = decide.rest();

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
  for (const FirstChunk first_chunk : {FirstChunk::kEmbed, FirstChunk::kPage}) lay_out(topology, first_chunk);
  return 0;
}
