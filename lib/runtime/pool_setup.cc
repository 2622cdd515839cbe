// SPDX-License-Identifier: MIT
//
// The making of a pool: its layout, its address space, its first chunk.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/check.h"
#include "runtime/pool.h"

namespace percpu {
namespace {

// The address space of a pool where the configuration does not say: plenty for the largest machines, and little beside the
// 128 TiB that a process has.
constexpr uint64_t kDefaultWindowBytes = uint64_t{256} << 30;
// Of a pool that the program makes: there may be many.
constexpr uint64_t kCreatedWindowBytes = uint64_t{64} << 30;

// A list entry numbers the fragments of a pool in 32 bits, 0 excepted (Pool::push()).
constexpr uint64_t kMaxFragments = UINT32_MAX;

// Under strict overcommit the state of each chunk that may ever be counts against the machine's limit: fewer, then.
constexpr uint64_t kStrictMaxChunks = 2048;

// Where address space or commit charge is scarce, a pool takes at least as many chunks as this, if there is room for them.
constexpr uint64_t kScarceMinChunks = 8;

constexpr size_t kPrintBytes = 16384;

unsigned distance_of(const void* context, CpuId from, CpuId to) {
  const auto& topology = *static_cast<const Topology*>(context);
  return topology.distance(topology.node_of_cpu(from), topology.node_of_cpu(to));
}

// Writes the layout to stderr and stops: what is wrong with it can only be a bug or a machine beyond what we know.
[[noreturn]] void insane(const Layout* layout, const LayoutProblem& problem) {
  if (layout != nullptr) {
    char buffer[kPrintBytes];
    Text text(buffer, sizeof buffer);
    print_layout(*layout, text);
    report_raw(buffer, std::min(text.needed_bytes(), sizeof buffer - 1));
  }
  fatal("layout: %s: expected %lu, found %lu", problem.what, problem.expected, problem.found);
}

}  // namespace

Pool::Pool(const Environment& environment, const PoolSetup& setup) : environment_(environment) {
  // Messages that name the pool are one line.
  const auto visible = [](char c) { return (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) ? '?' : c; };
  std::transform(setup.name, setup.name + std::min(std::strlen(setup.name), kPoolNameBytes - 1), name_, visible);
  balance_mode_ = setup.balance;
}

// The object and all its tables share one mapping:  | Pool | node ids | layout | tables of UnitMemory |
int Pool::create(const Environment& environment, const PoolSetup& setup, Pool** pool) {
  CpuMask possible = environment.topology->possible;
  for (uint32_t cpu = 0; cpu < setup.nr_cpus; cpu++) possible.add(CpuId{static_cast<int32_t>(cpu)});
  const uint32_t nr_cpu_ids = std::max(setup.nr_cpus, environment.topology->nr_cpu_ids);
  const size_t layout_bytes = round_up<size_t>(layout_storage_bytes(possible), 64);
  const size_t nodes_at = round_up<size_t>(sizeof(Pool), 64);
  const size_t layout_at = round_up<size_t>(nodes_at + nr_cpu_ids * sizeof(int16_t), 64);
  const size_t home_bytes =
      round_up<size_t>(layout_at + layout_bytes + UnitMemory::largest_table_bytes(nr_cpu_ids), page_size_bytes());
  const intptr_t home = environment.system->mmap(0, home_bytes, PROT_READ | PROT_WRITE, 0);
  if (home < 0) return -ENOMEM;
  char* memory = reinterpret_cast<char*>(home);
  Pool* made = new (memory) Pool(environment, setup);
  PERCPU_CHECK(static_cast<void*>(&made->view_) == made, "expected a pool to begin with its view, found that at +%td",
               reinterpret_cast<char*>(&made->view_) - memory);
  made->home_bytes_ = home_bytes;
  made->topology_ = *environment.topology;
  made->topology_.possible = possible;
  made->topology_.nr_cpu_ids = nr_cpu_ids;
  made->topology_.node_ids = reinterpret_cast<int16_t*>(memory + nodes_at);
  made->fill_nodes(*environment.topology);
  const int result = made->set_up(setup, memory + layout_at, layout_bytes);
  if (result != 0) {
    (void)environment.system->munmap(static_cast<uintptr_t>(home), home_bytes);
    return result;
  }
  *pool = made;
  return 0;
}

// CPUs that the machine does not have are put on its lowest node with memory.
void Pool::fill_nodes(const Topology& machine) {
  for (uint32_t cpu = 0; cpu < topology_.nr_cpu_ids; cpu++) {
    const CpuId id{static_cast<int32_t>(cpu)};
    const NodeId node = machine.possible.has(id) ? machine.node_of_cpu(id) : machine.memory_nodes.first();
    topology_.node_ids[cpu] = static_cast<int16_t>(topology_.possible.has(id) ? node.value : -1);
  }
}

int Pool::set_up(const PoolSetup& setup, void* layout_storage, size_t layout_bytes) {
  LayoutInput input;
  input.possible = &topology_.possible;
  input.distance = topology_.nr_node_ids > 1 ? distance_of : nullptr;
  input.distance_context = &topology_;
  // The front cache is a static variable of ours, behind the program's. Only the thread empties it in time.
  const bool wants_front = balance_mode_ == BalanceMode::kThread && process_has_rseq();
  const bool wide = topology_.possible.count() > FrontCache::kWideCopies;
  const size_t front_at = round_up<size_t>(setup.static_bytes, FrontCache::kAlignBytes);
  input.static_size_bytes = wants_front ? front_at + FrontCache::size_bytes(wide) : setup.static_bytes;
  input.reserved_size_bytes = setup.reserved_bytes;
  input.dynamic_size_bytes = setup.dynamic_bytes;
  input.min_unit_size_bytes = setup.unit_size_bytes;
  input.page_size_bytes = page_size_bytes();
  input.huge_page_size_bytes = environment_.huge_page_bytes;
  input.transparent_huge_pages = environment_.huge_pages;
  input.first_chunk = setup.first_chunk;
  LayoutProblem problem = build_layout(input, layout_storage, layout_bytes, &layout_);
  if (!problem) problem = check_layout(*layout_, topology_.possible);
  if (problem) insane(layout_, problem);
  const int result = make_memory(setup, static_cast<char*>(layout_storage) + layout_bytes);
  if (result == 0 && wants_front) {
    front_.open(view_, memory_.base() + front_at, memory_.hot_offsets(), memory_.nr_hot(), memory_.nr_real_copies(), wide);
    if (front_.is_open() && !wide) shelves_.open(*environment_.system);
  }
  return result;
}

// How many chunks there is address space for is found by trying: limits on address space and strict overcommit are not
// told beforehand. Each refusal halves the wish; once something fits, a quarter of it is taken, or kScarceMinChunks: the program
// needs most of what is scarce.
int Pool::make_memory(const PoolSetup& setup, void* tables) {
  const size_t unit_bytes = layout_->unit_size_bytes();
  const uint64_t otherwise = setup.is_default ? kDefaultWindowBytes : kCreatedWindowBytes;
  const uint64_t window = environment_.config->window_bytes != 0 ? environment_.config->window_bytes : otherwise;
  uint64_t max_chunks = std::max<uint64_t>(1, max_chunks_in(*layout_, window));
  if (setup.max_bytes != 0) max_chunks = std::min(max_chunks, std::max<uint64_t>(1, setup.max_bytes / unit_bytes));
  max_chunks = std::min({max_chunks, kMaxFragments / (unit_bytes / kFragmentBytes) - 1, uint64_t{kMaxChunks}});
  if (environment_.strict_overcommit) max_chunks = std::min(max_chunks, kStrictMaxChunks);
  PoolShape shape;
  shape.unit_size_bytes = static_cast<uint32_t>(unit_bytes);
  shape.page_size_bytes = static_cast<uint32_t>(page_size_bytes());
  shape.static_bytes = static_cast<uint32_t>(layout_->static_size_bytes());
  shape.reserved_bytes = static_cast<uint32_t>(layout_->reserved_size_bytes());
  shape.dynamic_bytes = static_cast<uint32_t>(layout_->dynamic_size_bytes());
  shape.empty_low_pages = environment_.config->empty_low_pages;
  shape.empty_high_pages = environment_.config->empty_high_pages;
  int result = -ENOMEM;
  bool scarce = false;
  while (max_chunks != 0) {
    shape.max_chunks = static_cast<uint32_t>(max_chunks);
    if (const char* refusal = PoolCore::refusal(shape); refusal != nullptr) {
      report("pool '%s': %s", name_, refusal);
      return -EINVAL;
    }
    const UnitMemory::Plan plan{layout_, &topology_, shape.max_chunks, PoolCore::storage_bytes(shape), setup.bare};
    result = memory_.create(*environment_.system, plan, tables);
    if (result != 0) {
      scarce = true;
      max_chunks /= 2;
      continue;
    }
    if (!scarce || max_chunks <= kScarceMinChunks) break;
    memory_.destroy();
    scarce = false;
    max_chunks = std::max(max_chunks / 4, kScarceMinChunks);
  }
  if (result != 0) return -ENOMEM;
  result = memory_.open_first_chunk();
  if (memory_.bind_error() != 0) environment_.warnings->unbound("mbind", memory_.bind_error());
  if (result != 0) {
    memory_.destroy();
    return -ENOMEM;
  }
  core_ = PoolCore::create(memory_.core_state(), shape);
  marks_ = core_->marks();
  has_reserved_ = shape.reserved_bytes != 0;
  dynamic_begin_ = shape.static_bytes + shape.reserved_bytes;
  first_dynamic_ = memory_.base() + dynamic_begin_;
  const size_t largest = setup.max_alloc_bytes != 0 ? setup.max_alloc_bytes : unit_bytes;
  max_alloc_bytes_ = std::min(largest, unit_bytes) / kFragmentBytes * kFragmentBytes;  // as sizes are rounded up
  view_ = {memory_.offsets(), memory_.nr_cpu_ids(), memory_.nr_copies()};
  return 0;
}

// Nobody uses the pool any more, so its stacks may be emptied without a fence: freed areas of a wide pool are charged still.
void Pool::destroy() {
  if (front_.wide()) {
    SleepMutexGuard guard(grow_lock_);
    front_.stop();
    drain_stopped();
  }
  memory_.destroy();
  const System& system = *environment_.system;
  shelves_.close(system);
  const size_t home_bytes = home_bytes_;
  this->~Pool();
  (void)system.munmap(reinterpret_cast<uintptr_t>(this), home_bytes);
}

}  // namespace percpu
