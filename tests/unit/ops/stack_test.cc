// SPDX-License-Identifier: MIT
// Bounded stacks of each CPU: every value is in one place at a time, whoever pushes, pops, and empties other CPUs'
// stacks.
#include <percpu/stack.h>

#include <doctest/doctest.h>

#include <barrier>
#include <cstdio>

#include "fixture.h"
#include "storm.h"

namespace {

constexpr uint32_t kLimit = 6;
constexpr uint64_t kValues = 40;

percpu_stack *new_stack() {
  auto *stack = static_cast<percpu_stack *>(fixture_alloc(PERCPU_STACK_BYTES(kLimit), 8));
  percpu_stack *copy;
  percpu_for_each_copy(copy, stack) copy->limit = kLimit;
  return stack;
}

// Where each value is: on some stack (0), or in somebody's hands (1).
struct Shop {
  percpu_stack *stack = new_stack();
  std::atomic<int> taken[kValues] = {};
  std::atomic<uint64_t> errors{0}, handovers{0};

  bool take(uint64_t *value) {
    if (!percpu_stack_pop_(nullptr, stack, value)) return false;
    claim(*value);
    return true;
  }
  bool give(uint64_t value) {
    taken[value].store(0);
    if (percpu_stack_push_(nullptr, stack, value)) return true;
    if (taken[value].exchange(1) != 0) errors.fetch_add(1);  // it must not have been pushed
    return false;
  }
  void claim(uint64_t value) {
    if (value >= kValues || taken[value].exchange(1) != 0) errors.fetch_add(1);
    handovers.fetch_add(1, std::memory_order_relaxed);
  }
  // Takes all values of a CPU's stack; one thread at a time.
  void empty(uint32_t cpu, std::vector<uint64_t> *into) {
    percpu_stack *copy = percpu_ptr(stack, cpu);
    __atomic_store_n(&copy->limit, 0, __ATOMIC_SEQ_CST);
    if (percpu_fence(static_cast<int>(cpu)) != 0) errors.fetch_add(1);
    if (percpu_stack_count(copy) > kLimit) errors.fetch_add(1);
    for (uint32_t i = 0; i < percpu_stack_count(copy); ++i) {
      claim(percpu_stack_slots(copy)[i]);
      into->push_back(percpu_stack_slots(copy)[i]);
    }
    percpu_stack_set_count(copy, 0);
    __atomic_store_n(&copy->limit, kLimit, __ATOMIC_SEQ_CST);
  }
};

Shop *shop;
thread_local bool may_handle = false;

void handler(int) {
  uint64_t value;
  if (may_handle && shop->take(&value) && !shop->give(value)) {
    may_handle = false;  // full or stopped meanwhile: this thread keeps it to the end
    shop->taken[value].store(2);
  }
}

}  // namespace

TEST_CASE("a stack gives back last what it took first, and refuses what it has no room for") {
  if (!fixture_process_has_rseq()) return;
  storm::pin(pthread_self(), storm::allowed_cpus()[0]);
  REQUIRE(percpu_thread_attach_() == 1);
  percpu_stack *stack = new_stack();
  uint64_t value = 0;
  CHECK(percpu_stack_pop_(nullptr, stack, &value) == 0);
  for (uint64_t i = 0; i < kLimit; ++i) CHECK(percpu_stack_push_(nullptr, stack, i + 100) == 1);
  CHECK(percpu_stack_push_(nullptr, stack, 7) == 0);
  for (uint64_t i = kLimit; i-- > 0;) {
    CHECK(percpu_stack_pop_(nullptr, stack, &value) == 1);
    CHECK(value == i + 100);
  }
  CHECK(percpu_stack_pop_(nullptr, stack, &value) == 0);
  CHECK(percpu_stack_push_(nullptr, stack, 1) == 1);
  CHECK(percpu_stack_count(percpu_this_ptr(stack)) == 1);
  CHECK(percpu_stack_nr_pops(percpu_this_ptr(stack)) == kLimit);
  percpu_this_ptr(stack)->limit = 0;
  CHECK(percpu_stack_push_(nullptr, stack, 2) == 0);
  CHECK(percpu_stack_pop_(nullptr, stack, &value) == 0);
  fixture_pin(-1);
}

TEST_CASE("a thread without rseq finds every stack closed") {
  percpu_stack *stack = new_stack();
  std::thread([&] {
    fixture_leave_rseq();
    uint64_t value;
    CHECK(percpu_stack_push_(nullptr, stack, 1) == 0);
    CHECK(percpu_stack_pop_(nullptr, stack, &value) == 0);
  }).join();
}

TEST_CASE("in a storm with stacks being emptied, each value is in one place") {
  if (!fixture_process_has_rseq()) return;
  const uint64_t seed = storm::seed();
  std::printf("PERCPU_SEED=%llu\n", static_cast<unsigned long long>(seed));
  Shop the_shop;
  shop = &the_shop;
  storm::on_signal(handler);
  const size_t nr_threads = 2 * fixture_nr_cpus() + 1;
  std::vector<std::vector<uint64_t>> held(nr_threads);
  for (uint64_t value = 0; value < kValues; ++value) {
    the_shop.taken[value].store(1);
    held[value % nr_threads].push_back(value);
  }
  const auto everybody = static_cast<std::ptrdiff_t>(nr_threads) + 1;
  std::barrier<> start(everybody), finish(everybody);
  std::atomic<size_t> done{0};
  std::vector<std::thread> threads;
  std::vector<pthread_t> handles;
  for (size_t i = 0; i < nr_threads; ++i)
    threads.emplace_back([&, i] {
      std::vector<uint64_t> &mine = held[i];
      std::mt19937_64 random(seed + i);
      (void)percpu_thread_attach_();
      mine.reserve(kValues);
      start.arrive_and_wait();
      may_handle = true;
      for (unsigned k = 0; k < 100'000; ++k) {
        if (i == 0 && k % 50 == 0) the_shop.empty(static_cast<uint32_t>(random() % fixture_nr_cpus()), &mine);
        uint64_t value;
        if (random() % 2 == 0) {
          if (the_shop.take(&value)) mine.push_back(value);
        } else if (!mine.empty() && the_shop.give(mine.back())) {
          mine.pop_back();
        }
      }
      may_handle = false;
      done.fetch_add(1);
      finish.arrive_and_wait();
    });
  for (std::thread &thread : threads) handles.push_back(thread.native_handle());
  start.arrive_and_wait();
  {
    storm::Storm storm(handles, seed);
    while (done.load() < nr_threads) usleep(1000);
  }
  finish.arrive_and_wait();
  for (std::thread &thread : threads) thread.join();
  std::vector<uint64_t> rest;
  for (uint32_t cpu = 0; cpu < fixture_nr_cpus(); ++cpu) the_shop.empty(cpu, &rest);
  size_t nr = rest.size();
  for (const std::vector<uint64_t> &mine : held) nr += mine.size();
  for (const std::atomic<int> &state : the_shop.taken) nr += state.load() == 2;
  CHECK(nr == kValues);
  for (const std::atomic<int> &state : the_shop.taken) CHECK(state.load() >= 1);
  CHECK(the_shop.handovers.load() > 10'000);
  CHECK(the_shop.errors.load() == 0);
}
