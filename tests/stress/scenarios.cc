// SPDX-License-Identifier: MIT
// What the kernel's own tests of restartable sequences do (tools/testing/selftests/rseq), on the operations of percpu/ops.h, as
// far as count.cc and the tests of lists and stacks have it not: very many threads, in a storm, with delays inside of sequences.
//
//   scenarios lock  ROUNDS [THREADS]   a spinlock on each CPU guards a counter and a shelf of records, each copied as a whole
//   scenarios list  ROUNDS [THREADS]   a hundred numbers on each CPU's list; whoever takes one yields before he puts it back
//   scenarios fence ROUNDS [THREADS]   two stacks on each CPU; one is stopped and fenced in turn, and nothing in it changes then
//
// ROUNDS: of each thread. THREADS: 200. PERCPU_SEED is the seed. A fourth of the threads has no rseq (lock, list). About one
// operation in a hundred stops at a random point inside of its sequence, if it has that point, where the storm finds it.
#define INJECT_SPINS 0x4000
#include "../unit/ops/inject.h"

#include <percpu.h>
#include <percpu/stack.h>

#include <cstring>
#include <string>

#include "expect.h"
#include "leave_rseq.h"
#include "storm.h"

INJECT_DEFINE

namespace {

constexpr uint32_t kMostPoints = 10, kDelayOneIn = 100;
constexpr uint64_t kNumbers = 100;  // on each CPU

std::atomic<uint64_t> delays{0}, aborts{0};
uint64_t *handled_areas;  // per CPU: counted by the handler
std::atomic<uint64_t> handled{0};

void handler(int) {
  percpu_inc(handled_areas);
  handled.fetch_add(1, std::memory_order_relaxed);
}

// A thread's own random numbers, and the delays that it suffers.
class Fate {
 public:
  explicit Fate(uint64_t seed) : random_(seed) {}
  ~Fate() {
    delays += delays_;
    aborts += inject_aborts;
  }
  Fate(const Fate &) = delete;
  Fate &operator=(const Fate &) = delete;

  uint64_t below(uint64_t n) { return random_() % n; }

  // What `operation` returns, which may be delayed once at one point of its sequence.
  template <class Operation>
  auto suffer(Operation operation) {
    const bool delayed = below(kDelayOneIn) == 0;
    if (delayed) {
      inject.times = 1;
      inject.point = 1 + static_cast<uint32_t>(below(kMostPoints));
    }
    const auto result = operation();
    if (delayed) {
      inject.point = 0;
      delays_ += inject.times == 0;
    }
    return result;
  }

 private:
  std::mt19937_64 random_;
  uint64_t delays_ = 0;
};

// The addresses of all copies, by an order of their own.
template <class T>
std::vector<T *> copies_of(T *handle) {
  std::vector<T *> copies;
  T *copy;
  percpu_for_each_copy(copy, handle) copies.push_back(copy);
  return copies;
}

template <class T>
T *make(size_t size_bytes = sizeof(T)) {
  auto *made = static_cast<T *>(percpu_alloc(size_bytes, alignof(T)));
  EXPECT(made != nullptr);
  return made;
}

// Threads that all do the same in a storm, `rounds` times each, and then wait for its end.
template <class Round>
void in_a_storm(size_t nr_threads, uint64_t rounds, uint64_t seed, bool some_without_rseq, Round round) {
  std::atomic<size_t> nr_idle{0};
  std::atomic<bool> begun{false}, over{false};
  std::vector<std::thread> threads;
  std::vector<pthread_t> handles;
  for (size_t i = 0; i < nr_threads; ++i)
    threads.emplace_back([&, i] {
      if (some_without_rseq && i % 4 == 3) EXPECT(leave_rseq() == 0);
      (void)percpu_thread_attach_();  // the stacks do not ask
      Fate fate(seed + i);
      nr_idle.fetch_add(1);
      while (!begun.load()) usleep(1000);
      for (uint64_t n = 0; n < rounds; ++n) round(i, fate);
      nr_idle.fetch_add(1);
      while (!over.load()) usleep(1000);  // the storm may still reach us
    });
  for (std::thread &thread : threads) handles.push_back(thread.native_handle());
  while (nr_idle.load() < nr_threads) usleep(1000);  // who leaves rseq has done so before a handler can run
  storm::on_signal(handler);
  uint64_t blows;
  {
    storm::Storm storm(handles, seed);
    begun.store(true);
    while (nr_idle.load() < 2 * nr_threads) usleep(1000);
    storm.end();
    blows = storm.blows();
  }
  over.store(true);
  for (std::thread &thread : threads) thread.join();
  EXPECT(percpu_sum(handled_areas) == handled.load());
  printf("%zu threads, %" PRIu64 " migrations and signals, %" PRIu64 " delays, %" PRIu64 " aborts where they count; ", nr_threads,
         blows, delays.load(), aborts.load());
#if PERCPU_HAVE_SEQUENCES
  if (percpu_thread_has_rseq() != 0) EXPECT(delays.load() > 0 && aborts.load() > 0);
#endif
}

// A record is whole if its parts belong together.
struct Record {
  uint64_t number, twice, inverse;
};

// One CPU's shelf. The lock's word is the shelf's id, doubled, plus 1 while somebody has it: whoever exchanged it knows by that
// which CPU's shelf is his, and keeps it wherever he is moved. Sequences change the word only while it is even, so its owner may
// give it back from any CPU by a plain store.
constexpr uint32_t kRoom = 16;
struct alignas(64) Shelf {
  uint64_t lock;
  uint64_t count;
  uint32_t nr_records;
  Record records[kRoom];
};

class Shelves {
 public:
  Shelves() {
    for (size_t id = 0; id < copies_.size(); ++id) copies_[id]->lock = 2 * id;
  }

  // Takes the lock of the CPU that we are on.
  Shelf *lock(Fate &fate) {
    for (;;) {
      const uint64_t seen = fate.suffer([this] { return percpu_read(&shelf_->lock); });
      if (seen % 2 == 0 && fate.suffer([&] { return percpu_cmpxchg(&shelf_->lock, seen, seen + 1); }) == seen) {
        std::atomic_thread_fence(std::memory_order_acquire);
        return copies_[seen / 2];
      }
      sched_yield();
    }
  }
  static void unlock(Shelf *mine) {
    const uint64_t word = __atomic_load_n(&mine->lock, __ATOMIC_RELAXED);
    EXPECT(word % 2 == 1);
    __atomic_store_n(&mine->lock, word - 1, __ATOMIC_RELEASE);
  }

  static bool put(Shelf *mine, const Record &record) {
    if (mine->nr_records == kRoom) return false;
    memcpy(&mine->records[mine->nr_records++], &record, sizeof record);
    return true;
  }
  static bool take(Shelf *mine, Record *record) {
    if (mine->nr_records == 0) return false;
    memcpy(record, &mine->records[--mine->nr_records], sizeof *record);
    EXPECT(record->twice == 2 * record->number && record->inverse == ~record->number);
    return true;
  }
  [[nodiscard]] const std::vector<Shelf *> &all() const { return copies_; }

 private:
  Shelf *shelf_ = make<Shelf>();
  std::vector<Shelf *> copies_ = copies_of(shelf_);
};

void lock_scenario(size_t nr_threads, uint64_t rounds, uint64_t seed) {
  Shelves shelves;
  std::vector<std::vector<Record>> hands(nr_threads);
  for (size_t i = 0; i < nr_threads; ++i) hands[i].push_back({i, 2 * i, ~static_cast<uint64_t>(i)});
  in_a_storm(nr_threads, rounds, seed, true, [&](size_t i, Fate &fate) {
    std::vector<Record> &hand = hands[i];
    Shelf *mine = shelves.lock(fate);
    ++mine->count;
    Record record;
    if (fate.below(2) == 0) {
      if (Shelves::take(mine, &record)) hand.push_back(record);
    } else if (!hand.empty() && Shelves::put(mine, hand.back())) {
      hand.pop_back();
    }
    if (fate.below(16) == 0) sched_yield();  // with the lock in hand
    Shelves::unlock(mine);
  });
  uint64_t count = 0;
  for (Shelf *shelf : shelves.all()) {
    count += shelf->count;
    for (Record record; Shelves::take(shelf, &record);) hands[0].push_back(record);
  }
  EXPECT(count == nr_threads * rounds);
  std::vector<unsigned> seen(nr_threads, 0);
  for (const std::vector<Record> &hand : hands)
    for (const Record &record : hand) ++seen.at(record.number);
  for (const unsigned times : seen) EXPECT(times == 1);
  printf("the locks let in %" PRIu64 ", one at a time\n", count);
}

struct Number : percpu_list_node {
  uint64_t value;
};

void list_scenario(size_t nr_threads, uint64_t rounds, uint64_t seed) {
  auto *list = make<percpu_list>();
  const std::vector<int> cpus = storm::allowed_cpus();
  std::vector<Number> numbers(cpus.size() * kNumbers);
  uint64_t expected = 0;
  for (size_t c = 0; c < cpus.size(); ++c) {
    storm::pin(pthread_self(), cpus[c]);
    for (uint64_t value = 1; value <= kNumbers; ++value) {
      Number &number = numbers[c * kNumbers + value - 1];
      number.value = value;
      expected += value;
      percpu_list_push(list, &number);
    }
  }
  cpu_set_t all;
  CPU_ZERO(&all);
  for (const int cpu : cpus) CPU_SET(static_cast<unsigned>(cpu), &all);
  EXPECT(pthread_setaffinity_np(pthread_self(), sizeof all, &all) == 0);
  in_a_storm(nr_threads, rounds, seed, true, [&](size_t, Fate &fate) {
    percpu_list_node *node = fate.suffer([&] { return percpu_list_pop(list); });
    sched_yield();
    if (node != nullptr)
      fate.suffer([&] {
        percpu_list_push(list, node);
        return 0;
      });
  });
  uint64_t sum = 0, nr = 0;
  for (uint32_t copy = 0; copy < copies_of(list).size() + percpu_nr_cpu_ids(); ++copy) {
    percpu_list_node *chain = nullptr;
    if (percpu_list_drain(list, copy, &chain) != 0) EXPECT(errno == EINVAL);
    for (; chain != nullptr; chain = chain->next, ++nr) sum += static_cast<Number *>(chain)->value;
  }
  EXPECT(nr == numbers.size());
  EXPECT(sum == expected);
  printf("%" PRIu64 " numbers on the lists, their sum is right\n", nr);
}

// The stacks' values are numbers, each of which is on one stack or in one hand.
constexpr uint32_t kLimit = 8;

class Stacks {
 public:
  percpu_stack *stack[2] = {make<percpu_stack>(PERCPU_STACK_BYTES(kLimit)), make<percpu_stack>(PERCPU_STACK_BYTES(kLimit))};

  Stacks() {
    for (percpu_stack *handle : stack)
      for (percpu_stack *copy : copies_of(handle)) copy->limit = kLimit;
  }

  // Stops one stack on all CPUs, looks whether it stands still, and lets it go on.
  void stop_and_look(size_t which) {
    struct Seen {
      percpu_stack *copy;
      uint64_t word, slots[kLimit];
    };
    std::vector<Seen> all;
    unsigned cpu;
    percpu_for_each_possible_cpu(cpu) {
      percpu_stack *copy = percpu_ptr(stack[which], cpu);
      __atomic_store_n(&copy->limit, 0, __ATOMIC_SEQ_CST);
      EXPECT(percpu_fence(static_cast<int>(cpu)) == 0);
      Seen seen{copy, __atomic_load_n(&copy->word, __ATOMIC_RELAXED), {}};
      memcpy(seen.slots, percpu_stack_slots(copy), sizeof seen.slots);
      EXPECT(percpu_stack_count(copy) <= kLimit);
      all.push_back(seen);
    }
    usleep(300);
    for (const Seen &seen : all) {
      EXPECT(seen.word == __atomic_load_n(&seen.copy->word, __ATOMIC_RELAXED));
      EXPECT(memcmp(seen.slots, percpu_stack_slots(seen.copy), sizeof seen.slots) == 0);
      __atomic_store_n(&seen.copy->limit, kLimit, __ATOMIC_RELEASE);
    }
  }
};

void fence_scenario(size_t nr_threads, uint64_t rounds, uint64_t seed) {
  Stacks stacks;
  std::vector<std::vector<uint64_t>> hands(nr_threads);
  for (size_t i = 0; i < nr_threads; ++i) hands[i].push_back(i);
  std::atomic<bool> stop{false};
  uint64_t nr_stops = 0;
  std::thread manager([&] {
    sigset_t storm_signal;
    sigemptyset(&storm_signal);
    sigaddset(&storm_signal, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &storm_signal, nullptr);
    do {
      stacks.stop_and_look(nr_stops % 2);
    } while (++nr_stops, !stop.load());
  });
  in_a_storm(nr_threads, rounds, seed, false, [&](size_t i, Fate &fate) {
    std::vector<uint64_t> &hand = hands[i];
    percpu_stack *stack = stacks.stack[fate.below(2)];
    uint64_t value;
    if (fate.below(2) == 0) {
      if (fate.suffer([&] { return percpu_stack_pop_(nullptr, stack, &value); }) != 0) hand.push_back(value);
    } else if (!hand.empty() && fate.suffer([&] { return percpu_stack_push_(nullptr, stack, hand.back()); }) != 0) {
      hand.pop_back();
    }
  });
  stop.store(true);
  manager.join();
  std::vector<unsigned> seen(nr_threads, 0);
  for (const std::vector<uint64_t> &hand : hands)
    for (const uint64_t value : hand) ++seen.at(value);
  for (percpu_stack *handle : stacks.stack)
    for (percpu_stack *copy : copies_of(handle))
      for (uint32_t n = 0; n < percpu_stack_count(copy); ++n) ++seen.at(percpu_stack_slots(copy)[n]);
  for (const unsigned times : seen) EXPECT(times == 1);
  printf("%" PRIu64 " times a stack stood still\n", nr_stops);
}

}  // namespace

int main(int argc, char **argv) {
  const std::string scenario = argc > 1 ? argv[1] : "";
  const uint64_t rounds = argc > 2 ? std::strtoull(argv[2], nullptr, 0) : 1000;
  const size_t nr_threads = argc > 3 ? std::strtoull(argv[3], nullptr, 0) : 200;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  fflush(stdout);
  handled_areas = make<uint64_t>();
  if (scenario == "lock") {
    lock_scenario(nr_threads, rounds, seed);
  } else if (scenario == "list") {
    list_scenario(nr_threads, rounds, seed);
  } else if (scenario == "fence") {
    if (percpu_thread_has_rseq() == 0) return 77;  // stacks are closed then
    fence_scenario(nr_threads, rounds, seed);
  } else {
    fprintf(stderr, "usage: scenarios lock|list|fence ROUNDS [THREADS]\n");
    return 2;
  }
  return 0;
}
