// SPDX-License-Identifier: MIT
// A user-level thread (here one of makecontext(), as libraries of coroutines have) that goes on in another kernel thread: each
// operation is done by the thread that executes it, on its CPU's copy, also where both lie in one loop of one function.
#include <doctest/doctest.h>
#include <ucontext.h>

#include <pthread.h>
#include <semaphore.h>

#include <cstdint>
#include <vector>

#include "fixture.h"

namespace {

constexpr int kSteps = 200;
constexpr size_t kStackBytes = size_t{256} << 10;

uint64_t *counter;
percpu_pool *pool;
uint64_t *counter_in_pool;
ucontext_t user_thread, kernel_thread;

// Not inline, and nothing in between that the compiler could take for a reason to read the thread pointer again.
__attribute__((noinline)) void count_and_yield() {
  for (int step = 0; step < kSteps; ++step) {
    percpu_inc(counter);
    percpu_add_return(counter, 1);
    percpu_pool_add(pool, counter_in_pool, 3);
    swapcontext(&user_thread, &kernel_thread);
  }
}

uint64_t on_cpu(int cpu, const uint64_t *handle) {
  return *percpu_ptr(handle, cpu);
}

// Two kernel threads, each on a CPU of its own, which execute the user-level thread in turn.
struct Carrier {
  int cpu;
  sem_t turn;
  Carrier *other = nullptr;
};

void *carry(void *argument) {
  auto *self = static_cast<Carrier *>(argument);
  fixture_pin(self->cpu);
  for (int i = 0; i < kSteps / 2; ++i) {
    while (sem_wait(&self->turn) != 0) {}
    swapcontext(&kernel_thread, &user_thread);
    sem_post(&self->other->turn);
  }
  return nullptr;
}

}  // namespace

TEST_CASE("a user-level thread that goes on in another kernel thread counts on that thread's CPU") {
  const int first = fixture_next_cpu(-1);
  const int second = fixture_next_cpu(first);
  if (second < 0) return;  // with one CPU there is nothing to tell apart
  fixture_free_all();
  counter = static_cast<uint64_t *>(fixture_alloc(8, 8));
  pool = fixture_pool();
  counter_in_pool = static_cast<uint64_t *>(fixture_pool_alloc(8, 8));
  std::vector<char> stack(kStackBytes);
  REQUIRE(getcontext(&user_thread) == 0);
  user_thread.uc_stack.ss_sp = stack.data();
  user_thread.uc_stack.ss_size = stack.size();
  user_thread.uc_link = nullptr;
  makecontext(&user_thread, count_and_yield, 0);

  Carrier carriers[2] = {{first, {}}, {second, {}}};
  pthread_t threads[2];
  for (int i = 0; i < 2; ++i) {
    carriers[i].other = &carriers[1 - i];
    sem_init(&carriers[i].turn, 0, i == 0 ? 1 : 0);
  }
  for (int i = 0; i < 2; ++i) REQUIRE(pthread_create(&threads[i], nullptr, carry, &carriers[i]) == 0);
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  const bool has_rseq = fixture_process_has_rseq() != 0;
  for (const Carrier &carrier : carriers) {
    CAPTURE(carrier.cpu);
    if (has_rseq) CHECK(on_cpu(carrier.cpu, counter) == kSteps);
    if (has_rseq) CHECK(*percpu_pool_ptr(pool, counter_in_pool, carrier.cpu) == 3 * kSteps / 2);
  }
  CHECK(percpu_sum(counter) == 2 * kSteps);
  CHECK(percpu_pool_sum(pool, counter_in_pool) == 3 * kSteps);
}
