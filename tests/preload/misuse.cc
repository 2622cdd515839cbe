// SPDX-License-Identifier: MIT
//
// Under the preload: misuse stops the program by one line that says what was wrong and where. Each case runs in a child.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include "misused.h"

extern "C" void free_sized(void*, size_t) __attribute__((weak));

TEST_CASE("a pointer to the stack") {
  int local = 0;
  const std::string text = stopped_by([&] { free(opaque<void*>(&local)); });
  CHECK(says(text, "not a block of this heap"));
}

TEST_CASE("a block freed twice in a row by a thread that has done nothing else") {
  const std::string text = stopped_by([] {
    void* const block = malloc(8);
    std::thread([&] {
      free(opaque(block));
      free(opaque(block));
    }).join();
  });
  CHECK(says(text, "freed twice"));
}

// Takes so many blocks, frees some of them, and then one more twice, in this thread or in a new one. Returns what was said.
std::string said_of_twice(size_t size, size_t nr_taken, size_t nr_freed, bool new_thread) {
  return stopped_by([=] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<unsigned>(sched_getcpu()), &one);
    sched_setaffinity(0, sizeof one, &one);  // the thread frees to the same CPU
    std::vector<void*> blocks(nr_taken);
    for (void*& block : blocks) block = malloc(opaque(size));
    for (size_t i = 0; i < nr_freed; ++i) free(blocks[i]);
    const auto twice = [block = blocks.back()] {
      free(opaque(block));
      free(opaque(block));
    };
    new_thread ? std::thread(twice).join() : twice();
  });
}

TEST_CASE("a block freed twice in a row, whether the CPU's stack has room, is full, is to be larger, or at its largest") {
  // A stack begins with room for 8 or 16 blocks, of 2,000 bytes for one, doubles, and gives a batch away at its largest.
  for (const size_t size : {8, 48, 2000}) {
    for (const bool new_thread : {false, true}) {
      for (const size_t nr_taken : {17, 18, 60, 120, 1200}) {
        for (size_t nr_freed = nr_taken == 1200 ? 980 : 0; nr_freed < nr_taken; ++nr_freed) {
          INFO(size << " bytes, " << nr_taken << " taken, " << nr_freed << " freed, new thread: " << new_thread);
          // (Of a span that is free as a whole: "freed already".)
          REQUIRE(says(said_of_twice(size, nr_taken, nr_freed, new_thread), "freed"));
        }
      }
    }
  }
}

TEST_CASE("a wild pointer") {
  const std::string text = stopped_by([] { free(opaque(reinterpret_cast<void*>(uintptr_t{0x10}))); });
  CHECK(says(text, "free(0x10): not a block of this heap"));
}

TEST_CASE("a pointer inside a small block, misaligned or not") {
  CHECK(says(stopped_by([] { free(at(malloc(100), 16)); }), "inside a block of 112 bytes, 16 behind its start"));
  CHECK(says(stopped_by([] { free(at(malloc(100), 3)); }), "inside a block of 112 bytes, 3 behind its start"));
}

TEST_CASE("a pointer inside a large block") {
  CHECK(says(stopped_by([] { free(at(malloc(1000000), 16)); }), "inside the large block"));
  CHECK(says(stopped_by([] { free(at(malloc(1000000), 8192)); }), "no block begins there"));
}

TEST_CASE("a small block freed twice in a row") {
  CHECK(says(stopped_by([] {
    void* block = malloc(100);
    free(opaque(block));
    free(opaque(block));
  }), "freed twice"));
}

TEST_CASE("a small block freed twice with another in between") {
  CHECK(says(stopped_by([] {
    void* block = malloc(100);
    void* other = malloc(100);
    free(opaque(block));
    free(opaque(other));
    free(opaque(block));
  }), "freed twice"));
}

TEST_CASE("a small block freed twice with two others in between, told when the caches are given back") {
  CHECK(says(stopped_by([] {
    void* block = malloc(100);
    void* others[] = {malloc(100), malloc(100)};
    free(opaque(block));
    for (void* other : others) free(opaque(other));
    free(opaque(block));
    malloc_trim(0);
  }), "freed twice"));
}

TEST_CASE("a large block freed twice") {
  CHECK(says(stopped_by([] {
    void* block = malloc(1000000);
    free(opaque(block));
    free(opaque(block));
  }), "freed already"));
}

TEST_CASE("realloc of a freed large block") {
  CHECK(says(stopped_by([] {
    void* block = malloc(1000000);
    free(opaque(block));
    block = realloc(opaque(block), 10);
  }), "realloc"));
}

TEST_CASE("a block of a span that is not in use") {
  // All blocks of its span went back, and the span with them.
  CHECK(says(stopped_by([] {
    void* block = malloc(opaque(size_t{30000}));
    free(opaque(block));
    malloc_trim(0);
    free(opaque(block));
  }), "no block begins there"));
  CHECK(says(stopped_by([] {
    void* block = malloc(opaque(size_t{30000}));
    free(opaque(block));
    malloc_trim(0);
    block = realloc(opaque(block), 10);
  }), "realloc("));
}

TEST_CASE("a pointer into the window where nothing ever was, and one just behind a block") {
  CHECK(says(stopped_by([] { free(at(malloc(100), size_t{1} << 32)); }), "free("));
  CHECK(says(stopped_by([] { free(at(malloc(112), 8)); }), "inside a block of 112 bytes, 8 behind its start"));
}

TEST_CASE("a misaligned pointer, also by realloc and malloc_usable_size") {
  CHECK(says(stopped_by([] { free(at(malloc(8), 1)); }), "inside a block of 8 bytes, 1 behind its start"));
  CHECK(says(stopped_by([] { (void)opaque(realloc(at(malloc(100), 8), 200)); }), "realloc("));
  CHECK(says(stopped_by([] { (void)opaque(malloc_usable_size(at(malloc(100), 8))); }), "malloc_usable_size("));
}

TEST_CASE("a pointer of the program's image, and of a mapping of its own") {
  static int global = 0;
  CHECK(says(stopped_by([] { free(opaque<void*>(&global)); }), "not a block of this heap"));
  CHECK(says(stopped_by([] { (void)opaque(realloc(opaque<void*>(&global), 100)); }), "realloc("));
}

TEST_CASE("two threads free the same large block: one of them is stopped") {
  CHECK(says(stopped_by([] {
    static void* block = malloc(1000000);
    pthread_t thread;
    const auto run = [](void*) -> void* {
      free(block);
      return nullptr;
    };
    if (pthread_create(&thread, nullptr, run, nullptr) != 0) return;
    free(opaque(block));
    pthread_join(thread, nullptr);
  }), "free("));
}

TEST_CASE("free_sized with a size of another class") {
  REQUIRE(free_sized != nullptr);
  CHECK(says(stopped_by([] { free_sized(malloc(100), 500); }), "the block has 112 bytes"));
}
