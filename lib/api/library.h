// SPDX-License-Identifier: MIT
//
// The one global object of the library: what all pools share, the default pool, and what happens once (first use), around
// a fork, and at exit. Everything below is handed references to its parts.
//
// Invariants: constant-initialised, never destroyed; the environment is complete before the first pool is made, the
// default pool before percpu_default_view_ is filled in.
// Locking: first use goes through two OnceFlags; fork takes all locks in the order of lib/README.md. The handlers that do so
// are installed before the first of these locks, or a OnceFlag, is taken.
#ifndef PERCPU_API_LIBRARY_H
#define PERCPU_API_LIBRARY_H

#include <atomic>
#include <span>

#include "api/module_images.h"
#include "api/statics.h"
#include "core/config.h"
#include "os/mutex.h"
#include "os/rseq.h"
#include "os/system.h"
#include "os/topology.h"
#include "runtime/accounting.h"
#include "runtime/balancer.h"
#include "runtime/grace.h"
#include "runtime/pool.h"
#include "runtime/warn.h"

namespace percpu {

class Library {
 public:
  constexpr Library() = default;

  // The default pool; made by the first call. Null and errno where it cannot be made; a later call tries again.
  // Context: may block and allocate (libnuma) the first time; lock-free and signal-safe from then on.
  Pool* default_pool() {
    Pool* pool = default_pool_.load(std::memory_order_acquire);
    return pool != nullptr ? pool : make_default_pool();
  }
  // The default pool if there is one. Signal-safe.
  Pool* default_pool_if_made() { return default_pool_.load(std::memory_order_acquire); }

  // Reads the configuration and the machine, once. 0 or -errno.
  [[nodiscard]] int prepare();
  // Sees to it that forks respect our locks: before the first of them is taken. 0 or -errno.
  [[nodiscard]] int watch_forks();
  // As percpu_watch_forks_(), percpu_fork_prepare_() and its kin.
  bool begin_watching_forks();
  static void at_fork_prepare();
  static void prepare_fork(const OuterLock& outer, bool signals_blocked);
  static void at_fork_parent();
  static void at_fork_child();

  // As percpu_pool_create() and percpu_pool_destroy(); -errno.
  [[nodiscard]] int create_pool(const percpu_pool_attr& attr, Pool** pool);
  [[nodiscard]] int destroy_pool(Pool* pool);
  // As percpu_pool_create_bare_(); -errno.
  [[nodiscard]] int create_bare_pool(const char* name, size_t size_bytes, Pool** pool);

  // What an allocation in atomic context is told while there is no default pool: EAGAIN, or EINVAL where no pool would take
  // it. Context: any.
  int refuse_without_pool(size_t size_bytes, size_t align_bytes, unsigned flags);

  // If the calling thread is the main one: its end will be heard of. When the library is loaded, in the child of a fork, and when a thread
  // uses it first (another thread may have opened it).
  static void watch_main_thread();
  void main_thread_ends() { balancer_.main_thread_ends(); }

  // As the functions of the ABI of those names.
  int attach_thread();
  void* shared_copy(const percpu_view* view, const void* handle);
  int fence(int cpu);
  int address_info(const void* address, percpu_address* info);
  int page_node(const void* address);
  // As percpu_memory_node_().
  int memory_node(unsigned cpu);
  // As percpu_thread_registered_().
  bool thread_has_rseq();
  // As percpu_machine_cpus_(), or -errno.
  int nr_machine_cpus();
  // As percpu_allowed_cpus_().
  unsigned nr_allowed_cpus();

  // For the preload (for_preload.h).
  void set_balance_job(Balancer::Job job, void* context) { balancer_.set_job(job, context); }
  int start_balance();
  bool wake_balance() {
    if (balancer_.running()) balancer_.wake();
    return balancer_.serves();
  }
  bool main_thread_leaves() { return balancer_.main_thread_leaves(); }

  Statics& statics() { return statics_; }
  Accounting& accounting() { return accounting_; }
  const System& system() const { return system_ != nullptr ? *system_ : real_system(); }
  bool exiting() const { return exiting_.load(std::memory_order_relaxed); }

  // For tests: system calls go through this table from now on. Requires: nothing was used yet.
  void use_system(const System& system) { system_ = &system; }

 private:
  CpuId current_cpu();
  Pool* make_default_pool();
  int list_modules_and_make();
  int make_default_pool_now(std::span<const ImageRange> images);
  int prepare_now();
  int read_machine();
  void read_configuration();
  void read_memory_settings();

  static void at_exit();
  void fork_prepare(const OuterLock* outer, bool signals_blocked);
  void fork_parent();
  void fork_child();

  const System* system_ = nullptr;  // null: the kernel's own
  OnceFlag prepared_;
  OnceFlag default_made_;
  std::atomic<Pool*> default_pool_{nullptr};
  std::atomic<bool> exiting_{false};
  enum class Watch : uint8_t { kNo, kBegun, kYes };
  std::atomic<Watch> watches_forks_{Watch::kNo};
  bool watches_exit_ = false;  // under prepared_
  Config config_{};
  Topology topology_{};
  Environment environment_{};
  Warnings warnings_{UINT32_MAX};  // until PERCPU_CONF was read; what fails before that waits to be written
  Accounting accounting_;
  Grace grace_;
  Balancer balancer_;
  Statics statics_;
  Fence fence_;
};

extern Library library;

}  // namespace percpu

#endif  // PERCPU_API_LIBRARY_H
