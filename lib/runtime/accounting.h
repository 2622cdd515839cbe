// SPDX-License-Identifier: MIT
//
// Accounting domains: who pays for an area. A domain has a name, a limit, and perhaps a parent; a charge goes to the domain
// and all its ancestors, or to none of them.
//
// Invariants:
//   charged(domain) = the charges of the live areas that were charged to it or to a descendant
//   a domain's entry is in use while its reference count is above zero; a reference is held by the user who made it, by
//   every live area charged to it, and by every child
// Locking: lock_ decides who gets a free entry; everything else is atomic and takes no lock, so that an area may be freed,
// and its domain with it, in a signal handler.
#ifndef PERCPU_RUNTIME_ACCOUNTING_H
#define PERCPU_RUNTIME_ACCOUNTING_H

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/annotations.h"
#include "os/mutex.h"
#include "os/system.h"

namespace percpu {

// What an area's record holds: 0 for an area that carries no charge.
struct DomainId {
  uint32_t value = 0;
  bool operator==(const DomainId&) const = default;
};
inline constexpr DomainId kNoDomain{0};
// In the record of an area that is a module's static variables: charged to nobody, and freed by its owner only.
inline constexpr DomainId kStaticVariables{UINT32_MAX};

inline constexpr uint32_t kMaxDomains = 4096;  // entry 0 stands for "none"
inline constexpr size_t kDomainNameBytes = 32;

struct Domain {
  std::atomic<uint32_t> references{0};
  DomainId parent;
  std::atomic<size_t> limit_bytes{0};
  std::atomic<size_t> charged_bytes{0};
  std::atomic<size_t> peak_charged_bytes{0};
  std::atomic<uint64_t> nr_refused{0};
  char name[kDomainNameBytes] = {};
};

class Accounting {
 public:
  constexpr Accounting() = default;

  // Makes a domain with one reference for the caller, and takes one of `parent`. Returns its id, or -errno in `error`:
  // ENOMEM when all entries are taken or there is no memory for the table.
  DomainId create(const System& system, const char* name, size_t limit_bytes, DomainId parent, int* error)
      PERCPU_EXCLUDES(lock_);

  void get(DomainId id) { entry(id).references.fetch_add(1, std::memory_order_relaxed); }
  // Drops a reference; the last one frees the entry and the reference it holds on its parent. Signal-safe.
  void put(DomainId id);

  // Charges the domain and its ancestors, and takes a reference for the area. False, and nothing changed, when that would
  // exceed a limit: a refusal, which counts unless the caller has another try. Lock-free, signal-safe.
  enum class Refusal : bool { kCounts, kHasAnotherTry };
  [[nodiscard]] bool charge(DomainId id, size_t bytes, Refusal refusal = Refusal::kCounts);
  // Takes a charge and its reference back. Lock-free, signal-safe.
  void uncharge(DomainId id, size_t bytes);

  // What a pointer that a caller hands in names. Best effort where others drop references at the same time. Lock-free,
  // signal-safe.
  enum class Claim : uint8_t { kLive, kGone, kNone };
  Claim look_up(const Domain* domain) const;

  Domain& entry(DomainId id) { return table_.load(std::memory_order_acquire)[id.value]; }
  DomainId id_of(const Domain* domain) const {
    return {static_cast<uint32_t>(domain - table_.load(std::memory_order_acquire))};
  }

  void lock_for_fork() PERCPU_ACQUIRE(lock_) { lock_.lock(); }
  void unlock_after_fork() PERCPU_RELEASE(lock_) { lock_.unlock(); }

 private:
  SleepMutex lock_;
  std::atomic<Domain*> table_{nullptr};
  uint32_t next_entry_ PERCPU_GUARDED_BY(lock_) = 1;  // where the search for a free entry begins
};

}  // namespace percpu

#endif  // PERCPU_RUNTIME_ACCOUNTING_H
