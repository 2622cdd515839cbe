// SPDX-License-Identifier: MIT
//
// The program that the sweep stops: rounds without end, each of which runs every sequence of one module and checks what
// it did. See sweep.cc.
//
//   target operations     every operation of the header, each on an area whose copies all begin alike. Afterwards one copy
//                         at most may have changed, of the CPU on which the sequence ended, and it and the result are what plain C
//                         says (Operation::model). If
//                         the operation was struck, a signal handler has changed the copy in the middle
//                         (Operation::strike): then the two must have happened one after the other.
//   mutants MUTANT        one sequence with a fault, from mutants.h: this file compiled with FIRE_MUTANTS
//   target allocations    percpu_alloc() and percpu_free(), in narrow and wide pools, with domains and without: areas are zero
//                         and apart. The handler allocates too. The library's balance thread is held: what it takes from the
//                         front caches, and when, would decide which sequences a round passes
//   target blocks         malloc() and free() (of the preload): blocks keep what was written. The handler allocates too
#include <percpu.h>
#include <percpu/stack.h>

#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <string>
#include <utility>
#include <vector>

#ifdef FIRE_MUTANTS
#include "mutants.h"
#endif
#include "round.h"

namespace {

using fire::Page;

Page *page;

// ---- operations ------------------------------------------------------------------------------------------------------

// One copy, and what an operation returned. Lists and stacks use the words as their headers say.
constexpr size_t kWords = 8;
struct Copy {
  uint64_t word[kWords];
  bool operator==(const Copy &other) const { return std::memcmp(word, other.word, sizeof word) == 0; }
};
struct State {
  Copy copy;
  uint64_t result[2];
  uint64_t next;  // of the node that was pushed
};

struct Operation {
  const char *name;
  Copy begin;
  void (*act)(Copy *handle, State *state);  // the real one: fills result and next
  void (*model)(State *state);              // the same in plain C, on state->copy
  void (*strike)(Copy *copy);               // what the handler does to this CPU's copy
  bool has_slow_way = true;                 // out of line, where the thread is not known yet
  void (*hide)(Copy *copy) = nullptr;       // takes away what nobody may look at
};

percpu_list_node nodes[3];
uint64_t address_of(const percpu_list_node &node) { return reinterpret_cast<uint64_t>(&node); }

template <class T>
T first(const Copy &copy) {
  T value;
  std::memcpy(&value, copy.word, sizeof value);
  return value;
}
template <class T>
void set_first(Copy *copy, T value) {
  std::memcpy(copy->word, &value, sizeof value);
}
template <class T>
T *typed(Copy *handle) {
  return reinterpret_cast<T *>(handle);
}
template <class T>
uint64_t as_result(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
void add_three(Copy *copy) {
  set_first<T>(copy, static_cast<T>(first<T>(*copy) + 3));
}

template <class T>
Copy five() {
  Copy copy{};
  set_first<T>(&copy, T{5});
  return copy;
}

template <class T>
void add_arithmetic(std::vector<Operation> *all) {
  all->push_back({"add", five<T>(), [](Copy *handle, State *) { percpu_add(typed<T>(handle), 2); },
                  [](State *state) { set_first<T>(&state->copy, static_cast<T>(first<T>(state->copy) + 2)); }, add_three<T>});
  all->push_back({"add_return", five<T>(),
                  [](Copy *handle, State *state) { state->result[0] = as_result<T>(percpu_add_return(typed<T>(handle), 2)); },
                  [](State *state) {
                    set_first<T>(&state->copy, static_cast<T>(first<T>(state->copy) + 2));
                    state->result[0] = as_result(first<T>(state->copy));
                  },
                  add_three<T>});
}

template <class T>
[[maybe_unused]] void add_words(std::vector<Operation> *all) {
  add_arithmetic<T>(all);
  all->push_back({"read", five<T>(),
                  [](Copy *handle, State *state) { state->result[0] = as_result<T>(percpu_read(typed<T>(handle))); },
                  [](State *state) { state->result[0] = as_result(first<T>(state->copy)); }, add_three<T>});
  all->push_back({"write", five<T>(), [](Copy *handle, State *) { percpu_write(typed<T>(handle), 9); },
                  [](State *state) { set_first<T>(&state->copy, T{9}); }, add_three<T>});
  all->push_back({"and", five<T>(), [](Copy *handle, State *) { percpu_and(typed<T>(handle), 12); },
                  [](State *state) { set_first<T>(&state->copy, static_cast<T>(first<T>(state->copy) & 12)); }, add_three<T>});
  all->push_back({"or", five<T>(), [](Copy *handle, State *) { percpu_or(typed<T>(handle), 18); },
                  [](State *state) { set_first<T>(&state->copy, static_cast<T>(first<T>(state->copy) | 18)); }, add_three<T>});
  all->push_back({"xchg", five<T>(),
                  [](Copy *handle, State *state) { state->result[0] = as_result<T>(percpu_xchg(typed<T>(handle), 9)); },
                  [](State *state) {
                    state->result[0] = as_result(first<T>(state->copy));
                    set_first<T>(&state->copy, T{9});
                  },
                  add_three<T>});
  // The handler makes it fail.
  all->push_back({"cmpxchg", five<T>(),
                  [](Copy *handle, State *state) { state->result[0] = as_result<T>(percpu_cmpxchg(typed<T>(handle), 5, 9)); },
                  [](State *state) {
                    state->result[0] = as_result(first<T>(state->copy));
                    if (first<T>(state->copy) == 5) set_first<T>(&state->copy, T{9});
                  },
                  add_three<T>});
}

[[maybe_unused]] void add_pairs(std::vector<Operation> *all) {
  all->push_back({"cmpxchg16", {{1, 2}},
                  [](Copy *handle, State *state) {
                    percpu_pair seen{1, 2};
                    state->result[0] = percpu_cmpxchg16(typed<percpu_pair>(handle), &seen, percpu_pair{3, 4});
                  },
                  [](State *state) {
                    state->result[0] = state->copy.word[0] == 1 && state->copy.word[1] == 2;
                    if (state->result[0] != 0) state->copy = {{3, 4}};
                  },
                  [](Copy *copy) { copy->word[1] += 5; }});
  all->push_back({"read16", {{1, 2}},
                  [](Copy *handle, State *state) {
                    const percpu_pair seen = percpu_read16(typed<percpu_pair>(handle));
                    state->result[0] = seen.low;
                    state->result[1] = seen.high;
                  },
                  [](State *state) {
                    state->result[0] = state->copy.word[0];
                    state->result[1] = state->copy.word[1];
                  },
                  [](Copy *copy) { *copy = {{7, 8}}; }});
}

#if PERCPU_HAVE_SEQUENCES
// Word 0: the head; word 1: the stop word. What a stopped list does next is not the sequence's business.
void list_push(Copy *handle, State *state) {
  nodes[0].next = nullptr;
  state->result[0] = percpu_seq_push_(percpu_thread_.offset, handle, &nodes[0]);
  state->next = reinterpret_cast<uint64_t>(nodes[0].next);
}
void list_push_model(State *state) {
  state->result[0] = state->copy.word[1];
  if (state->copy.word[1] != 0) return;
  state->next = state->copy.word[0];
  state->copy.word[0] = address_of(nodes[0]);
}
void list_pop(Copy *handle, State *state) {
  state->result[0] = reinterpret_cast<uint64_t>(percpu_seq_pop_(percpu_thread_.offset, handle));
}
void list_pop_model(State *state) {
  state->result[0] = state->copy.word[1] == 0 ? state->copy.word[0] : 0;
  if (state->result[0] == 0) return;
  state->copy.word[0] = reinterpret_cast<uint64_t>(reinterpret_cast<percpu_list_node *>(state->result[0])->next);
}
void stop_list(Copy *copy) { copy->word[1] = 1; }
void put_on_list(Copy *copy) {
  nodes[2].next = reinterpret_cast<percpu_list_node *>(copy->word[0]);
  copy->word[0] = address_of(nodes[2]);
}
void drain_list(Copy *copy) { copy->word[0] = 0; }

[[maybe_unused]] void add_lists(std::vector<Operation> *all) {
  const Copy one{{address_of(nodes[1])}};
  all->push_back({"push, and a push by the handler", one, list_push, list_push_model, put_on_list, false});
  all->push_back({"push, and a stop", one, list_push, list_push_model, stop_list, false});
  all->push_back({"pop, and a push by the handler", one, list_pop, list_pop_model, put_on_list, false});
  all->push_back({"pop, and a stop", one, list_pop, list_pop_model, stop_list, false});
  all->push_back({"pop, and the list is drained", one, list_pop, list_pop_model, drain_list, false});
}

// Word 0: count, and the number of pops above it; word 1: the limit; the slots from word 2 on.
constexpr uint64_t kOnePop = 1 << 16;
uint64_t count_of(const Copy &copy) { return copy.word[0] % kOnePop; }
uint64_t limit_of(const Copy &copy) { return copy.word[1]; }
void stack_push(Copy *handle, State *state) {
  state->result[0] = static_cast<uint64_t>(percpu_seq_stack_push_(percpu_thread_.offset, handle, 70));
}
void stack_push_model(State *state) {
  Copy &copy = state->copy;
  state->result[0] = count_of(copy) < limit_of(copy);
  if (state->result[0] == 0) return;
  copy.word[2 + count_of(copy)] = 70;
  copy.word[0]++;
}
void stack_pop(Copy *handle, State *state) {
  state->result[0] = static_cast<uint64_t>(percpu_seq_stack_pop_(percpu_thread_.offset, handle, &state->result[1]));
  if (state->result[0] == 0) state->result[1] = 0;
}
void stack_pop_model(State *state) {
  Copy &copy = state->copy;
  state->result[0] = count_of(copy) - 1 < limit_of(copy);
  if (state->result[0] == 0) return;
  state->result[1] = copy.word[1 + count_of(copy)];
  copy.word[0] += kOnePop - 1;
}
void stop_stack(Copy *copy) { copy->word[1] = 0; }
void put_on_stack(Copy *copy) {
  if (count_of(*copy) >= limit_of(*copy)) return;
  copy->word[2 + count_of(*copy)] = 80;
  copy->word[0]++;
}
void take_off_stack(Copy *copy) {
  if (count_of(*copy) != 0) copy->word[0] += kOnePop - 1;
}

// A push that was aborted may have written there.
void hide_above_count(Copy *copy) {
  for (size_t i = 2 + count_of(*copy); i < kWords; ++i) copy->word[i] = 0;
}

[[maybe_unused]] void add_stacks(std::vector<Operation> *all) {
  const Copy one{{kOnePop * 5 + 1, 3, 60}}, room_for_one{{kOnePop * 5 + 2, 3, 60, 61}};
  const auto add = [all](const char *name, const Copy &begin, auto act, auto model, auto strike) {
    all->push_back({name, begin, act, model, strike, false, hide_above_count});
  };
  add("stack push, and a push by the handler", one, stack_push, stack_push_model, put_on_stack);
  add("stack push, and the handler fills it", room_for_one, stack_push, stack_push_model, put_on_stack);
  add("stack push, and a stop", one, stack_push, stack_push_model, stop_stack);
  add("stack pop, and a push by the handler", one, stack_pop, stack_pop_model, put_on_stack);
  add("stack pop, and the handler empties it", one, stack_pop, stack_pop_model, take_off_stack);
  add("stack pop, and a stop", one, stack_pop, stack_pop_model, stop_stack);
}

#ifdef FIRE_MUTANTS
void add_mutant(std::vector<Operation> *all, const std::string &name) {
  const auto add_model = [](State *state) {
    state->copy.word[0] += 2;
    state->result[0] = state->copy.word[0];
  };
#define MUTANT_ADD(mutant)                                                                                              \
  if (name == #mutant)                                                                                                  \
    all->push_back({#mutant, five<uint64_t>(),                                                                          \
                    [](Copy *handle, State *state) { state->result[0] = mutant(percpu_thread_.offset, handle, 2); },    \
                    add_model, add_three<uint64_t>, false});
  MUTANT_ADD(commit_not_last)
  MUTANT_ADD(end_before_commit)
  MUTANT_ADD(begin_after_load)
  MUTANT_ADD(restart_in_the_middle)
  if (name == "no_look_at_stop")
    all->push_back({"no_look_at_stop", {{address_of(nodes[1])}},
                    [](Copy *handle, State *state) {
                      nodes[0].next = nullptr;
                      state->result[0] = no_look_at_stop(percpu_thread_.offset, handle, &nodes[0]);
                      state->next = reinterpret_cast<uint64_t>(nodes[0].next);
                    },
                    list_push_model, stop_list, false});
  if (all->empty()) {
    std::fprintf(stderr, "target: no such mutant: %s\n", name.c_str());
    std::exit(2);
  }
}
#endif
#endif

// The operation that runs, for the handler.
const Operation *current;
Copy *area;

void strike_copy(int) {
  if (current == nullptr || page->struck != 0) return;
  page->struck = 1;
  current->strike(percpu_ptr(area, static_cast<unsigned>(sched_getcpu())));
}

// The copies that may have changed: of the CPUs on which the operation began and ended. Where it was stopped before its end, and moved
// perhaps, the last one; elsewhere it is done before it is moved. In a thread without rseq, any.
struct Where {
  bool any;
  int began, ended;
  bool allows(const Copy *copy) const {
    const auto is_of = [copy](int cpu) { return copy == percpu_ptr(area, static_cast<unsigned>(cpu)); };
    return any || is_of(ended) || (page->inside == 0 && is_of(began));
  }
};

bool agrees(const Operation &operation, const State &state, State expected, const Where &where) {
  if (state.result[0] != expected.result[0] || state.result[1] != expected.result[1] || state.next != expected.next) return false;
  if (operation.hide != nullptr) operation.hide(&expected.copy);
  const bool changes = !(expected.copy == operation.begin);
  unsigned nr_changed = 0;
  Copy *copy;
  percpu_for_each_copy(copy, area) {
    Copy seen = *copy;
    if (operation.hide != nullptr) operation.hide(&seen);
    if (seen == operation.begin) continue;
    if (!(seen == expected.copy) || !where.allows(copy)) return false;
    ++nr_changed;
  }
  return nr_changed == (changes ? 1 : 0);
}

void wrong(const char *what) {
  if (page->nr_wrong++ == 0) std::snprintf(page->wrong, sizeof page->wrong, "%s", what);
}

void try_operation(const Operation &operation) {
  Copy *copy;
  percpu_for_each_copy(copy, area) *copy = operation.begin;
  std::snprintf(page->operation, sizeof page->operation, "%s", operation.name);
  page->struck = 0;
  current = &operation;
  State state{};
  Where where{percpu_thread_.offset == nullptr, sched_getcpu(), 0};
  operation.act(area, &state);
  where.ended = sched_getcpu();
  current = nullptr;

  State alone{}, before{}, after{};
  alone.copy = before.copy = after.copy = operation.begin;
  operation.model(&alone);
  operation.strike(&before.copy);
  operation.model(&before);
  operation.model(&after);
  operation.strike(&after.copy);
  if (agrees(operation, state, page->struck == 0 ? alone : page->inside != 0 ? before : after, where)) return;
  char what[128];
  std::snprintf(what, sizeof what, "%s: wrong result (%s)", operation.name, page->struck == 0 ? "alone" : "struck");
  wrong(what);
}

std::vector<Operation> operations;

void round_of_operations() {
  for (const Operation &operation : operations) {
    (void)percpu_thread_attach_();
    try_operation(operation);
    if (!operation.has_slow_way) continue;
    percpu_thread_.offset = nullptr;
    try_operation(operation);
  }
}

// ---- allocations and blocks ------------------------------------------------------------------------------------------

constexpr size_t kMost = 64;  // more than a front cache's stack, or a lane at first, takes
constexpr size_t kSizes[] = {8, 64, 200};
constexpr size_t kBlockSizes[] = {64, 20'000};  // of the second a stack takes few

// What the handler got: taken in the middle of an operation, looked at and given back when that part of the round is over.
uint64_t *stray;
size_t stray_bytes;

// How a part of a round allocates and frees.
struct Way {
  percpu_pool_t *pool;
  void *(*allocate)(percpu_pool_t *pool, size_t i, size_t size, size_t align);
  void (*free)(percpu_pool_t *pool, size_t i, void *handle);
};
const Way *way;

void strike_allocation(int) {
  if (page->struck != 0) return;
  page->struck = 1;
  stray = static_cast<uint64_t *>(percpu_pool_alloc(way->pool, stray_bytes, 8, PERCPU_ATOMIC));
}

void begin_part(const Way &how, size_t size) {
  way = &how;
  stray = nullptr;
  stray_bytes = size;
  page->struck = 0;
}
void end_part() {
  if (stray != nullptr) percpu_pool_free(way->pool, stray);
  stray = nullptr;
}

uint64_t mark_of(size_t i, size_t size) { return 0x1000 * size + i + 1; }

// By each function in turn: the fast path is inline in all of them. Only of the default pool.
void *allocate_somehow(percpu_pool_t *pool, size_t i, size_t size, size_t align) {
  if (i % 5 < 2) return percpu_alloc(size, align);
  if (i % 5 == 2) return percpu_alloc_flags(size, align, PERCPU_NOWARN);
  if (i % 5 == 3) {
    void *handle = percpu_alloc_flags(size, align, PERCPU_ATOMIC | PERCPU_NOWARN);
    return handle != nullptr ? handle : percpu_alloc(size, align);
  }
  return percpu_pool_alloc(pool, size, align, 0);
}
void free_somehow(percpu_pool_t *pool, size_t i, void *handle) {
  if (i % 4 < 2) return percpu_free(handle);
  percpu_pool_free(pool, handle);
}
// Of any pool. An area that is charged is always allocated out of line, front cache or not.
void *allocate_charged(percpu_pool_t *pool, size_t i, size_t size, size_t align) {
  return percpu_pool_alloc(pool, size, align, i % 2 == 0 ? unsigned{PERCPU_ACCOUNT} : 0);
}
void free_charged(percpu_pool_t *pool, size_t, void *handle) { percpu_pool_free(pool, handle); }

// More areas than a stack holds, each its owner's only.
void take_many(const Way &how, size_t size) {
  uint64_t *areas[kMost];
  begin_part(how, size);
  const auto allocate = [&](size_t i) {
    areas[i] = static_cast<uint64_t *>(how.allocate(how.pool, i, size, 8));
    if (areas[i] == nullptr || percpu_pool_sum(how.pool, areas[i]) != 0) return wrong("an area is missing, or not zero");
    *percpu_pool_ptr(how.pool, areas[i], static_cast<unsigned>(sched_getcpu())) = mark_of(i, size);
  };
  for (size_t i = 0; i < kMost; ++i) allocate(i);
  for (size_t i = 0; i < kMost; i += 2) how.free(how.pool, i, areas[i]);
  for (size_t i = 0; i < kMost; i += 2) allocate(i);
  if (stray != nullptr && percpu_pool_sum(how.pool, stray) != 0) wrong("the handler's area is another's");
  for (size_t i = 0; i < kMost; ++i) {
    if (percpu_pool_sum(how.pool, areas[i]) != mark_of(i, size)) wrong("an area is two allocations'");
    how.free(how.pool, i, areas[i]);
  }
  end_part();
}

// A stack's top is an area that is not aligned as the next allocation asks. `i`: which allocation of the way that is.
void take_aligned(const Way &how, size_t i) {
  constexpr size_t kAlign = 64;
  constexpr size_t kFew = 2 * kAlign / 8;
  uint64_t *areas[kFew];
  begin_part(how, 8);
  size_t odd = kFew;
  const auto is_odd = [](const void *handle) { return reinterpret_cast<uintptr_t>(handle) % kAlign != 0; };
  for (size_t k = 0; k < kFew; ++k) {
    areas[k] = static_cast<uint64_t *>(how.allocate(how.pool, k, 8, 8));
    if (is_odd(areas[k])) odd = k;
  }
  if (odd == kFew) return wrong("all areas of 8 bytes are aligned to 64");
  for (size_t k = 0; k < kFew; ++k) {
    if (k != odd) how.free(how.pool, k, areas[k]);
  }
  how.free(how.pool, odd, areas[odd]);
  auto *aligned = static_cast<uint64_t *>(how.allocate(how.pool, i, 8, kAlign));
  if (aligned == nullptr || is_odd(aligned) || percpu_pool_sum(how.pool, aligned) != 0)
    wrong("an aligned area is missing, not aligned or not zero");
  if (stray != nullptr && (stray == aligned || percpu_pool_sum(how.pool, stray) != 0)) wrong("the handler's area is another's");
  how.free(how.pool, i, aligned);
  end_part();
}

Way usual, charged, wide, wide_charged;

// In `charged` areas are charged to a domain, which makes every free of that pool go out of line. Not so in the first chunk,
// whose areas are charged to nobody: so it is filled.
void make_pools() {
  usual = {percpu_pool_default(), allocate_somehow, free_somehow};
  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.unit_size = 32 << 10;
  attr.dynamic_size = 20 << 10;
  charged = {percpu_pool_create(&attr), allocate_charged, free_charged};
  attr.nr_cpus = 16;  // more than a pool has that is not wide
  wide = {percpu_pool_create(&attr), allocate_charged, free_charged};
  wide_charged = {percpu_pool_create(&attr), allocate_charged, free_charged};
  (void)percpu_domain_set(percpu_domain_create("fire", PERCPU_NO_LIMIT, nullptr));
  for (const Way &how : {charged, wide_charged}) {
    if (percpu_pool_alloc(how.pool, 19 << 10, 8, 0) == nullptr) wrong("a chunk is not filled");
    void *another = percpu_pool_alloc(how.pool, 19 << 10, 8, PERCPU_ACCOUNT);
    if (another == nullptr) return wrong("an area is not charged");
    percpu_pool_free(how.pool, another);
  }
}

void round_of_allocations() {
  if (usual.pool == nullptr) make_pools();
  for (const size_t size : kSizes) take_many(usual, size);
  take_aligned(usual, 0);
  for (const Way *how : {&charged, &wide, &wide_charged}) take_many(*how, 8);
  take_aligned(charged, 0);
}

// Freed by the first strike of a size, so that a stack that was found empty holds a block after all; the second one
// allocates.
void *spare, *spares[std::size(kBlockSizes)];

void strike_block(int) {
  if (page->struck++ > 1) return;
  if (page->struck == 1 && spare != nullptr) {
    free(std::exchange(spare, nullptr));
  } else if (stray == nullptr) {
    stray = static_cast<uint64_t *>(malloc(stray_bytes));
    if (stray != nullptr) *stray = 0;
  }
}

// Every way to get a block, and to give one back. jemalloc's are found in the preload by name.
using Get = void *(*)(size_t);
using Give = void (*)(void *, size_t);
template <class F>
F by_name(const char *name) {
  return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}
constexpr std::align_val_t kAlign{16};
const std::vector<Get> kGets = {
    malloc,
    [](size_t size) { return calloc(1, size); },
    [](size_t size) { return realloc(nullptr, size); },
    [](size_t size) { return realloc(malloc(1), size); },
    [](size_t size) { return memalign(16, size); },
    [](size_t size) { return memalign(64, size); },
    [](size_t size) { return by_name<void *(*)(size_t, int)>("mallocx")(size, 0); },
    [](size_t size) { return by_name<void *(*)(void *, size_t, int)>("rallocx")(malloc(1), size, 0); },
    [](size_t size) { return operator new(size); },
    [](size_t size) { return operator new[](size); },
    [](size_t size) { return operator new(size, std::nothrow); },
    [](size_t size) { return operator new[](size, std::nothrow); },
    [](size_t size) { return operator new(size, kAlign); },
};
const std::vector<Give> kGives = {
    [](void *block, size_t) { free(block); },
    [](void *block, size_t) { (void)!realloc(block, 0); },
    [](void *block, size_t) { by_name<void (*)(void *, int)>("dallocx")(block, 0); },
    [](void *block, size_t size) { by_name<void (*)(void *, size_t, int)>("sdallocx")(block, size, 0); },
    [](void *block, size_t) { operator delete(block); },
    [](void *block, size_t) { operator delete[](block); },
    [](void *block, size_t) { operator delete(block, std::nothrow); },
    [](void *block, size_t) { operator delete[](block, std::nothrow); },
    [](void *block, size_t size) { operator delete(block, size); },
    [](void *block, size_t size) { operator delete[](block, size); },
    [](void *block, size_t) { operator delete(block, kAlign); },
    [](void *block, size_t) { operator delete[](block, kAlign); },
    [](void *block, size_t size) { operator delete(block, size, kAlign); },
    [](void *block, size_t size) { operator delete[](block, size, kAlign); },
    [](void *block, size_t) { operator delete(block, kAlign, std::nothrow); },
    [](void *block, size_t) { operator delete[](block, kAlign, std::nothrow); },
};

void round_of_blocks() {
  for (const size_t size : kBlockSizes) {
    uint64_t *blocks[kMost];
    malloc_trim(0);  // the stacks are empty, and of no room, again
    stray_bytes = size;
    spare = spares[size == kBlockSizes[0]];
    page->struck = 0;
    const auto get = [&](size_t i) {
      blocks[i] = static_cast<uint64_t *>(kGets[i % kGets.size()](size));
      *blocks[i] = mark_of(i, size);
    };
    const auto give = [&](size_t i) { kGives[i % kGives.size()](blocks[i], size); };
    for (size_t i = 0; i < kMost; ++i) get(i);
    for (size_t i = 0; i < kMost; i += 2) give(i);
    for (size_t i = 0; i < kMost; i += 2) get(i);
    if (stray != nullptr && *stray != 0) wrong("the handler's block is another's");
    for (size_t i = 0; i < kMost; ++i) {
      if (*blocks[i] != mark_of(i, size)) wrong("a block is two allocations'");
      give(i);
    }
    free(std::exchange(stray, nullptr));
    // While the stacks hold blocks of this size; so the first block that a round takes is one that no stack has.
    spares[size == kBlockSizes[0]] = spare != nullptr ? std::exchange(spare, nullptr) : malloc(size);
  }
}

// ---- the library's threads -------------------------------------------------------------------------------------------

// Threads that are made while this is set never begin.
bool threads_are_held = false;

void *never_begin(void *) {
  for (;;) pause();
}

void on_strike(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  sigaction(fire::kStrike, &action, nullptr);
}

}  // namespace

// In place of glibc's, for the libraries too.
extern "C" int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
  const auto real = reinterpret_cast<decltype(&pthread_create)>(dlsym(RTLD_NEXT, "pthread_create"));
  return real(thread, attributes, threads_are_held ? never_begin : run, argument);
}

int main(int argc, char **argv) {
  const char *file = std::getenv(fire::kPageVariable);
  if (argc != 2 || file == nullptr) {
    std::fprintf(stderr, "target: started by sweep only\n");
    return 2;
  }
  void *mapped = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, std::atoi(file), 0);
  if (mapped == MAP_FAILED) {
    std::perror("target: mmap");
    return 2;
  }
  page = static_cast<Page *>(mapped);
  if (__rseq_size != 0)
    page->rseq_cs = reinterpret_cast<uint64_t>(__builtin_thread_pointer()) + static_cast<uint64_t>(__rseq_offset) +
                    offsetof(struct rseq, rseq_cs);

  const std::string what = argv[1];
  void (*round)() = round_of_operations;
  if (what == "allocations") {
    round = round_of_allocations;
    threads_are_held = true;
    on_strike(strike_allocation);
  } else if (what == "blocks") {
    round = round_of_blocks;
    on_strike(strike_block);
  } else {
    area = static_cast<Copy *>(percpu_alloc(sizeof(Copy), 64));
    on_strike(strike_copy);
#ifdef FIRE_MUTANTS
    add_mutant(&operations, what);
#else
    if (what == "operations") {
      add_words<uint8_t>(&operations);
      add_words<uint16_t>(&operations);
      add_words<uint32_t>(&operations);
      add_words<uint64_t>(&operations);
      add_arithmetic<float>(&operations);
      add_arithmetic<double>(&operations);
      add_pairs(&operations);
      add_lists(&operations);
      add_stacks(&operations);
    } else {
      std::fprintf(stderr, "target: expected operations, allocations or blocks, found %s\n", argv[1]);
      return 2;
    }
#endif
  }
  for (;;) {
    round();
    raise(fire::kRoundOver);
  }
}
