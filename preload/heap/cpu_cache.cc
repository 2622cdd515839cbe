// SPDX-License-Identifier: MIT
#include "preload/heap/cpu_cache.h"

#include <errno.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/bits.h"
#include "base/check.h"
#include "base/errno_kept.h"
#include "base/raw_syscall.h"
#include "os/pages.h"
#include "os/rseq.h"
#include "preload/heap/cache_limits.h"

namespace percpu::heap {

extern "C" {
__thread ThreadCaches thread_caches __attribute__((tls_model("initial-exec"), visibility("hidden"))) = {};
CachePlaces cache_places __attribute__((visibility("hidden"))) = {};
}

namespace {

// The kernel said that it does not know this thread: that holds for its life. (The child of a vfork, which shares this word, does not ask.)
__thread bool not_registered __attribute__((tls_model("initial-exec"))) = false;

// A CPU that may hold no more than this is emptied after so many looks that found it unused, not after one.
constexpr size_t kLittleBytes = 64 * 1024;
constexpr uint32_t kLooksAtLittle = 5;
// A lane that asked for nothing in so many demands of its CPU is idle. To empty one takes a fence, which is a system call:
// where all lanes are in use, none is to be emptied for another.
constexpr int32_t kIdleDemands = 128;
// Where there was no room for a longer stack, nobody tries again for so many demands.
constexpr uint32_t kRefusedDemands = 32;

uint32_t size_of_lane(uint32_t lane) { return kClasses.info[class_of_lane(lane)].size_bytes; }

// Restarts the sequences on that CPU. errno stays as it is: free() comes here.
bool fence(int cpu) {
  const ErrnoKept errno_kept;
  return percpu_fence(cpu) == 0;
}

}  // namespace

Pushed push_lane(uint32_t lane, uint64_t block) {
  return push(cache_places.table, head_of_lane(lane), reinterpret_cast<void*>(block));
}

uint32_t pop_many(uint32_t lane, uint64_t* blocks, uint32_t count) {
  if (count == 0) return 0;
  return static_cast<uint32_t>(pop_up_to(cache_places.table, head_of_lane(lane), blocks, count));
}

uint32_t push_many(uint32_t lane, const uint64_t* blocks, uint32_t count) {
  if (count == 0) return 0;
  return static_cast<uint32_t>(push_up_to(cache_places.table, head_of_lane(lane), blocks, count));
}

// Where everything lies in a CPU's copy. Returns: how long that is, in bytes, whole pages.
size_t CpuCache::lay_out(uint32_t nr_nodes, uint32_t nr_cpus) {
  nr_lanes_ = nr_nodes * kNrClasses;
  const size_t heads = heads_bytes();
  size_t group = 0;
  for (uint32_t i = 0; i < kNrClasses; ++i) {
    limit_cap_[i] = longest_stack(kClasses.info[i], nr_cpus);
    slots_[i] = static_cast<uint32_t>(heads + group + kZeroSlots * sizeof(uint64_t));
    group += round_up((kZeroSlots + size_t{limit_cap_[i]}) * sizeof(uint64_t), kLineBytes);
  }
  group_bytes_ = static_cast<uint32_t>(group);
  kept_bytes_ = round_up(heads, page_size_bytes());
  return round_up(heads + group * nr_nodes, page_size_bytes());
}

// Every size's head, every lane's kind, and every CPU closed.
void CpuCache::fill_table(CacheTable* table) {
  table_ = table;
  for (size_t size = 0; size <= ClassTable::kFine; ++size)
    table_->home_head[size] = static_cast<uint16_t>(head_of_lane(class_of(size)));
  for (size_t size = ClassTable::kFine + 1; size <= kMaxSmallBytes; ++size)
    table_->coarse_head[ClassTable::coarse_index(size)] = static_cast<uint16_t>(head_of_lane(class_of(size)));
  StackHead* closed_heads = reinterpret_cast<StackHead*>(closed_copy_);
  uint64_t* closed_slot = reinterpret_cast<uint64_t*>(closed_copy_ + heads_bytes());
  for (uint32_t lane = 0; lane < nr_lanes_; ++lane) {
    const ClassInfo& info = kClasses.info[class_of_lane(lane)];
    table_->kinds[kKindLane + lane] = {info.inverse, info.size_bytes};
    closed_heads[kKindLane + lane] = {closed_slot + kZeroSlots, closed_slot + kZeroSlots};
  }
  // The kernel's masks have room for whole words: should a CPU turn up that nobody told of, it is a closed one.
  const size_t nr_entries = CacheTable::kNoCpu + round_up<size_t>(nr_cpus_, 64);
  for (size_t i = 0; i < nr_entries; ++i) table_->homes[i] = table_->copies[i] = closed_copy_;
}

int CpuCache::open(const Window& window, size_t budget_bytes, bool unchecked) {
  const System& system = window.system();
  const uint32_t nr_cpus = percpu_machine_cpus_();
  if (nr_cpus == 0) return -ENOMEM;  // the library could not look at the machine
  const size_t area = lay_out(window.nr_nodes(), nr_cpus);

  // Each CPU's records, and the closed copy: one range.
  const size_t lanes_at = round_up(nr_cpus * sizeof(Cpu), page_size_bytes());
  const size_t closed_at = lanes_at + round_up(nr_cpus * sizeof(Lanes), page_size_bytes());
  const size_t bytes = closed_at + round_up(heads_bytes() + kZeroSlots * sizeof(uint64_t), page_size_bytes());
  PageRange own{};
  if (reserve_open(system, bytes, &own) != 0) return -ENOMEM;
  const PageRange table = window.before_map();
  void* handle = nullptr;
  // Bare: most stacks never hold much, and many CPUs never run us.
  percpu_pool_t* pool = open_range(system, table) == 0 ? percpu_pool_create_bare_("malloc", area, &handle) : nullptr;
  if (pool == nullptr) {
    (void)system.mprotect(table.start, table.size_bytes, PROT_READ);  // as it was, and in no books of the kernel's
    (void)unreserve(system, own);
    return -ENOMEM;
  }
  view_ = *reinterpret_cast<const percpu_view*>(pool);
  cpus_ = reinterpret_cast<Cpu*>(own.start);  // zero is a valid Cpu
  lanes_ = reinterpret_cast<Lanes*>(own.start + lanes_at);
  closed_copy_ = own.start + closed_at;
  nr_cpus_ = nr_cpus;
  area_bytes_ = area;
  system_ = &system;
  nr_sharing_ = percpu_allowed_cpus_();
  chosen_bytes_ = budget_bytes_ = budget_of_cpu(budget_bytes, nr_sharing_);
  fill_table(reinterpret_cast<CacheTable*>(table.start));
  cache_places = {window.base(), table_};
  window_bytes_ = window.size_bytes();
  unchecked_ = unchecked;
  // What the first fence does, in time: a process of one thread is known to membarrier at once, one of several after a grace period of the
  // kernel's, some 10 ms, for which a fork would wait with all locks.
  (void)raw_syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0);
  __atomic_store_n(&base_, reinterpret_cast<uintptr_t>(handle), __ATOMIC_RELEASE);
  return 0;
}

void CpuCache::set_home(uint32_t cpu, uint32_t node) {
  HeapGuard guard(cpus_[cpu].lock);
  cpus_[cpu].home = node;
  reopen(cpu);
}

bool CpuCache::attach() {
  if (!is_open() || not_registered) return false;
  not_registered = percpu_thread_registered_() == 0;
  if (not_registered) return false;
  thread_caches.rseq = reinterpret_cast<uintptr_t>(rseq_area());
  __atomic_signal_fence(__ATOMIC_RELEASE);  // a handler that finds a limit finds the area
  (unchecked_ ? thread_caches.unchecked_limit : thread_caches.free_limit) = window_bytes_;
  thread_caches.malloc_limit = ClassTable::kFine + 1;
  return true;
}

uint32_t CpuCache::this_cpu() const {
  const uint32_t cpu = percpu_arch_cpu_();
  return cpu < nr_cpus_ ? cpu : 0;
}

uint32_t CpuCache::asked_cpu() const {
  unsigned cpu = 0;  // by the instruction: tools put functions of their own in front of libc's
  (void)raw_syscall(SYS_getcpu, reinterpret_cast<long>(&cpu), 0, 0);
  return cpu < nr_cpus_ ? cpu : 0;
}

// ---- closing and opening ---------------------------------------------------------------------------------------------

void CpuCache::close(uint32_t cpu) {
  __atomic_store_n(&table_->homes[CacheTable::kNoCpu + cpu], closed_copy_, __ATOMIC_SEQ_CST);
  __atomic_store_n(&table_->copies[CacheTable::kNoCpu + cpu], closed_copy_, __ATOMIC_SEQ_CST);
}

void CpuCache::reopen(uint32_t cpu) {
  if (!cpus_[cpu].in_use) return;
  const uintptr_t copy = copy_of(cpu);
  const uintptr_t home = copy + lane_of(cpus_[cpu].home, 0) * sizeof(StackHead);
  __atomic_store_n(&table_->homes[CacheTable::kNoCpu + cpu], home, __ATOMIC_RELEASE);
  __atomic_store_n(&table_->copies[CacheTable::kNoCpu + cpu], copy, __ATOMIC_RELEASE);
}

// Sets the heads of a CPU that nobody used yet, and opens it.
void CpuCache::begin_use(uint32_t cpu) {
  for (uint32_t lane = 0; lane < nr_lanes_; ++lane) *head_of(cpu, lane) = {slots_of(cpu, lane), slots_of(cpu, lane)};
  __atomic_store_n(&cpus_[cpu].in_use, true, __ATOMIC_RELEASE);
  reopen(cpu);
}

void CpuCache::set_limit(uint32_t cpu, uint32_t lane, uint32_t limit) {
  store_relaxed(&lanes_[cpu].limit[lane], limit);
  __atomic_store_n(&head_of(cpu, lane)->end, slots_of(cpu, lane) + limit, __ATOMIC_RELAXED);
}

void CpuCache::empty(uint32_t cpu, uint32_t lane, BlockSink sink, void* context) {
  const uint32_t blocks = count(cpu, lane);
  uint64_t* slots = slots_of(cpu, lane);
  __atomic_store_n(&head_of(cpu, lane)->top, slots, __ATOMIC_RELAXED);
  set_limit(cpu, lane, 0);
  if (blocks == 0) return;
  __atomic_fetch_add(&work_.taken_blocks, blocks, __ATOMIC_RELAXED);
  sink(context, lane, slots, blocks);
}

// ---- limits ----------------------------------------------------------------------------------------------------------

uint32_t CpuCache::cap_of(const Cpu& cpu, uint32_t lane) const {
  const uint32_t cap = limit_cap_[class_of_lane(lane)];
  if (node_of_lane(lane) == cpu.home) return cap;
  return std::min(cap, longest_foreign_stack(kClasses.info[class_of_lane(lane)], budget_bytes()));
}

// Twice as many blocks as the lane may hold now, as far as it may grow: to its cap, and to the CPU's whole budget.
uint32_t CpuCache::next_limit(const Cpu& cpu, uint32_t lane, uint32_t limit) const {
  const uint32_t cap = cap_of(cpu, lane);
  uint32_t wanted = limit == 0 ? first_limit(kClasses.info[class_of_lane(lane)]) : 2 * limit;
  if (wanted > cap) wanted = cap;
  const size_t budget = budget_bytes();
  const size_t size = size_of_lane(lane);
  return wanted * size <= budget ? wanted : static_cast<uint32_t>(budget / size);
}

// Whether to look for idle lanes again, for so many bytes, would be in vain, most likely.
bool CpuCache::refused_lately(const Cpu& cpu, size_t bytes) {
  const uint32_t clock = load_relaxed(&cpu.refused_clock);
  return clock != 0 && load_relaxed(&cpu.demand_clock) - clock < kRefusedDemands && bytes >= load_relaxed(&cpu.refused_bytes);
}

uint32_t CpuCache::demand(uint32_t lane, BlockSink sink, void* context) {
  const uint32_t number = this_cpu();
  Cpu& cpu = cpus_[number];
  if (!exists(number) || this_thread_forks()) return 0;
  // Not exact, as threads may do this at once: find_idle() knows.
  store_relaxed(&cpu.demand_clock, load_relaxed(&cpu.demand_clock) + 1);
  store_relaxed(&lanes_[number].asked[lane], load_relaxed(&cpu.demand_clock));
  // A lock waits until all that was stored has arrived, and blocks that other CPUs used lately take long.
  const uint32_t known = load_relaxed(&lanes_[number].limit[lane]);
  const uint32_t hoped = next_limit(cpu, lane, known);
  if (load_relaxed(&cpu.in_use) && (hoped <= known || refused_lately(cpu, size_t{hoped - known} * size_of_lane(lane))))
    return is_closed(number) ? 0 : known;
  if (!cpu.lock.try_lock()) return 0;
  if (!cpu.in_use) begin_use(number);
  const uint32_t limit = lanes_[number].limit[lane];
  const uint32_t wanted = next_limit(cpu, lane, limit);
  if (wanted > limit) {
    const size_t more = size_t{wanted - limit} * size_of_lane(lane);
    const size_t budget = budget_bytes();
    while (cpu.used_bytes + more > budget && evict(number, lane, sink, context)) {}
    if (cpu.used_bytes + more <= budget) {
      cpu.used_bytes += more;
      set_limit(number, lane, wanted);
    } else {
      store_relaxed(&cpu.refused_bytes, more);
      store_relaxed(&cpu.refused_clock, load_relaxed(&cpu.demand_clock));
    }
  }
  const uint32_t usable = lanes_[number].limit[lane];
  cpu.lock.unlock();
  return usable;
}

// The lane with the largest limit, in bytes, of those that are idle; kMaxLanes: none. A clock that went back a little, since a
// thread was preempted in demand(), makes none of them idle.
uint32_t CpuCache::find_idle(uint32_t number, uint32_t for_lane) const {
  const Lanes& lanes = lanes_[number];
  uint32_t victim = kMaxLanes;
  size_t most = 0;
  for (uint32_t lane = 0; lane < nr_lanes_; ++lane) {
    const size_t bytes = size_t{lanes.limit[lane]} * size_of_lane(lane);
    const auto since = static_cast<int32_t>(load_relaxed(&cpus_[number].demand_clock) - load_relaxed(&lanes.asked[lane]));
    if (lane == for_lane || since < kIdleDemands || bytes <= most) continue;
    most = bytes;
    victim = lane;
  }
  return victim;
}

// Frees the room of an idle lane. False where there is none.
bool CpuCache::evict(uint32_t number, uint32_t for_lane, BlockSink sink, void* context) {
  Cpu& cpu = cpus_[number];
  const uint32_t victim = find_idle(number, for_lane);
  if (victim == kMaxLanes) return false;
  const size_t bytes = size_t{lanes_[number].limit[victim]} * size_of_lane(victim);
  close(number);
  const bool fenced = fence(static_cast<int>(number));
  if (fenced) {
    empty(number, victim, sink, context);
    cpu.used_bytes -= bytes;
    __atomic_fetch_add(&work_.evicted_lanes, 1, __ATOMIC_RELAXED);
  }
  reopen(number);
  return fenced;
}

bool CpuCache::age(bool all, BlockSink sink, void* context) {
  if (!is_open()) return false;
  bool held = false;
  for (uint32_t number = 0; number < nr_cpus_; ++number) {
    Cpu& cpu = cpus_[number];
    Lanes& lanes = lanes_[number];
    HeapGuard guard(cpu.lock);
    if (!cpu.in_use) continue;
    bool used = false;
    bool any = false;
    for (uint32_t lane = 0; lane < nr_lanes_; ++lane) {
      if (lanes.limit[lane] == 0) continue;
      any = true;
      const uint32_t now = count(number, lane);
      used = used || now != lanes.seen[lane];
      lanes.seen[lane] = now;
    }
    if (!any) continue;
    cpu.unused_looks = used ? 0 : cpu.unused_looks + 1;
    if (!all && cpu.unused_looks < (cpu.used_bytes > kLittleBytes ? 1u : kLooksAtLittle)) {
      held = true;
      continue;
    }
    cpu.unused_looks = 0;
    close(number);
    if (fence(static_cast<int>(number))) {
      for (uint32_t lane = 0; lane < nr_lanes_; ++lane) {
        if (lanes.limit[lane] != 0) empty(number, lane, sink, context);
      }
      cpu.used_bytes = 0;
      store_relaxed(&cpu.refused_clock, uint32_t{0});
      (void)depopulate(*system_, {copy_of(number) + kept_bytes_, area_bytes_ - kept_bytes_});
      __atomic_fetch_add(&work_.emptied_cpus, 1, __ATOMIC_RELAXED);
    }
    reopen(number);
  }
  return held;
}

size_t CpuCache::backed_bytes(uint32_t cpu) const {
  if (!is_used(cpu)) return 0;
  const size_t page = page_size_bytes();
  size_t sum = kept_bytes_;
  size_t counted_to = kept_bytes_;  // offsets in the copy; the slots lie in the order of the lanes
  for (uint32_t lane = 0; lane < nr_lanes_; ++lane) {
    const uint32_t limit = load_relaxed(&lanes_[cpu].limit[lane]);
    if (limit == 0) continue;
    const size_t begin = reinterpret_cast<uintptr_t>(slots_of(cpu, lane)) - copy_of(cpu);
    const size_t end = round_up(begin + limit * sizeof(uint64_t), page);
    const size_t from = begin / page * page > counted_to ? begin / page * page : counted_to;
    if (end <= from) continue;
    sum += end - from;
    counted_to = end;
  }
  return sum;
}

// ---- fork ------------------------------------------------------------------------------------------------------------
//
// fork copies pages at different moments: a sequence in between would leave a block on a stack and in a program's hands, or
// on neither. So all CPUs are closed and fenced first.

void CpuCache::fork_prepare() {
  closed_for_fork_ = is_open();  // they may open while the process forks
  if (!closed_for_fork_) return;
  for (uint32_t number = 0; number < nr_cpus_; ++number) {
    cpus_[number].lock.lock();
    close(number);
  }
  if (fence(PERCPU_ALL_CPUS) || told_of_fork_) return;
  told_of_fork_ = true;  // once a process: its locks are held
  report("fork: the CPUs' caches cannot be fenced; the child may see some blocks twice");
}

void CpuCache::fork_parent() {
  if (!closed_for_fork_) return;
  for (uint32_t number = nr_cpus_; number-- > 0;) {
    reopen(number);
    cpus_[number].lock.unlock();
  }
}

void CpuCache::fork_child() {
  if (!closed_for_fork_) return;
  for (uint32_t number = nr_cpus_; number-- > 0;) {
    reopen(number);
    cpus_[number].lock.reset_after_fork_in_child();
  }
}

}  // namespace percpu::heap
