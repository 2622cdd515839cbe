// SPDX-License-Identifier: MIT
#include "runtime/accounting.h"

#include <cerrno>
#include <cstring>
#include <sys/mman.h>

#include "base/check.h"

namespace percpu {
namespace {

// Adds to a domain's charge unless that would pass its limit.
bool add_charge(Domain& domain, size_t bytes) {
  size_t now = domain.charged_bytes.load(std::memory_order_relaxed);
  do {
    const size_t limit = domain.limit_bytes.load(std::memory_order_relaxed);
    if (now > limit || bytes > limit - now) return false;
  } while (!domain.charged_bytes.compare_exchange_weak(now, now + bytes, std::memory_order_relaxed));
  return true;
}

void raise_peak(Domain& domain) {
  const size_t now = domain.charged_bytes.load(std::memory_order_relaxed);
  size_t peak = domain.peak_charged_bytes.load(std::memory_order_relaxed);
  while (peak < now && !domain.peak_charged_bytes.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
  }
}

}  // namespace

DomainId Accounting::create(const System& system, const char* name, size_t limit_bytes, DomainId parent, int* error) {
  SleepMutexGuard guard(lock_);
  Domain* table = table_.load(std::memory_order_relaxed);
  if (table == nullptr) {
    const intptr_t memory =
        system.mmap(0, kMaxDomains * sizeof(Domain), PROT_READ | PROT_WRITE, MAP_NORESERVE);
    if (memory < 0) {
      *error = -ENOMEM;
      return kNoDomain;
    }
    table = reinterpret_cast<Domain*>(memory);
    table_.store(table, std::memory_order_release);
  }
  for (uint32_t tried = 0; tried < kMaxDomains - 1; tried++) {
    const uint32_t index = 1 + (next_entry_ - 1 + tried) % (kMaxDomains - 1);
    Domain& domain = table[index];
    if (domain.references.load(std::memory_order_acquire) != 0) continue;
    domain.parent = parent;
    domain.limit_bytes.store(limit_bytes, std::memory_order_relaxed);
    domain.charged_bytes.store(0, std::memory_order_relaxed);
    domain.peak_charged_bytes.store(0, std::memory_order_relaxed);
    domain.nr_refused.store(0, std::memory_order_relaxed);
    std::memset(domain.name, 0, sizeof domain.name);
    std::memcpy(domain.name, name, std::strlen(name));
    if (parent != kNoDomain) get(parent);
    domain.references.store(1, std::memory_order_release);
    next_entry_ = 1 + index % (kMaxDomains - 1);
    return {index};
  }
  *error = -ENOMEM;
  return kNoDomain;
}

Accounting::Claim Accounting::look_up(const Domain* domain) const {
  const Domain* table = table_.load(std::memory_order_acquire);
  if (table == nullptr) return Claim::kNone;
  const uintptr_t distance = reinterpret_cast<uintptr_t>(domain) - reinterpret_cast<uintptr_t>(table);
  const uintptr_t index = distance / sizeof(Domain);
  if (distance % sizeof(Domain) != 0 || index == kNoDomain.value || index >= kMaxDomains) return Claim::kNone;
  return table[index].references.load(std::memory_order_relaxed) != 0 ? Claim::kLive : Claim::kGone;
}

void Accounting::put(DomainId id) {
  while (id != kNoDomain) {
    Domain& domain = entry(id);
    // Read before the count may fall to zero: from then on the entry may belong to somebody else.
    const DomainId parent = domain.parent;
    const uint32_t before = domain.references.fetch_sub(1, std::memory_order_acq_rel);
    if (before == 0) fatal("percpu_domain_put: expected a domain with a reference to drop, found none (domain %u)", id.value);
    if (before != 1) return;
    id = parent;
  }
}

bool Accounting::charge(DomainId id, size_t bytes, Refusal refusal) {
  for (DomainId at = id; at != kNoDomain; at = entry(at).parent) {
    if (add_charge(entry(at), bytes)) continue;
    if (refusal == Refusal::kCounts) entry(at).nr_refused.fetch_add(1, std::memory_order_relaxed);
    for (DomainId undo = id; undo != at; undo = entry(undo).parent) {
      entry(undo).charged_bytes.fetch_sub(bytes, std::memory_order_relaxed);
    }
    return false;
  }
  // Only now: what an ancestor refuses was never charged.
  for (DomainId at = id; at != kNoDomain; at = entry(at).parent) raise_peak(entry(at));
  get(id);
  return true;
}

void Accounting::uncharge(DomainId id, size_t bytes) {
  for (DomainId at = id; at != kNoDomain; at = entry(at).parent) {
    const size_t before = entry(at).charged_bytes.fetch_sub(bytes, std::memory_order_relaxed);
    PERCPU_CHECK(before >= bytes, "accounting: expected a charge of at least %zu bytes, found %zu (domain %u)", bytes,
                 before, at.value);
  }
  put(id);
}

}  // namespace percpu
