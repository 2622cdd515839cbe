// SPDX-License-Identifier: MIT
//
// Every function of the shared library, every argument: what is bad gets one clear answer, an error or one line that ends the
// program, and the library works on. (What the inline operations are given is not looked at: percpu/ops.h.) That each exported function is
// called here is checked by tests/abi/bad_inputs.py, which also tells of those that need not be.
#include <doctest/doctest.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <string>

#include "api/for_preload.h"
#include "fresh.h"

namespace percpu {
namespace {

constexpr size_t kHuge = size_t{1} << 40;
char no_handle[8192];

// The call fails with EINVAL, and afterwards the library works.
#define EXPECT_REFUSED(call, failure)                     \
  do {                                                    \
    errno = 0;                                            \
    EXPECT((call) == (failure));                          \
    EXPECT_EQ(errno, EINVAL);                             \
    void* works_ = percpu_alloc(8, 8);                    \
    EXPECT(works_ != nullptr);                            \
    percpu_free(works_);                                  \
  } while (0)

// The call ends the program with one line that begins with its name and says what was expected.
template <class Body>
void check_told(const char* name, Body body) {
  const ChildEnd end = fresh(nullptr, body);
  CAPTURE(name);
  CAPTURE(end.standard_error);
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error.find(std::string(name) + "(") != std::string::npos);
  CHECK(end.standard_error.find("expected") != std::string::npos);
  CHECK(end.standard_error.find('\n') == end.standard_error.size() - 1);
}

TEST_CASE("allocation") {
  CHECK_FINE(fresh(nullptr, [] {
    for (const size_t size : {size_t{0}, percpu_max_alloc() + 1, kHuge, SIZE_MAX}) {
      EXPECT_REFUSED(percpu_alloc(size, 8), nullptr);
      EXPECT_REFUSED(percpu_alloc_flags(size, 8, 0), nullptr);
      EXPECT_REFUSED(percpu_pool_alloc(percpu_pool_default(), size, 8, 0), nullptr);
    }
    for (const size_t align : {size_t{0}, size_t{3}, size_t{12}, size_t{1} << 16, SIZE_MAX}) {
      EXPECT_REFUSED(percpu_alloc(8, align), nullptr);
      EXPECT_REFUSED(percpu_alloc_flags(8, align, PERCPU_ATOMIC), nullptr);
      EXPECT_REFUSED(percpu_pool_alloc(percpu_pool_default(), 8, align, 0), nullptr);
    }
    EXPECT_REFUSED(percpu_alloc_flags(8, 8, 1u << 31), nullptr);
    EXPECT_REFUSED(percpu_pool_alloc(percpu_pool_default(), 8, 8, UINT_MAX), nullptr);
    EXPECT_REFUSED(percpu_pool_alloc(nullptr, 8, 8, 0), nullptr);
    EXPECT_REFUSED(percpu_pool_max_alloc(nullptr), 0u);
  }));
}

TEST_CASE("handles") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_free(nullptr);
    percpu_free_rcu(nullptr);
    percpu_pool_free(nullptr, nullptr);
    percpu_pool_free_rcu(nullptr, nullptr);
    void* area = percpu_alloc(64, 8);
    EXPECT(area != nullptr);
    percpu_free(area);
    for (const void* bad : {static_cast<const void*>(nullptr), static_cast<const void*>(no_handle), static_cast<const void*>(area)}) {
      EXPECT_REFUSED(percpu_alloc_size(bad), 0u);
      EXPECT_REFUSED(percpu_pool_alloc_size(percpu_pool_default(), bad), 0u);
    }
    EXPECT_REFUSED(percpu_pool_alloc_size(nullptr, area), 0u);
  }));
  check_told("percpu_free", [] { percpu_free(no_handle); });  // before there is a pool
  check_told("percpu_free", [] {
    (void)percpu_pool_default();
    percpu_free(no_handle);
  });
  check_told("percpu_free_rcu", [] { percpu_free_rcu(no_handle); });
  check_told("percpu_free_rcu", [] {
    (void)percpu_pool_default();
    percpu_free_rcu(no_handle);
  });
  check_told("percpu_pool_free", [] { percpu_pool_free(percpu_pool_default(), no_handle); });
  check_told("percpu_pool_free", [] { percpu_pool_free(nullptr, percpu_alloc(8, 8)); });
  check_told("percpu_pool_free_rcu", [] { percpu_pool_free_rcu(percpu_pool_default(), no_handle); });
  check_told("percpu_pool_free_rcu", [] { percpu_pool_free_rcu(nullptr, percpu_alloc(8, 8)); });
}

TEST_CASE("pools") {
  CHECK_FINE(fresh(nullptr, [] {
    EXPECT_REFUSED(percpu_pool_destroy(nullptr), -1);
    EXPECT_REFUSED(percpu_pool_balance(nullptr), -1);
    EXPECT_REFUSED(percpu_pool_check(nullptr), -1);
    const auto refused = [](auto change) {
      percpu_pool_attr attr{};
      attr.struct_bytes = sizeof attr;
      change(attr);
      EXPECT_REFUSED(percpu_pool_create(&attr), nullptr);
    };
    refused([](auto& attr) { attr.struct_bytes = 0; });
    refused([](auto& attr) { attr.struct_bytes = kHuge; });
    refused([](auto& attr) { attr.name = "a name that is far longer than the thirty-one bytes which a pool's name may have"; });
    refused([](auto& attr) { attr.unit_size = 1; });
    refused([](auto& attr) { attr.unit_size = kHuge; });
    refused([](auto& attr) { attr.reserved_size = kHuge; });
    refused([](auto& attr) { attr.dynamic_size = kHuge; });
    refused([](auto& attr) { attr.max_alloc = kHuge; });
    refused([](auto& attr) { attr.max_bytes = 1; });
    refused([](auto& attr) { attr.nr_cpus = 1u << 20; });
    refused([](auto& attr) { attr.balance = static_cast<percpu_balance_mode>(99); });
    refused([](auto& attr) { attr.first_chunk = static_cast<percpu_first_chunk>(99); });
    refused([](auto& attr) { attr.reserved = 1; });
  }));
  check_told("percpu_pool_destroy", [] {
    (void)percpu_pool_default();
    percpu_pool_destroy(reinterpret_cast<percpu_pool_t*>(no_handle));
  });
}

TEST_CASE("domains") {
  CHECK_FINE(fresh(nullptr, [] {
    EXPECT_REFUSED(percpu_domain_create(nullptr, PERCPU_NO_LIMIT, nullptr), nullptr);
    EXPECT_REFUSED(percpu_domain_create("a name of more than thirty-one bytes", PERCPU_NO_LIMIT, nullptr), nullptr);
    EXPECT(percpu_domain_get(nullptr) == nullptr);
    percpu_domain_put(nullptr);
    EXPECT(percpu_domain_set(nullptr) == nullptr);
  }));
  auto* bad = reinterpret_cast<percpu_domain_t*>(no_handle);
  check_told("percpu_domain_create", [=] { if (percpu_domain_create("child", 1, bad) == nullptr) return; });
  check_told("percpu_domain_get", [=] { percpu_domain_get(bad); });
  check_told("percpu_domain_put", [=] { percpu_domain_put(bad); });
  check_told("percpu_domain_set", [=] { percpu_domain_set(bad); });
  for (percpu_domain_t* none : {bad, static_cast<percpu_domain_t*>(nullptr)}) {
    percpu_domain_stats stats{};
    check_told("percpu_domain_read", [&] { percpu_domain_read(none, &stats); });
    check_told("percpu_domain_set_limit", [=] { percpu_domain_set_limit(none, 1); });
  }
  check_told("percpu_domain_read", [] { percpu_domain_read(percpu_domain_create("domain", 1, nullptr), nullptr); });
}

TEST_CASE("statistics and reports") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_stats stats{};
    percpu_pool_t* pool = percpu_pool_default();
    EXPECT_REFUSED(percpu_stats_read(nullptr, sizeof stats), -1);
    EXPECT_REFUSED(percpu_pool_stats_read(pool, nullptr, sizeof stats), -1);
    EXPECT_REFUSED(percpu_pool_stats_read(nullptr, &stats, sizeof stats), -1);
    percpu_chunk_stats rows[8];
    EXPECT_REFUSED(percpu_pool_chunks(nullptr, rows, 8, sizeof *rows), 0u);
    EXPECT_REFUSED(percpu_pool_chunks(pool, nullptr, 8, sizeof *rows), 0u);
    for (const size_t bytes : {size_t{0}, size_t{4097}, kHuge, SIZE_MAX}) {
      EXPECT_REFUSED(percpu_stats_read(&stats, bytes), -1);
      EXPECT_REFUSED(percpu_pool_stats_read(pool, &stats, bytes), -1);
      EXPECT_REFUSED(percpu_pool_chunks(pool, rows, 8, bytes), 0u);
    }
    EXPECT(percpu_pool_chunks(pool, nullptr, 0, 0) != 0);
    // A caller of an older version, and one of a newer.
    char longer[sizeof stats + 16];
    memset(longer, 'x', sizeof longer);
    EXPECT(percpu_stats_read(reinterpret_cast<percpu_stats*>(longer), 8) == 0);
    EXPECT(longer[8] == 'x');
    EXPECT(percpu_stats_read(reinterpret_cast<percpu_stats*>(longer), sizeof longer) == 0);
    EXPECT(longer[sizeof longer - 1] == 0);

    char text[64] = "before";
    EXPECT_REFUSED(percpu_report(PERCPU_REPORT_TEXT, nullptr, 64), 0u);
    EXPECT_REFUSED(percpu_pool_report(pool, PERCPU_REPORT_JSON, nullptr, 1), 0u);
    EXPECT_REFUSED(percpu_pool_report(nullptr, PERCPU_REPORT_JSON, text, sizeof text), 0u);
    EXPECT(text[0] == 0);
    EXPECT_REFUSED(percpu_report(static_cast<percpu_report_kind>(99), text, sizeof text), 0u);
    EXPECT(percpu_report(PERCPU_REPORT_TEXT, nullptr, 0) != 0);
    EXPECT(percpu_pool_report(pool, PERCPU_REPORT_LAYOUT, text, 1) != 0);
    EXPECT(text[0] == 0);
  }));
}

TEST_CASE("addresses, nodes, CPUs") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_address info{};
    auto* area = static_cast<uint64_t*>(percpu_alloc(8, 8));
    for (const void* bad : {static_cast<const void*>(nullptr), static_cast<const void*>(no_handle), reinterpret_cast<const void*>(UINTPTR_MAX)}) {
      EXPECT(percpu_address_info(bad, &info) == 0);
      EXPECT(percpu_address_info(bad, nullptr) == 0);
    }
    EXPECT(percpu_address_info(area, nullptr) == 1);
    EXPECT(percpu_address_info(percpu_this_ptr(area), nullptr) == 1);
    errno = 0;
    EXPECT(percpu_page_node(nullptr) == -1);
    EXPECT(errno == EFAULT || errno == ENOENT || errno == ENOSYS);
    EXPECT(percpu_page_node(reinterpret_cast<const void*>(UINTPTR_MAX)) == -1);
    for (const int cpu : {-2, INT_MIN, INT_MAX, 1 << 20}) EXPECT_REFUSED(percpu_fence(cpu), -1);
    for (const unsigned cpu : {percpu_nr_cpu_ids(), 1u << 20, UINT_MAX}) {
      EXPECT(percpu_cpu_possible(cpu) == 0);
      EXPECT(percpu_ptr(area, static_cast<int>(cpu)) == nullptr);
      EXPECT(percpu_memory_node_(cpu) < 0);
    }
    EXPECT(percpu_own_code_(nullptr) == 0);
    EXPECT(percpu_own_code_(no_handle) == 0);
    percpu_free(area);
  }));
}

}  // namespace
}  // namespace percpu
