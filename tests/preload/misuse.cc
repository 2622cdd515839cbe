// SPDX-License-Identifier: MIT
//
// Under the preload: misuse stops the program by one line that says what was wrong and where. Each case runs in a child.
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
#include "one_cpu.h"

extern "C" void free_sized(void*, size_t) __attribute__((weak));
extern "C" void free_aligned_sized(void*, size_t, size_t) __attribute__((weak));

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

struct Twice {
  size_t size_bytes;
  size_t nr_taken;   // so many blocks
  size_t nr_freed;   // of them, before
  bool new_thread;   // frees the last one twice
  bool one_between;  // and another in between
};

bool is_told(const Twice& how) {
  const percpu::ChildEnd end = percpu::run_in_child([&] {
    if (!stay_on_this_cpu()) return 9;  // the thread frees to the same CPU
    std::vector<void*> blocks(how.nr_taken);
    for (void*& block : blocks) block = malloc(opaque(how.size_bytes));
    void* const other = malloc(opaque(how.size_bytes));
    for (size_t i = 0; i < how.nr_freed; ++i) free(blocks[i]);
    const auto twice = [&] {
      free(opaque(blocks.back()));
      if (how.one_between) free(opaque(other));
      free(opaque(blocks.back()));
    };
    how.new_thread ? std::thread(twice).join() : twice();
    return 0;
  });
  // (Of a span that is free as a whole: "freed already".)
  return end.signal == SIGABRT && says(end.standard_error, "freed");
}

// While the CPU's caches are closed a block goes elsewhere: on a busy machine that may be just then, but not three times.
void expect_told(const Twice& how) {
  INFO(how.size_bytes << " bytes, " << how.nr_taken << " taken, " << how.nr_freed << " freed, new thread: " << how.new_thread);
  REQUIRE((is_told(how) || is_told(how) || is_told(how)));
}

TEST_CASE("a block freed twice in a row, whether the CPU's stack has room, is full, is to be larger, or at its largest") {
  // A stack begins with room for 8 or 16 blocks, of 2,000 bytes for one, doubles, and gives a batch away at its largest.
  for (const size_t size : {8, 48, 2000}) {
    for (const bool new_thread : {false, true}) {
      for (const size_t nr_taken : {17, 18, 60, 120, 1200}) {
        for (size_t nr_freed = nr_taken == 1200 ? 980 : 0; nr_freed < nr_taken; ++nr_freed)
          expect_told({size, nr_taken, nr_freed, new_thread, false});
      }
    }
  }
}

TEST_CASE("a block freed twice with one other in between, whether the CPU's stack has room or is full") {
  for (const size_t size : {48, 1000, 32768}) {
    for (const size_t nr_taken : {17, 60, 200}) {
      for (size_t nr_freed = 0; nr_freed < nr_taken; ++nr_freed) expect_told({size, nr_taken, nr_freed, false, true});
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

TEST_CASE("a small block freed twice whose span was given back by the first time: it held no other") {
  CHECK(says(stopped_by([] {
    std::vector<void*> all;  // of a class that nobody else uses, so that all its blocks are free
    for (int i = 0; i < 3; ++i) all.push_back(malloc(opaque(size_t{700})));
    for (void* block : all) free(opaque(block));
    free(opaque(all[0]));
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

// Where the system's pages are larger, large blocks have other sizes than those said here.
const bool pages_of_4_kib = sysconf(_SC_PAGESIZE) == 4096;

TEST_CASE("free_sized with a size of another class, or of another number of pages, larger or smaller") {
  REQUIRE(free_sized != nullptr);
  const struct {
    size_t had, told, block;
  } cases[] = {{100, 500, 112},       {500, 100, 512},       {30000, 8, 30720},     {100, 40000, 112},
               {40000, 0, 40960},     {40000, 32768, 40960}, {40000, 41000, 40960}, {40960, 36864, 40960},
               {1000000, 8, 1003520}, {100, SIZE_MAX, 112},  {40000, SIZE_MAX, 40960}};
  for (const auto& one : cases) {
    if (one.block > 32768 && !pages_of_4_kib) continue;
    CAPTURE(one.had);
    CAPTURE(one.told);
    const std::string text = stopped_by([&] { free_sized(malloc(opaque(one.had)), opaque(one.told)); });
    CHECK(says(text, ("the block has " + std::to_string(one.block) + " bytes").c_str()));
  }
}

TEST_CASE("free_aligned_sized with more than the block has") {
  REQUIRE(free_aligned_sized != nullptr);
  CHECK(says(stopped_by([] { free_aligned_sized(aligned_alloc(64, 128), 64, 200); }), "the block has 128 bytes"));
  if (!pages_of_4_kib) return;
  CHECK(says(stopped_by([] { free_aligned_sized(aligned_alloc(4096, 40000), 4096, 41000); }), "the block has 40960 bytes"));
}
