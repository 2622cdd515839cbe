// SPDX-License-Identifier: MIT
//
// An exhaustive explorer of the protocols by which one thread changes what sequences on another CPU change: every
// interleaving, every preemption, every stale value that memory may show.
//
// Invariants: what the model takes for granted.
//   A CPU runs some threads, whose operations are sequences. Between any two instructions of a sequence the thread may be
//   preempted by another of its CPU (kMostAborts times in all); it begins again from its first instruction. What a CPU has
//   seen, whichever of its threads did, it keeps: a switch of threads is a barrier.
//   An outsider is a thread on some other CPU, whose instructions are no sequence.
//   Memory is a list of values for each location, in the order in which they were stored. A load finds any of them that is
//   not older than one that this CPU knows of (its view). A store with release carries the view of who stores, a load with
//   acquire takes it over. A read-modify-write reads the last value. That is weaker than x86-64, where each load is an
//   acquire and each store a release; and as weak as arm64 but for loads that see stores of the future.
//   A fence aborts the CPU's sequence that is under way, if any, and CPU and outsider know afterwards what either knew.
//   fork() is an outsider's: the kernel copies a page at a time, and in each page finds what was stored last.
//
// It is our own, since herd7, GenMC and Relacy know neither of code that begins anew when another CPU says so nor of copies that are made
// page by page. So it is weaker than theirs in one thing: what follows from loads that see stores of the future is not explored.
//
// What is proved: blocks. Each is in one place: in a thread's hand, in an outsider's, or in the structure. A commit that
// pushes puts the hand's block into the structure, one that pops takes one from there; so does the outsider, or it gives its
// own. Taking what is not there is an error at once; in the end the structure must hold just the blocks that are said to be
// there. What a fork's child finds in its copies of the structure and of the threads' hands must be each block once.
#ifndef PERCPU_TESTS_MODEL_PROTOCOLS_H
#define PERCPU_TESTS_MODEL_PROTOCOLS_H

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace model {

constexpr int kLocations = 8, kRegisters = 3, kMostValues = 16, kBlocks = 4, kThreads = 2;
constexpr int kMostAborts = 4;  // by preemption, in one history; the fence's come on top

enum Order : uint8_t { kRelaxed, kAcquire, kRelease };

struct Instruction {
  enum Kind : uint8_t {
    kSet,       // r[a] = value
    kHand,      // r[a] = the block in the thread's hand
    kLoad,      // r[a] = location
    kStore,     // location = r[a]
    kAdd,       // r[a] += value
    kExchange,  // r[a] = location, location = value
    kIncrease,  // location += value, at once
    kFence,     // of the CPU; outsiders only
    kExitIf,    // r[a] == value: the operation ends, and has done nothing
    kExitUnlessLess,  // r[a] >= r[b]: the same
    kJumpIf,    // r[a] == value: to the instruction `target`
    kJump,
    kTake,      // the block r[a] is the outsider's
    kGive,      // the block r[a] was the outsider's, and is in the structure
    kCopy,      // the child's location = location
    kCopyHands, // the child's hands = the threads'
    kPush,      // location = r[a]: the commit; the hand's block is in the structure
    kPop,       // location = r[a]: the commit; the block r[b] is in the hand
  };
  Kind kind;
  int a = 0, b = 0;
  int location = 0;
  int index = -1;  // a register that is added to the location's number
  int value = 0;
  Order order = kRelaxed;
  int target = 0;
};
using Program = std::vector<Instruction>;

struct Scenario {
  std::vector<int> memory;                             // at first
  std::vector<int> hands;                              // the block in each thread's hand, 0: none
  std::vector<std::vector<const Program *>> threads;   // what each thread of the CPU does, one operation after another
  std::vector<const Program *> outsider;
  bool forks = false;  // the outsider copies all that the structure is of, and the hands
  // The blocks that the structure holds, by the last values.
  std::function<std::vector<int>(const std::vector<int> &)> content;
};

class Explorer {
 public:
  explicit Explorer(const Scenario &scenario) : scenario_(scenario) {}

  // An empty string, or what went wrong first, and how.
  std::string run() {
    State state{};
    for (size_t i = 0; i < scenario_.memory.size(); ++i) {
      state.memory[i].count = 1;
      state.memory[i].value[0].value = static_cast<uint8_t>(scenario_.memory[i]);
    }
    for (size_t i = 0; i < scenario_.hands.size(); ++i) state.hand[i] = static_cast<uint8_t>(scenario_.hands[i]);
    for (const int block : scenario_.content(scenario_.memory)) state.where[static_cast<size_t>(block)] = kInside;
    explore(state);
    return problem_;
  }
  [[nodiscard]] size_t nr_states() const { return seen_.size(); }

 private:
  using View = std::array<uint8_t, kLocations>;
  enum Place : uint8_t { kOutside, kInside };

  struct Value {
    uint8_t value;
    View view;
  };
  struct Location {
    uint8_t count;
    Value value[kMostValues];
  };
  struct Runner {
    uint8_t operation, pc;
    uint8_t reg[kRegisters];
  };
  // Bytes only, without padding.
  struct State {
    Location memory[kLocations];
    View view[2];  // the CPU's, the outsider's
    Runner thread[kThreads], outsider;
    uint8_t active;  // the thread that the CPU runs
    uint8_t nr_aborts;
    uint8_t hand[kThreads];
    uint8_t where[kBlocks + 1];
    uint8_t child_memory[kLocations], child_hand[kThreads];
  };

  static void join(View *into, const View &other) {
    for (size_t i = 0; i < kLocations; ++i) (*into)[i] = std::max((*into)[i], other[i]);
  }
  static void begin_again(Runner *runner) {
    runner->pc = 0;
    std::fill(std::begin(runner->reg), std::end(runner->reg), uint8_t{0});
  }

  // All that tells states apart, in few bytes: there are many.
  static std::string bytes_of(const State &state) {
    std::string bytes;
    for (const Location &location : state.memory) {
      bytes += static_cast<char>(location.count);
      bytes.append(reinterpret_cast<const char *>(location.value), location.count * sizeof(Value));
    }
    bytes.append(reinterpret_cast<const char *>(&state.view), sizeof(State) - offsetof(State, view));
    return bytes;
  }

  // Values that neither can find any more are forgotten.
  static void forget(State *state) {
    for (size_t at = 0; at < kLocations; ++at) {
      const uint8_t old = std::min(state->view[0][at], state->view[1][at]);
      if (old == 0) continue;
      Location &location = state->memory[at];
      location.count = static_cast<uint8_t>(location.count - old);
      std::copy(location.value + old, location.value + old + location.count, location.value);
      const auto shift = [&](View *view) {
        (*view)[at] = static_cast<uint8_t>((*view)[at] > old ? (*view)[at] - old : 0);
      };
      shift(&state->view[0]);
      shift(&state->view[1]);
      for (Location &other : state->memory)
        for (uint8_t i = 0; i < other.count; ++i) shift(&other.value[i].view);
    }
  }

  void explore(State state) {
    if (!problem_.empty()) return;
    forget(&state);
    if (!seen_.insert(bytes_of(state)).second) return;
    bool any = false;
    const auto &threads = scenario_.threads;
    for (size_t i = 0; i < threads.size(); ++i) {
      if (state.thread[i].operation >= threads[i].size()) continue;
      any = true;
      State next = state;
      if (state.active != i) {
        if (next.thread[state.active].pc != 0 && next.nr_aborts++ == kMostAborts) continue;
        begin_again(&next.thread[state.active]);
        next.active = static_cast<uint8_t>(i);
      }
      step(next, 0, &next.thread[i] - &next.thread[0], *threads[i][state.thread[i].operation]);
    }
    if (state.outsider.operation < scenario_.outsider.size()) {
      any = true;
      step(state, 1, -1, *scenario_.outsider[state.outsider.operation]);
    }
    if (!any) check_end(state);
  }

  // Executes one instruction of thread `number` (-1: the outsider) in all ways that it can go.
  void step(State state, size_t actor, std::ptrdiff_t number, const Program &program) {
    Runner &runner = number < 0 ? state.outsider : state.thread[number];
    const Instruction &what = program[runner.pc];
    uint8_t &a = runner.reg[what.a];
    const size_t at = static_cast<size_t>(what.location + (what.index >= 0 ? runner.reg[what.index] : 0));
    ++runner.pc;
    switch (what.kind) {
      case Instruction::kSet: a = static_cast<uint8_t>(what.value); break;
      case Instruction::kHand: a = state.hand[number]; break;
      case Instruction::kAdd: a = static_cast<uint8_t>(a + what.value); break;
      case Instruction::kLoad:
        for (uint8_t i = state.view[actor][at]; i < state.memory[at].count; ++i) {
          State next = state;
          (number < 0 ? next.outsider : next.thread[number]).reg[what.a] = next.memory[at].value[i].value;
          next.view[actor][at] = i;
          if (what.order == kAcquire) join(&next.view[actor], next.memory[at].value[i].view);
          go_on(next, number, program);
        }
        return;
      case Instruction::kStore: store(&state, actor, at, a, what.order); break;
      case Instruction::kExchange:
      case Instruction::kIncrease: {
        const Value last = state.memory[at].value[state.memory[at].count - 1];
        state.view[actor][at] = static_cast<uint8_t>(state.memory[at].count - 1);
        join(&state.view[actor], last.view);
        if (what.kind == Instruction::kExchange) a = last.value;
        const int value = what.kind == Instruction::kExchange ? what.value : last.value + what.value;
        store(&state, actor, at, static_cast<uint8_t>(value), kRelease);
        break;
      }
      case Instruction::kFence:
        join(&state.view[0], state.view[1]);
        join(&state.view[1], state.view[0]);
        if (what.value == 0) begin_again(&state.thread[state.active]);  // 1: a mutant, which aborts nothing
        break;
      case Instruction::kExitIf:
        if (a == what.value) runner.pc = static_cast<uint8_t>(program.size());
        break;
      case Instruction::kExitUnlessLess:
        if (a >= runner.reg[what.b]) runner.pc = static_cast<uint8_t>(program.size());
        break;
      case Instruction::kJumpIf:
        if (a == what.value) runner.pc = static_cast<uint8_t>(what.target);
        break;
      case Instruction::kJump: runner.pc = static_cast<uint8_t>(what.target); break;
      case Instruction::kTake:
        if (!take(&state, a, "the outsider")) return;
        break;
      case Instruction::kGive: state.where[a] = kInside; break;
      case Instruction::kCopy: state.child_memory[at] = state.memory[at].value[state.memory[at].count - 1].value; break;
      case Instruction::kCopyHands: std::copy(std::begin(state.hand), std::end(state.hand), state.child_hand); break;
      case Instruction::kPush:
        state.where[state.hand[number]] = kInside;
        state.hand[number] = 0;
        store(&state, actor, at, a, what.order);
        break;
      case Instruction::kPop:
        if (!take(&state, runner.reg[what.b], "a pop")) return;
        state.hand[number] = runner.reg[what.b];
        store(&state, actor, at, a, what.order);
        break;
    }
    go_on(state, number, program);
  }

  void go_on(State state, std::ptrdiff_t number, const Program &program) {
    Runner &runner = number < 0 ? state.outsider : state.thread[number];
    if (runner.pc >= program.size()) {
      begin_again(&runner);
      ++runner.operation;
    }
    explore(state);
  }

  void store(State *state, size_t actor, size_t at, uint8_t value, Order order) {
    Location &location = state->memory[at];
    if (at >= kLocations || location.count == kMostValues) {
      problem_ = "the model is too small";
      return;
    }
    Value &stored = location.value[location.count];
    stored.value = value;
    state->view[actor][at] = location.count++;
    if (order == kRelease) stored.view = state->view[actor];
    else stored.view[at] = state->view[actor][at];
  }

  bool take(State *state, int block, const char *who) {
    if (block <= 0 || block > kBlocks || state->where[block] != kInside) {
      problem_ = std::string(who) + " takes block " + std::to_string(block) + ", which is not there";
      return false;
    }
    state->where[block] = kOutside;
    return true;
  }

  void check_end(const State &state) {
    std::vector<int> last, said;
    for (size_t i = 0; i < scenario_.memory.size(); ++i) last.push_back(state.memory[i].value[state.memory[i].count - 1].value);
    for (int block = 1; block <= kBlocks; ++block)
      if (state.where[block] == kInside) said.push_back(block);
    compare("in the end the structure holds", scenario_.content(last), said);
    if (!scenario_.forks) return;
    std::vector<int> all = scenario_.content(scenario_.memory);
    std::copy_if(scenario_.hands.begin(), scenario_.hands.end(), std::back_inserter(all), [](int block) { return block != 0; });
    std::vector<int> copied(state.child_memory, state.child_memory + scenario_.memory.size());
    copied = scenario_.content(copied);
    std::copy_if(std::begin(state.child_hand), std::end(state.child_hand), std::back_inserter(copied),
                 [](int block) { return block != 0; });
    compare("the child has", std::move(copied), std::move(all));
  }

  void compare(const char *who, std::vector<int> found, std::vector<int> said) {
    std::sort(found.begin(), found.end());
    std::sort(said.begin(), said.end());
    if (found == said) return;
    problem_ = std::string(who) + text(found) + ", and there are" + text(said);
  }
  static std::string text(const std::vector<int> &blocks) {
    std::string text = blocks.empty() ? " no blocks" : " blocks";
    for (const int block : blocks) text += ' ' + std::to_string(block);
    return text;
  }

  const Scenario &scenario_;
  std::unordered_set<std::string> seen_;
  std::string problem_;
};

}  // namespace model

#endif
