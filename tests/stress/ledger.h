// SPDX-License-Identifier: MIT
//
// What a storm has allocated from a pool by its own count, and what the pool's statistics say of it.
//
// nr_allocs is never less than what was allocated before they were asked for, and exact when all is at rest: the front caches count their
// allocations by pops and a correction, and no correction may be lost. nr_live may lack areas that went from a front cache that was
// read to one that was not, and so were taken for freed twice (lib/runtime/pool_stats.cc); each of them is in nr_cached, too, so the
// two together are at least what lives.
#ifndef PERCPU_TESTS_STRESS_LEDGER_H
#define PERCPU_TESTS_STRESS_LEDGER_H

#include <atomic>
#include <vector>

#include "expect.h"

namespace storm {

class Ledger {
 public:
  // Keeps areas alive from now on, most of them of sizes that no front cache holds: more than front caches do hold. Requires: nobody
  // else uses the pool yet.
  explicit Ledger(percpu_pool_t *pool) : pool_(pool), before_(stats_of(pool)) {
    for (size_t i = 0; i < kKept; ++i) {
      kept_.push_back(percpu_pool_alloc(pool, i % 8 == 0 ? 16 : 260, 4, 0));
      EXPECT(kept_.back() != nullptr);
      note_alloc();
    }
  }

  // Something was allocated. Context: any thread, any signal handler.
  void note_alloc() { nr_allocs_.fetch_add(1); }

  void check_meanwhile() const {
    const uint64_t least = nr_allocs_.load();
    const percpu_stats stats = stats_of(pool_);
    EXPECT(stats.nr_allocs >= before_.nr_allocs + least);
    EXPECT(stats.nr_live + stats.nr_cached >= before_.nr_live + kKept);
  }

  // Frees what was kept. Requires: all that others allocated is freed, and they are done.
  void check_at_rest() {
    expect_counts(kKept);
    for (void *area : kept_) percpu_pool_free(pool_, area);
    expect_counts(0);
  }

 private:
  static constexpr size_t kKept = 4000;
  static_assert(std::atomic<uint64_t>::is_always_lock_free);

  void expect_counts(uint64_t nr_live) const {
    const percpu_stats stats = stats_of(pool_);
    const uint64_t nr_allocs = before_.nr_allocs + nr_allocs_.load();
    nr_live += before_.nr_live;
    if (stats.nr_allocs == nr_allocs && stats.nr_live == nr_live && stats.nr_frees == nr_allocs - nr_live) return;
    fprintf(stderr,
            "expected %" PRIu64 " areas allocated and %" PRIu64 " alive, found %" PRIu64 " allocated, %" PRIu64 " freed and %" PRIu64
            " alive\n",
            nr_allocs, nr_live, stats.nr_allocs, stats.nr_frees, stats.nr_live);
    _exit(99);
  }

  percpu_pool_t *pool_;
  percpu_stats before_;
  std::vector<void *> kept_;
  std::atomic<uint64_t> nr_allocs_{0};
};

}  // namespace storm

#endif  // PERCPU_TESTS_STRESS_LEDGER_H
