// SPDX-License-Identifier: MIT
// Nothing is lost and nothing counted twice, whatever happens to the threads: twice as many as CPUs, some without rseq,
// moved about and interrupted all the time by a signal whose handler operates on the same copies.
#include <doctest/doctest.h>

#include <sys/syscall.h>

#include <array>
#include <barrier>
#include <cstdio>

#include "fixture.h"
#include "storm.h"

namespace {

// Fewer by atomic instructions, which take long and cannot be cut in two.
const uint64_t kRounds = fixture_process_has_rseq() != 0 ? 150'000 : 30'000;

// The areas that everybody works on.
struct Areas {
  uint64_t *words = make<uint64_t>();
  uint32_t *halves = make<uint32_t>();
  uint16_t *shorts = make<uint16_t>();
  uint8_t *bytes = make<uint8_t>();
  int64_t *signed_words = make<int64_t>();
  uint64_t *returned = make<uint64_t>();
  double *reals = make<double>();
  float *small_reals = make<float>();
  uint64_t *tokens = make<uint64_t>();
  uint64_t *compared = make<uint64_t>();
  uint16_t *compared_short = make<uint16_t>();
  percpu_pair *pairs = make<percpu_pair>();
  uint64_t *in_pool = static_cast<uint64_t *>(fixture_pool_alloc(8, 8));
  uint64_t *from_handler = make<uint64_t>();

  template <class T>
  static T *make() {
    return static_cast<T *>(fixture_alloc(sizeof(T), sizeof(T)));
  }
};

// What one thread did. Written by the thread and by the handler that interrupts it, so counted apart.
struct Tally {
  uint64_t rounds = 0;
  uint64_t token = 0;
  volatile uint64_t handled = 0;
  uint64_t returned_sum = 0;
};

Areas *areas;
thread_local Tally *tally;

void add_by_compare(uint64_t *p) {
  uint64_t seen = percpu_read(p);
  while (!percpu_try_cmpxchg(p, &seen, seen + 1)) {
  }
}

void add_by_compare_short(uint16_t *p) {
  for (;;) {
    const uint16_t seen = percpu_read(p);
    if (percpu_cmpxchg(p, seen, seen + 1) == seen) return;
  }
}

void add_by_compare_pair(percpu_pair *p) {
  percpu_pair seen = percpu_read16(p);
  while (!percpu_cmpxchg16(p, &seen, percpu_pair{seen.low + 1, seen.high - 3})) {
  }
}

void handler(int) {
  if (tally == nullptr) return;
  tally->handled = tally->handled + 1;
  percpu_inc(areas->from_handler);
  percpu_inc(areas->words);
  add_by_compare(areas->compared);
  add_by_compare_pair(areas->pairs);
  percpu_add(areas->reals, 1);
}

void count(uint64_t rounds) {
  for (uint64_t i = 0; i < rounds; ++i) {
    percpu_inc(areas->words);
    percpu_add(areas->halves, 3);
    percpu_dec(areas->shorts);
    percpu_sub(areas->bytes, 5);
    percpu_sub(areas->signed_words, 7);
    percpu_add_return(areas->returned, 2);
    percpu_add(areas->reals, 1);
    percpu_sub(areas->small_reals, 1);
    tally->token = percpu_xchg(areas->tokens, tally->token);
    add_by_compare(areas->compared);
    add_by_compare_short(areas->compared_short);
    add_by_compare_pair(areas->pairs);
    percpu_pool_inc(fixture_pool(), areas->in_pool);
    __atomic_store_n(&tally->rounds, tally->rounds + 1, __ATOMIC_RELAXED);  // the main thread looks on
  }
}

percpu_pair sum_of_pairs() {
  percpu_pair sum{0, 0}, *copy;
  percpu_for_each_copy(copy, areas->pairs) {
    sum.low += copy->low;
    sum.high += copy->high;
  }
  return sum;
}

}  // namespace

TEST_CASE("no operation of any size is lost in a storm of migrations and signals") {
  const uint64_t seed = storm::seed();
  std::printf("PERCPU_SEED=%llu\n", static_cast<unsigned long long>(seed));
  Areas all;
  areas = &all;
  storm::on_signal(handler);
  const size_t nr_threads = 2 * fixture_nr_cpus() + 2;
  std::vector<Tally> tallies(nr_threads);
  std::vector<std::thread> threads;
  const auto everybody = static_cast<std::ptrdiff_t>(nr_threads) + 1;
  std::barrier<> start(everybody), finish(everybody);
  for (size_t i = 0; i < nr_threads; ++i)
    threads.emplace_back([&, i] {
      if (i % 4 == 3) fixture_leave_rseq();
      tallies[i].token = i + 1;
      tally = &tallies[i];
      start.arrive_and_wait();
      count(kRounds);
      finish.arrive_and_wait();
      tally = nullptr;
    });
  std::vector<pthread_t> handles;
  for (std::thread &thread : threads) handles.push_back(thread.native_handle());
  start.arrive_and_wait();
  uint64_t blows;
  {
    storm::Storm storm(handles, seed);
    while ([&] {
      uint64_t done = 0;
      for (Tally &t : tallies) done += __atomic_load_n(&t.rounds, __ATOMIC_RELAXED);
      return done < kRounds * nr_threads;
    }()) usleep(1000);
    storm.end();
    blows = storm.blows();
  }
  finish.arrive_and_wait();
  for (std::thread &thread : threads) thread.join();

  uint64_t rounds = 0, handled = 0, tokens = 0, expected_tokens = 0;
  for (size_t i = 0; i < nr_threads; ++i) {
    rounds += tallies[i].rounds;
    handled += tallies[i].handled;
    tokens += tallies[i].token;
    expected_tokens += i + 1;
  }
  std::printf("%llu rounds, %llu blows, %llu handled\n", static_cast<unsigned long long>(rounds),
              static_cast<unsigned long long>(blows), static_cast<unsigned long long>(handled));
  CHECK(rounds == kRounds * nr_threads);
  CHECK(handled > 0);
  CHECK(percpu_sum(all.from_handler) == handled);
  CHECK(percpu_sum(all.words) == rounds + handled);
  CHECK(static_cast<uint32_t>(percpu_sum(all.halves)) == static_cast<uint32_t>(3 * rounds));
  CHECK(static_cast<uint16_t>(percpu_sum(all.shorts)) == static_cast<uint16_t>(0 - rounds));
  CHECK(static_cast<uint8_t>(percpu_sum(all.bytes)) == static_cast<uint8_t>(0 - 5 * rounds));
  CHECK(percpu_sum(all.signed_words) == -7 * static_cast<int64_t>(rounds));
  CHECK(percpu_sum(all.returned) == 2 * rounds);
  CHECK(percpu_sum(all.reals) == static_cast<double>(rounds + handled));
  CHECK(percpu_sum(all.small_reals) == -static_cast<double>(rounds));
  CHECK(percpu_sum(all.tokens) + tokens == expected_tokens);
  CHECK(percpu_sum(all.compared) == rounds + handled);
  CHECK(static_cast<uint16_t>(percpu_sum(all.compared_short)) == static_cast<uint16_t>(rounds));
  CHECK(sum_of_pairs().low == rounds + handled);
  CHECK(sum_of_pairs().high == 0 - 3 * (rounds + handled));
  CHECK(percpu_pool_sum(fixture_pool(), all.in_pool) == rounds);
}

// and, or: each thread owns one bit of the word of its CPU, sets and clears it, and must always find it as it left it.
TEST_CASE("setting and clearing bits of one word by many threads of one CPU disturbs no other bit") {
  auto *bits = static_cast<uint64_t *>(fixture_alloc(8, 8));
  auto *short_bits = static_cast<uint8_t *>(fixture_alloc(1, 1));
  storm::on_signal([](int) {});
  const uint64_t seed = storm::seed();
  const std::vector<int> cpus = storm::allowed_cpus();
  std::atomic<uint64_t> wrong{0};
  std::atomic<unsigned> done{0};
  std::vector<std::thread> threads;
  std::vector<pthread_t> handles;
  constexpr unsigned kPerCpu = 3;
  std::barrier<> finish(static_cast<std::ptrdiff_t>(cpus.size() * kPerCpu));
  for (size_t i = 0; i < cpus.size() * kPerCpu; ++i)
    threads.emplace_back([&, i] {
      storm::pin(pthread_self(), cpus[i / kPerCpu]);
      const uint64_t mine = uint64_t{1} << (i % kPerCpu * 7);
      const auto mine_too = static_cast<uint8_t>(1u << (i % kPerCpu));
      for (uint64_t k = 0; k < kRounds / 3 * 4; ++k) {
        percpu_or(bits, mine);
        percpu_or(short_bits, mine_too);
        if ((percpu_read(bits) & mine) == 0 || (percpu_read(short_bits) & mine_too) == 0) wrong.fetch_add(1);
        percpu_and(bits, ~mine);
        percpu_and(short_bits, ~mine_too);
        if ((percpu_read(bits) & mine) != 0 || (percpu_read(short_bits) & mine_too) != 0) wrong.fetch_add(1);
      }
      done.fetch_add(1);
      finish.arrive_and_wait();
    });
  for (std::thread &thread : threads) handles.push_back(thread.native_handle());
  {
    storm::Options options;
    options.migrate = false;
    storm::Storm storm(handles, seed, options);
    // The last thread leaves the barrier only when the storm could still reach it: so end it before joining.
    while (done.load() + 1 < threads.size()) usleep(1000);
  }
  for (std::thread &thread : threads) thread.join();
  CHECK(wrong.load() == 0);
  CHECK(percpu_sum(bits) == 0);
  CHECK(percpu_sum(short_bits) == 0);
}

// 16 bytes are seen whole by a reader on another CPU.
TEST_CASE("a pair read from another CPU is one that was written") {
  auto *pair = static_cast<percpu_pair *>(fixture_alloc(16, 16));
  std::atomic<bool> stop{false};
  uint64_t torn = 0, reads = 0;
  std::thread writer([&] {
    percpu_pair seen{0, 0};
    while (!stop.load(std::memory_order_relaxed)) {
      const uint64_t next = seen.low + 1;
      const percpu_pair wanted{next, next * 0x9e3779b97f4a7c15u};
      if (percpu_cmpxchg16(pair, &seen, wanted)) seen = wanted;
    }
  });
  while (reads < 3'000'000) {
    percpu_pair *copy;
    percpu_for_each_copy(copy, pair) {
      const percpu_pair got = percpu_load16(copy);
      torn += got.high != got.low * 0x9e3779b97f4a7c15u;
      ++reads;
    }
  }
  stop.store(true);
  writer.join();
  CHECK(torn == 0);
}

TEST_CASE("a handle is mapped to no memory, and operations leave errno alone") {
  auto *p = static_cast<uint64_t *>(fixture_alloc(8, 8));
  errno = 4711;
  percpu_inc(p);
  percpu_xchg(p, percpu_read(p));
  std::thread([&] {
    fixture_leave_rseq();
    errno = 4712;
    percpu_inc(p);
    CHECK(errno == 4712);
  }).join();
  CHECK(errno == 4711);
  CHECK(percpu_sum(p) == 2);
}
