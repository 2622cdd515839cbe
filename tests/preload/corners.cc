// SPDX-License-Identifier: MIT
//
// Under the preload: what the standards and glibc promise of each function, in the corners that allocators get wrong.
#include <doctest/doctest.h>

#include <errno.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/rseq.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../patience.h"
#include "misused.h"
#include "resident.h"

extern "C" {
void* __libc_memalign(size_t, size_t);
void free_sized(void*, size_t) __attribute__((weak));
void free_aligned_sized(void*, size_t, size_t) __attribute__((weak));
void cfree(void*) __attribute__((weak));
void* mallocx(size_t, int) __attribute__((weak));
void* rallocx(void*, size_t, int) __attribute__((weak));
size_t sallocx(const void*, int) __attribute__((weak));
size_t nallocx(size_t, int) __attribute__((weak));
int mallctl(const char*, void*, size_t*, void*, size_t) __attribute__((weak));
void sdallocx(void*, size_t, int) __attribute__((weak));
}

namespace {

// A figure of mallctl's as it is now: they are those of the last epoch.
size_t told(const char* name) {
  REQUIRE(mallctl != nullptr);
  uint64_t epoch = 1;
  REQUIRE(mallctl("epoch", nullptr, nullptr, &epoch, sizeof epoch) == 0);
  size_t value = 0;
  size_t bytes = sizeof value;
  REQUIRE(mallctl(name, &value, &bytes, nullptr, 0) == 0);
  return value;
}

}  // namespace

TEST_CASE("the heap is ours") {
  struct mallinfo2 before = mallinfo2();
  void* block = malloc(opaque(size_t{3000000}));
  struct mallinfo2 after = mallinfo2();
  CHECK(after.uordblks - before.uordblks >= 3000000);
  CHECK(after.uordblks - before.uordblks < 3100000);
  free(block);
}

TEST_CASE("malloc(0) gives blocks of their own") {
  void* a = malloc(opaque(size_t{0}));
  void* b = malloc(opaque(size_t{0}));
  CHECK(a != nullptr);
  CHECK(a != b);
  free(a);
  free(b);
}

TEST_CASE("realloc(p, 0) frees and returns null; realloc(null, n) allocates") {
  void* p = malloc(opaque(size_t{10}));
  errno = 7;
  CHECK(realloc(p, opaque(size_t{0})) == nullptr);
  CHECK(errno == 7);
  p = realloc(nullptr, opaque(size_t{100}));
  CHECK(p != nullptr);
  free(p);
}

TEST_CASE("sizes beyond PTRDIFF_MAX and products that overflow give null and ENOMEM, and the old block stays") {
  const size_t too_large = opaque(size_t{PTRDIFF_MAX} + 1);
  for (size_t size : {too_large, opaque(SIZE_MAX), opaque(SIZE_MAX - 4096), opaque(size_t{PTRDIFF_MAX})}) {
    CAPTURE(size);
    errno = 0;
    CHECK(malloc(size) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(calloc(size, 1) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(aligned_alloc(64, size) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(valloc(size) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(pvalloc(size) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(memalign(64, size) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(reallocarray(nullptr, 1, size) == nullptr);
    CHECK(errno == ENOMEM);
    void* out = &errno;
    CHECK(posix_memalign(&out, 64, size) == ENOMEM);
    CHECK(out == &errno);
    char* old = static_cast<char*>(malloc(100));
    memset(old, 'x', 100);
    errno = 0;
    CHECK(realloc(old, size) == nullptr);
    CHECK(errno == ENOMEM);
    errno = 0;
    CHECK(reallocarray(opaque(old), size, 1) == nullptr);
    CHECK(errno == ENOMEM);
    CHECK(old[99] == 'x');
    free(old);
  }
  errno = 0;
  CHECK(calloc(opaque(SIZE_MAX / 2), 3) == nullptr);
  CHECK(errno == ENOMEM);
  errno = 0;
  CHECK(reallocarray(nullptr, opaque(SIZE_MAX / 2), 3) == nullptr);
  CHECK(errno == ENOMEM);
}

// Takes blocks of all sizes. Returns whether they lie apart, and keep what is written to each from its first byte to its last usable one.
static bool take_apart(std::vector<void*>& blocks) {
  std::vector<std::pair<uintptr_t, size_t>> taken;
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i] = malloc(opaque(i % 40 == 39 ? 40'000 + i * 5 : i * 7919 % (i % 8 == 7 ? 32'000 : 700) + 1));
    if (blocks[i] == nullptr) return false;
    taken.emplace_back(reinterpret_cast<uintptr_t>(blocks[i]), malloc_usable_size(blocks[i]));
    memset(blocks[i], static_cast<int>(i % 251), taken.back().second);
  }
  bool apart = true;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(blocks[i]);
    apart = apart && bytes[0] == i % 251 && bytes[taken[i].second - 1] == i % 251;
  }
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); ++i) apart = apart && taken[i - 1].first + taken[i - 1].second <= taken[i].first;
  return apart;
}

// Frees the blocks, and writes to all of each. Nothing of the heap's may lie there.
static void free_and_write(const std::vector<void*>& blocks) {
  for (void* block : blocks) {
    const size_t bytes = malloc_usable_size(block);
    void* const dead = opaque(block);
    free(block);
    memset(opaque(dead), 0xff, bytes);
  }
}

TEST_CASE("what is written to freed blocks harms no structure of the heap") {
  std::vector<void*> blocks(4000);
  REQUIRE(take_apart(blocks));
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    free_and_write(blocks);  // into caches, shelves, spans and pages
    CHECK(take_apart(blocks));
    free_and_write(blocks);
    (void)malloc_trim(0);
    CHECK(take_apart(blocks));
    free_and_write(blocks);
    const percpu::ChildEnd end = percpu::run_in_child([&blocks] { return take_apart(blocks) ? 0 : 1; });
    CHECK(end.exit_code == 0);
    CHECK(take_apart(blocks));
  }
  for (void* block : blocks) free(block);
}

TEST_CASE("alignments up to 1 GiB are kept, for small and large blocks") {
  for (size_t align = 8; align <= size_t{1} << 30; align *= 2) {
    for (size_t size : {size_t{1}, size_t{100}, size_t{5000}, size_t{100000}}) {
      CAPTURE(align);
      CAPTURE(size);
      void* block = nullptr;
      REQUIRE(posix_memalign(&block, align, size) == 0);
      CHECK(aligned_to(block, align));
      CHECK(malloc_usable_size(block) >= size);
      memset(block, 1, size);
      free(block);
      for (void* const other : {aligned_alloc(align, size), memalign(align, size), __libc_memalign(align, size),
                                ::operator new(size, std::align_val_t{align})}) {
        REQUIRE(other != nullptr);
        CHECK(aligned_to(other, align));
        CHECK(malloc_usable_size(other) >= size);
        memset(other, 1, size);
        free(other);
      }
    }
  }
}

TEST_CASE("an alignment that is no power of two is EINVAL, but memalign rounds it up") {
  void* out = nullptr;
  errno = 5;
  for (size_t align : {size_t{0}, size_t{3}, size_t{24}, size_t{4}}) CHECK(posix_memalign(&out, align, 8) == EINVAL);
  CHECK(errno == 5);
  CHECK(aligned_alloc(opaque(size_t{3}), 8) == nullptr);
  CHECK(errno == EINVAL);
  void* block = memalign(opaque(size_t{48}), 8);
  CHECK(aligned_to(block, 64));
  free(block);
  errno = 0;
  CHECK(memalign(opaque(SIZE_MAX), 8) == nullptr);  // what it would be rounded up to is no size
  CHECK(errno == EINVAL);
  block = memalign(opaque(size_t{0}), 8);
  CHECK(block != nullptr);
  free(block);
}

TEST_CASE("blocks of 16 bytes and more are 16-byte aligned, and all that is usable may be written") {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<void*> blocks;
  for (size_t size = 1; size < 70000; size += size < 1100 ? 1 : 97) {
    void* block = malloc(size);
    CAPTURE(size);
    REQUIRE(block != nullptr);
    if (size >= 16) CHECK(aligned_to(block, 16));
    const size_t usable = malloc_usable_size(block);
    CHECK(usable >= size);
    if (size >= 64 && (size <= 32768 || page == 4096)) CHECK(usable <= size + size / 8 + 16);
    if (size > 32768) CHECK(usable < size + page);
    memset(block, 0xab, usable);
    blocks.push_back(block);
  }
  for (void* block : blocks) {
    CHECK(static_cast<unsigned char*>(block)[malloc_usable_size(block) - 1] == 0xab);
    free(block);
  }
}

TEST_CASE("calloc is zero on recycled memory") {
  for (size_t size : {size_t{8}, size_t{100}, size_t{3000}, size_t{32768}, size_t{40000}, size_t{3000000}}) {
    for (int round = 0; round < 4; ++round) {
      void* dirty = malloc(size);
      memset(dirty, 0xff, size);
      free(dirty);
      unsigned char* zero = static_cast<unsigned char*>(calloc(1, size));
      size_t sum = 0;
      for (size_t i = 0; i < size; ++i) sum += zero[i];
      CHECK(sum == 0);
      memset(zero, 0xff, size);
      free(zero);
    }
  }
}

TEST_CASE("free keeps errno, also for large blocks") {
  for (size_t size : {size_t{8}, size_t{100000}, size_t{50} << 20}) {
    void* block = malloc(opaque(size));
    errno = 33;
    free(block);
    CHECK(errno == 33);
  }
}

TEST_CASE("realloc keeps the content on every way from size to size") {
  size_t sizes[] = {1, 100, 5000, 33000, 70000, 600000, 5000000, 30000000, 600000, 40000, 100, 20000000};
  unsigned char* block = static_cast<unsigned char*>(malloc(1));
  size_t old = 1;
  block[0] = 0;
  for (size_t size : sizes) {
    block = static_cast<unsigned char*>(realloc(block, size));
    REQUIRE(block != nullptr);
    size_t wrong = 0;
    for (size_t i = 0; i < (old < size ? old : size); i += 61) wrong += block[i] != (i / 61) % 251;
    CHECK(wrong == 0);
    for (size_t i = 0; i < size; i += 61) block[i] = static_cast<unsigned char>((i / 61) % 251);
    old = size;
  }
  free(block);
}

TEST_CASE("free_sized and free_aligned_sized free what was asked for with that size") {
  REQUIRE(free_sized != nullptr);
  REQUIRE(free_aligned_sized != nullptr);
  std::vector<size_t> sizes = {0, 3000000};
  for (size_t size = 1; size < 100000; size += 1 + size / 50) sizes.push_back(size);
  const size_t before = live_bytes();
  for (const size_t size : sizes) {
    free_sized(malloc(opaque(size)), size);
    free_sized(calloc(1, opaque(size)), size);
    for (size_t align = 1; align <= 65536; align *= 4) free_aligned_sized(aligned_alloc(align, size), align, size);
    // What realloc left in its place, or moved: larger, smaller, from a small block, from an aligned one.
    for (const size_t other : {size_t{1}, size / 2 + 1, size + 8, size + size / 8 + 1, 2 * size + 5000, size_t{700000}}) {
      free_sized(realloc(malloc(opaque(other)), opaque(size + 1)), size + 1);
      free_sized(realloc(aligned_alloc(256, opaque(other)), opaque(size + 1)), size + 1);
    }
  }
  free_sized(nullptr, 10);
  free_aligned_sized(nullptr, 16, 10);
  CHECK(live_bytes() == before);
}

TEST_CASE("sized operator delete believes the program: one that replaces operator new may get other blocks than it asks for") {
  const size_t before = live_bytes();
  void* const block = malloc(opaque(size_t{100 + 32}));
  void* const array = malloc(opaque(size_t{30000 + 32}));
  const size_t with_both = live_bytes();
  ::operator delete(block, opaque(size_t{100}));
  ::operator delete[](array, opaque(size_t{100}));
  CHECK(with_both >= before + 132 + 30032);
  CHECK(live_bytes() == before);
}

TEST_CASE("jemalloc's functions: alignment, and that nallocx says what sallocx will") {
  REQUIRE(mallocx != nullptr);
  for (int lg_align = 0; lg_align <= 16; ++lg_align) {
    for (const size_t size : {1, 8, 9, 16, 24, 100, 1000, 5000, 32768, 32769, 100000}) {
      CAPTURE(lg_align);
      CAPTURE(size);
      void* blocks[10];
      for (void*& block : blocks) {
        block = mallocx(size, lg_align);
        CHECK(aligned_to(block, size_t{1} << lg_align));
        CHECK(sallocx(block, lg_align) == nallocx(size, lg_align));
      }
      for (void*& block : blocks) {
        block = rallocx(block, size + 20, lg_align);
        CHECK(aligned_to(block, size_t{1} << lg_align));
        block = rallocx(block, size, lg_align);
        CHECK(aligned_to(block, size_t{1} << lg_align));
        CHECK(sallocx(block, lg_align) == nallocx(size, lg_align));
      }
      for (void* block : blocks) sdallocx(block, size, lg_align);
    }
  }
}

TEST_CASE("what a new thread frees first is not what it gets next: another may use the rest of the line") {
  if (__rseq_size == 0) return;  // no caches
  // It may be, where the thread changes the CPU, or its CPU's caches are closed: for as long as the balance thread, which closed
  // them, does not run itself. So it is given time, and most runs must show it.
  constexpr int kRuns = 9;
  int nr_bad_runs = 0;
  for (int run = 0; run < kRuns; ++run) {
    constexpr int kThreads = 50;
    int nr_again = 0;
    for (int i = 0; i < kThreads; ++i) {
      void* const others = malloc(opaque(size_t{8}));
      void* const keeps = malloc(opaque(size_t{8}));  // its neighbour, often
      std::thread([&] {
        free(others);
        void* const own = malloc(opaque(size_t{8}));
        nr_again += own == others;
        free(own);
      }).join();
      free(keeps);
    }
    nr_bad_runs += nr_again >= kThreads / 2;
    usleep(20'000);
  }
  CHECK(nr_bad_runs < kRuns / 2);
}

TEST_CASE("free(NULL), usable size of NULL, cfree") {
  free(nullptr);
  CHECK(malloc_usable_size(nullptr) == 0);
  REQUIRE(cfree != nullptr);
  cfree(malloc(10));
  cfree(nullptr);
}

TEST_CASE("pvalloc and valloc give whole pages at pages") {
  void* a = pvalloc(opaque(size_t{1}));
  CHECK(aligned_to(a, 4096));
  CHECK(malloc_usable_size(a) >= 4096);
  void* b = pvalloc(opaque(size_t{4097}));
  CHECK(malloc_usable_size(b) >= 8192);
  void* c = valloc(opaque(size_t{10}));
  CHECK(aligned_to(c, 4096));
  free(a);
  free(b);
  free(c);
}

TEST_CASE("errno stays as it was when an allocation succeeds") {
  errno = 42;
  void* a = malloc(opaque(size_t{100000}));
  void* b = calloc(3, opaque(size_t{1000}));
  void* c = nullptr;
  CHECK(posix_memalign(&c, 4096, opaque(size_t{5000000})) == 0);
  a = realloc(a, opaque(size_t{9000000}));
  CHECK(errno == 42);
  CHECK(posix_memalign(&c, 4096, opaque(size_t{PTRDIFF_MAX})) == ENOMEM);
  CHECK(errno == 42);
  free(a);
  free(b);
  free(c);
}

TEST_CASE("realloc of a block of the dynamic linker's copies no further than its image goes") {
  const uintptr_t image = getauxval(AT_BASE);
  if (image == 0) return;  // the linker was started as a program
  const auto* const header = reinterpret_cast<const ElfW(Ehdr)*>(image);
  const auto* const segments = reinterpret_cast<const ElfW(Phdr)*>(image + header->e_phoff);
  uintptr_t end = 0;
  for (unsigned i = 0; i < header->e_phnum; ++i) {
    if (segments[i].p_type == PT_LOAD) end = image + segments[i].p_vaddr + segments[i].p_memsz;
  }
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  char* const last = reinterpret_cast<char*>((end + page - 1) / page * page - 64);
  char expected[64];
  memcpy(expected, last, sizeof expected);
  auto* const block = static_cast<char*>(realloc(opaque(last), size_t{64} << 20));
  REQUIRE(block != nullptr);
  CHECK(memcmp(block, expected, sizeof expected) == 0);
  free(block);
  free(opaque(last));
}

TEST_CASE("malloc_trim gives free memory back to the system now") {
  std::vector<void*> blocks;
  for (int i = 0; i < 100000; ++i) {
    blocks.push_back(malloc(1000));
    memset(blocks.back(), 1, 1000);
  }
  const int full = resident_kib();
  for (void* block : blocks) free(block);
  CHECK(malloc_trim(0) == 1);
  CHECK(full - resident_kib() > 80 * 1000);
}

TEST_CASE("the caches' stacks count as resident while they hold something, and not when they were emptied") {
  const auto metadata = [] { return told("stats.metadata"); };
  for (const bool records_are_there : {false, true}) {
    std::vector<void*> blocks;
    for (size_t size = 16; size <= 4096; size += 16) {
      for (int i = 0; i < 30; ++i) blocks.push_back(malloc(size));
    }
    for (void* block : blocks) free(block);
    const size_t before = metadata();
    const bool cached = mallinfo2().fsmblks > 0;  // after: none are without rseq, nor if a tick has just emptied them
    (void)malloc_trim(0);
    CHECK(mallinfo2().fsmblks == 0);
    if (records_are_there && cached) CHECK(metadata() < before);
  }
}

namespace {

// The first two CPUs that the process may use; the same twice where there is one.
int cpus_used[2];
bool find_cpus() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return false;
  int found = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE && found < 2; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus_used[found++] = cpu;
  }
  if (found == 1) cpus_used[1] = cpus_used[0];
  return found > 0;
}

// So many threads that all live at once, by turns on two CPUs, each of which fills the caches of its CPU as far as it goes. Returns what
// they hold meanwhile.
size_t cached_with_threads(int count) {
  static pthread_barrier_t worked;
  static pthread_barrier_t seen;
  (void)malloc_trim(0);
  pthread_barrier_init(&worked, nullptr, static_cast<unsigned>(count) + 1);
  pthread_barrier_init(&seen, nullptr, static_cast<unsigned>(count) + 1);
  const auto run = [](void* number) -> void* {
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpus_used[reinterpret_cast<uintptr_t>(number) % 2], &own);
    if (sched_setaffinity(0, sizeof own, &own) != 0) abort();
    void* blocks[1100];  // more than the longest stack has
    for (const size_t size : {size_t{64}, size_t{256}, size_t{1000}, size_t{4000}, size_t{16000}}) {
      const size_t most = std::max(70000 / size, size_t{10});
      for (int round = 0; round < 10; ++round) {
        for (size_t i = 0; i < most; ++i) blocks[i] = malloc(size);
        for (size_t i = 0; i < most; ++i) free(blocks[i]);
      }
    }
    pthread_barrier_wait(&worked);
    pthread_barrier_wait(&seen);
    return nullptr;
  };
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 64 * 1024);
  std::vector<pthread_t> threads(static_cast<size_t>(count));
  for (size_t i = 0; i < threads.size(); ++i) REQUIRE(pthread_create(&threads[i], &attr, run, reinterpret_cast<void*>(i)) == 0);
  pthread_barrier_wait(&worked);
  const size_t cached = mallinfo2().fsmblks;
  pthread_barrier_wait(&seen);
  for (pthread_t thread : threads) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attr);
  pthread_barrier_destroy(&worked);
  pthread_barrier_destroy(&seen);
  return cached;
}

}  // namespace

TEST_CASE("a block that is large beside a large heap is granted, and takes no more than it needs") {
  constexpr size_t kMega = size_t{1} << 20;
  std::vector<void*> held;
  held.reserve(20);
  size_t wanted = 0;
  (void)malloc_trim(0);  // so that less than 1 MiB moves by itself
  const size_t used_before = told("stats.active");
  const size_t open_before = told("stats.mapped");
  const auto hold = [&](size_t size) {
    auto* const block = static_cast<char*>(malloc(size));
    REQUIRE(block != nullptr);
    block[0] = block[size - 1] = 1;
    held.push_back(block);
    wanted += size;
  };
  for (size_t size = 2; size <= 1024; size *= 2) hold(size * kMega);
  for (size_t size : {70, 130, 200, 255}) hold(size * kMega);
  const size_t used = told("stats.active") - used_before;
  const size_t opened = told("stats.mapped") - open_before;
  CHECK(used + kMega > wanted);
  CHECK(used < wanted + kMega);
  CHECK(opened < wanted + 66 * kMega);  // what is opened ahead. (Alone: others have opened as much before.)
  for (void* block : held) free(block);
  CHECK(told("stats.active") < used_before + kMega);
}

TEST_CASE("what was never written to costs nothing: not when it is freed, nor when it is zeroed again") {
  if (__rseq_size == 0) return;  // valgrind may be what runs us
  constexpr size_t kGiga = size_t{1} << 30;
  const int before = resident_kib();
  for (int round = 0; round < 3; ++round) {
    char* block = static_cast<char*>(calloc(1, 4 * kGiga));
    REQUIRE(block != nullptr);
    CHECK(block[kGiga] == 0);
    block[kGiga] = 1;
    free(opaque(block));
  }
  free(opaque(malloc(1000 * kGiga)));  // 8 bytes a page would be 2 GB
  CHECK(resident_kib() - before < 50 * 1000);
}

TEST_CASE("a program without threads keeps a bounded part of what it freed, though nobody gives pages back while it sleeps") {
  const percpu::ChildEnd end = percpu::run_in_child([] {
    constexpr size_t kMega = size_t{1} << 20;
    const int before = resident_kib();
    std::vector<void*> blocks(450);  // machines of the lab have a GiB, and all programs in it
    for (void*& block : blocks) {
      block = malloc(kMega);
      if (block == nullptr) return 1;
      memset(opaque(block), 1, kMega);
    }
    for (void* block : blocks) free(block);
    return resident_kib() - before < 300 * 1024 ? 0 : 2;
  });
  CHECK(end.standard_error == "");
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}

TEST_CASE("blocks are in core dumps") {
  for (size_t size : {100, 1 << 20}) {
    void* block = malloc(size);
    std::ifstream maps("/proc/self/smaps");
    bool inside = false, found = false;
    for (std::string line; std::getline(maps, line);) {
      unsigned long begin = 0, end = 0;
      if (sscanf(line.c_str(), "%lx-%lx", &begin, &end) == 2 && line.find('-') < line.find(' ')) {
        inside = reinterpret_cast<unsigned long>(block) >= begin && reinterpret_cast<unsigned long>(block) < end;
      } else if (inside && line.rfind("VmFlags:", 0) == 0) {
        found = true;
        CHECK(line.find(" dd") == std::string::npos);
      }
    }
    CHECK(found);
    free(block);
  }
}

TEST_CASE("a thousand living threads cost no more cache than two on the same CPUs") {
  REQUIRE(find_cpus());
  // A batch less than what five stacks hold at most.
  const size_t full = (cpus_used[0] == cpus_used[1] ? 1 : 2) * size_t{128} * 1024;
  size_t few = cached_with_threads(2);
  if (__rseq_size == 0) {
    CHECK(few == 0);  // threads without rseq have no caches
    CHECK(cached_with_threads(1000) == 0);
    return;
  }
  // Idle caches are emptied: not so soon, unless this process had to wait long for a CPU.
  const auto fills = [&] { return (few = std::max(few, cached_with_threads(2))) >= full; };
  CHECK(patience::eventually(fills));
  bool held = false;
  for (int tries = 0; tries < 5 && !held; ++tries) {
    (void)fills();
    held = cached_with_threads(1000) <= few + few / 4;  // a batch more or less on each stack
  }
  CHECK(held);
}

TEST_CASE("a vfork child that allocates leaves the parent's heap whole") {
  for (int i = 0; i < 200; ++i) {
    void* mine = malloc(48);
    const pid_t child = vfork();
    REQUIRE(child >= 0);
    if (child == 0) {
      void* volatile block = malloc(48);
      free(block);
      _exit(block == mine ? 1 : 0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    free(mine);
  }
}

TEST_CASE("malloc_info and mallopt answer") {
  char* text = nullptr;
  size_t length = 0;
  FILE* stream = open_memstream(&text, &length);
  CHECK(malloc_info(0, stream) == 0);
  CHECK(malloc_info(1, stream) == EINVAL);
  fclose(stream);
  CHECK(strstr(text, "<malloc version=") == text);
  free(text);
  CHECK(mallopt(M_TRIM_THRESHOLD, 1 << 20) == 1);
}
