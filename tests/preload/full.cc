// SPDX-License-Identifier: MIT
//
// Under the preload with PERCPU_CONF=check:full: what only it tells. Each misuse runs in a child.
#include <doctest/doctest.h>

#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <initializer_list>
#include <string>
#include <vector>

#include "misused.h"
#include "resident.h"

extern "C" void free_sized(void*, size_t) __attribute__((weak));
extern "C" size_t nallocx(size_t, int) __attribute__((weak));

TEST_CASE("a block freed twice, with others in between") {
  const std::string text = stopped_by([] {
    void* block = opaque(malloc(100));
    std::vector<void*> others;
    for (int i = 0; i < 1000; ++i) others.push_back(malloc(100));
    free(block);
    for (void* other : others) free(other);
    free(block);
  });
  CHECK(says(text, "the block of 100 bytes is free already (freed twice)"));
}

TEST_CASE("a block freed twice, when it has left the quarantine and nobody has it yet") {
  const std::string text = stopped_by([] {
    void* neighbour = opaque(malloc(100));  // so that their span stays
    void* block = opaque(malloc(100));
    free(block);
    malloc_trim(0);
    free(block);
    free(neighbour);
  });
  CHECK(says(text, "the block of 100 bytes is free already (freed twice)"));
}

// The more there is behind what was asked for, the longer each looks at it before it says that the block is free.
TEST_CASE("a block that two threads free at once") {
  for (const size_t bytes : {size_t{28'700}, size_t{100}}) {
    for (int i = 0; i < 200; ++i) {
      CAPTURE(bytes);
      CAPTURE(i);
      const std::string text = stopped_by([bytes] {
        static std::atomic<int> ready{0};
        static void* block;
        block = opaque(malloc(bytes));
        const auto free_it = [](void*) -> void* {
          ready++;
          while (ready != 2) {
          }
          free(block);
          return nullptr;
        };
        pthread_t other;
        if (pthread_create(&other, nullptr, free_it, nullptr) != 0) return;
        (void)free_it(nullptr);
        pthread_join(other, nullptr);
      });
      REQUIRE(says(text, ("the block of " + std::to_string(bytes) + " bytes is free already (freed twice)").c_str()));
    }
  }
}

TEST_CASE("a large block freed twice") {
  CHECK(says(stopped_by([] {
               void* block = opaque(malloc(200000));
               free(block);
               free(malloc(10));
               free(block);
             }),
             "the block of 200000 bytes is free already"));
}

TEST_CASE("a write behind the end is told when the block is freed, or grown") {
  CHECK(says(stopped_by([] {
               void* block = malloc(100);
               *at(block, 100) = 1;
               free(block);
             }),
             "written over, 0 behind the end of the block of 100 bytes"));
  CHECK(says(stopped_by([] {
               void* block = malloc(100000);
               *at(block, 100003) = 1;
               (void)opaque(realloc(opaque(block), 200000));
             }),
             "realloc("));
  CHECK(says(stopped_by([] {
               void* block = malloc(24);
               memset(at(block, 24), 0, malloc_usable_size(block) + 64);
               free(block);
             }),
             "was written over"));
}

TEST_CASE("a write after free is told when the block leaves the quarantine") {
  CHECK(says(stopped_by([] {
               void* block = opaque(malloc(100));
               free(block);
               *at(block, 50) = 1;
               malloc_trim(0);
             }),
             "write after free: byte 50 of the freed block"));
}

TEST_CASE("of a block of more than a MiB the ends are watched when it is freed") {
  constexpr size_t kBytes = size_t{20} << 20;
  for (const size_t offset : {size_t{0}, size_t{60000}, kBytes - 60000, kBytes - 1}) {
    CAPTURE(offset);
    const std::string text = stopped_by([offset] {
      void* block = opaque(malloc(kBytes));
      free(block);
      *at(block, offset) = 1;
      malloc_trim(0);
    });
    CHECK(says(text, ("write after free: byte " + std::to_string(offset) + " of the freed block").c_str()));
  }
}

TEST_CASE("a large block that is hardly used costs little") {
  constexpr size_t kBytes = (size_t{1} << 30) + 100;
  const int before = resident_kib();
  for (int round = 0; round < 3; round++) {  // of new pages, then of used ones
    CAPTURE(round);
    char* block = static_cast<char*>(calloc(1, kBytes));
    REQUIRE(block != nullptr);
    for (const size_t at : {size_t{0}, kBytes / 2, kBytes - 1}) {
      CHECK(block[at] == 0);
      block[at] = 1;
    }
    CHECK(resident_kib() < before + 4096);
    free(opaque(block));
    CHECK(resident_kib() < before + 4096);
  }
}

TEST_CASE("a size that was not asked for") {
  CHECK(says(stopped_by([] { free_sized(opaque(malloc(100)), 101); }), "the block has 100 bytes"));
  void* block = malloc(100);
  free_sized(block, 100);
}

TEST_CASE("realloc of a freed block") {
  CHECK(says(stopped_by([] {
               void* block = opaque(malloc(100));
               free(block);
               (void)opaque(realloc(block, 200));
             }),
             "realloc("));
}

TEST_CASE("what is right goes on: sizes, zeroes, alignment, content") {
  for (size_t size : {size_t{0}, size_t{1}, size_t{15}, size_t{16}, size_t{100}, size_t{5000}, size_t{32760}, size_t{32768}, size_t{300000}}) {
    CAPTURE(size);
    char* block = static_cast<char*>(malloc(size));
    REQUIRE(block != nullptr);
    CHECK(malloc_usable_size(block) == size);
    CHECK(nallocx(size, 0) == size);
    memset(block, 7, size);
    block = static_cast<char*>(realloc(block, size + 1000));
    for (size_t i = 0; i < size; ++i) REQUIRE(block[i] == 7);
    free(block);
    char* zeroes = static_cast<char*>(calloc(1, size));
    for (size_t i = 0; i < size; ++i) REQUIRE(zeroes[i] == 0);
    free(zeroes);
    void* aligned = nullptr;
    REQUIRE(posix_memalign(&aligned, 4096, size) == 0);
    CHECK(reinterpret_cast<uintptr_t>(aligned) % 4096 == 0);
    free(aligned);
  }
}

TEST_CASE("memory is used again, though not at once") {
  for (int i = 0; i < 200000; ++i) free(opaque(malloc(1000)));
  struct mallinfo2 info = mallinfo2();
  CHECK(info.arena < size_t{200} << 20);
}
