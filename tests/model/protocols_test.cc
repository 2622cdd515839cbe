// SPDX-License-Identifier: MIT
//
// The protocols of docs/ops.md ("Changing another CPU's copy"), explored to the end; and mutants of each, which must be found.
// A program here is the code that it stands for, instruction by instruction:
//
//   list          include/percpu/list.h: push, pop, drain
//   stack         include/percpu/stack.h and lib/runtime/front_cache.cc: push, pop, stop, drain, start
//   filled stack  the same; Pool::make_ready_stopped() in place of the drain
//   closed copy   preload/heap/cache_table.h and preload/heap/cpu_cache.cc: push, pop, close, empty, reopen
//   fork          the last two; Library::fork_prepare() and CpuCache::fork_prepare(), fork(), fork_parent()
#include "protocols.h"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdio>

namespace {

using model::Instruction;
using model::Program;
using model::Scenario;
using enum Instruction::Kind;

// Two threads of one CPU that pop and push, one of them with a block in its hand, and one outsider.
struct Protocol {
  const char *name;
  Program push, pop, outsider;
  std::vector<int> memory;
  std::function<std::vector<int>(const std::vector<int> &)> content;
  bool forks = false;
};

std::string explore(const Protocol &protocol, size_t *nr_states) {
  Scenario scenario;
  scenario.memory = protocol.memory;
  scenario.hands = {1, 0};
  scenario.threads = {{&protocol.push, &protocol.pop}, {&protocol.pop, &protocol.push}};
  scenario.outsider = {&protocol.outsider};
  scenario.content = protocol.content;
  scenario.forks = protocol.forks;
  model::Explorer explorer(scenario);
  std::string problem = explorer.run();
  *nr_states = explorer.nr_states();
  return problem;
}

void holds(const Protocol &protocol) {
  size_t nr_states = 0;
  CHECK(explore(protocol, &nr_states) == "");
  std::printf("%s: %zu states\n", protocol.name, nr_states);
}
void is_caught(const char *mutant, const Protocol &protocol) {
  size_t nr_states = 0;
  const std::string problem = explore(protocol, &nr_states);
  INFO(mutant);
  CHECK(problem != "");
  CHECK(problem != "the model is too small");
  std::printf("%s, %s: %s\n", protocol.name, mutant, problem.c_str());
}

Program without(Program program, size_t which) {
  program.erase(program.begin() + static_cast<std::ptrdiff_t>(which));
  return program;
}
// Instruction `from` is done where `to` was.
Program moved(Program program, size_t from, size_t to) {
  const Instruction what = program[from];
  program.erase(program.begin() + static_cast<std::ptrdiff_t>(from));
  program.insert(program.begin() + static_cast<std::ptrdiff_t>(to), what);
  return program;
}
Program with_order(Program program, size_t which, model::Order order) {
  program[which].order = order;
  return program;
}
Program with_value(Program program, size_t which, int value) {
  program[which].value = value;
  return program;
}

// ---- the list --------------------------------------------------------------------------------------------------------

enum { kHead, kStop, kNext, kNextOf1, kNextOf2, kNextOf3 };
constexpr int kGarbage = 7;

// The list holds block 2, then 3.
Protocol list() {
  Protocol protocol;
  protocol.name = "list";
  protocol.push = {
      {.kind = kHand, .a = 0},
      {.kind = kExitIf, .a = 0, .value = 0},
      {.kind = kLoad, .a = 1, .location = kStop, .order = model::kAcquire},  // 2
      {.kind = kJumpIf, .a = 1, .value = 0, .target = 5},
      {.kind = kJump, .target = 8},  // out
      {.kind = kLoad, .a = 1, .location = kHead},
      {.kind = kStore, .a = 1, .location = kNext, .index = 0},
      {.kind = kPush, .a = 0, .location = kHead},
  };
  protocol.pop = {
      {.kind = kLoad, .a = 1, .location = kStop, .order = model::kAcquire},  // 0
      {.kind = kJumpIf, .a = 1, .value = 0, .target = 3},
      {.kind = kJump, .target = 7},  // out
      {.kind = kLoad, .a = 0, .location = kHead},
      {.kind = kExitIf, .a = 0, .value = 0},
      {.kind = kLoad, .a = 1, .location = kNext, .index = 0},
      {.kind = kPop, .a = 1, .b = 0, .location = kHead},
  };
  protocol.outsider = {
      {.kind = kIncrease, .location = kStop, .value = 1},  // 0
      {.kind = kFence},                                    // 1
      {.kind = kExchange, .a = 0, .location = kHead, .value = 0},
      {.kind = kSet, .a = 2, .value = kGarbage},
      // The chain: each block is taken, and used for something else.
      {.kind = kJumpIf, .a = 0, .value = 0, .target = 9},  // 4
      {.kind = kLoad, .a = 1, .location = kNext, .index = 0},
      {.kind = kTake, .a = 0},
      {.kind = kStore, .a = 2, .location = kNext, .index = 0},
      {.kind = kJump, .target = 10},
      {.kind = kJump, .target = 16},
      {.kind = kJumpIf, .a = 1, .value = 0, .target = 16},  // 10: the second, if there is one
      {.kind = kLoad, .a = 0, .location = kNext, .index = 1},
      {.kind = kTake, .a = 1},
      {.kind = kStore, .a = 2, .location = kNext, .index = 1},
      {.kind = kJumpIf, .a = 0, .value = 0, .target = 16},  // the third
      {.kind = kTake, .a = 0},
      {.kind = kIncrease, .location = kStop, .value = -1},  // 16
  };
  protocol.memory = {2, 0, 0, 0, 3, 0};
  protocol.content = [](const std::vector<int> &memory) {
    std::vector<int> blocks;
    for (int at = memory[kHead]; at != 0 && blocks.size() <= 3; at = at <= 3 ? memory[static_cast<size_t>(kNext + at)] : 0)
      blocks.push_back(at);
    return blocks;
  };
  return protocol;
}

// ---- the stack -------------------------------------------------------------------------------------------------------

enum { kCount, kLimit, kSlot };
constexpr int kMost = 3;

// The stack holds block 2, then 3 on top, and takes three.
Protocol stack() {
  Protocol protocol;
  protocol.name = "stack";
  protocol.push = {
      {.kind = kHand, .a = 0},
      {.kind = kExitIf, .a = 0, .value = 0},
      {.kind = kLoad, .a = 2, .location = kLimit, .order = model::kAcquire},  // 2
      {.kind = kLoad, .a = 1, .location = kCount},
      {.kind = kExitUnlessLess, .a = 1, .b = 2},
      {.kind = kStore, .a = 0, .location = kSlot, .index = 1},
      {.kind = kAdd, .a = 1, .value = 1},
      {.kind = kPush, .a = 1, .location = kCount},
  };
  protocol.pop = {
      {.kind = kLoad, .a = 2, .location = kLimit, .order = model::kAcquire},  // 0
      {.kind = kLoad, .a = 1, .location = kCount},
      {.kind = kAdd, .a = 1, .value = -1},
      {.kind = kExitUnlessLess, .a = 1, .b = 2},
      {.kind = kLoad, .a = 0, .location = kSlot, .index = 1},
      {.kind = kPop, .a = 1, .b = 0, .location = kCount},
  };
  protocol.outsider = {
      {.kind = kSet, .a = 2, .value = 0},
      {.kind = kStore, .a = 2, .location = kLimit, .order = model::kRelease},  // 1: stop
      {.kind = kFence},                                                       // 2
      {.kind = kLoad, .a = 1, .location = kCount},                            // 3: take, until none is left
      {.kind = kJumpIf, .a = 1, .value = 0, .target = 9},
      {.kind = kAdd, .a = 1, .value = -1},
      {.kind = kLoad, .a = 0, .location = kSlot, .index = 1},
      {.kind = kStore, .a = 1, .location = kCount},
      {.kind = kJump, .target = 11},
      {.kind = kSet, .a = 2, .value = kMost},  // 9
      {.kind = kJump, .target = 13},
      {.kind = kTake, .a = 0},
      {.kind = kJump, .target = 3},
      {.kind = kStore, .a = 2, .location = kLimit, .order = model::kRelease},  // 13: start
  };
  protocol.memory = {2, kMost, 2, 3, 0};
  protocol.content = [](const std::vector<int> &memory) {
    std::vector<int> blocks;
    for (int i = 0; i < memory[kCount] && i < kMost; ++i) blocks.push_back(memory[static_cast<size_t>(kSlot + i)]);
    return blocks;
  };
  return protocol;
}

// The stack holds block 2 and takes three. The outsider has blocks 3 and 4, and puts there as many as there is room for.
Protocol filled_stack() {
  Protocol protocol = stack();
  protocol.name = "filled stack";
  protocol.outsider = {
      {.kind = kSet, .a = 2, .value = 0},
      {.kind = kStore, .a = 2, .location = kLimit, .order = model::kRelease},  // 1: stop
      {.kind = kFence},                                                       // 2
      {.kind = kLoad, .a = 1, .location = kCount},                            // 3
      {.kind = kJumpIf, .a = 1, .value = kMost, .target = 14},
      {.kind = kSet, .a = 0, .value = 3},
      {.kind = kStore, .a = 0, .location = kSlot, .index = 1},  // 6
      {.kind = kAdd, .a = 1, .value = 1},
      {.kind = kGive, .a = 0},
      {.kind = kJumpIf, .a = 1, .value = kMost, .target = 14},  // 9
      {.kind = kSet, .a = 0, .value = 4},
      {.kind = kStore, .a = 0, .location = kSlot, .index = 1},  // 11
      {.kind = kAdd, .a = 1, .value = 1},
      {.kind = kGive, .a = 0},
      {.kind = kStore, .a = 1, .location = kCount},  // 14
      {.kind = kSet, .a = 2, .value = kMost},
      {.kind = kStore, .a = 2, .location = kLimit, .order = model::kRelease},  // 16: start
  };
  protocol.memory = {1, kMost, 2, 0, 0};
  return protocol;
}

// ---- the closed copy -------------------------------------------------------------------------------------------------

enum { kEntry, kTop, kEnd, kFirst };
constexpr int kOpen = 1, kClosed = 0;

// As the stack, but a sequence first loads where its copy is; the closed copy is full and empty. All that it loads then it has the
// address of by that load: so to all that comes behind it here, that load is what an acquire would be, and it is none.
Protocol closed_copy() {
  Protocol protocol;
  protocol.name = "closed copy";
  protocol.push = {
      {.kind = kHand, .a = 0},
      {.kind = kExitIf, .a = 0, .value = 0},
      {.kind = kLoad, .a = 2, .location = kEntry, .order = model::kAcquire},  // 2
      {.kind = kExitIf, .a = 2, .value = kClosed},
      {.kind = kLoad, .a = 1, .location = kTop},
      {.kind = kLoad, .a = 2, .location = kEnd},
      {.kind = kExitUnlessLess, .a = 1, .b = 2},
      {.kind = kStore, .a = 0, .location = kFirst, .index = 1},
      {.kind = kAdd, .a = 1, .value = 1},
      {.kind = kPush, .a = 1, .location = kTop},
  };
  protocol.pop = {
      {.kind = kLoad, .a = 2, .location = kEntry, .order = model::kAcquire},  // 0
      {.kind = kExitIf, .a = 2, .value = kClosed},
      {.kind = kLoad, .a = 1, .location = kTop},
      {.kind = kExitIf, .a = 1, .value = 0},
      {.kind = kAdd, .a = 1, .value = -1},
      {.kind = kLoad, .a = 0, .location = kFirst, .index = 1},
      {.kind = kPop, .a = 1, .b = 0, .location = kTop},
  };
  protocol.outsider = {
      {.kind = kSet, .a = 2, .value = kClosed},
      {.kind = kStore, .a = 2, .location = kEntry, .order = model::kRelease},  // 1: close
      {.kind = kFence},                                                       // 2
      {.kind = kLoad, .a = 1, .location = kTop},                              // 3: how many; all of them are taken
      {.kind = kSet, .a = 2, .value = 0},
      {.kind = kStore, .a = 2, .location = kTop},
      {.kind = kJumpIf, .a = 1, .value = 0, .target = 11},  // 6
      {.kind = kAdd, .a = 1, .value = -1},
      {.kind = kLoad, .a = 0, .location = kFirst, .index = 1},
      {.kind = kTake, .a = 0},
      {.kind = kJump, .target = 6},
      {.kind = kSet, .a = 2, .value = kOpen},                                  // 11
      {.kind = kStore, .a = 2, .location = kEntry, .order = model::kRelease},  // 12: reopen
  };
  protocol.memory = {kOpen, 2, kMost, 2, 3, 0};
  protocol.content = [](const std::vector<int> &memory) {
    std::vector<int> blocks;
    for (int i = 0; i < memory[kTop] && i < kMost; ++i) blocks.push_back(memory[static_cast<size_t>(kFirst + i)]);
    return blocks;
  };
  return protocol;
}

// Of an outsider that stops or closes the CPU by its first two instructions, and fences it by the third.
void fence_is_needed(const Protocol &right) {
  Protocol mutant = right;
  mutant.outsider[2] = {.kind = kJump, .target = 3};
  is_caught("no fence", mutant);
  mutant.outsider = with_value(right.outsider, 2, 1);
  is_caught("a fence that aborts nothing", mutant);
  mutant.outsider = moved(right.outsider, 2, 1);
  is_caught("the fence before limit or entry", mutant);
}

// ---- fork ------------------------------------------------------------------------------------------------------------

// Nothing is taken: all is copied, page by page, where another outsider would take. What a program has in hand lies in pages of its
// own, which are copied before those of the structure, or behind them.
enum class HandsGo { kFirst, kLast };

// A protocol whose outsider stops or closes the CPU by its first two instructions, and fences it by the third; by `begin_again` it
// undoes that.
Protocol forked(Protocol protocol, const char *name, HandsGo hands, const Program &begin_again) {
  protocol.name = name;
  protocol.forks = true;
  Program &fork = protocol.outsider;
  fork.resize(3);
  if (hands == HandsGo::kFirst) fork.push_back({.kind = kCopyHands});
  for (size_t location = protocol.memory.size(); location-- > 0;) {
    fork.push_back({.kind = kCopy, .location = static_cast<int>(location)});
  }
  if (hands == HandsGo::kLast) fork.push_back({.kind = kCopyHands});
  fork.insert(fork.end(), begin_again.begin(), begin_again.end());
  return protocol;
}

// Both structures, both ways.
std::vector<Protocol> forks() {
  const Program start = {{.kind = kSet, .a = 2, .value = kMost},
                         {.kind = kStore, .a = 2, .location = kLimit, .order = model::kRelease}};
  const Program reopen = {{.kind = kSet, .a = 2, .value = kOpen},
                          {.kind = kStore, .a = 2, .location = kEntry, .order = model::kRelease}};
  return {forked(stack(), "fork with a stack, hands first", HandsGo::kFirst, start),
          forked(stack(), "fork with a stack, hands last", HandsGo::kLast, start),
          forked(closed_copy(), "fork with a closed copy, hands first", HandsGo::kFirst, reopen),
          forked(closed_copy(), "fork with a closed copy, hands last", HandsGo::kLast, reopen)};
}

}  // namespace

TEST_CASE("a list is drained while its CPU pushes and pops") {
  holds(list());
}

TEST_CASE("a drain with a fault loses or doubles blocks") {
  Protocol mutant = list();
  mutant.outsider[1].kind = kJump;
  mutant.outsider[1].target = 2;
  is_caught("no fence", mutant);
  mutant = list();
  mutant.outsider = with_value(mutant.outsider, 1, 1);
  is_caught("a fence that aborts nothing", mutant);
  mutant = list();
  mutant.outsider = moved(mutant.outsider, 1, 0);
  is_caught("the fence before the stop word", mutant);
  mutant = list();
  mutant.push = with_order(mutant.push, 2, model::kRelaxed);
  mutant.pop = with_order(mutant.pop, 0, model::kRelaxed);
  is_caught("the stop word loaded without acquire", mutant);
  mutant = list();
  mutant.push[3] = {.kind = kJump, .target = 5};
  is_caught("a push that does not look at the stop word", mutant);
  mutant = list();
  mutant.pop[1] = {.kind = kJump, .target = 3};
  is_caught("a pop that does not look at the stop word", mutant);
}

TEST_CASE("a stack is emptied while its CPU pushes and pops") {
  holds(stack());
}

TEST_CASE("a front cache that is emptied with a fault loses or doubles blocks") {
  fence_is_needed(stack());
  Protocol mutant = stack();
  mutant.push = with_order(mutant.push, 2, model::kRelaxed);
  mutant.pop = with_order(mutant.pop, 0, model::kRelaxed);
  is_caught("the limit loaded without acquire", mutant);
  mutant = stack();
  mutant.outsider = with_order(mutant.outsider, 13, model::kRelaxed);
  is_caught("the limit restored without release", mutant);
  mutant = stack();
  mutant.outsider = {mutant.outsider[0], mutant.outsider[1], mutant.outsider[2],
                     {.kind = kSet, .a = 2, .value = kMost},
                     {.kind = kStore, .a = 2, .location = kLimit, .order = model::kRelease},
                     {.kind = kLoad, .a = 1, .location = kCount},
                     {.kind = kExitIf, .a = 1, .value = 0},
                     {.kind = kAdd, .a = 1, .value = -1},
                     {.kind = kLoad, .a = 0, .location = kSlot, .index = 1},
                     {.kind = kStore, .a = 1, .location = kCount},
                     {.kind = kTake, .a = 0}};
  is_caught("the limit restored before the change", mutant);
}

TEST_CASE("a stack is filled while its CPU pushes and pops") {
  holds(filled_stack());
}

TEST_CASE("a stack that is filled with a fault loses or doubles blocks") {
  fence_is_needed(filled_stack());
  Protocol mutant = filled_stack();
  mutant.outsider[1] = {.kind = kJump, .target = 2};
  is_caught("a stack that is not stopped", mutant);
  mutant = filled_stack();
  mutant.outsider = moved(moved(mutant.outsider, 16, 3), 16, 3);
  is_caught("the limit restored before the change", mutant);
  mutant = filled_stack();
  mutant.outsider = moved(mutant.outsider, 14, 16);
  is_caught("the count raised behind the limit", mutant);
  mutant = filled_stack();
  mutant.outsider = with_order(mutant.outsider, 16, model::kRelaxed);
  is_caught("the limit restored without release", mutant);
  mutant = filled_stack();
  mutant.pop = with_order(mutant.pop, 0, model::kRelaxed);
  is_caught("the limit loaded without acquire", mutant);
  mutant = filled_stack();
  mutant.outsider[9] = {.kind = kJump, .target = 10};
  is_caught("more blocks than there is room for", mutant);
}

TEST_CASE("a closed CPU's stacks are emptied while its threads go on") {
  holds(closed_copy());
}

TEST_CASE("a CPU that is closed with a fault loses or doubles blocks") {
  fence_is_needed(closed_copy());
  Protocol mutant = closed_copy();
  mutant.outsider = {mutant.outsider[0], mutant.outsider[1], mutant.outsider[2], mutant.outsider[11], mutant.outsider[12],
                     mutant.outsider[3], mutant.outsider[4], mutant.outsider[5],
                     {.kind = kJumpIf, .a = 1, .value = 0, .target = 13},
                     mutant.outsider[7], mutant.outsider[8], mutant.outsider[9],
                     {.kind = kJump, .target = 8}};
  is_caught("the entry restored before the change", mutant);
  mutant = closed_copy();
  mutant.push = with_order(mutant.push, 2, model::kRelaxed);
  mutant.pop = with_order(mutant.pop, 0, model::kRelaxed);
  is_caught("stacks that are not found by the entry", mutant);
  mutant = closed_copy();
  mutant.outsider = with_order(mutant.outsider, 12, model::kRelaxed);
  is_caught("the entry restored without release", mutant);
  mutant = closed_copy();
  mutant.pop = without(mutant.pop, 1);
  is_caught("a pop that does not mind the closed copy", mutant);
}

TEST_CASE("a child has each block once, in the copy of the structure or in that of a hand") {
  for (const Protocol &protocol : forks()) holds(protocol);
}

TEST_CASE("a fork that does not hold the CPU's sequences up gives its child a block twice, or not at all") {
  for (const Protocol &right : forks()) {
    fence_is_needed(right);
    Protocol mutant = right;
    mutant.outsider = without(right.outsider, 1);
    is_caught("a CPU that is not stopped", mutant);
    const size_t last = right.outsider.size() - 1;
    mutant.outsider = moved(moved(right.outsider, last, 3), last, 3);
    is_caught("begun again before the copy", mutant);
  }
}
