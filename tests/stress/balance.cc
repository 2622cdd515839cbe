// SPDX-License-Identifier: MIT
// A storm of everything at once: allocation, free and balance by many threads, statistics and reports meanwhile, pools
// that come and go, domains, and libraries with static variables that are opened and closed.
//
// usage: balance thread|sync|off [SECONDS [PLUGIN...]]      (3 seconds by default; PERCPU_SEED is the seed)
//
// The word is the balance mode of the pools. Each area is marked in all copies by its owner, who finds the mark when it
// frees it. In the end all pools have counted what was allocated, exactly (ledger.h), pass their own check, and are empty.
#include "expect.h"
#include "ledger.h"
#include "storm.h"

#include <dlfcn.h>

#include <cstring>
#include <string>
#include <vector>

#include "../abi/plugin.h"

namespace {

std::atomic<bool> stop{false};
std::atomic<uint64_t> allocated_total{0}, refused_total{0};

struct Area {
  unsigned char *handle;
  uint32_t size_bytes;
  unsigned char mark;
};

void check_copy(const unsigned char *copy, const Area &area) {
  for (uint32_t i = 0; i < area.size_bytes; ++i) EXPECT(copy[i] == area.mark);
}

// Allocates in waves, so that chunks come and go.
void work(percpu_pool_t *pool, storm::Ledger *ledger, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Area> own;
  percpu_domain_t *domain = percpu_domain_create("worker", size_t{1} << 20, nullptr);
  EXPECT(domain != nullptr);
  percpu_domain_set(domain);
  const auto free_one = [&](size_t index) {
    const Area area = own[index];
    const unsigned char *copy;
    percpu_pool_for_each_copy(pool, copy, area.handle) check_copy(copy, area);
    if (random() % 16 == 0) {
      percpu_pool_free_rcu(pool, area.handle);
    } else {
      percpu_pool_free(pool, area.handle);
    }
    own[index] = own.back();
    own.pop_back();
  };
  while (!stop) {
    const size_t most = random() % 1000;
    while (own.size() < most && !stop) {
      Area area{};
      area.size_bytes = 4 + static_cast<uint32_t>(random() % (random() % 8 == 0 ? 5000 : 100));
      unsigned flags = PERCPU_NOWARN;
      if (random() % 8 == 0) flags |= PERCPU_ATOMIC;
      if (random() % 4 == 0) flags |= PERCPU_ACCOUNT;
      if (random() % 32 == 0) flags |= PERCPU_RESERVED;
      area.handle =
          static_cast<unsigned char *>(percpu_pool_alloc(pool, area.size_bytes, size_t{4} << random() % 8, flags));
      if (area.handle == nullptr) {
        EXPECT(errno == ENOMEM || errno == EAGAIN);
        EXPECT((flags & ~unsigned{PERCPU_NOWARN}) != 0);  // a plain one gets its memory
        ++refused_total;
        continue;
      }
      ++allocated_total;
      ledger->note_alloc();
      area.mark = static_cast<unsigned char>(1 + random() % 255);
      unsigned char *copy;
      percpu_pool_for_each_copy(pool, copy, area.handle) {
        for (uint32_t i = 0; i < area.size_bytes; ++i) EXPECT(copy[i] == 0);
        memset(copy, area.mark, area.size_bytes);
      }
      own.push_back(area);
      if (random() % 3 == 0) free_one(random() % own.size());
    }
    for (size_t least = random() % (own.size() + 1); own.size() > least;) free_one(random() % own.size());
    if (random() % 4 == 0) percpu_pool_balance(pool);
  }
  while (!own.empty()) free_one(own.size() - 1);
  percpu_domain_set(nullptr);
  percpu_domain_put(domain);
}

void ask(percpu_pool_t *pool, const storm::Ledger *ledger, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<char> text(1 << 16);
  std::vector<percpu_chunk_stats> rows(64);
  while (!stop) {
    ledger->check_meanwhile();
    const percpu_stats stats = storm::stats_of(pool);
    EXPECT(stats.empty_populated_pages <= stats.populated_pages);
    percpu_pool_report(pool, static_cast<percpu_report_kind>(random() % 3), text.data(), text.size());
    const size_t chunks = percpu_pool_chunks(pool, rows.data(), rows.size(), sizeof rows[0]);
    EXPECT(chunks >= 1);
    for (size_t i = 0; i < chunks && i < rows.size(); ++i) EXPECT(rows[i].largest_run <= rows[i].free_bytes);
    percpu_address info;
    EXPECT(percpu_address_info(&stats, &info) == 0);
    if (random() % 16 == 0) percpu_pool_check(pool);
  }
}

void come_and_go(percpu_balance_mode mode, uint64_t seed) {
  std::mt19937_64 random(seed);
  while (!stop) {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.balance = mode;
    attr.unit_size = size_t{32 << 10} << random() % 3;
    attr.nr_cpus = static_cast<unsigned>(random() % 9);
    percpu_pool_t *pool = percpu_pool_create(&attr);
    EXPECT(pool != nullptr);
    std::vector<void *> areas;
    for (int i = 0; i < 50; ++i) areas.push_back(percpu_pool_alloc(pool, 4 + random() % 9000, 4, 0));
    for (void *area : areas) {
      EXPECT(area != nullptr);
      percpu_pool_free(pool, area);
    }
    percpu_pool_check(pool);
    EXPECT(percpu_pool_destroy(pool) == 0);
  }
}

void open_and_close(std::vector<const char *> paths, storm::Ledger *ledger, uint64_t seed) {
  std::mt19937_64 random(seed);
  while (!stop) {
    const char *path = paths[random() % paths.size()];
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) fprintf(stderr, "%s\n", dlerror());
    EXPECT(library != nullptr);
    ledger->note_alloc();  // its variables
    const auto face = reinterpret_cast<plugin_face_function>(dlsym(library, "plugin_face"))();
    EXPECT(percpu_sum(face->count()) == 1);
    face->work(100);
    EXPECT(percpu_sum(face->count()) == 101);
    EXPECT(dlclose(library) == 0);
  }
}

}  // namespace

int main(int argc, char **argv) {
  const char *word = argc > 1 ? argv[1] : "thread";
  const double seconds = argc > 2 ? atof(argv[2]) : 3;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  const percpu_balance_mode mode = strcmp(word, "sync") == 0  ? PERCPU_BALANCE_SYNC
                                   : strcmp(word, "off") == 0 ? PERCPU_BALANCE_OFF
                                                              : PERCPU_BALANCE_THREAD;
  setenv("PERCPU_CONF", (std::string("balance:") + word).c_str(), 1);
  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.name = "storm";
  attr.unit_size = 32 << 10;
  attr.reserved_size = 8 << 10;
  attr.balance = mode;
  attr.nr_cpus = 6;
  percpu_pool_t *pool = percpu_pool_create(&attr);
  EXPECT(pool != nullptr);
  storm::Ledger of_pool(pool), of_default(percpu_pool_default());

  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 2; ++t) threads.emplace_back(work, pool, &of_pool, seed + t);
  for (uint64_t t = 2; t < 4; ++t) threads.emplace_back(work, percpu_pool_default(), &of_default, seed + t);
  threads.emplace_back(ask, pool, &of_pool, seed + 5);
  threads.emplace_back(ask, percpu_pool_default(), &of_default, seed + 6);
  threads.emplace_back(come_and_go, mode, seed + 7);
  if (argc > 3) threads.emplace_back(open_and_close, std::vector<const char *>(argv + 3, argv + argc), &of_default, seed + 8);
  const storm::Deadline deadline(seconds);
  while (!deadline.passed() || allocated_total <= 100) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  stop = true;
  for (std::thread &thread : threads) thread.join();

  percpu_pool_check(pool);
  percpu_pool_check(percpu_pool_default());
  of_pool.check_at_rest();
  of_default.check_at_rest();
  for (percpu_pool_t *each : {pool, percpu_pool_default()}) {
    EXPECT(storm::eventually([&] {
      percpu_pool_balance(each);
      const percpu_stats stats = storm::stats_of(each);
      return stats.nr_live == 0 && stats.nr_chunks <= 2;
    }));
    percpu_pool_check(each);
  }
  EXPECT(percpu_pool_destroy(pool) == 0);
  printf("%" PRIu64 " allocated, %" PRIu64 " refused\n", allocated_total.load(), refused_total.load());
  return 0;
}
