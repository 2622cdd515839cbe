// SPDX-License-Identifier: MIT
#include "preload/cpu_cache.h"

#include <errno.h>

#include "base/bits.h"
#include "base/check.h"
#include "os/pages.h"

namespace percpu::heap {
namespace {

// All CPUs' budgets together, and the bounds of one: a machine with 2 CPUs gets 2 MiB a CPU, one with 256 gets 256 KiB.
constexpr size_t kAllBudgets = size_t{64} << 20;
constexpr size_t kLeastBudget = 256 * 1024;
constexpr size_t kMostBudget = size_t{2} << 20;
// With more CPUs than this the stacks are shorter, since each takes its memory on each CPU.
constexpr uint32_t kManyCpus = 32;

constexpr size_t kLineBytes = 64;

uint32_t this_cpu() {
#if PERCPU_HAVE_SEQUENCES
  return percpu_arch_cpu_();
#else
  return 0;
#endif
}

}  // namespace

int CpuCache::open(const System& system, size_t budget_bytes) {
  const uint32_t nr_cpus = percpu_nr_cpu_ids();
  size_t area = 0;
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const uint32_t cap = kClasses.info[i].cache_limit;
    limit_cap_[i] = nr_cpus <= kManyCpus || cap <= 32 ? cap : cap / 4 < 32 ? 32 : cap / 4;
    stack_offset_[i] = static_cast<uint32_t>(area);
    area += round_up(PERCPU_STACK_BYTES(size_t{limit_cap_[i]}), kLineBytes);
  }
  area = round_up(area, page_size_bytes());

  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.name = "malloc";
  attr.unit_size = 2 * area;
  attr.dynamic_size = area;
  attr.max_alloc = area;
  attr.first_chunk = PERCPU_FIRST_PAGE;
  attr.balance = PERCPU_BALANCE_OFF;  // one area, which stays
  percpu_pool_t* pool = percpu_pool_create(&attr);
  if (pool == nullptr) return -errno;
  void* handle = percpu_pool_alloc(pool, area, page_size_bytes(), 0);
  PageRange cpus{};
  if (handle == nullptr || reserve(system, round_up(nr_cpus * sizeof(Cpu), page_size_bytes()), page_size_bytes(), &cpus) != 0 ||
      open_range(system, cpus) != 0)
    return -ENOMEM;
  view_ = *reinterpret_cast<const percpu_view*>(pool);
  cpus_ = reinterpret_cast<Cpu*>(cpus.start);  // zero is a valid Cpu
  nr_cpus_ = nr_cpus;
  area_bytes_ = area;
  if (budget_bytes == 0) {
    budget_bytes = kAllBudgets / nr_cpus;
    if (budget_bytes < kLeastBudget) budget_bytes = kLeastBudget;
    if (budget_bytes > kMostBudget) budget_bytes = kMostBudget;
  }
  budget_bytes_ = budget_bytes;
  __atomic_store_n(&base_, reinterpret_cast<uintptr_t>(handle), __ATOMIC_RELEASE);
  return 0;
}

uint32_t CpuCache::demand(uint32_t size_class, BlockSink sink, void* context) {
  if (!is_open()) return 0;
  const uint32_t number = this_cpu();
  Cpu& cpu = cpus_[number];
  if (this_thread_forks() || !cpu.lock.try_lock()) return 0;
  const uint32_t size = kClasses.info[size_class].size_bytes;
  const uint32_t limit = cpu.limit[size_class];
  // It begins small, so that a class that is asked for once costs little, and doubles.
  uint32_t wanted = limit == 0 ? (kClasses.info[size_class].batch + 7) / 8 : 2 * limit;
  if (wanted > limit_cap_[size_class]) wanted = limit_cap_[size_class];
  cpu.asked[size_class] = ++cpu.demand_clock;
  if (wanted > limit) {
    size_t more = size_t{wanted - limit} * size;
    while (cpu.used_bytes + more > budget_bytes_ && evict(number, size_class, sink, context)) {}
    if (cpu.used_bytes + more <= budget_bytes_) {
      cpu.used_bytes += more;
      store_relaxed(&cpu.limit[size_class], wanted);
      set_limit(stack_of(number, size_class), wanted);
    }
  }
  const uint32_t usable = cpu.limit[size_class];
  cpu.lock.unlock();
  return usable;
}

// Frees the room of one class that asked for nothing during the last demands. False where there is none.
bool CpuCache::evict(uint32_t number, uint32_t for_class, BlockSink sink, void* context) {
  Cpu& cpu = cpus_[number];
  uint32_t victim = kNrClasses;
  size_t most = 0;
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const size_t bytes = size_t{cpu.limit[i]} * kClasses.info[i].size_bytes;
    if (i == for_class || cpu.demand_clock - cpu.asked[i] < 16 || bytes <= most) continue;
    most = bytes;
    victim = i;
  }
  if (victim == kNrClasses) return false;
  set_limit(stack_of(number, victim), 0);
  if (percpu_fence(static_cast<int>(number)) != 0) {
    set_limit(stack_of(number, victim), cpu.limit[victim]);
    return false;
  }
  empty(number, victim, sink, context);
  store_relaxed(&cpu.limit[victim], 0u);
  cpu.used_bytes -= most;
  return true;
}

// Closes a CPU's stacks, or opens them again. Those that hold nothing by their limit are not touched: the CPU may be one that
// never runs us, and its copy backed by nothing.
void CpuCache::set_limits(uint32_t number, bool open) {
  if (!exists(number)) return;
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    const uint32_t limit = cpus_[number].limit[i];
    if (limit != 0) set_limit(stack_of(number, i), open ? limit : 0);
  }
}

void CpuCache::empty(uint32_t cpu, uint32_t size_class, BlockSink sink, void* context) {
  percpu_stack* stack = stack_of(cpu, size_class);
  const uint32_t count = stack->count;
  // Before any other thread can own one of the blocks: on_top() must not find it here then.
  __atomic_store_n(&stack->count, 0, __ATOMIC_RELAXED);
  if (count != 0) sink(context, size_class, percpu_stack_slots(stack), count);
}

void CpuCache::age(bool all, BlockSink sink, void* context) {
  if (!is_open()) return;
  for (uint32_t number = 0; number < nr_cpus_; ++number) {
    if (!exists(number)) continue;
    Cpu& cpu = cpus_[number];
    HeapGuard guard(cpu.lock);
    bool used = false;
    bool any = false;
    for (uint32_t i = 0; i < kNrClasses; ++i) {
      if (cpu.limit[i] == 0) continue;
      any = true;
      const uint32_t count = __atomic_load_n(&stack_of(number, i)->count, __ATOMIC_RELAXED);
      used = used || count != cpu.seen[i];
      cpu.seen[i] = count;
    }
    if (!any || (used && !all)) continue;
    set_limits(number, false);
    if (percpu_fence(static_cast<int>(number)) != 0) {
      set_limits(number, true);
      continue;
    }
    for (uint32_t i = 0; i < kNrClasses; ++i) {
      if (cpu.limit[i] == 0) continue;
      empty(number, i, sink, context);
      store_relaxed(&cpu.limit[i], 0u);
    }
    cpu.used_bytes = 0;
  }
}

void CpuCache::sums(uint32_t cpu, Sums* sums) const {
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    sums->blocks[i] = is_open() && exists(cpu) ? __atomic_load_n(&stack_of(cpu, i)->count, __ATOMIC_RELAXED) : 0;
  }
}

// ---- fork ------------------------------------------------------------------------------------------------------------
//
// fork copies pages at different moments: a sequence in between would leave a block on a stack and in a program's hands, or
// on neither. So all stacks are closed and fenced first.

void CpuCache::fork_prepare() {
  if (!is_open()) return;
  for (uint32_t number = 0; number < nr_cpus_; ++number) {
    cpus_[number].lock.lock();
    set_limits(number, false);
  }
  if (percpu_fence(PERCPU_ALL_CPUS) != 0) report("fork: the CPUs' caches cannot be fenced; the child may see some blocks twice");
}

void CpuCache::fork_parent() {
  if (!is_open()) return;
  for (uint32_t number = nr_cpus_; number-- > 0;) {
    set_limits(number, true);
    cpus_[number].lock.unlock();
  }
}

void CpuCache::fork_child() {
  if (!is_open()) return;
  for (uint32_t number = nr_cpus_; number-- > 0;) {
    set_limits(number, true);
    cpus_[number].lock.reset_after_fork_in_child();
  }
}

}  // namespace percpu::heap
