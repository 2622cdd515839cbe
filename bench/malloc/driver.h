// SPDX-License-Identifier: MIT
//
// What the patterns share. A pattern is one file: it does a fixed amount of work with malloc and free, again and again until that has
// taken a while, and returns what one time took.
// Which allocator it runs under is none of its business (LD_PRELOAD decides).
//
// Invariants: Every block is written when it is taken and read when it is given back, and what was read is compared: two blocks that
// overlap, or one that lost its bytes, end the program with a message. Nothing of it can be optimized away: the patterns are compiled
// with -fno-builtin, so a call of malloc is a call, and what is compared is read from the block. Random numbers are the same each time.
#ifndef PERCPU_BENCH_MALLOC_DRIVER_H
#define PERCPU_BENCH_MALLOC_DRIVER_H

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>

namespace bench {

// How much of the usual work a pattern does: 1 in a full run, less in quick ones. At least 1 of anything.
struct Scale {
  double factor;
  unsigned threads;  // for the patterns that take a number of threads; 0: their own
  size_t of(size_t count) const {
    const double scaled = static_cast<double>(count) * factor;
    return scaled < 1 ? 1 : static_cast<size_t>(scaled);
  }
  // As long as a repetition takes at least: what disturbs it for a millisecond is a hundredth of it.
  double least_ns() const { return 100e6 * (factor < 1 ? factor : 1); }
};

struct Pattern {
  const char* name;
  const char* unit;
  double (*run)(const Scale&);  // returns the figure, in that unit; less is better
};

[[noreturn]] void fail(const char* what);

double now_ns();

// The median of several repetitions, each of which tells its own figure. One before them warms up and does not count.
double median_of(int repetitions, const std::function<double()>& repetition);

// What the work takes, in ns: the median of several repetitions, in each of which it is done until scale.least_ns() have gone by.
double median_ns(const Scale& scale, int repetitions, const std::function<void()>& work);

// Runs body(index) in so many threads at once, from one starting shot to the last one's end. Returns: ns.
double run_threads(unsigned count, const std::function<void(unsigned)>& body);

unsigned nr_cpus();

// Pages that this process holds now, in bytes.
double resident_bytes();

// A generator of Marsaglia's xorshift family: a few instructions, so that it disturbs little.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  // At least 0, below `bound`, which fits into 32 bits.
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(((next() >> 32) * bound) >> 32); }
  uint32_t between(uint32_t low, uint32_t high) { return low + below(high - low + 1); }

 private:
  uint64_t state_;
};

// Blocks of at least 8 bytes that carry a number in their first word. The compiler does not know that it still is what was written
// there: it waits in memory, at the address that malloc returned.
template <void* (*kMalloc)(size_t) = std::malloc>
uint64_t* take(size_t size, uint64_t number) {
  auto* block = static_cast<uint64_t*>(kMalloc(size));
  if (block == nullptr) fail("malloc() found no memory");
  *block = number;
  __asm__ volatile("" : "+r"(block) : : "memory");
  return block;
}
template <void (*kFree)(void*) = std::free>
void give_back(uint64_t* block, uint64_t number) {
  if (*block != number) fail("a block does not hold what was written to it");
  kFree(block);
}

// The same with the last byte written and compared as well: a block is as long as it was asked for.
struct Block {
  uint64_t* words = nullptr;
  uint32_t size = 0;

  void fill(uint32_t bytes, uint64_t number) {
    words = take(bytes, number);
    size = bytes;
    if (bytes > 8) reinterpret_cast<unsigned char*>(words)[bytes - 1] = static_cast<unsigned char>(bytes);
  }
  void clear(uint64_t number) {
    if (size > 8 && reinterpret_cast<unsigned char*>(words)[size - 1] != static_cast<unsigned char>(size))
      fail("the end of a block does not hold what was written to it");
    give_back(words, number);
    words = nullptr;
  }
};

// One file each.
double batch(const Scale&);
double calloc_blocks(const Scale&);
double false_sharing_active(const Scale&);
double false_sharing_passive(const Scale&);
double given_back(const Scale&);
double idle_threads(const Scale&);
double large(const Scale&);
double larson(const Scale&);
double pair(const Scale&);
double pair_floor(const Scale&);
double producer_consumer(const Scale&);
double random_sizes(const Scale&);
double realloc_growth(const Scale&);
double small_churn(const Scale&);
double thread_storm(const Scale&);

}  // namespace bench

#endif  // PERCPU_BENCH_MALLOC_DRIVER_H
