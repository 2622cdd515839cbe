// SPDX-License-Identifier: MIT
#include "runtime/accounting.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "../child.h"
#include "../seed.h"
#include "world.h"

namespace percpu {
namespace {

struct Domains {
  FaultySystem& faulty = FaultySystem::reset();
  Accounting accounting;

  DomainId make(const char* name, size_t limit_bytes, DomainId parent = kNoDomain) {
    int error = 0;
    const DomainId id = accounting.create(faulty.system(), name, limit_bytes, parent, &error);
    REQUIRE(id != kNoDomain);
    return id;
  }
  size_t charged(DomainId id) { return accounting.entry(id).charged_bytes.load(); }
  uint32_t references(DomainId id) { return accounting.entry(id).references.load(); }
  uint64_t refused(DomainId id) { return accounting.entry(id).nr_refused.load(); }
};

TEST_CASE("a charge goes to the domain and all its ancestors, and comes back from all of them") {
  Domains domains;
  const DomainId root = domains.make("root", PERCPU_NO_LIMIT);
  const DomainId middle = domains.make("middle", PERCPU_NO_LIMIT, root);
  const DomainId leaf = domains.make("leaf", PERCPU_NO_LIMIT, middle);
  const DomainId other = domains.make("other", PERCPU_NO_LIMIT, root);
  REQUIRE(domains.accounting.charge(leaf, 100));
  REQUIRE(domains.accounting.charge(other, 20));
  CHECK(domains.charged(leaf) == 100);
  CHECK(domains.charged(middle) == 100);
  CHECK(domains.charged(other) == 20);
  CHECK(domains.charged(root) == 120);
  domains.accounting.uncharge(leaf, 100);
  domains.accounting.uncharge(other, 20);
  for (DomainId id : {root, middle, leaf, other}) CHECK(domains.charged(id) == 0);
  CHECK(domains.accounting.entry(root).peak_charged_bytes == 120);
  CHECK(domains.accounting.entry(middle).peak_charged_bytes == 100);
}

TEST_CASE("a charge that an ancestor refuses changes nothing but that ancestor's count of refusals") {
  Domains domains;
  const DomainId root = domains.make("root", 150);
  const DomainId middle = domains.make("middle", PERCPU_NO_LIMIT, root);
  const DomainId leaf = domains.make("leaf", 1000, middle);
  REQUIRE(domains.accounting.charge(leaf, 100));
  const uint32_t references = domains.references(leaf);
  CHECK_FALSE(domains.accounting.charge(leaf, 51));
  CHECK(domains.charged(leaf) == 100);
  CHECK(domains.charged(middle) == 100);
  CHECK(domains.charged(root) == 100);
  CHECK(domains.references(leaf) == references);
  CHECK(domains.accounting.entry(middle).peak_charged_bytes == 100);  // what was refused was never charged
  CHECK(domains.accounting.entry(leaf).peak_charged_bytes == 100);
  CHECK(domains.refused(root) == 1);
  CHECK(domains.refused(middle) == 0);
  CHECK(domains.refused(leaf) == 0);
  CHECK(domains.accounting.charge(leaf, 50));  // exactly up to the limit
}

TEST_CASE("a limit that falls below the charge only refuses new charges") {
  Domains domains;
  const DomainId domain = domains.make("shrinking", 1000);
  REQUIRE(domains.accounting.charge(domain, 600));
  domains.accounting.entry(domain).limit_bytes = 100;
  CHECK_FALSE(domains.accounting.charge(domain, 1));
  domains.accounting.uncharge(domain, 550);
  CHECK(domains.accounting.charge(domain, 50));
  CHECK(domains.charged(domain) == 100);
}

TEST_CASE("a charge near the largest number does not wrap around") {
  Domains domains;
  const DomainId domain = domains.make("huge", PERCPU_NO_LIMIT);
  REQUIRE(domains.accounting.charge(domain, SIZE_MAX - 10));
  CHECK_FALSE(domains.accounting.charge(domain, 11));
  CHECK(domains.accounting.charge(domain, 10));
  CHECK(domains.charged(domain) == SIZE_MAX);
}

TEST_CASE("a domain lives as long as its references, its charges and its children") {
  Domains domains;
  const DomainId parent = domains.make("parent", PERCPU_NO_LIMIT);
  const DomainId child = domains.make("child", PERCPU_NO_LIMIT, parent);
  REQUIRE(domains.accounting.charge(child, 8));
  domains.accounting.put(parent);
  CHECK(domains.references(parent) == 1);  // the child's
  domains.accounting.put(child);
  CHECK(domains.references(child) == 1);  // the charge's
  CHECK(domains.charged(parent) == 8);
  domains.accounting.uncharge(child, 8);
  CHECK(domains.references(child) == 0);
  CHECK(domains.references(parent) == 0);
}

TEST_CASE("4,095 domains exist at once, an entry that is free is found, and one more is ENOMEM") {
  Domains domains;
  std::vector<DomainId> made;
  for (uint32_t i = 1; i < kMaxDomains; i++) made.push_back(domains.make("many", PERCPU_NO_LIMIT));
  int error = 0;
  CHECK(domains.accounting.create(domains.faulty.system(), "one more", 1, kNoDomain, &error) == kNoDomain);
  CHECK(error == -ENOMEM);
  domains.accounting.put(made[1234]);
  const DomainId again = domains.make("again", 77);
  CHECK(again == made[1234]);
  CHECK(strcmp(domains.accounting.entry(again).name, "again") == 0);
  CHECK(domains.accounting.entry(again).limit_bytes == 77);
  CHECK(domains.charged(again) == 0);
}

TEST_CASE("no memory for the table is an error, and the next try succeeds") {
  Domains domains;
  domains.faulty.fail_nth(Call::kMmap, 1, ENOMEM);
  int error = 0;
  CHECK(domains.accounting.create(domains.faulty.system(), "none", 1, kNoDomain, &error) == kNoDomain);
  CHECK(error == -ENOMEM);
  CHECK(domains.make("some", 1) != kNoDomain);
}

TEST_CASE("charges of many threads add up, and never pass the limit") {
  Domains domains;
  const size_t limit = 1000;
  const DomainId root = domains.make("root", limit);
  const DomainId left = domains.make("left", PERCPU_NO_LIMIT, root);
  const DomainId right = domains.make("right", PERCPU_NO_LIMIT, root);
  std::atomic<bool> passed{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(test_seed() + static_cast<uint64_t>(t));
      const DomainId own = t % 2 == 0 ? left : right;
      for (int i = 0; i < 20000; i++) {
        const size_t bytes = 1 + random() % 400;
        if (!domains.accounting.charge(own, bytes)) continue;
        if (domains.charged(root) > limit) passed = true;
        domains.accounting.uncharge(own, bytes);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_FALSE(passed);
  CHECK(domains.charged(root) == 0);
  CHECK(domains.charged(left) == 0);
  CHECK(domains.references(left) == 1);
  CHECK(domains.accounting.entry(root).peak_charged_bytes <= limit);
}

TEST_CASE("more references dropped than taken stops the program") {
  Domains domains;
  const DomainId domain = domains.make("once", 1);
  const ChildEnd end = run_in_child([&] {
    domains.accounting.put(domain);
    domains.accounting.put(domain);
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(contains(end.standard_error, "libpercpu: percpu_domain_put: expected"));
}

// ---- areas ---------------------------------------------------------------------------------------------------------

// Fills the first chunk, so that what comes next lies elsewhere.
void fill_first_chunk(TestPool& pool, std::vector<void*>& handles) {
  for (const size_t size_bytes : {1024, 64, 4}) {
    for (;;) {
      void* handle = pool.alloc(size_bytes);
      REQUIRE(handle != nullptr);
      if (pool.chunk_of(handle) != 0) {
        pool.free(handle);
        break;
      }
      handles.push_back(handle);
    }
  }
}

struct Accounted {
  World world;
  TestPool pool{world};
  std::vector<void*> filling;
  explicit Accounted(const char* conf = "balance:off") : world(conf) { fill_first_chunk(pool, filling); }
  ~Accounted() { free_all(pool, filling); }

  DomainId make(size_t limit_bytes, DomainId parent = kNoDomain) {
    int error = 0;
    const DomainId id = world.accounting.create(world.faulty.system(), "domain", limit_bytes, parent, &error);
    REQUIRE(id != kNoDomain);
    return id;
  }
  size_t charged(DomainId id) { return world.accounting.entry(id).charged_bytes.load(); }
  // Size times copies, and metadata: a record and three bits for each four bytes.
  size_t price(size_t size_bytes) {
    size_t copies = 0;
    pool.each_copy(nullptr, [&](uint32_t, unsigned char*) { copies++; });
    return size_bytes * copies + size_bytes / 4 * 8 + (size_bytes / 4 * 3 + 7) / 8;
  }
};

TEST_CASE("an area is charged by its size in all copies and its metadata, and uncharged by whichever thread frees it") {
  Accounted world;
  const DomainId domain = world.make(PERCPU_NO_LIMIT);
  void* one = world.pool.alloc(100, 4, PERCPU_ACCOUNT, domain);
  void* other = world.pool.alloc(13, 4, PERCPU_ACCOUNT, domain);
  REQUIRE(one != nullptr);
  REQUIRE(other != nullptr);
  CHECK(world.charged(domain) == world.price(100) + world.price(16));
  std::thread([&] { world.pool.free(one); }).join();
  CHECK(world.charged(domain) == world.price(16));
  world.pool.free(other);
  CHECK(world.charged(domain) == 0);
}

TEST_CASE("an allocation above a domain's limit is ENOMEM, and nothing changed") {
  Accounted world;
  const DomainId parent = world.make(world.price(1024) - 1);
  const DomainId domain = world.make(PERCPU_NO_LIMIT, parent);
  const percpu_stats before = world.pool.stats();
  CapturedStderr captured;
  CHECK(world.pool.alloc(1024, 4, PERCPU_ACCOUNT, domain) == nullptr);
  CHECK(world.pool.error == ENOMEM);
  CHECK(contains(captured.text(), "the accounting domain's limit"));
  CHECK(world.charged(domain) == 0);
  CHECK(world.charged(parent) == 0);
  CHECK(world.world.accounting.entry(parent).nr_refused == 1);
  const percpu_stats after = world.pool.stats();
  CHECK(after.nr_live == before.nr_live);
  CHECK(after.nr_chunks == before.nr_chunks);
  CHECK(after.populated_pages == before.populated_pages);
  CHECK(after.nr_failed == before.nr_failed + 1);
  CHECK_FALSE(world.pool->due());
  void* fits = world.pool.alloc(1020, 4, PERCPU_ACCOUNT, domain);
  CHECK(fits != nullptr);
  world.pool.free(fits);
}

TEST_CASE("a failed charge asks nothing of the balancer, in atomic context neither") {
  World world("balance:sync");
  TestPool pool(world);
  int error = 0;
  const DomainId domain = world.accounting.create(world.faulty.system(), "none", 0, kNoDomain, &error);
  const uint64_t rounds = pool.stats().nr_balance_rounds;
  CHECK(pool.alloc(8, 4, PERCPU_ATOMIC | PERCPU_ACCOUNT | PERCPU_NOWARN, domain) == nullptr);
  CHECK(pool.error == ENOMEM);
  CHECK(pool.alloc(8, 4, PERCPU_ACCOUNT | PERCPU_NOWARN, domain) == nullptr);
  CHECK_FALSE(pool->due());
  CHECK(pool.stats().nr_balance_rounds == rounds);
}

TEST_CASE("an allocation that fails for want of memory leaves no charge") {
  Accounted world;
  const DomainId domain = world.make(PERCPU_NO_LIMIT);
  CapturedStderr captured;
  world.world.faulty.fail_always(Call::kMprotect, ENOMEM).fail_always(Call::kMadvise, ENOMEM);
  while (void* handle = world.pool.alloc(4096, 4, PERCPU_ACCOUNT, domain)) world.filling.push_back(handle);
  CHECK(world.pool.error == ENOMEM);
  const size_t charged = world.charged(domain);
  CHECK(world.pool.alloc(4096, 4, PERCPU_ACCOUNT, domain) == nullptr);
  CHECK(world.charged(domain) == charged);
  world.world.faulty.reset();
  free_all(world.pool, world.filling);
  CHECK(world.charged(domain) == 0);
}

TEST_CASE("areas in the first chunk and in the reserved part carry no charge") {
  World world;
  TestPool pool(world, {.reserved_bytes = 4096});
  int error = 0;
  const DomainId domain = world.accounting.create(world.faulty.system(), "first", PERCPU_NO_LIMIT, kNoDomain, &error);
  void* first = pool.alloc(64, 4, PERCPU_ACCOUNT, domain);
  void* reserved = pool.alloc(64, 4, PERCPU_ACCOUNT | PERCPU_RESERVED, domain);
  REQUIRE(first != nullptr);
  REQUIRE(reserved != nullptr);
  REQUIRE(pool.chunk_of(first) == 0);
  CHECK(world.accounting.entry(domain).charged_bytes == 0);
  CHECK(world.accounting.entry(domain).references == 1);
  pool.free(first);
  pool.free(reserved);
  CHECK(world.accounting.entry(domain).charged_bytes == 0);
}

TEST_CASE("a domain whose owner let go lives on in its areas, also those that wait for a grace period") {
  Accounted world("balance:thread");
  const DomainId parent = world.make(PERCPU_NO_LIMIT);
  const DomainId domain = world.make(PERCPU_NO_LIMIT, parent);
  void* at_once = world.pool.alloc(8, 4, PERCPU_ACCOUNT, domain);
  void* after_grace = world.pool.alloc(8, 4, PERCPU_ACCOUNT, domain);
  world.world.accounting.put(domain);
  world.pool.free(at_once);
  // Not at once in a wide pool: there the charge ends when the area is zeroed.
  CHECK(eventually([&] { return world.world.accounting.entry(domain).references == 1; }));
  CHECK(world.charged(parent) == world.price(8));
  world.pool->free_after_grace(after_grace);
  world.world.balancer.free_after_grace();
  CHECK(eventually([&] { return world.charged(parent) == 0; }));
  CHECK(eventually([&] { return world.world.accounting.entry(domain).references == 0; }));
  CHECK(world.world.accounting.entry(parent).references == 1);
}

TEST_CASE("freed areas that wait in a wide pool are uncharged when it goes") {
  World world("balance:thread");
  int error = 0;
  const DomainId domain = world.accounting.create(world.faulty.system(), "domain", PERCPU_NO_LIMIT, kNoDomain, &error);
  REQUIRE(domain != kNoDomain);
  size_t most = 0;
  for (int round = 0; round < 10; round++) {
    TestPool pool(world, {.unit_size_bytes = 64 << 10, .nr_cpus = 16});
    std::vector<void*> filling;
    fill_first_chunk(pool, filling);
    std::vector<void*> handles;
    for (int i = 0; i < 40; i++) handles.push_back(pool.alloc(64, 4, PERCPU_ACCOUNT, domain));
    free_all(pool, handles);
    most = std::max(most, world.accounting.entry(domain).charged_bytes.load());
    free_all(pool, filling);
  }
  if (process_has_rseq() && PERCPU_HAVE_SEQUENCES) CHECK(most != 0);  // else this test says nothing
  CHECK(world.accounting.entry(domain).charged_bytes.load() == 0);
}

}  // namespace
}  // namespace percpu
