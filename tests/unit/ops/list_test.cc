// SPDX-License-Identifier: MIT
// Lists of each CPU: every node is in one place at a time, whoever pushes, pops and drains, from threads and from
// signal handlers, with rseq and without.
#include <doctest/doctest.h>

#include <barrier>
#include <cstdio>

#include "fixture.h"
#include "storm.h"

namespace {

struct Item {
  percpu_list_node node;  // first: a node's address is its item's
  std::atomic<int> taken{0};
  int number = 0;
};

Item *item_of(percpu_list_node *node) {
  return reinterpret_cast<Item *>(node);
}

percpu_list *new_list() {
  return static_cast<percpu_list *>(fixture_alloc(sizeof(percpu_list), alignof(percpu_list)));
}

uint32_t nr_copies() {
  return percpu_default_view_.nr_copies;
}

// What one may do to a list in a storm. Every item that comes off it was free before, and is marked while it is ours;
// nobody may follow its next meanwhile, so that points nowhere.
class Shop {
 public:
  // Every CPU's copy gets its part: whichever of them the threads come to run on, there is something to take.
  explicit Shop(size_t nr_items) : items_(nr_items) {
    int cpu = -1;
    for (Item &item : items_) {
      fixture_pin(cpu = fixture_next_cpu(cpu));
      percpu_list_push(list_, &item.node);
    }
    fixture_pin(-1);
  }

  void take_and_give(unsigned how_many) {
    Item *mine[4];
    unsigned n = 0;
    while (n < how_many) {
      percpu_list_node *node = percpu_list_pop(list_);
      if (node == nullptr) break;
      claim(mine[n++] = item_of(node));
    }
    while (n > 0) give(mine[--n]);
  }

  void drain(uint32_t copy) {
    percpu_list_node *chain;
    if (percpu_list_drain(list_, copy, &chain) != 0) errors_.fetch_add(1);
    for (size_t n = 0; chain != nullptr; ++n) {
      Item *item = item_of(chain);
      chain = chain->next;
      if (n > items_.size()) {
        errors_.fetch_add(1);  // a ring
        return;
      }
      claim(item);
      give(item);
    }
  }

  // All items that are left, once nobody works on the list: each must be there once.
  size_t count_all() {
    size_t nr = 0;
    for (uint32_t copy = 0; copy < nr_copies(); ++copy) {
      percpu_list_node *chain;
      if (percpu_list_drain(list_, copy, &chain) != 0) errors_.fetch_add(1);
      for (; chain != nullptr && nr <= items_.size(); chain = chain->next) {
        ++nr;
        if (item_of(chain)->taken.exchange(1) != 0) errors_.fetch_add(1);
      }
    }
    percpu_list *copy;
    percpu_for_each_copy(copy, list_) if (copy->stop != 0 || copy->head != nullptr) errors_.fetch_add(1);
    return nr;
  }

  [[nodiscard]] uint64_t errors() const { return errors_.load(); }
  [[nodiscard]] uint64_t handovers() const { return handovers_.load(); }

 private:
  void claim(Item *item) {
    if (item->taken.exchange(1) != 0) errors_.fetch_add(1);
    item->node.next = reinterpret_cast<percpu_list_node *>(0x10);
    handovers_.fetch_add(1, std::memory_order_relaxed);
  }
  void give(Item *item) {
    if (item->taken.exchange(0) != 1) errors_.fetch_add(1);
    percpu_list_push(list_, &item->node);
  }

  percpu_list *list_ = new_list();
  std::vector<Item> items_;
  std::atomic<uint64_t> errors_{0}, handovers_{0};
};

Shop *shop;

void handler(int) {
  shop->take_and_give(2);
}

void storm_on_list(size_t nr_items, unsigned nr_drainers, bool drain_in_handler) {
  const uint64_t seed = storm::seed();
  std::printf("PERCPU_SEED=%llu\n", static_cast<unsigned long long>(seed));
  Shop the_shop(nr_items);
  shop = &the_shop;
  storm::on_signal(drain_in_handler ? [](int) { shop->drain(0); } : handler);
  const size_t nr_threads = 2 * fixture_nr_cpus() + 2 + nr_drainers;
  const auto everybody = static_cast<std::ptrdiff_t>(nr_threads) + 1;
  std::barrier<> start(everybody), finish(everybody);
  std::atomic<size_t> done{0};
  std::vector<std::thread> threads;
  std::vector<pthread_t> handles;
  for (size_t i = 0; i < nr_threads; ++i)
    threads.emplace_back([&, i] {
      if (i % 3 == 2) fixture_leave_rseq();
      std::mt19937_64 random(seed + i);
      start.arrive_and_wait();
      if (i < nr_drainers) {
        for (unsigned k = 0; k < 3000; ++k) the_shop.drain(static_cast<uint32_t>(random() % nr_copies()));
      } else {
        for (unsigned k = 0; k < 100'000; ++k) the_shop.take_and_give(1 + static_cast<unsigned>(random() % 4));
      }
      done.fetch_add(1);
      finish.arrive_and_wait();
    });
  for (std::thread &thread : threads) handles.push_back(thread.native_handle());
  start.arrive_and_wait();  // who leaves rseq has done so before a handler can run
  {
    storm::Storm storm(handles, seed);
    while (done.load() < nr_threads) usleep(1000);
  }
  finish.arrive_and_wait();
  for (std::thread &thread : threads) thread.join();
  CHECK(the_shop.handovers() > 0);
  CHECK(the_shop.count_all() == nr_items);
  CHECK(the_shop.errors() == 0);
}

struct Three {
  percpu_list *list = new_list();
  Item item[3];
};

}  // namespace

TEST_CASE("nodes come back last in, first out") {
  Three t;
  storm::pin(pthread_self(), storm::allowed_cpus()[0]);
  CHECK(percpu_list_pop(t.list) == nullptr);
  for (Item &item : t.item) percpu_list_push(t.list, &item.node);
  for (int i = 2; i >= 0; --i) CHECK(percpu_list_pop(t.list) == &t.item[i].node);
  CHECK(percpu_list_pop(t.list) == nullptr);
  fixture_pin(-1);
}

TEST_CASE("a drain takes all nodes of a copy, the last one first, and leaves others alone") {
  Three t;
  const std::vector<int> cpus = storm::allowed_cpus();
  const auto cpu = static_cast<uint32_t>(cpus.back());
  storm::pin(pthread_self(), cpus.back());
  for (Item &item : t.item) percpu_list_push(t.list, &item.node);
  fixture_pin(-1);
  percpu_list_node *chain;
  for (uint32_t copy = 0; copy < nr_copies(); ++copy) {
    if (copy == cpu) continue;
    CHECK(percpu_list_drain(t.list, copy, &chain) == 0);
    CHECK(chain == nullptr);
  }
  CHECK(percpu_list_drain(t.list, cpu, &chain) == 0);
  for (int i = 2; i >= 0; --i) {
    REQUIRE(chain == &t.item[i].node);
    chain = chain->next;
  }
  CHECK(chain == nullptr);
  CHECK(percpu_list_drain(t.list, cpu, &chain) == 0);
  CHECK(chain == nullptr);
}

TEST_CASE("draining says what is wrong and changes nothing") {
  Three t;
  const std::vector<int> cpus = storm::allowed_cpus();
  storm::pin(pthread_self(), cpus[0]);
  percpu_list_push(t.list, &t.item[0].node);
  percpu_list_node *chain = &t.item[1].node;
  errno = 0;
  CHECK(percpu_list_drain(t.list, nr_copies(), &chain) == -1);
  CHECK(errno == EINVAL);
  CHECK(chain == nullptr);
  fixture_fail_fence(ENOSYS);
  CHECK(percpu_list_drain(t.list, static_cast<uint32_t>(cpus[0]), &chain) == -1);
  CHECK(errno == ENOSYS);
  CHECK(chain == nullptr);
  fixture_fail_fence(0);
  CHECK(percpu_ptr(t.list, cpus[0])->stop == 0);
  CHECK(percpu_list_pop(t.list) == &t.item[0].node);
  fixture_pin(-1);
}

TEST_CASE("while a CPU's list is being drained, nodes go to the group's shared list and come from there") {
  if (!fixture_process_has_rseq()) return;  // then there are no sequences to be stopped
  Three t;
  const std::vector<int> cpus = storm::allowed_cpus();
  storm::pin(pthread_self(), cpus[0]);
  percpu_list *mine = percpu_this_ptr(t.list);
  auto *shared = static_cast<percpu_list *>(percpu_shared_copy_(&percpu_default_view_, t.list));
  REQUIRE(mine != shared);
  percpu_list_push(t.list, &t.item[0].node);
  CHECK(mine->head == &t.item[0].node);
  mine->stop = 1;
  CHECK(percpu_list_pop(t.list) == nullptr);
  percpu_list_push(t.list, &t.item[1].node);
  CHECK(shared->head == &t.item[1].node);
  CHECK(mine->head == &t.item[0].node);
  CHECK(percpu_list_pop(t.list) == &t.item[1].node);
  percpu_list_push(t.list, &t.item[1].node);
  mine->stop = 0;
  CHECK(percpu_list_pop(t.list) == &t.item[0].node);
  CHECK(percpu_list_pop(t.list) == &t.item[1].node);  // its own is empty
  CHECK(percpu_list_pop(t.list) == nullptr);
  fixture_pin(-1);
}

TEST_CASE("lists of a pool are its own") {
  auto *list = static_cast<percpu_list *>(fixture_pool_alloc(sizeof(percpu_list), 16));
  Item item;
  percpu_list_node *chain;
  storm::pin(pthread_self(), storm::allowed_cpus()[0]);
  percpu_pool_list_push(fixture_pool(), list, &item.node);
  CHECK(percpu_pool_list_pop(fixture_pool(), list) == &item.node);
  percpu_pool_list_push(fixture_pool(), list, &item.node);
  CHECK(percpu_pool_list_drain(fixture_pool(), list, static_cast<uint32_t>(storm::allowed_cpus()[0]), &chain) == 0);
  CHECK(chain == &item.node);
  CHECK(chain->next == nullptr);
  fixture_pin(-1);
}

TEST_CASE("in a storm, each node is in one place") {
  storm_on_list(500, 0, false);
}

TEST_CASE("in a storm with few nodes and drains of every copy, each node is in one place") {
  storm_on_list(12, 2, false);
}

TEST_CASE("drains may interrupt drains") {
  storm_on_list(40, 3, true);
}
