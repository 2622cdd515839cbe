// SPDX-License-Identifier: MIT
//
// The functions of percpu.h, percpu/abi.h and for_preload.h. Each forwards inward; errno is set here, and where the default pool is made.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "api/c_enum.h"
#include "api/for_preload.h"
#include "api/library.h"
#include "base/check.h"
#include "percpu.h"
#include "runtime/report.h"

using percpu::Domain;
using percpu::DomainId;
using percpu::Pool;
using percpu::library;

#define PERCPU_EXPORT extern "C" __attribute__((visibility("default")))
#define PERCPU_TEXT_OF_(x) #x
#define PERCPU_TEXT_OF(x) PERCPU_TEXT_OF_(x)

// The bounds of this module's code, made by the linker.
extern "C" {
__attribute__((visibility("hidden"))) extern const char __ehdr_start[];
__attribute__((visibility("hidden"))) extern const char etext[];
}

namespace {

__thread uint32_t current_domain __attribute__((tls_model("initial-exec"))) = 0;

// -errno to errno and -1.
int result_of(int result) {
  if (result >= 0) return result;
  errno = -result;
  return -1;
}

__attribute__((noinline)) void* allocate_slowly(Pool* pool, size_t size, size_t align, unsigned flags) {
  if (pool == nullptr) return nullptr;
  const DomainId domain{(flags & PERCPU_ACCOUNT) != 0 ? current_domain : 0};
  int error = 0;
  void* handle = pool->allocate_slow(size, align, flags, domain, &error);
  if (handle == nullptr) errno = error;
  return handle;
}

__attribute__((always_inline)) inline void* allocate_from(Pool* pool, size_t size, size_t align, unsigned flags) {
  if (pool != nullptr) [[likely]] {
    if (void* handle = pool->allocate_fast(size, align, flags); handle != nullptr) [[likely]] return handle;
  }
  return allocate_slowly(pool, size, align, flags);
}

// A handle can only be freed in a pool that exists.
Pool& made(const char* call, const void* handle) {
  Pool* pool = library.default_pool_if_made();
  if (pool == nullptr) percpu::fatal("%s(%p): expected a handle, found no pool made yet", call, handle);
  return *pool;
}

// As good a pool as the caller gave; null sets errno.
Pool* given(percpu_pool_t* pool) {
  if (pool == nullptr) errno = EINVAL;
  return percpu::to_pool(pool);
}

// The same, for a handle that can be freed in no pool but its own.
Pool& pool_of(const char* call, percpu_pool_t* pool, const void* handle) {
  if (pool == nullptr) percpu::fatal("%s(NULL, %p): expected the handle's pool, found NULL", call, handle);
  return *percpu::to_pool(pool);
}

// A row that a caller, compiled against some version, wants filled in: no version has longer ones. False sets errno.
bool can_hold(const void* out, size_t struct_bytes) {
  constexpr size_t kMostBytes = 4096;
  if (out != nullptr && struct_bytes != 0 && struct_bytes <= kMostBytes) return true;
  errno = EINVAL;
  return false;
}

size_t report_of(Pool* pool, unsigned what, char* buffer, size_t bytes) {
  percpu::Text text(buffer, bytes);
  switch (what) {
    case PERCPU_REPORT_LAYOUT: percpu::report_layout(*pool, text); break;
    case PERCPU_REPORT_TEXT: percpu::report_text(*pool, text); break;
    case PERCPU_REPORT_JSON: percpu::report_json(*pool, text); break;
    default: errno = EINVAL;
  }
  return text.needed_bytes();
}

// Whether there is a buffer, or none is wanted; empty so far. False sets errno.
bool can_write(char* buffer, size_t bytes) {
  if (buffer != nullptr && bytes != 0) *buffer = 0;
  if (buffer == nullptr && bytes != 0) errno = EINVAL;
  return buffer != nullptr || bytes == 0;
}

size_t size_in(Pool* pool, const void* handle) {
  const size_t size = pool != nullptr ? pool->area_size(handle) : 0;
  if (size == 0) errno = EINVAL;
  return size;
}

percpu_domain_t* outside_domain(DomainId id) {
  return id == percpu::kNoDomain ? nullptr : reinterpret_cast<percpu_domain_t*>(&library.accounting().entry(id));
}
// The domain that a caller named. What is none, or has no reference left, is the end: its entry may be another's by now.
DomainId id_of(const char* call, const percpu_domain_t* domain) {
  using Claim = percpu::Accounting::Claim;
  const auto* entry = reinterpret_cast<const Domain*>(domain);
  const Claim claim = library.accounting().look_up(entry);
  if (claim != Claim::kLive) {
    percpu::fatal("%s(%p): expected a domain, found %s", call, static_cast<const void*>(domain),
                  claim == Claim::kGone ? "one that has no reference left" : "a value that is none");
  }
  return library.accounting().id_of(entry);
}
DomainId id_or_none(const char* call, const percpu_domain_t* domain) {
  return domain != nullptr ? id_of(call, domain) : percpu::kNoDomain;
}

}  // namespace

// ---- what inlined operations touch ---------------------------------------------------------------------------------

extern "C" {
__attribute__((visibility("default"))) percpu_view percpu_default_view_ = {};
// The model is said again: a definition that does not would have this file ask __tls_get_addr() in every operation. `used`: assembly
// may name it where nothing else does (percpu/arch/aarch64.h).
__attribute__((visibility("default"), tls_model("initial-exec"), used)) __thread percpu_thread_state percpu_thread_ = {};
}

PERCPU_EXPORT int percpu_thread_attach_(void) { return library.attach_thread(); }
PERCPU_EXPORT void* percpu_shared_copy_(const percpu_view* view, const void* handle) {
  return library.shared_copy(view, handle);
}

PERCPU_EXPORT void* percpu_static_resolve_(void** cell) {
  Pool* pool = library.default_pool();
  if (pool == nullptr) {
    percpu::fatal(errno == EDEADLK ? "static per-CPU variables: used by what the making of the first pool uses itself"
                                   : "static per-CPU variables: no memory for the first pool");
  }
  return library.statics().resolve(*pool, cell);
}
PERCPU_EXPORT void percpu_static_close_(void** cell) {
  if (!library.exiting()) library.statics().close(library.default_pool_if_made(), cell);
}

// ---- allocation ----------------------------------------------------------------------------------------------------

PERCPU_EXPORT const char* percpu_version(void) {
  return PERCPU_TEXT_OF(PERCPU_VERSION_MAJOR) "." PERCPU_TEXT_OF(PERCPU_VERSION_MINOR) "." PERCPU_TEXT_OF(
      PERCPU_VERSION_PATCH);
}

PERCPU_EXPORT void* percpu_alloc(size_t size, size_t align) {
  Pool* pool = library.default_pool_if_made();
  if (pool == nullptr) [[unlikely]] return allocate_slowly(library.default_pool(), size, align, 0);
  return allocate_from(pool, size, align, 0);
}
PERCPU_EXPORT void* percpu_alloc_flags(size_t size, size_t align, unsigned flags) {
  if ((flags & PERCPU_ATOMIC) == 0) return allocate_from(library.default_pool(), size, align, flags);
  Pool* pool = library.default_pool_if_made();
  if (pool == nullptr) errno = library.refuse_without_pool(size, align, flags);
  return allocate_from(pool, size, align, flags);
}
PERCPU_EXPORT void percpu_free(void* handle) {
  if (handle != nullptr) made("percpu_free", handle).free(handle);
}
PERCPU_EXPORT void percpu_free_rcu(void* handle) {
  if (handle != nullptr) made("percpu_free_rcu", handle).free_after_grace(handle);
}
PERCPU_EXPORT size_t percpu_alloc_size(const void* handle) { return size_in(library.default_pool_if_made(), handle); }
PERCPU_EXPORT size_t percpu_max_alloc(void) {
  Pool* pool = library.default_pool();
  return pool != nullptr ? pool->max_alloc_bytes() : 0;
}

// ---- CPUs ----------------------------------------------------------------------------------------------------------

PERCPU_EXPORT unsigned percpu_nr_cpu_ids(void) {
  Pool* pool = library.default_pool();
  return pool != nullptr ? pool->view().nr_cpu_ids : 0;
}
PERCPU_EXPORT int percpu_cpu_possible(unsigned cpu) {
  Pool* pool = library.default_pool();
  return pool != nullptr && cpu < pool->view().nr_cpu_ids && pool->view().offset[cpu] != 0;
}
PERCPU_EXPORT unsigned percpu_machine_cpus_(void) {
  const int result = library.nr_machine_cpus();
  return result >= 0 ? static_cast<unsigned>(result) : (errno = -result, 0u);
}
PERCPU_EXPORT unsigned percpu_allowed_cpus_(void) { return library.nr_allowed_cpus(); }
PERCPU_EXPORT int percpu_memory_node_(unsigned cpu) { return library.memory_node(cpu); }
PERCPU_EXPORT int percpu_thread_has_rseq(void) { return percpu_thread_.offset != nullptr || library.attach_thread(); }
PERCPU_EXPORT int percpu_thread_registered_(void) { return library.thread_has_rseq(); }
PERCPU_EXPORT int percpu_fence(int cpu) { return result_of(library.fence(cpu)); }

// ---- the balance thread ----------------------------------------------------------------------------------------------

PERCPU_EXPORT void percpu_balance_job_(int (*job)(void*), void* context) { library.set_balance_job(job, context); }
PERCPU_EXPORT int percpu_balance_start_(void) { return library.start_balance(); }
PERCPU_EXPORT void percpu_fork_prepare_(void (*lock)(void), void (*unlock)(void), int signals_blocked) {
  percpu::Library::prepare_fork({lock, unlock}, signals_blocked != 0);
}
PERCPU_EXPORT void percpu_fork_parent_(void) { percpu::Library::at_fork_parent(); }
PERCPU_EXPORT void percpu_fork_child_(void) { percpu::Library::at_fork_child(); }
PERCPU_EXPORT int percpu_watch_forks_(void) { return library.begin_watching_forks() ? 1 : 0; }
PERCPU_EXPORT int percpu_balance_wake_(void) { return library.wake_balance() ? 1 : 0; }
PERCPU_EXPORT int percpu_main_leaves_(void) { return library.main_thread_leaves() ? 1 : 0; }
PERCPU_EXPORT int percpu_own_code_(const void* address) {
  const char* at = static_cast<const char*>(address);
  return at >= __ehdr_start && at < etext;
}

// ---- pools ---------------------------------------------------------------------------------------------------------

PERCPU_EXPORT percpu_pool_t* percpu_pool_create(const percpu_pool_attr* attr) {
  static constexpr percpu_pool_attr kDefaults = {sizeof(percpu_pool_attr), nullptr, 0, 0, 0, 0, 0, 0,
                                                 PERCPU_BALANCE_DEFAULT, PERCPU_FIRST_DEFAULT, 0};
  Pool* pool = nullptr;
  return result_of(library.create_pool(attr != nullptr ? *attr : kDefaults, &pool)) == 0 ? to_public(pool) : nullptr;
}
PERCPU_EXPORT percpu_pool_t* percpu_pool_create_bare_(const char* name, size_t size_bytes, void** area) {
  Pool* pool = nullptr;
  if (result_of(library.create_bare_pool(name, size_bytes, &pool)) != 0) return nullptr;
  *area = reinterpret_cast<void*>(pool->first_handle());
  return to_public(pool);
}
PERCPU_EXPORT int percpu_pool_destroy(percpu_pool_t* pool) { return result_of(library.destroy_pool(percpu::to_pool(pool))); }
PERCPU_EXPORT percpu_pool_t* percpu_pool_default(void) { return to_public(library.default_pool()); }

PERCPU_EXPORT void* percpu_pool_alloc(percpu_pool_t* pool, size_t size, size_t align, unsigned flags) {
  return allocate_from(given(pool), size, align, flags);
}
PERCPU_EXPORT void percpu_pool_free(percpu_pool_t* pool, void* handle) {
  if (handle != nullptr) pool_of("percpu_pool_free", pool, handle).free(handle, "percpu_pool_free");
}
PERCPU_EXPORT void percpu_pool_free_rcu(percpu_pool_t* pool, void* handle) {
  if (handle != nullptr) pool_of("percpu_pool_free_rcu", pool, handle).free_after_grace(handle, "percpu_pool_free_rcu");
}
PERCPU_EXPORT size_t percpu_pool_alloc_size(percpu_pool_t* pool, const void* handle) {
  return size_in(percpu::to_pool(pool), handle);
}
PERCPU_EXPORT size_t percpu_pool_max_alloc(percpu_pool_t* pool) {
  return given(pool) != nullptr ? percpu::to_pool(pool)->max_alloc_bytes() : 0;
}

PERCPU_EXPORT int percpu_pool_balance(percpu_pool_t* pool) {
  if (given(pool) == nullptr) return -1;
  percpu::to_pool(pool)->balance();
  return 0;
}
PERCPU_EXPORT int percpu_balance(void) {
  Pool* pool = library.default_pool();
  return pool != nullptr ? percpu_pool_balance(to_public(pool)) : -1;
}

// ---- accounting ----------------------------------------------------------------------------------------------------

PERCPU_EXPORT percpu_domain_t* percpu_domain_create(const char* name, size_t limit_bytes, percpu_domain_t* parent) {
  if (name == nullptr || std::strlen(name) >= percpu::kDomainNameBytes) {
    errno = EINVAL;
    return nullptr;
  }
  if (result_of(library.watch_forks()) != 0) return nullptr;
  const DomainId above = id_or_none("percpu_domain_create", parent);
  int error = 0;
  const DomainId id = library.accounting().create(library.system(), name, limit_bytes, above, &error);
  if (id == percpu::kNoDomain) errno = -error;
  return outside_domain(id);
}
PERCPU_EXPORT percpu_domain_t* percpu_domain_get(percpu_domain_t* domain) {
  if (domain != nullptr) library.accounting().get(id_of("percpu_domain_get", domain));
  return domain;
}
PERCPU_EXPORT void percpu_domain_put(percpu_domain_t* domain) {
  if (domain != nullptr) library.accounting().put(id_of("percpu_domain_put", domain));
}
PERCPU_EXPORT percpu_domain_t* percpu_domain_set(percpu_domain_t* domain) {
  const DomainId before{current_domain};
  current_domain = id_or_none("percpu_domain_set", domain).value;
  return outside_domain(before);
}
PERCPU_EXPORT percpu_domain_t* percpu_domain_current(void) { return outside_domain({current_domain}); }
PERCPU_EXPORT void percpu_domain_read(const percpu_domain_t* domain, percpu_domain_stats* out) {
  const Domain& entry = library.accounting().entry(id_of("percpu_domain_read", domain));
  if (out == nullptr) {
    percpu::fatal("percpu_domain_read(%p, NULL): expected where to put the figures", static_cast<const void*>(domain));
  }
  std::memcpy(out->name, entry.name, sizeof out->name);
  out->limit_bytes = entry.limit_bytes.load(std::memory_order_relaxed);
  out->charged_bytes = entry.charged_bytes.load(std::memory_order_relaxed);
  out->peak_charged_bytes = entry.peak_charged_bytes.load(std::memory_order_relaxed);
  out->nr_refused = entry.nr_refused.load(std::memory_order_relaxed);
}
PERCPU_EXPORT void percpu_domain_set_limit(percpu_domain_t* domain, size_t limit_bytes) {
  const DomainId id = id_of("percpu_domain_set_limit", domain);
  library.accounting().entry(id).limit_bytes.store(limit_bytes, std::memory_order_relaxed);
}

// ---- questions and statistics --------------------------------------------------------------------------------------

PERCPU_EXPORT int percpu_address_info(const void* address, struct percpu_address* out) {
  percpu_address unwanted;
  return library.address_info(address, out != nullptr ? out : &unwanted);
}
PERCPU_EXPORT int percpu_page_node(const void* address) { return result_of(library.page_node(address)); }

PERCPU_EXPORT int percpu_pool_stats_read(percpu_pool_t* pool, struct percpu_stats* out, size_t struct_bytes) {
  if (given(pool) == nullptr || !can_hold(out, struct_bytes)) return -1;
  struct percpu_stats stats;
  percpu::to_pool(pool)->read_stats(&stats);
  std::memset(out, 0, struct_bytes);
  std::memcpy(out, &stats, std::min(struct_bytes, sizeof stats));
  return 0;
}
PERCPU_EXPORT int percpu_stats_read(struct percpu_stats* out, size_t struct_bytes) {
  if (!can_hold(out, struct_bytes)) return -1;
  Pool* pool = library.default_pool();
  return pool != nullptr ? percpu_pool_stats_read(to_public(pool), out, struct_bytes) : -1;
}

PERCPU_EXPORT size_t percpu_pool_chunks(percpu_pool_t* pool, struct percpu_chunk_stats* out, size_t max,
                                        size_t struct_bytes) {
  if (given(pool) == nullptr || (max != 0 && !can_hold(out, struct_bytes))) return 0;
  percpu::ChunkCursor cursor;
  struct percpu_chunk_stats row;
  size_t count = 0;
  for (; percpu::to_pool(pool)->read_chunks_from(cursor, &row, 1) == 1; count++) {
    if (count >= max) continue;
    char* at = reinterpret_cast<char*>(out) + count * struct_bytes;
    std::memset(at, 0, struct_bytes);
    std::memcpy(at, &row, std::min(struct_bytes, sizeof row));
  }
  return count;
}

PERCPU_EXPORT size_t percpu_pool_report(percpu_pool_t* pool, enum percpu_report_kind what, char* buffer, size_t bytes) {
  if (!can_write(buffer, bytes) || given(pool) == nullptr) return 0;
  return report_of(percpu::to_pool(pool), percpu::number_of(what), buffer, bytes);
}
PERCPU_EXPORT size_t percpu_report(enum percpu_report_kind what, char* buffer, size_t bytes) {
  if (!can_write(buffer, bytes)) return 0;
  Pool* pool = library.default_pool();
  return pool != nullptr ? report_of(pool, percpu::number_of(what), buffer, bytes) : 0;
}

PERCPU_EXPORT int percpu_pool_check(percpu_pool_t* pool) {
  if (given(pool) == nullptr) return -1;
  percpu::to_pool(pool)->check();
  return 0;
}
