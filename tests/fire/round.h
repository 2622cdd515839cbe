// SPDX-License-Identifier: MIT
// What the sweep (sweep.cc) and the program that it stops (target.cc) share: one page that both map.
#ifndef PERCPU_TESTS_FIRE_ROUND_H
#define PERCPU_TESTS_FIRE_ROUND_H

#include <signal.h>

#include <cstdint>

namespace fire {

constexpr int kRoundOver = SIGUSR2;  // the target sends it to itself: one round is over, another begins
constexpr int kStrike = SIGUSR1;     // the sweep sends it: the handler does something in the middle of an operation
constexpr const char *kPageVariable = "FIRE_PAGE";  // names the descriptor of the page in the environment

struct Page {
  uint64_t rseq_cs;     // where the target's thread has that word
  uint64_t struck;      // how often what runs was struck
  uint64_t inside;      // the sweep strikes before the sequence's end: the handler's work comes first, else last
  uint64_t nr_wrong;    // operations of the round that had a wrong result
  char operation[64];   // that runs
  char wrong[256];      // the first wrong one
};

}  // namespace fire

#endif
