// SPDX-License-Identifier: MIT
//
// What allocation costs: percpu_alloc() and percpu_free() of 8 bytes in pools of different shapes and fillings. Prints
// Google Benchmark's rows, interleaved at random, then medians and ratios of one run.
//
//   pair           allocate and free, the pool warm, the front cache serving it
//   pair_maps      the same with the front cache off (balance:off): the search of the maps
//   churn/N        N live areas; a random one is freed and one allocated in its place
//   maps_churn/N   the same without the front cache
//   units/N        pair in a pool that is laid out for N CPUs
#include <benchmark/benchmark.h>

#include <percpu.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "compare.h"

namespace {

constexpr size_t kBytes = 8;

percpu_pool_t* make_pool(unsigned nr_cpus, percpu_balance_mode balance) {
  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.nr_cpus = nr_cpus;
  attr.balance = balance;
  percpu_pool_t* pool = percpu_pool_create(&attr);
  if (pool == nullptr) {
    std::perror("percpu_pool_create");
    std::exit(1);
  }
  return pool;
}

void* allocate(percpu_pool_t* pool) {
  void* handle = percpu_pool_alloc(pool, kBytes, kBytes, 0);
  if (handle == nullptr) {
    std::perror("percpu_pool_alloc");
    std::exit(1);
  }
  return handle;
}

void pair(benchmark::State& state, percpu_pool_t* pool) {
  percpu_pool_free(pool, allocate(pool));
  for (auto _ : state) percpu_pool_free(pool, allocate(pool));
}

// A pool with live areas, kept from one repetition to the next: filling it is not what is measured.
struct Filled {
  percpu_pool_t* pool;
  std::vector<void*> areas;
  std::minstd_rand random{1};

  Filled(size_t count, percpu_balance_mode balance) : pool(make_pool(0, balance)), areas(count) {
    for (void*& area : areas) area = allocate(pool);
  }
};

void churn(benchmark::State& state, Filled* filled) {
  for (auto _ : state) {
    void*& area = filled->areas[filled->random() % filled->areas.size()];
    percpu_pool_free(filled->pool, area);
    area = allocate(filled->pool);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Comparison comparison;
  percpu_pool_t* cached = make_pool(0, PERCPU_BALANCE_THREAD);
  percpu_pool_t* plain = make_pool(0, PERCPU_BALANCE_OFF);
  comparison.add("pair", [=](benchmark::State& state) { pair(state, cached); });
  comparison.add("pair_maps", [=](benchmark::State& state) { pair(state, plain); });
  for (const size_t live : {size_t{1000}, size_t{1000000}}) {
    auto* with_cache = new Filled(live, PERCPU_BALANCE_THREAD);
    auto* without = new Filled(live, PERCPU_BALANCE_OFF);
    comparison.add("churn/" + std::to_string(live), [=](benchmark::State& state) { churn(state, with_cache); });
    comparison.add("maps_churn/" + std::to_string(live), [=](benchmark::State& state) { churn(state, without); });
    comparison.add("pair_live/" + std::to_string(live), [=](benchmark::State& state) { pair(state, with_cache->pool); });
    comparison.add("maps_pair_live/" + std::to_string(live), [=](benchmark::State& state) { pair(state, without->pool); });
  }
  for (const unsigned units : {64u, 256u}) {
    percpu_pool_t* wide = make_pool(units, PERCPU_BALANCE_THREAD);
    comparison.add("units/" + std::to_string(units), [=](benchmark::State& state) { pair(state, wide); });
  }
  comparison.ratio("pair_live/1000000", "pair_live/1000");
  comparison.ratio("maps_pair_live/1000000", "maps_pair_live/1000");
  comparison.ratio("churn/1000000", "churn/1000");
  comparison.ratio("maps_churn/1000000", "maps_churn/1000");
  comparison.ratio("pair", "pair_maps");
  comparison.ratio("units/256", "pair");
  return comparison.run(argc, argv);
}
