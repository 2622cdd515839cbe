// SPDX-License-Identifier: MIT
// The operations as a thread without rseq does them: atomic instructions on copies that threads share. Several threads do all of
// them at once. Nothing is lost; and what travels through a copy by pointer is changed without any further lock, so in the
// build with ThreadSanitizer an operation that orders too little is reported.
//
//   fallback ROUNDS
#define PERCPU_NO_RSEQ 1
#include <percpu.h>

#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

namespace {

constexpr unsigned kThreads = 4, kNodes = 8, kBoxes = 8;

struct Areas {
  uint8_t *bytes;
  uint16_t *halves;
  uint32_t *words;
  uint64_t *longs;
  double *reals;
  uint64_t *returned, *exchanged, *masks;
  percpu_pair *pairs;
  percpu_list *list;
  struct Box **boxes;
};
// What is handed over: whoever has it changes it like memory of his own.
struct Box {
  uint64_t uses = 0;
};
struct Node : percpu_list_node {
  uint64_t uses = 0;
};

template <class T>
T *area_of() {
  auto *made = static_cast<T *>(percpu_alloc(sizeof(T), alignof(T)));
  if (made != nullptr) return made;
  std::perror("percpu_alloc");
  std::exit(2);
}

void count_pair(percpu_pair *p) {
  percpu_pair seen = percpu_read16(p);
  while (!percpu_cmpxchg16(p, &seen, percpu_pair{seen.low + 1, seen.high + 2})) {
  }
}

void increase(uint64_t *p) {
  uint64_t seen = percpu_read(p);
  while (!percpu_try_cmpxchg(p, &seen, seen + 1)) {
  }
}

// Takes the box that lies in the copy for another, or for none. Returns how often it used one.
uint64_t trade(Box **place, std::vector<Box *> *mine) {
  Box *give = nullptr;
  if (!mine->empty()) {
    give = mine->back();
    mine->pop_back();
    ++give->uses;
  }
  Box *got = percpu_xchg(place, give);
  if (got != nullptr) mine->push_back(got);
  return give != nullptr;
}

uint64_t use_node(percpu_list *list) {
  auto *node = static_cast<Node *>(percpu_list_pop(list));
  if (node == nullptr) return 0;
  ++node->uses;
  percpu_list_push(list, node);
  return 1;
}

struct Work {
  uint64_t traded = 0, used = 0;
  std::vector<Box *> boxes;
};

void run(const Areas &areas, unsigned number, uint64_t rounds, Work *work) {
  for (uint64_t i = 0; i < rounds; ++i) {
    percpu_inc(areas.bytes);
    percpu_add(areas.halves, 3);
    percpu_sub(areas.words, 1);
    percpu_inc(areas.longs);
    percpu_add(areas.reals, 0.5);
    (void)percpu_add_return(areas.returned, 2);
    increase(areas.exchanged);
    percpu_or(areas.masks, uint64_t{1} << number);
    percpu_and(areas.masks, ~(uint64_t{1} << (number + kThreads)));
    count_pair(areas.pairs);
    work->traded += trade(areas.boxes, &work->boxes);
    work->used += use_node(areas.list);
    if (i % 64 == number) sched_yield();
  }
}

// Drains all copies, uses the nodes, and pushes them again.
uint64_t drain_and_push(percpu_list *list) {
  uint64_t used = 0;
  for (uint32_t copy = 0; copy < percpu_default_view_.nr_copies; ++copy) {
    percpu_list_node *chain = nullptr;
    if (percpu_list_drain(list, copy, &chain) != 0) continue;
    while (chain != nullptr) {
      auto *node = static_cast<Node *>(chain);
      chain = chain->next;
      ++node->uses;
      ++used;
      percpu_list_push(list, node);
    }
  }
  return used;
}

int nr_wrong;
void expect(const char *what, uint64_t found, uint64_t expected) {
  if (found == expected) return;
  ++nr_wrong;
  std::printf("%s: expected %llu, found %llu\n", what, static_cast<unsigned long long>(expected),
              static_cast<unsigned long long>(found));
}

}  // namespace

int main(int argc, char **argv) {
  const uint64_t rounds = argc == 2 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (rounds == 0) {
    std::fprintf(stderr, "usage: fallback ROUNDS\n");
    return 2;
  }
  const Areas areas = {area_of<uint8_t>(),  area_of<uint16_t>(), area_of<uint32_t>(),    area_of<uint64_t>(),
                       area_of<double>(),   area_of<uint64_t>(), area_of<uint64_t>(),    area_of<uint64_t>(),
                       area_of<percpu_pair>(), area_of<percpu_list>(), area_of<Box *>()};
  std::vector<std::unique_ptr<Box>> boxes;
  std::vector<std::unique_ptr<Node>> nodes;
  Work work[kThreads];
  for (unsigned i = 0; i < kBoxes; ++i) {
    boxes.push_back(std::make_unique<Box>());
    work[i % kThreads].boxes.push_back(boxes.back().get());
  }
  for (unsigned i = 0; i < kNodes; ++i) {
    nodes.push_back(std::make_unique<Node>());
    percpu_list_push(areas.list, nodes.back().get());
  }

  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) threads.emplace_back([&, i] { run(areas, i, rounds, &work[i]); });
  uint64_t drained = 0;
  for (uint64_t i = 0; i < rounds / 256; ++i) drained += drain_and_push(areas.list);
  for (std::thread &thread : threads) thread.join();

  const uint64_t all = kThreads * rounds;
  expect("bytes", percpu_sum(areas.bytes) % 256, all % 256);
  expect("halves", percpu_sum(areas.halves) % 65536, 3 * all % 65536);
  expect("words", (percpu_sum(areas.words) + all) % (uint64_t{1} << 32), 0);
  expect("longs", percpu_sum(areas.longs), all);
  expect("reals", static_cast<uint64_t>(2 * percpu_sum(areas.reals)), all);
  expect("add_return", percpu_sum(areas.returned), 2 * all);
  expect("try_cmpxchg", percpu_sum(areas.exchanged), all);
  uint64_t mask = 0;
  const uint64_t *copy;
  percpu_for_each_copy(copy, areas.masks) mask |= *copy;
  expect("masks", mask, (uint64_t{1} << kThreads) - 1);
  percpu_pair pairs{0, 0};
  const percpu_pair *pair;
  percpu_for_each_copy(pair, areas.pairs) {
    pairs.low += pair->low;
    pairs.high += pair->high;
  }
  expect("cmpxchg16, low", pairs.low, all);
  expect("cmpxchg16, high", pairs.high, 2 * all);

  uint64_t traded = 0, used = drained, box_uses = 0, node_uses = 0, nr_nodes = 0;
  for (const Work &one : work) {
    traded += one.traded;
    used += one.used;
  }
  for (const auto &box : boxes) box_uses += box->uses;
  for (const auto &node : nodes) node_uses += node->uses;
  for (uint32_t id = 0; id < percpu_default_view_.nr_copies; ++id) {
    percpu_list_node *chain = nullptr;
    if (percpu_list_drain(areas.list, id, &chain) != 0) continue;
    for (; chain != nullptr; chain = chain->next) ++nr_nodes;
  }
  expect("uses of boxes", box_uses, traded);
  expect("uses of nodes", node_uses, used);
  expect("nodes on the lists", nr_nodes, kNodes);
  std::printf("%llu rounds of %u threads, %llu boxes traded, %llu nodes used, %llu of them drained\n",
              static_cast<unsigned long long>(rounds), kThreads, static_cast<unsigned long long>(traded),
              static_cast<unsigned long long>(used), static_cast<unsigned long long>(drained));
  return nr_wrong == 0 ? 0 : 1;
}
