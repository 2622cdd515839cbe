// SPDX-License-Identifier: MIT
//
// False sharing: small blocks of different threads in one cache line, which then travels between the CPUs at every write (Berger and others,
// Hoard, 2000). One thread per CPU; each takes a block of 8 bytes, writes it many times, frees it, and again. ms for all of it.
//
//   false_sharing_active    each thread takes its own blocks: does the allocator hand out one line to two threads?
//   false_sharing_passive   the first blocks of all threads were taken by one thread, one after the other, so they share lines; each thread
//                           frees its own first: does the allocator hand that piece of a shared line out again, to whom?
#include <vector>

#include "driver.h"

namespace {

void write_much(uint64_t* block, uint64_t writes) {
  volatile uint64_t* word = block;
  for (uint64_t i = 0; i < writes; i++) *word = *word + 1;
}

double share(const bench::Scale& scale, bool passive) {
  constexpr uint64_t kWrites = 1000;
  const unsigned threads = bench::nr_cpus();
  const size_t blocks = scale.of(60'000);
  return bench::median_ns(scale, 3, [&] {
           std::vector<uint64_t*> first(threads);
           if (passive)
             for (uint64_t*& block : first) block = bench::take(8, 7);
           bench::run_threads(threads, [&](unsigned thread) {
             if (passive) bench::give_back(first[thread], 7);
             for (size_t i = 0; i < blocks; i++) {
               uint64_t* block = bench::take(8, i);
               write_much(block, kWrites);
               bench::give_back(block, i + kWrites);
             }
           });
         }) / 1e6;
}

}  // namespace

double bench::false_sharing_active(const Scale& scale) { return share(scale, false); }
double bench::false_sharing_passive(const Scale& scale) { return share(scale, true); }
