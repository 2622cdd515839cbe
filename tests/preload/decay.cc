// SPDX-License-Identifier: MIT
//
// Under the preload: what `decay` promises, end to end. Ticks are counted, not timed: the statistics have their number.
//
//   decay fast    all that was freed goes back by itself, with a half-life of 50 ms in a few ticks
//   decay slow    with a half-life of an hour: little goes back, but something does
//   decay caches  what CPUs' caches hold goes back when nothing was freed or taken for a while, though no page is dirty (decay:0)
//   decay rested  the same of what comes up after the balance thread found nothing to do: many pages, freed just behind a tick; and
//                 blocks that were taken slowly and freed fast
//   decay off     nothing goes back by itself, with the balance thread or without it, however often it ticks; by malloc_trim() all does
//   decay sync    without a balance thread those who free tick as often as it would
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "../patience.h"

extern "C" void malloc_stats_print(void (*write)(void*, const char*), void* context, const char* options) __attribute__((weak));

namespace {

constexpr size_t kMiB = size_t{1} << 20;

[[noreturn]] void fail(const char* what, unsigned long found) {
  fprintf(stderr, "decay: expected %s, found %lu\n", what, found);
  exit(1);
}

// The number in front of these words in the statistics. Nothing is allocated for it.
unsigned long number_before(const char* words) {
  static char text[size_t{1} << 18];
  static size_t length;
  length = 0;
  malloc_stats_print(
      [](void*, const char* piece) {
        const size_t bytes = std::min(strlen(piece), sizeof text - 1 - length);
        memcpy(text + length, piece, bytes);
        length += bytes;
        text[length] = 0;
      },
      nullptr, nullptr);
  const char* at = strstr(text, words);
  if (at == nullptr) fail(words, 0);
  while (at > text && at[-1] >= '0' && at[-1] <= '9') --at;
  return strtoul(at, nullptr, 10);
}
unsigned long ticks() { return number_before(" ticks"); }
unsigned long given_kib() { return number_before(" KiB given back so far"); }

void free_much() {
  std::vector<void*> blocks;
  for (int i = 0; i < 64; ++i) blocks.push_back(memset(malloc(kMiB), 1, kMiB));
  for (void* block : blocks) free(block);
}

// What reaches the slow path, where who frees ticks.
void free_slowly() { free(malloc(100000)); }

// A tick comes 100 ms after the last at the earliest, so each leaves a quarter, and 64 MiB are less than one after four. The first does not
// count, as nothing had been free for a tick. (With the usual half-life it is 15 ticks, unless they are late.)
void fast() {
  constexpr unsigned long kMost = 8;
  free_much();
  const unsigned long begin = ticks();
  const auto gone = [&] {
    const unsigned long passed = ticks() - begin;
    const size_t kept = mallinfo2().keepcost;
    if (kept >= kMiB && passed > kMost) fail("less than 1 MiB after 8 ticks", kept);
    return kept < kMiB;
  };
  if (!patience::eventually(gone)) fail("less than 1 MiB", mallinfo2().keepcost);
}

void slow() {
  free_much();
  const unsigned long begin = ticks();
  const unsigned long given = given_kib();
  if (!patience::eventually([&] { return ticks() >= begin + 20; })) fail("20 ticks", ticks() - begin);
  if (given_kib() == given) fail("that some pages went back in 20 ticks", 0);
  if (mallinfo2().keepcost < 32 * kMiB) fail("at least 32 MiB that were not given back", mallinfo2().keepcost);
}

// The caches have no limit at first, so the thread is woken by a free; then all is quiet.
void caches() {
  std::thread([] {
    std::vector<void*> blocks(20000);
    for (void*& block : blocks) block = malloc(100);
    for (void* block : blocks) free(block);
  }).join();
  if (!patience::eventually([] { return mallinfo2().fsmblks == 0; })) fail("nothing in caches", mallinfo2().fsmblks);
}

// Until the balance thread sleeps: no tick for two seconds. (If it is only late, what follows asks for less.)
void rest() {
  unsigned long last = ticks();
  unsigned looks = 0;
  for (int quiet = 0; quiet < 20; ++quiet) {
    if (++looks > 10 * patience::kHangSeconds) fail("that the balance thread comes to rest", ticks());
    usleep(100000);
    if (const unsigned long now = ticks(); now != last) {
      last = now;
      quiet = 0;
    }
  }
}

void rested() {
  static void* blocks[2000];
  std::thread([] {}).join();
  for (int i = 0; i < 64; ++i) blocks[i] = memset(malloc(kMiB), 1, kMiB);
  rest();
  const unsigned long begin = ticks();
  free_slowly();
  if (!patience::eventually([&] { return ticks() != begin; })) fail("a tick", 0);
  for (int i = 0; i < 64; ++i) free(blocks[i]);
  if (!patience::eventually([] { return mallinfo2().keepcost < kMiB; })) fail("less than 1 MiB", mallinfo2().keepcost);
  rest();
  for (void*& block : blocks) block = malloc(64);
  for (int i = 0; i < 900; ++i) free(blocks[i]);
  if (!patience::eventually([] { return mallinfo2().fsmblks == 0; })) fail("nothing in caches", mallinfo2().fsmblks);
}

// More than a program without threads would keep.
void off() {
  constexpr size_t kMuch = 400;
  static void* blocks[kMuch];
  for (void*& block : blocks) block = memset(malloc(kMiB), 1, kMiB);
  const unsigned long given = given_kib();
  for (void* block : blocks) free(block);
  if (mallinfo2().keepcost < kMuch * kMiB) fail("that all is kept", mallinfo2().keepcost);
  std::thread([] {}).join();
  const unsigned long begin = ticks();
  // The balance thread rests, as nothing is to go back: whoever frees wakes it.
  const auto some_ticks = [&] {
    free_slowly();
    return ticks() >= begin + 5;
  };
  if (!patience::eventually(some_ticks)) fail("5 ticks", ticks() - begin);
  if (mallinfo2().keepcost < kMuch * kMiB) fail("that all is kept in 5 ticks", mallinfo2().keepcost);
  if (given_kib() != given) fail("that nothing went back in 5 ticks", given_kib() - given);
  if (malloc_trim(0) != 1) fail("that malloc_trim() gives something back", 0);
  if (mallinfo2().keepcost >= kMiB) fail("less than 1 MiB after malloc_trim()", mallinfo2().keepcost);
  if (given_kib() - given < (kMuch - 1) * 1024) fail("that malloc_trim() gave all back", given_kib() - given);
}

// Two ticks are less than 0.6 s apart. (On a machine that is too busy these may not be the first ones.)
void without_thread() {
  using Clock = std::chrono::steady_clock;
  std::thread([] { free_slowly(); }).join();
  unsigned long last = ticks();
  int seen = 0;
  auto since = Clock::now() - std::chrono::hours(1);
  while (seen < 50) {
    free_slowly();
    usleep(1000);
    const unsigned long now = ticks();
    if (now == last) continue;
    if (now - last >= 2 || Clock::now() - since < std::chrono::milliseconds(600)) return;
    since = Clock::now();
    last = now;
    seen++;
  }
  fail("ticks that are less than 0.6 s apart, of so many", 50);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || malloc_stats_print == nullptr) return 2;
  const std::string which = argv[1];
  if (which == "fast") {
    std::thread([] {}).join();  // the balance thread begins
    fast();
  } else if (which == "slow") {
    std::thread([] {}).join();
    slow();
  } else if (which == "caches") {
    caches();
  } else if (which == "rested") {
    rested();
  } else if (which == "off") {
    off();
  } else if (which == "sync") {
    without_thread();
  } else {
    return 2;
  }
  puts("decay: as promised");
  return 0;
}
