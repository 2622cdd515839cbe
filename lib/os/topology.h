// SPDX-License-Identifier: MIT
//
// What the machine looks like: which CPUs can ever exist, which the process may use, the node of each, how far the nodes
// are from each other, and which have memory. CPUs come from sysfs, nodes from libnuma. Read once, then constant.
//
// The struct is plain data with storage handed in, so that a test can write any topology down. Ids may be sparse and
// distances asymmetric. Where the machine does not tell, the answer is what keeps every user of it safe:
//   - a CPU of unknown node (absent: the machine may get it later) is put on the lowest node with memory;
//   - a distance from a node to itself is kLocalDistance whatever the firmware says, an unknown one kUnknownDistance;
//   - where the kernel refuses to tell of its nodes, the machine is one node, and nodes_error says so if there are several;
//   - a memory node is one that has memory and that the process may use (cpuset); if there is none, node 0 counts as one;
//   - without a list of possible CPUs (no /sys, a sandbox), those online, or else those in the affinity mask, are taken,
//     and all numbers for which the kernel's own masks have room besides: each of them may turn up as a CPU number later,
//     and must then find a place in the tables. They cost address space only. So they are where that list lacks a CPU which
//     the process may use.
#ifndef PERCPU_OS_TOPOLOGY_H
#define PERCPU_OS_TOPOLOGY_H

#include <cstddef>
#include <cstdint>

#include "base/cpu_mask.h"
#include "base/ids.h"
#include "os/system.h"

namespace percpu {

inline constexpr uint8_t kLocalDistance = 10;     // Linux's and ACPI's unit: 10 is local, 20 twice as far
inline constexpr uint8_t kUnknownDistance = 254;  // as ACPI's largest reachable one

// Where the list of possible CPUs came from.
enum class CpuSource : uint8_t { kPossible, kOnline, kAffinity, kNone };

struct Topology {
  uint32_t nr_cpu_ids = 0;   // highest possible CPU + 1
  uint32_t nr_node_ids = 0;  // highest node + 1
  CpuSource source = CpuSource::kNone;
  int nodes_error = 0;       // -errno of the system call whose refusal hides that there are several nodes
  CpuMask possible;
  CpuMask allowed;            // of the process: a subset of `possible`, not empty
  NodeMask memory_nodes;      // not empty
  int16_t* node_ids = nullptr;   // [nr_cpu_ids]; -1 in holes
  uint8_t* distances = nullptr;  // [nr_node_ids * nr_node_ids], from * nr_node_ids + to

  // The node that the CPU is on (it need not have memory); invalid for a CPU that is not possible.
  NodeId node_of_cpu(CpuId cpu) const;

  // How far `to`'s memory is, seen from `from`.
  uint8_t distance(NodeId from, NodeId to) const;

  // The node itself if it has memory, else the nearest as seen from it; of equally near ones the lowest.
  NodeId nearest_memory_node(NodeId node) const;

  // Where the memory of this CPU should come from: kNoNode (invalid) when there is no choice to be made, so that callers
  // can hand it to bind() as it is.
  NodeId memory_node_of_cpu(CpuId cpu) const;

  bool one_memory_node() const { return memory_nodes.after(memory_nodes.first()) == NodeId{}; }
};

// A list such as "0-3,8,10-11", read a character at a time. Strict: ascending numbers, no empty part, no blanks, one
// newline at most, at the end; not empty.
class CpuListParser {
 public:
  explicit CpuListParser(CpuMask* mask) : mask_(mask) { *mask = {}; }

  // Returns: false once an error was found; then error() says which.
  bool feed(const char* chars, size_t len_bytes);
  // The text is complete. Returns: whether it was a list.
  [[nodiscard]] bool finish();

  // What was wrong, in words, null if nothing was; and how many characters were read before it.
  const char* error() const { return error_; }
  size_t error_at() const { return at_; }

 private:
  enum class State : uint8_t { kBeforeFirst, kFirst, kBeforeLast, kLast, kEnded };

  bool feed_one(char c);
  bool add_digit(char c, int32_t* number);
  bool close_range();
  bool fail(const char* error);

  CpuMask* mask_;
  State state_ = State::kBeforeFirst;
  int32_t first_ = 0;
  int32_t last_ = 0;
  int32_t lowest_allowed_ = 0;
  size_t at_ = 0;
  const char* error_ = nullptr;
};

// The same over a whole text. Returns: null, or what was wrong.
[[nodiscard]] const char* parse_cpu_list(const char* chars, size_t len_bytes, CpuMask* mask);

// What libnuma is asked. A table, so that tests can be any machine. (Not which CPUs a node has: libnuma ends the process where it finds
// no memory for the answer. sysfs tells that, and needs none.)
struct NumaSource {
  bool (*available)();
  int (*max_node)();
  bool (*has_memory)(int node);
  int (*distance)(int from, int to);  // 0: unknown
};
// Context: not in a signal handler; libnuma allocates, reads files, and may write a warning to stderr.
const NumaSource& libnuma_source();

// How large the topology is. First this, then storage of topology_storage_bytes(), then read_topology().
struct TopologySize {
  uint32_t nr_cpu_ids = 0;
  uint32_t nr_node_ids = 0;
};
// Fills in what system calls tell (source, nodes_error, possible, allowed), and the size. Always finds at least one CPU and
// one node; more than kMaxCpus or kMaxNodes is a list that cannot be read. at_load: what was allowed before the program bound threads.
TopologySize measure_topology(const System& system, const NumaSource& numa, Topology* topology, const CpuMask& at_load = {});

// Bytes for node_ids and distances, to be aligned to 8.
size_t topology_storage_bytes(TopologySize size);

// Fills in the rest, after measure_topology() on the same `topology`.
void read_topology(const System& system, const NumaSource& numa, void* storage, Topology* topology);

// The CPUs that the process may run on: the affinity of its main thread and of the calling one together.
// Returns: 0, or -errno and an empty mask when the kernel tells neither. *kernel_bits (if not null): how many CPUs the
// kernel's masks have room for.
[[nodiscard]] int read_allowed_cpus(const System& system, CpuMask* allowed, size_t* kernel_bits);

// Reads a file that holds a CPU list. Returns: 0, -errno of open or read, or -EINVAL if it isn't a list that fits.
[[nodiscard]] int read_cpu_list(const System& system, const char* path, CpuMask* mask);

}  // namespace percpu

#endif  // PERCPU_OS_TOPOLOGY_H
