// SPDX-License-Identifier: MIT
//
// One allocator: its locks, its way of allocating and freeing, and its rounds of balance. What is where in the pool's
// address space is unit_memory.h's business; which area is taken next is core/pool_core.h's. lib/README.md tells the way of
// one allocation and of one free. Its functions are in pool.cc (allocation), pool_free.cc, pool_cached.cc (front caches),
// pool_fast.h (what is inline of these), pool_balance.cc, pool_setup.cc, and pool_stats.cc (questions, and the check of all of it).
//
// Invariants:
//   a page that core_ counts as populated is backed in every hot copy
//   an area that core_ holds and whose live mark is clear is in exactly one place: in the hands of a thread that allocates or
//   frees it, in a front cache, on a shelf, or on one of the lists pending_, grace_pending_ and grace_batch_
//   a bit of state_ that says that work is due is cleared by who then does that work
// Locking: grow_lock_ (3) before map_lock_ (4). map_lock_ is taken through lock_map() and unlock_map() only, which keep
// count per thread, so that a signal handler knows exactly whether it interrupted a holder, and which empty the list of
// pending frees after every unlock.
#ifndef PERCPU_RUNTIME_POOL_H
#define PERCPU_RUNTIME_POOL_H

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/annotations.h"
#include "core/balance_plan.h"
#include "core/config.h"
#include "core/pool_core.h"
#include "os/mutex.h"
#include "os/rseq.h"
#include "os/system.h"
#include "os/topology.h"
#include "percpu.h"
#include "runtime/accounting.h"
#include "runtime/balancer.h"
#include "runtime/front_cache.h"
#include "runtime/grace.h"
#include "runtime/shelf.h"
#include "runtime/unit_memory.h"
#include "runtime/warn.h"

namespace percpu {

// What a pool has in common with the others of the process. All of it outlives every pool.
struct Environment {
  const System* system;
  const Config* config;
  const Topology* topology;
  Accounting* accounting;
  Grace* grace;
  Fence* fence;
  Balancer* balancer;
  Warnings* warnings;
  bool huge_pages;         // transparent huge pages can be had
  bool strict_overcommit;  // every writable page counts against the machine's commit limit
  size_t huge_page_bytes;
};

// What a pool is made of; every member has a value.
struct PoolSetup {
  const char* name;
  bool is_default;
  size_t unit_size_bytes;  // the least
  size_t static_bytes;
  size_t reserved_bytes;
  size_t dynamic_bytes;
  size_t max_alloc_bytes;  // 0: the unit size, at least 32 KiB
  size_t max_bytes;        // of chunks, a CPU; 0: no limit
  uint32_t nr_cpus;        // at least so many CPUs, whatever the machine has
  BalanceMode balance;
  FirstChunk first_chunk;
  bool bare;  // a page of a copy is memory once it is written to, not before
};

inline constexpr size_t kPoolNameBytes = 32;

// Counters that neither core_ nor the front caches keep.
struct PoolCounters {
  uint64_t nr_allocs = 0;  // that the front caches did not serve
  uint64_t nr_taken = 0, nr_peak_taken = 0, taken_bytes = 0;  // areas in the maps, those in front caches included
  uint64_t min_request = 0, max_request = 0;
  uint64_t nr_balance_rounds = 0, nr_chunks_created = 0, nr_chunks_destroyed = 0;
  uint64_t nr_pages_populated = 0, nr_pages_depopulated = 0;
};

// Where a walk over a pool's chunks is: first the reserved part, then the chunks in the order of their numbers.
struct ChunkCursor {
  bool past_reserved = false;
  uint32_t next_chunk = 0;
};

class Pool {
 public:
  // Makes a pool in memory of its own. Returns 0, -ENOMEM whatever the system said, or -EINVAL (a setup that makes no pool;
  // a line says why). Stops the program where the layout is not sane.
  [[nodiscard]] static int create(const Environment& environment, const PoolSetup& setup, Pool** pool);
  // Gives all of it back. Requires: nobody uses it, and it is in no list.
  void destroy();

  // ---- areas ----------------------------------------------------------------------------------------------------

  // What is illegal about a request, as a literal, and how much it might have asked for where that is it; null where nothing is.
  struct Refusal {
    const char* reason;
    size_t most;
  };
  static Refusal refusal(size_t size_bytes, size_t align_bytes, unsigned flags, size_t max_alloc_bytes, size_t page_bytes);
  // As percpu_alloc_flags(); `domain` is what to charge. Returns null and -errno in *error. Most calls of the next two need
  // no more than the front cache, and are served inline (pool_fast.h).
  void* allocate(size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error);
  void free(void* handle, const char* call = "percpu_free");  // `call`: who is named where the handle is none
  // The inline part of allocate(): null where that is not all. And the whole of it.
  void* allocate_fast(size_t size_bytes, size_t align_bytes, unsigned flags);
  void* allocate_slow(size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error);
  void free_after_grace(void* handle, const char* call = "percpu_free_rcu");
  // The same for an area of a module's static variables, which free() refuses: null where none is to be had. Neither starts the
  // balance thread, nor calls into libc otherwise: the next call that may does. Context: may block; may hold Statics::lock_.
  void* allocate_statics(size_t size_bytes, size_t align_bytes);
  void free_statics(void* handle);
  // 0 where the handle is not the start of a live area. Lock-free.
  size_t area_size(const void* handle) const;
  void write_copies(uintptr_t handle, const void* image, size_t size_bytes) const {
    memory_.write_copies(handle, image, size_bytes);
  }

  // ---- balance --------------------------------------------------------------------------------------------------

  // As percpu_pool_balance(): empties the front caches, makes one round, and does what callers who may not block had to leave.
  // Context: may block, holds no lock of ours.
  void balance() PERCPU_EXCLUDES(grow_lock_, map_lock_);
  // Gives what lies in the front caches back to the maps.
  void drain_front_caches() PERCPU_EXCLUDES(grow_lock_, map_lock_);
  // Makes freed areas ready, and drains the front caches if nobody used them for a fifth of a second. May come at any time, and
  // more often than asked for: what is due is told by a clock that does not go back, coarse_ms() unless a test has its own.
  // Returns: in how many milliseconds another look is worth it; 0: not before somebody asks.
  uint32_t look_after_front_caches() PERCPU_EXCLUDES(grow_lock_, map_lock_);
  uint32_t look_after_front_caches(uint64_t now_ms) PERCPU_EXCLUDES(grow_lock_, map_lock_);
  // One round, and no more. Context: may block; the balancer's list of pools may be locked.
  void make_round() PERCPU_EXCLUDES(grow_lock_, map_lock_);
  // From now on no thread serves: does what was left to it. Context: may block; the balancer's list of pools may be locked.
  void take_over() PERCPU_EXCLUDES(grow_lock_, map_lock_);
  // The balancer's questions: is a round due that the thread should make (asking clears it), is anything due.
  bool take_due();
  bool due() const { return (state_.load(std::memory_order_relaxed) & (kAllDue & ~uint32_t{kSay})) != 0; }
  // Moves areas that wait for a grace period into the batch in hand; false where there are none.
  bool begin_grace_batch() PERCPU_EXCLUDES(map_lock_);
  void free_grace_batch() PERCPU_EXCLUDES(map_lock_);
  bool grace_waiting() const;

  // In two steps: all pools stop their front caches, the library fences them, all pools take their map locks.
  void fork_stop() PERCPU_ACQUIRE(grow_lock_);
  void fork_prepare() PERCPU_ACQUIRE(map_lock_);
  void fork_parent() PERCPU_RELEASE(grow_lock_, map_lock_);
  void fork_child() PERCPU_RELEASE(grow_lock_, map_lock_);

  // ---- asking ---------------------------------------------------------------------------------------------------

  const percpu_view& view() const { return view_; }
  const char* name() const { return name_; }
  const Layout& layout() const { return *layout_; }
  const UnitMemory& memory() const { return memory_; }
  UnitMemory& memory() { return memory_; }
  uintptr_t first_handle() const { return memory_.base(); }
  size_t page_bytes() const { return memory_.page_size(); }
  size_t max_alloc_bytes() const { return max_alloc_bytes_; }
  bool contains(uintptr_t address) const { return memory_.contains(address); }
  // Fills in what it knows about an address in the reservation; false where it is in no copy and no handle.
  bool address_info(uintptr_t address, percpu_address* info) PERCPU_EXCLUDES(map_lock_);
  uint64_t nr_live() PERCPU_EXCLUDES(map_lock_);
  void read_stats(percpu_stats* out) PERCPU_EXCLUDES(map_lock_);
  // The next chunks of the walk that the cursor is on, at most `max`; fewer only at its end. Takes the lock once a chunk:
  // a walk over all of them would hold it for long.
  size_t read_chunks_from(ChunkCursor& cursor, percpu_chunk_stats* rows, size_t max) PERCPU_EXCLUDES(map_lock_);
  void check() PERCPU_EXCLUDES(grow_lock_, map_lock_);

 private:
  // What every allocation and free has to know, in one word.
  enum State : uint32_t {
    // Work that is due.
    kBalance = 1,  // a round
    kGrace = 2,    // areas wait for a grace period
    kThread = 4,   // front caches want the thread, which empties them in time
    kSay = 8,      // atomic contexts left something to be logged
    kAllDue = kBalance | kGrace | kThread | kSay,
    // The balancer does not know that something lies in the front caches: nothing may.
    kNoneCached = 16,
    // Some area was charged to a domain, or given to static variables: records have to be looked into. For good: who finds this set
    // stores a record without a lock. Not for the reserved part, whose records are looked into in any case.
    kRecordsUsed = 32,
  };
  // What a caller may do at the end of its call.
  enum class Caller : uint8_t {
    kMayBlock,  // everything: an ordinary allocation
    kFreeing,   // system calls, but neither wait for long nor call into libc: may be a signal handler, or hold a lock of ours
    kAtomic,    // no system call but a futex wake
  };
  // A request, legal and rounded.
  struct Request {
    uint32_t size_bytes;
    uint32_t align_bytes;
    Region region;
    bool atomic;
  };

  Pool(const Environment& environment, const PoolSetup& setup);
  int set_up(const PoolSetup& setup, void* layout_storage, size_t layout_bytes);
  void fill_nodes(const Topology& machine);
  int make_memory(const PoolSetup& setup, void* tables);

  // Whether the calling thread holds a map lock, of any pool: then it is a signal handler that interrupted the holder.
  static bool inside_map_lock();

  void lock_map() PERCPU_ACQUIRE(map_lock_);
  bool try_lock_map_bounded() PERCPU_TRY_ACQUIRE(true, map_lock_);
  void unlock_map() PERCPU_RELEASE(map_lock_);
  void drain_pending() PERCPU_EXCLUDES(map_lock_);

  // What pool_fast.h leaves to others; cold, so that the compiler lays the ways out that are taken.
  [[gnu::cold]] void* misaligned(uintptr_t area);
  [[gnu::cold]] void* allocated(void* handle, unsigned flags);
  [[gnu::cold]] void free_large(ChunkId chunk, AreaOffset offset);
  [[gnu::cold]] void free_rest(ChunkId chunk, AreaOffset offset);
  [[gnu::cold]] void freed();
  [[gnu::cold]] void free_slow(void* handle, const char* call);

  bool charge(DomainId domain, size_t bytes, bool atomic);
  int take_any(const Request& request, Area* area, bool* zeroed);
  int take(const Request& request, Area* area, bool* zeroed);
  int take_atomic(const Request& request, Area* area);
  int take_growing(const Request& request, Area* area, bool* zeroed) PERCPU_EXCLUDES(grow_lock_);
  int populate_area(const Area& area) PERCPU_REQUIRES(grow_lock_);
  void give_back(const Area& area) PERCPU_EXCLUDES(map_lock_);
  int create_chunk() PERCPU_REQUIRES(grow_lock_);
  void unpop(uintptr_t area);
  bool take_cached(uint32_t size_class, const Request& request, Area* area, bool* zeroed);
  bool make_batch_ready(uint32_t size_class, bool atomic, uintptr_t* area);
  bool take_from_shelf(uint32_t size_class, bool atomic, uintptr_t* area);
  void push_batch(FrontCache::Kind kind, uint32_t size_class, const uintptr_t* areas, uint32_t count);
  uint32_t take_spare(uint32_t size_class, uintptr_t* areas, uint32_t most) PERCPU_EXCLUDES(map_lock_);
  bool zero_once_populated(const Area& area, const PageRun& missing) const PERCPU_REQUIRES(grow_lock_);
  void count_request(uint32_t size_bytes) PERCPU_REQUIRES(map_lock_);
  void count_allocation(const Area& area) PERCPU_REQUIRES(map_lock_);
  void* illegal(size_t size_bytes, size_t align_bytes, unsigned flags, const Refusal& refusal, int* error);
  void* refused(size_t size_bytes, size_t align_bytes, unsigned flags, Caller caller, int result, const char* reason, uint32_t due,
                int* error);
  void* allocate_for(Caller caller, size_t size_bytes, size_t align_bytes, unsigned flags, DomainId domain, int* error);
  void record_charge(const Area& area, DomainId domain, size_t charged);
  size_t charge_bytes(size_t size_bytes) const;

  void read_counts(percpu_stats* out) PERCPU_EXCLUDES(map_lock_);
  size_t resident_metadata() PERCPU_EXCLUDES(map_lock_);

  size_t begin_free(void* handle, Spot* spot, const char* call);
  void finish_free(Spot spot, size_t size_bytes);
  void put_away(Spot spot, size_t size_bytes);
  // Gives areas whose life has ended back to the maps; never waits long.
  void put_back(const Spot* spots, uint32_t count);
  void defer(const Spot* spots, uint32_t count) PERCPU_EXCLUDES(map_lock_);
  void release(Spot spot) PERCPU_REQUIRES(map_lock_);
  uint32_t release_areas(const uintptr_t* areas, uint32_t count) PERCPU_REQUIRES(map_lock_);
  bool cache(uint32_t size_class, Spot spot);
  bool front_caches_may_hold();
  // Not inlined: one sequence, whoever calls it (tests/fire aborts at each instruction of each).
  __attribute__((noinline)) uint32_t pop_freed(uint32_t size_class, uintptr_t* areas, uint32_t most);
  enum class Shelving : bool { kNo, kYes };
  uint32_t flush_freed(uint32_t size_class, uint32_t most, Shelving shelving);
  void flush_freed_here();
  void empty_shelves() PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  uint64_t tidy_shelves(uint64_t now_ms) PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  void make_ready(uint32_t size_class, uintptr_t* areas, uint32_t count);
  bool in_reserved_part(Spot spot) const {
    return spot.chunk.value == 0 && spot.offset.bytes < dynamic_begin_;
  }
  void drain_fenced() PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  uint64_t drain_idle_cpus(uint64_t now_ms) PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  uint64_t drain_stopped() PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  uint32_t look_by_clock(uint64_t now_ms) PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  void make_ready_stopped() PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  void uncharge(Spot spot, size_t size_bytes);
  [[noreturn]] void bad_handle(const void* handle, const char* call);

  void push(std::atomic<uint32_t>& list, Spot spot);
  Spot spot_of_entry(uint32_t entry) const;

  bool cached() const { return (state_.load(std::memory_order_seq_cst) & kNoneCached) == 0; }
  bool records_used() const { return (state_.load(std::memory_order_relaxed) & kRecordsUsed) != 0; }
  void use_records() {
    if (!records_used()) state_.fetch_or(kRecordsUsed, std::memory_order_relaxed);
  }
  void request(uint32_t due);
  void after_call(Caller caller) PERCPU_EXCLUDES(grow_lock_, map_lock_);
  bool balance_due() const { return (state_.load(std::memory_order_seq_cst) & kBalance) != 0; }
  void run_round() PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  bool run_plan(BalancePlan::Goal goal) PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  enum class Outcome : uint8_t { kDone, kFailed, kLost };
  Outcome carry_out(const BalanceStep& step) PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);
  void relieve() PERCPU_REQUIRES(grow_lock_) PERCPU_EXCLUDES(map_lock_);

  static constexpr size_t kCacheLineBytes = 64;

  percpu_view view_{};  // the first member: part of the ABI
  const Environment environment_;
  char name_[kPoolNameBytes] = {};
  size_t home_bytes_ = 0;  // of the mapping that this object is in
  const Layout* layout_ = nullptr;
  Topology topology_{};  // the machine's, with CPUs added where the setup asks for more
  UnitMemory memory_;
  size_t max_alloc_bytes_ = 0;
  BalanceMode balance_mode_ = BalanceMode::kThread;
  bool has_reserved_ = false;
  uint32_t dynamic_begin_ = 0;    // of the first chunk's dynamic part, bytes in the unit
  uintptr_t first_dynamic_ = 0;   // the same as a handle: below it are static variables and the reserved part

  // On lines of their own: what is above and below them is read by every allocation and free.
  alignas(kCacheLineBytes) SleepMutex grow_lock_ PERCPU_ACQUIRED_BEFORE(map_lock_);
  bool kept_unclean_ PERCPU_GUARDED_BY(grow_lock_) = false;  // the system once would not take memory back
  MapLock map_lock_;
  std::optional<PoolCore> core_;  // there from create() on; its lock-free calls are made without map_lock_
  PoolCounters counters_ PERCPU_GUARDED_BY(map_lock_);
  Shelves shelves_;  // changed under map_lock_
  std::atomic<uint64_t> nr_failed_{0};
  std::atomic<uint64_t> nr_deferred_{0};  // freed, and on one of the lists below
  alignas(kCacheLineBytes) FrontCache front_;
  AreaMarks marks_;
  // On the line of the marks: every allocation and free reads both.
  // kSay: what was refused before there was a pool is said by the first call.
  std::atomic<uint32_t> state_{kSay | kNoneCached};
  std::atomic<bool> starved_{false};       // the last round could not fill the reserve: do not ask again at once

  // On lines of their own again.
  alignas(kCacheLineBytes) uint64_t front_activity_ PERCPU_GUARDED_BY(grow_lock_) = UINT64_MAX;  // at the last look
  uint64_t front_active_ms_ PERCPU_GUARDED_BY(grow_lock_) = 0;  // when that was found to have changed
  uint64_t front_cpus_ms_ PERCPU_GUARDED_BY(grow_lock_) = 0;    // when each CPU was last looked at by itself
  uint32_t front_cpu_ PERCPU_GUARDED_BY(grow_lock_) = 0;       // whose are made ready next, among those that may run us
  uint64_t front_ready_ms_ PERCPU_GUARDED_BY(grow_lock_) = 0;   // when freed areas were last made ready, if any
  uint64_t shelves_tidied_ms_ PERCPU_GUARDED_BY(grow_lock_) = 0;
  std::atomic<uint32_t> pending_{0};       // list of areas to release: who unlocks map_lock_ empties it
  std::atomic<uint32_t> grace_pending_{0}; // list of areas passed to percpu_free_rcu()
  std::atomic<uint32_t> grace_batch_{0};   // those whose grace period is running; changed under map_lock_

 public:
  // The list of pools (Balancer).
  std::atomic<Pool*> next{nullptr};
};

// The pools of a balancer, the newest first. Others may be added meanwhile.
class PoolList {
 public:
  class Iterator {
   public:
    explicit Iterator(Pool* at) : at_(at) {}
    Pool& operator*() const { return *at_; }
    Iterator& operator++() {
      at_ = at_->next.load(std::memory_order_acquire);
      return *this;
    }
    bool operator==(const Iterator&) const = default;

   private:
    Pool* at_;
  };

  explicit PoolList(Pool* first) : first_(first) {}
  Iterator begin() const { return Iterator(first_); }
  Iterator end() const { return Iterator(nullptr); }
  bool empty() const { return first_ == nullptr; }

 private:
  Pool* first_;
};

inline PoolList Balancer::pools() const { return PoolList(pools_.load(std::memory_order_acquire)); }

// The public name of a pool. Never defined otherwise: a percpu_pool_t * is a Pool *.
inline Pool* to_pool(percpu_pool_t* pool) { return reinterpret_cast<Pool*>(pool); }
inline percpu_pool_t* to_public(Pool* pool) { return reinterpret_cast<percpu_pool_t*>(pool); }

}  // namespace percpu

#include "runtime/pool_fast.h"

#endif  // PERCPU_RUNTIME_POOL_H
