// SPDX-License-Identifier: MIT
//
// When the system gives no more: a limit on address space, from the start or set later; no more mappings (max_map_count); no more threads.
// An allocation fails with ENOMEM, nothing that was there is harmed, and what is freed can be allocated again.
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <doctest/doctest.h>

#include "../unit/child.h"
#include "address_space.h"

extern "C" void free_sized(void*, size_t) __attribute__((weak));

namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr int kRight = 0, kNoEnd = 10, kWrongErrno = 11, kHarmed = 12, kNotAgain = 13, kTooLittle = 14, kNotShrunk = 15;

// Blocks that know each other: each begins with the address of the one before, and ends with its own size.
struct Chain {
  struct Block {
    Block* before;
    size_t size_bytes;
  };
  Block* last = nullptr;
  size_t bytes = 0;

  bool take(size_t size) {
    auto* block = static_cast<Block*>(malloc(size));
    if (block == nullptr) return false;
    *block = {last, size};
    memcpy(reinterpret_cast<char*>(block) + size - sizeof size, &size, sizeof size);
    last = block;
    bytes += size;
    return true;
  }
  bool give_back_all() {
    bool whole = true;
    while (last != nullptr) {
      Block* block = last;
      size_t end = 0;
      memcpy(&end, reinterpret_cast<char*>(block) + block->size_bytes - sizeof end, sizeof end);
      whole = whole && end == block->size_bytes;
      last = block->before;
      free(block);
    }
    bytes = 0;
    return whole;
  }
};

// Takes blocks of this size until there are no more, but no more than 4 GiB; twice.
int take_all(size_t size, size_t least_bytes) {
  Chain chain;
  size_t first_bytes = 0;
  for (int round = 0; round < 2; round++) {
    errno = 0;
    while (chain.bytes < 4096 * kMiB && chain.take(size)) {}
    if (chain.bytes >= 4096 * kMiB) return kNoEnd;
    if (errno != ENOMEM) return kWrongErrno;
    if (chain.bytes < least_bytes) return kTooLittle;
    if (round == 1 && chain.bytes < first_bytes / 2) return kNotAgain;
    first_bytes = chain.bytes;
    if (!chain.give_back_all()) return kHarmed;
  }
  return kRight;
}

// Takes blocks of this size until there are no more, then smaller ones, and shrinks the large ones to these: there is no memory at first.
int shrink_all(size_t size, size_t smaller) {
  Chain chain, others;
  while (chain.bytes < 4096 * kMiB && chain.take(size)) {}
  while (others.bytes < 4096 * kMiB && others.take(smaller)) {}
  if (chain.bytes >= 4096 * kMiB || others.bytes >= 4096 * kMiB) return kNoEnd;
  while (chain.last != nullptr) {
    Chain::Block* const before = chain.last->before;
    auto* shrunk = static_cast<Chain::Block*>(realloc(chain.last, smaller));
    if (shrunk == nullptr) return kNotShrunk;
    if (shrunk->before != before || shrunk->size_bytes != size || malloc_usable_size(shrunk) < smaller) return kHarmed;
    free_sized(shrunk, smaller);
    chain.last = before;
  }
  return others.give_back_all() ? kRight : kHarmed;
}

constexpr size_t kSizes[] = {48, 4000, 30000, 300000, 5000000};

void limit_address_space(size_t bytes) {
  const rlimit limit{bytes, bytes};
  if (setrlimit(RLIMIT_AS, &limit) != 0) abort();
}

TEST_CASE("address space is limited after the start") {
  for (const size_t size : kSizes) {
    CAPTURE(size);
    const percpu::ChildEnd end = percpu::run_in_child([size] {
      limit_address_space(address_space_bytes() + 64 * kMiB);
      // The window was reserved before, so there is room for more than with an allocator that maps as it goes.
      Chain chain;
      while (chain.bytes < 256 * kMiB && chain.take(size)) {}
      if (chain.bytes < 32 * kMiB) return kTooLittle;
      return chain.give_back_all() ? kRight : kHarmed;
    });
    CHECK(end.exit_code == kRight);
    CHECK(end.standard_error == "");
  }
}

TEST_CASE("in a limited address space" * doctest::skip()) {
  for (const size_t size : kSizes) {
    CAPTURE(size);
    CHECK(percpu::run_in_child([size] { return take_all(size, 16 * kMiB); }).exit_code == kRight);
  }
  for (const size_t size : {size_t{3000}, size_t{30000}, size_t{300000}}) {
    CAPTURE(size);
    CHECK(percpu::run_in_child([size] { return shrink_all(size, size / 3); }).exit_code == kRight);
  }
}

// Of the limit, in MiB, the program maps nearly all itself; and again, when malloc has had it and gave it back.
bool map_and_unmap(size_t bytes) {
  void* const at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return at != MAP_FAILED && munmap(at, bytes) == 0;
}

TEST_CASE("others' share of a limited address space" * doctest::skip()) {
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_AS, &limit) == 0);
  const size_t share = limit.rlim_cur / 16 * 15 - 40 * kMiB;
  CHECK(map_and_unmap(share));
  for (const size_t size : kSizes) {
    CAPTURE(size);
    Chain chain;
    while (chain.bytes < share / 2 && chain.take(size)) {}
    CHECK(chain.bytes >= share / 2);
    CHECK_FALSE(map_and_unmap(share));
    CHECK(chain.give_back_all());
    (void)malloc_trim(0);
    CHECK(map_and_unmap(share));
  }
}

// Runs a test case that is skipped otherwise, by its option, in a program that begins under the limit.
void passes_within(size_t mebibytes, const char* test_case) {
  CAPTURE(mebibytes);
  const percpu::ChildEnd end = percpu::run_in_child([=] {
    limit_address_space(mebibytes * kMiB);
    execl("/proc/self/exe", "/proc/self/exe", test_case, "--no-skip", static_cast<char*>(nullptr));
    return 127;
  });
  CHECK(end.exit_code == 0);
  CHECK(end.standard_error == "");
}

TEST_CASE("where address space is limited from the start it is there for the program's own mappings") {
  for (const size_t mebibytes : {200, 2000}) passes_within(mebibytes, "--test-case=others' share*");
}

TEST_CASE("address space is limited from the start") {
  for (const size_t mebibytes : {100, 300, 2000}) passes_within(mebibytes, "--test-case=in a limited address space");
}

TEST_CASE("in limited data" * doctest::skip()) {
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_DATA, &limit) == 0);
  // Pages that the heap gave back are not counted any more.
  const size_t share = limit.rlim_cur / 4 * 3;
  for (const size_t size : {size_t{4000}, size_t{30000}, size_t{5000000}}) {
    CAPTURE(size);
    Chain chain;
    while (chain.bytes < share && chain.take(size)) {}
    CHECK(chain.bytes >= share);
    CHECK(chain.give_back_all());
    (void)malloc_trim(0);
    void* const own = mmap(nullptr, share, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(own != MAP_FAILED);
    if (own != MAP_FAILED) CHECK(munmap(own, share) == 0);
  }
}

TEST_CASE("where data is limited (ulimit -d) the program may map what malloc gave back") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    const rlimit limit{400 * kMiB, 400 * kMiB};
    if (setrlimit(RLIMIT_DATA, &limit) != 0) return 1;
    execl("/proc/self/exe", "/proc/self/exe", "--test-case=in limited data", "--no-skip", static_cast<char*>(nullptr));
    return 127;
  });
  CHECK(end.exit_code == 0);
  CHECK(end.standard_error == "");
}

int count_mappings() {
  FILE* file = fopen("/proc/self/maps", "r");
  int count = 0;
  for (int c; (c = fgetc(file)) != EOF;) count += c == '\n';
  fclose(file);
  return count;
}

TEST_CASE("blocks that grow leave the program its mappings") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t own = 30000;
    auto* range = static_cast<char*>(mmap(nullptr, own * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (range == MAP_FAILED) return 1;
    for (size_t i = 0; i < own; i += 2)
      if (mprotect(range + i * page, page, PROT_READ) != 0) return 77;  // this system allows fewer
    const auto grow = [](int blocks) {
      for (int i = 0; i < blocks; ++i) {
        auto* block = static_cast<char*>(malloc(600000));
        if (block == nullptr) return false;
        block[0] = 1;
        block = static_cast<char*>(realloc(block, 1200000));
        if (block == nullptr || block[0] != 1) return false;
        block[600000] = 1;
      }
      return true;
    };
    if (!grow(4200)) return kHarmed;
    const int before = count_mappings();
    if (!grow(300)) return kHarmed;
    return count_mappings() - before < 50 ? kRight : kNotAgain;
  });
  if (end.exit_code == 77) MESSAGE("left out: this system allows fewer mappings");
  CHECK((end.exit_code == kRight || end.exit_code == 77));
}

TEST_CASE("no more mappings") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    Chain kept;
    for (const size_t size : kSizes) {
      for (int i = 0; i < 20; i++)
        if (!kept.take(size)) return 1;
    }
    // Every other page of a range with other rights: each is a mapping.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t bytes = size_t{1} << 30;
    auto* range = static_cast<char*>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (range == MAP_FAILED) return 1;
    size_t used = 0;
    while (used < bytes && mprotect(range + used, page, PROT_READ) == 0) used += 2 * page;
    if (used >= bytes) return 77;  // this system has no such limit
    // All that now succeeds is right, and so is all that fails with ENOMEM.
    Chain chain;
    for (int round = 0; round < 200; round++) {
      for (const size_t size : kSizes) {
        errno = 0;
        if (!chain.take(size) && errno != ENOMEM) return kWrongErrno;
      }
      if (round % 50 == 49 && !chain.give_back_all()) return kHarmed;
      void* block = realloc(malloc(100000), 3000000);
      if (block == nullptr && errno != ENOMEM) return kWrongErrno;
      free(block);
    }
    malloc_trim(0);
    if (munmap(range, bytes) != 0) return 1;
    for (const size_t size : kSizes)
      if (!chain.take(size)) return kNotAgain;
    return chain.give_back_all() && kept.give_back_all() ? kRight : kHarmed;
  });
  if (end.exit_code == 77) MESSAGE("left out: this system has no such limit");
  CHECK((end.exit_code == kRight || end.exit_code == 77));
  CHECK(end.standard_error == "");
}

TEST_CASE("no more threads") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return 1;  // root has no limit
    const rlimit limit{1, 1};
    if (setrlimit(RLIMIT_NPROC, &limit) != 0) return 1;
    pthread_t thread;
    const auto nothing = [](void*) -> void* { return nullptr; };
    // The balance thread cannot start either: what it does is done by whoever frees.
    const bool refused = pthread_create(&thread, nullptr, nothing, nullptr) == EAGAIN;
    if (!refused) return 77;
    Chain chain;
    for (int round = 0; round < 3; round++) {
      for (const size_t size : kSizes)
        for (int i = 0; i < 50; i++)
          if (!chain.take(size)) return kTooLittle;
      if (!chain.give_back_all()) return kHarmed;
    }
    return kRight;
  });
  if (end.exit_code == 77) MESSAGE("left out: this system has no such limit");
  CHECK((end.exit_code == kRight || end.exit_code == 77));
  CHECK(end.standard_error == "");
}

}  // namespace
