// SPDX-License-Identifier: MIT
#include "api/library.h"

#include <doctest/doctest.h>

#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <climits>
#include <cstddef>
#include <fstream>
#include <string>
#include <thread>
#include <urcu-bp.h>
#include <vector>

#include <percpu.h>

#include "api/for_preload.h"
#include "../runtime/world.h"
#include "fresh.h"

namespace percpu {
namespace {

size_t kib_of(const char* key, const char* path) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(std::string(key) + ":", 0) == 0) return std::stoul(line.substr(strlen(key) + 1));
  }
  EXPECT(false);
  return 0;
}

size_t status_kib(const char* key) { return kib_of(key, "/proc/self/status"); }

// How much memory each CPU may take of what the machine has left, for a test that is to fit on every machine: a quarter, shared.
size_t fair_share_bytes() {
  return kib_of("MemAvailable", "/proc/meminfo") * 1024 / 4 / percpu_nr_cpu_ids();
}

// A limit that is right for up to 8 CPUs, and as much larger as there are more.
size_t for_cpus(size_t bytes) { return bytes * static_cast<size_t>(std::max(8L, sysconf(_SC_NPROCESSORS_CONF))) / 8; }

uint64_t live(percpu_pool_t* pool) {
  percpu_stats stats;
  EXPECT_EQ(percpu_pool_stats_read(pool, &stats, sizeof stats), 0);
  return stats.nr_live;
}

// ---- first use -------------------------------------------------------------------------------------------------------

TEST_CASE("loading the library makes nothing; the first use makes the default pool and leaves errno alone") {
  CHECK_FINE(fresh(nullptr, [] {
    EXPECT(library.default_pool_if_made() == nullptr);
    EXPECT(percpu_default_view_.offset == nullptr);
    errno = EXDEV;
    void* handle = percpu_alloc(8, 8);
    EXPECT(handle != nullptr);
    EXPECT_EQ(errno, EXDEV);
    EXPECT(percpu_pool_default() != nullptr);
    EXPECT(percpu_default_view_.offset != nullptr);
    percpu_free(handle);
    EXPECT_EQ(errno, EXDEV);
    EXPECT_EQ(nr_balancers(), 0);
  }));
}

TEST_CASE("threads that are bound before the first use leave the other CPUs' copies as they are") {
  CHECK_FINE(fresh("first_chunk:page", [] {
    CpuMask whole;
    EXPECT(real_system().sched_getaffinity(0, sizeof whole.words, whole.words) > 0);
    CpuMask one;
    one.add(whole.first());
    EXPECT_EQ(real_system().sched_setaffinity(0, sizeof one.words, one.words), 0);
    percpu_stats stats;
    EXPECT_EQ(percpu_stats_read(&stats, sizeof stats), 0);
    EXPECT_EQ(stats.populated_bytes, stats.populated_pages * stats.page_bytes * whole.count());
  }));
}

TEST_CASE("operations on the handle of a pool of one's own make no default pool, and go on when there is one") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_pool_t* pool = percpu_pool_create(nullptr);
    // Atomic: an ordinary allocation asks about the thread, too.
    auto* count = static_cast<uint64_t*>(percpu_pool_alloc(pool, 8, 8, PERCPU_ATOMIC));
    EXPECT(count != nullptr);
    percpu_pool_inc(pool, count);
    std::thread([&] { percpu_pool_inc(pool, count); }).join();
    EXPECT_EQ(percpu_thread_has_rseq(), process_has_rseq() ? 1 : 0);
    EXPECT(library.default_pool_if_made() == nullptr);
    EXPECT(percpu_default_view_.offset == nullptr);
    auto* plain = static_cast<uint64_t*>(percpu_alloc(8, 8));
    percpu_inc(plain);
    percpu_pool_inc(pool, count);
    EXPECT_EQ(percpu_sum(plain), 1);
    EXPECT_EQ(percpu_pool_sum(pool, count), 3);
    // Threads that run sequences put nothing into an extra copy.
    uint64_t on_cpus = 0;
    for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) {
      if (percpu_cpu_possible(cpu)) on_cpus += *percpu_ptr(plain, cpu) + *percpu_pool_ptr(pool, count, cpu);
    }
    EXPECT_EQ(on_cpus, kHaveSequences || !process_has_rseq() ? 4 : 0);
    percpu_free(plain);
    percpu_pool_free(pool, count);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

TEST_CASE("what the making of the default pool uses is told EDEADLK if it asks for the pool itself, which is made all the same") {
  CHECK_FINE(fresh(nullptr, [] {
    static int nr_asked = 0;
    static System system = real_system();
    system.mmap = [](uintptr_t address, size_t size_bytes, int protection, int flags) {
      nr_asked++;
      EXPECT(percpu_alloc(8, 8) == nullptr);
      EXPECT_EQ(errno, EDEADLK);
      return real_system().mmap(address, size_bytes, protection, flags);
    };
    library.use_system(system);
    EXPECT(percpu_pool_default() != nullptr);
    EXPECT(nr_asked >= 4);  // the machine, the list of modules and their table, the pool
  }));
}

TEST_CASE("many threads that use the library first at once get one default pool") {
  CHECK_FINE(fresh(nullptr, [] {
    std::vector<std::thread> threads;
    std::vector<percpu_pool_t*> pools(8);
    std::atomic<int> ready{0};
    for (size_t t = 0; t < pools.size(); t++) {
      threads.emplace_back([&, t] {
        ready++;
        while (ready < 8) std::this_thread::yield();
        pools[t] = percpu_pool_default();
        percpu_free(percpu_alloc(16, 8));
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (percpu_pool_t* pool : pools) EXPECT(pool != nullptr && pool == pools[0]);
    EXPECT_EQ(live(pools[0]), 0);
  }));
}

TEST_CASE("before there is a pool, an atomic allocation is EAGAIN and a free stops the program") {
  CHECK_FINE(fresh(nullptr, [] {
    EXPECT(percpu_alloc_flags(8, 8, PERCPU_ATOMIC) == nullptr);
    EXPECT_EQ(errno, EAGAIN);
    EXPECT_EQ(percpu_alloc_size(&errno), 0);
    EXPECT_EQ(errno, EINVAL);
    percpu_free(nullptr);
    percpu_free_rcu(nullptr);
    EXPECT(library.default_pool_if_made() == nullptr);
  }));
  const ChildEnd end = fresh(nullptr, [] { percpu_free(reinterpret_cast<void*>(0x1234)); });
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error == "libpercpu: percpu_free(0x1234): expected a handle, found no pool made yet\n");
}

TEST_CASE("before there is a pool, an atomic allocation that fails is logged by the next ordinary call, unless it says not to") {
  const ChildEnd end = fresh(nullptr, [] {
    EXPECT(percpu_alloc_flags(24, 8, PERCPU_ATOMIC) == nullptr);
    EXPECT(percpu_alloc_flags(48, 8, PERCPU_ATOMIC | PERCPU_NOWARN) == nullptr);
    EXPECT(percpu_alloc(8, 8) != nullptr);
    EXPECT(percpu_alloc(SIZE_MAX, 8) == nullptr);  // writes what was left to be written, too
  });
  INFO(end.standard_error);
  CHECK(end.exit_code == 0);
  CHECK(end.standard_error.find("there is no pool yet") != std::string::npos);
  CHECK(end.standard_error.find("size 24") != std::string::npos);
  CHECK(end.standard_error.find("size 48") == std::string::npos);
}

TEST_CASE("before there is a pool, an atomic allocation that none would take is EINVAL, logged by the next ordinary call") {
  const ChildEnd end = fresh(nullptr, [] {
    struct Illegal {
      size_t size, align;
      unsigned flags;
    };
    for (const Illegal& illegal : {Illegal{0, 8, 0}, {SIZE_MAX, 8, 0}, {8, 3, 0}, {8, 1 << 30, 0}, {8, 8, 1 << 7}}) {
      errno = 0;
      EXPECT(percpu_alloc_flags(illegal.size, illegal.align, illegal.flags | PERCPU_ATOMIC) == nullptr);
      EXPECT_EQ(errno, EINVAL);
      errno = 0;
      EXPECT(percpu_alloc_flags(illegal.size, illegal.align, illegal.flags | PERCPU_ATOMIC | PERCPU_NOWARN) == nullptr);
      EXPECT_EQ(errno, EINVAL);
    }
    EXPECT(library.default_pool_if_made() == nullptr);
    percpu_free(percpu_alloc(8, 8));
  });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error, "illegal allocation") == 5);
}

void* use_first(void*) {
  void* handle = percpu_alloc(8, 8);
  EXPECT(handle != nullptr);
  percpu_inc(static_cast<uint64_t*>(handle));
  EXPECT_EQ(percpu_sum(static_cast<uint64_t*>(handle)), 1);
  percpu_free(handle);
  for (int i = 0; i < 100; i++) EXPECT(percpu_alloc(9000, 8) != nullptr);
  percpu_balance();
  char line[64];
  EXPECT(percpu_report(PERCPU_REPORT_JSON, line, sizeof line) > sizeof line);
  EXPECT(percpu_alloc(0, 8) == nullptr);
  EXPECT_EQ(percpu_pool_destroy(percpu_pool_create(nullptr)), 0);
  return nullptr;
}

TEST_CASE("a thread with the smallest stack may be the first to use the library") {
  if (kSanitized) return;  // their frames are larger
  CHECK_FINE(fresh("nonsense,help:1", [] {
    pthread_attr_t attr;
    pthread_t thread;
    EXPECT_EQ(pthread_attr_init(&attr), 0);
    EXPECT_EQ(pthread_attr_setstacksize(&attr, static_cast<size_t>(PTHREAD_STACK_MIN)), 0);
    EXPECT_EQ(pthread_create(&thread, &attr, use_first, nullptr), 0);
    EXPECT_EQ(pthread_join(thread, nullptr), 0);
  }));
}

TEST_CASE("without memory at first use every question says ENOMEM, and with memory again all is well") {
  CHECK_FINE(fresh(nullptr, [] {
    library.use_system(FaultySystem::reset().fail_always(Call::kMmap, ENOMEM).system());
    for (int i = 0; i < 3; i++) {
      errno = 0;
      EXPECT(percpu_alloc(8, 8) == nullptr && errno == ENOMEM);
      errno = 0;
      EXPECT(percpu_pool_default() == nullptr && errno == ENOMEM);
      errno = 0;
      EXPECT(percpu_nr_cpu_ids() == 0 && errno == ENOMEM);
      errno = 0;
      EXPECT(percpu_pool_create(nullptr) == nullptr && errno == ENOMEM);
      percpu_stats stats;
      EXPECT_EQ(percpu_stats_read(&stats, sizeof stats), -1);
      EXPECT_EQ(percpu_balance(), -1);
      EXPECT_EQ(percpu_report(PERCPU_REPORT_TEXT, nullptr, 0), 0);
    }
    FaultySystem::reset();
    void* handle = percpu_alloc(8, 8);
    EXPECT(handle != nullptr);
    percpu_free(handle);
  }));
}

TEST_CASE("the version is that of the header") {
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", PERCPU_VERSION_MAJOR, PERCPU_VERSION_MINOR, PERCPU_VERSION_PATCH);
  CHECK(std::string(percpu_version()) == version);
}

// ---- configuration ---------------------------------------------------------------------------------------------------

TEST_CASE("nonsense in PERCPU_CONF is reported once, with the keys, and the defaults are used") {
  const ChildEnd end = fresh("nonsense", [] {
    for (int i = 0; i < 5; i++) percpu_free(percpu_alloc(8, 8));
    EXPECT_EQ(percpu_max_alloc(), 128 << 10);
  });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error) == 1);
  CHECK(contains(end.standard_error, "nonsense"));
  for (const char* key : {"unit_size", "reserved", "dynamic", "first_chunk", "balance", "empty_low", "empty_high", "window",
                          "max_alloc", "warnings", "nodes", "help"}) {
    CHECK(contains(end.standard_error, key));
  }
}

TEST_CASE("bad values are told one by one, and good ones beside them count") {
  const ChildEnd end = fresh("unit_size:64K,balance:often,warnings:-3", [] { EXPECT_EQ(percpu_max_alloc(), 64 << 10); });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error, "balance") >= 1);
  CHECK(count_lines(end.standard_error, "warnings") >= 1);
}

TEST_CASE("a PERCPU_CONF that is too long is said to be, and its beginning counts") {
  const std::string conf = "unit_size:64K" + std::string(5000, ',');
  const ChildEnd end = fresh(conf.c_str(), [] { EXPECT_EQ(percpu_max_alloc(), 64 << 10); });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error, "found more") == 1);
}

TEST_CASE("help:1 prints the table once") {
  const ChildEnd end = fresh("help:1", [] {
    percpu_free(percpu_alloc(8, 8));
    percpu_free(percpu_alloc(8, 8));
  });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error, "empty_high") == 1);
}

TEST_CASE("parts of the first chunk that would make a unit too large are told, and the defaults used") {
  const ChildEnd end = fresh("unit_size:1M,reserved:1G,dynamic:1G", [] {
    void* handle = percpu_alloc(8, 8);
    EXPECT(handle != nullptr);
    percpu_free(handle);
  });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error) == 2);
}

TEST_CASE("the limit of warnings is the configuration's") {
  const ChildEnd end = fresh("warnings:2,max_alloc:32K,window:1M", [] {
    std::vector<void*> handles;
    while (void* handle = percpu_alloc_flags(32768, 4, PERCPU_NOWARN)) handles.push_back(handle);
    for (int i = 0; i < 10; i++) EXPECT(percpu_alloc(32768, 4) == nullptr && errno == ENOMEM);
    for (void* handle : handles) percpu_free(handle);
  });
  CHECK_FINE(end);
  CHECK(count_lines(end.standard_error, "allocation failed") == 2);
  CHECK(count_lines(end.standard_error, "limit of warnings") == 1);
}

// ---- pools -----------------------------------------------------------------------------------------------------------

TEST_CASE("a member of the attributes that is out of range is EINVAL, with a line that names it") {
  struct Bad {
    const char* member;
    void (*spoil)(percpu_pool_attr&);
  };
  static const Bad kBad[] = {
      {"name", [](percpu_pool_attr& a) { a.name = "a name of thirty-two characters!"; }},
      {"unit_size", [](percpu_pool_attr& a) { a.unit_size = (32 << 10) - 1; }},
      {"unit_size", [](percpu_pool_attr& a) { a.unit_size = (size_t{1} << 30) + 1; }},
      {"unit_size", [](percpu_pool_attr& a) { a.unit_size = SIZE_MAX; }},
      {"reserved_size", [](percpu_pool_attr& a) { a.reserved_size = SIZE_MAX; }},
      {"reserved_size", [](percpu_pool_attr& a) { a.reserved_size = 4097; }},
      {"dynamic_size", [](percpu_pool_attr& a) { a.dynamic_size = (20 << 10) - 1; }},
      {"dynamic_size", [](percpu_pool_attr& a) { a.dynamic_size = SIZE_MAX; }},
      {"max_alloc", [](percpu_pool_attr& a) { a.max_alloc = 3; }},
      {"max_alloc", [](percpu_pool_attr& a) { a.unit_size = 64 << 10, a.max_alloc = 1 << 20; }},
      {"max_alloc", [](percpu_pool_attr& a) { a.max_alloc = SIZE_MAX; }},
      {"max_bytes", [](percpu_pool_attr& a) { a.max_bytes = 1; }},
      {"max_bytes", [](percpu_pool_attr& a) { a.unit_size = 64 << 10, a.max_bytes = 63 << 10; }},
      {"max_bytes", [](percpu_pool_attr& a) { a.max_bytes = 32 << 10; }},
      {"nr_cpus", [](percpu_pool_attr& a) { a.nr_cpus = 8193; }},
      {"balance", [](percpu_pool_attr& a) { a.balance = static_cast<percpu_balance_mode>(4); }},
      {"first_chunk", [](percpu_pool_attr& a) { a.first_chunk = static_cast<percpu_first_chunk>(-1); }},
      {"reserved", [](percpu_pool_attr& a) { a.reserved = 1; }},
      {"struct_bytes", [](percpu_pool_attr& a) { a.struct_bytes = 0; }},
      {"struct_bytes", [](percpu_pool_attr& a) { a.struct_bytes = 3; }},
      {"struct_bytes", [](percpu_pool_attr& a) { a.struct_bytes = SIZE_MAX; }},
  };
  for (const Bad& bad : kBad) {
    CAPTURE(bad.member);
    const ChildEnd end = fresh(nullptr, [&] {
      percpu_pool_attr attr{};
      attr.struct_bytes = sizeof attr;
      bad.spoil(attr);
      EXPECT(percpu_pool_create(&attr) == nullptr);
      EXPECT_EQ(errno, EINVAL);
    });
    CHECK_FINE(end);
    CHECK(count_lines(end.standard_error) == 1);
    CHECK(contains(end.standard_error, std::string(bad.member) + ": expected"));
  }
}

TEST_CASE("the extremes of the attributes make pools that work") {
  const auto works = [](const percpu_pool_attr& attr) {
    percpu_pool_t* pool = percpu_pool_create(&attr);
    EXPECT(pool != nullptr);
    void* handle = percpu_pool_alloc(pool, 4, 4, 0);
    EXPECT(handle != nullptr);
    percpu_pool_free(pool, handle);
    void* largest = percpu_pool_alloc(pool, percpu_pool_max_alloc(pool), 4, 0);
    EXPECT(largest != nullptr);
    percpu_pool_free(pool, largest);
    EXPECT_EQ(percpu_pool_check(pool), 0);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  };
  CHECK_FINE(fresh(nullptr, [&] {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    works(attr);
    attr.name = "a name of thirty-one characters";
    attr.unit_size = 32 << 10;
    attr.dynamic_size = 20 << 10;
    attr.max_alloc = 4;
    works(attr);
    attr.max_alloc = 0;
    attr.nr_cpus = 8192;
    works(attr);
    attr.nr_cpus = 1;
    // The first chunk is backed on every CPU, so how large it can be is the machine's to say.
    const size_t share = fair_share_bytes();
    attr.unit_size = std::min(size_t{64} << 20, std::bit_floor(share));
    attr.reserved_size = std::min(size_t{256} << 20, share & -size_t{1 << 20});
    attr.dynamic_size = 1 << 20;
    attr.first_chunk = PERCPU_FIRST_PAGE;
    if (!kSanitized) works(attr);
    attr.reserved_size = 4;
    for (percpu_first_chunk first : {PERCPU_FIRST_AUTO, PERCPU_FIRST_EMBED, PERCPU_FIRST_PAGE}) {
      for (percpu_balance_mode balance : {PERCPU_BALANCE_THREAD, PERCPU_BALANCE_SYNC, PERCPU_BALANCE_OFF}) {
        attr.first_chunk = first;
        attr.balance = balance;
        works(attr);
      }
    }
  }));
}

TEST_CASE("attributes of an older caller are completed, those of a newer one taken if they say nothing unknown") {
  CHECK_FINE(fresh(nullptr, [] {
    struct Newer {
      percpu_pool_attr known;
      uint64_t unknown;
    } newer{};
    newer.known.struct_bytes = sizeof newer;
    newer.known.unit_size = 64 << 10;
    percpu_pool_t* pool = percpu_pool_create(&newer.known);
    EXPECT(pool != nullptr);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
    newer.unknown = 1;
    EXPECT(percpu_pool_create(&newer.known) == nullptr && errno == EINVAL);

    percpu_pool_attr older{};
    memset(&older, 0xff, sizeof older);  // what an older caller's stack may hold behind its struct
    older.struct_bytes = offsetof(percpu_pool_attr, reserved_size);
    older.name = "older";
    older.unit_size = 64 << 10;
    pool = percpu_pool_create(&older);
    EXPECT(pool != nullptr);
    EXPECT_EQ(percpu_pool_max_alloc(pool), 64 << 10);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

TEST_CASE("statistics and chunks are written as far as the caller's struct goes") {
  CHECK_FINE(fresh(nullptr, [] {
    void* handle = percpu_alloc(8, 8);
    struct {
      percpu_stats stats;
      uint64_t behind[4];
    } whole;
    memset(&whole, 0xff, sizeof whole);
    EXPECT_EQ(percpu_stats_read(&whole.stats, offsetof(percpu_stats, nr_frees)), 0);
    EXPECT_EQ(whole.stats.nr_allocs, 1);
    EXPECT_EQ(whole.stats.nr_frees, UINT64_MAX);
    EXPECT_EQ(percpu_stats_read(&whole.stats, sizeof whole), 0);
    EXPECT_EQ(whole.stats.nr_live, 1);
    for (uint64_t word : whole.behind) EXPECT_EQ(word, 0);
    struct {
      percpu_chunk_stats row;
      uint64_t behind;
    } rows[2];
    memset(rows, 0xff, sizeof rows);
    const size_t chunks = percpu_pool_chunks(percpu_pool_default(), &rows[0].row, 2, sizeof rows[0]);
    EXPECT_EQ(chunks, 2);  // the reserved part, and the rest of the first chunk
    EXPECT_EQ(rows[1].row.nr_live, 1);
    EXPECT_EQ(rows[1].behind, 0);
    EXPECT_EQ(percpu_pool_chunks(percpu_pool_default(), nullptr, 0, sizeof rows[0]), 2);
    percpu_free(handle);
  }));
}

TEST_CASE("a pool with live areas, and the default pool, are EBUSY to destroy, and go on working") {
  CHECK_FINE(fresh(nullptr, [] {
    EXPECT(percpu_pool_destroy(percpu_pool_default()) == -1 && errno == EBUSY);
    EXPECT(percpu_pool_destroy(nullptr) == -1 && errno == EINVAL);
    percpu_pool_t* pool = percpu_pool_create(nullptr);
    void* handle = percpu_pool_alloc(pool, 8, 8, 0);
    EXPECT(percpu_pool_destroy(pool) == -1 && errno == EBUSY);
    EXPECT_EQ(percpu_pool_alloc_size(pool, handle), 8);
    percpu_pool_free(pool, handle);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

TEST_CASE("what is no pool, or no more, stops the program with one line when it is to be destroyed") {
  int wild = 0;
  for (void* what : {static_cast<void*>(nullptr), static_cast<void*>(&wild)}) {
    const ChildEnd end = fresh(nullptr, [what] {
      percpu_pool_t* pool = static_cast<percpu_pool_t*>(what);
      if (pool == nullptr) {
        pool = percpu_pool_create(nullptr);
        (void)percpu_pool_destroy(pool);
      }
      (void)percpu_pool_destroy(pool);
    });
    CHECK(end.signal == SIGABRT);
    CHECK(contains(end.standard_error, "libpercpu: percpu_pool_destroy(0x"));
    CHECK(count_lines(end.standard_error) == 1);
  }
}

TEST_CASE("a pool cannot be destroyed inside a read section, which its grace period would wait for, and can behind it") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_pool_t* pool = percpu_pool_create(nullptr);
    urcu_bp_read_lock();
    EXPECT(percpu_pool_destroy(pool) == -1 && errno == EDEADLK);
    percpu_pool_free_rcu(pool, percpu_pool_alloc(pool, 8, 8, 0));
    EXPECT(percpu_pool_destroy(pool) == -1 && errno == EDEADLK);
    urcu_bp_read_unlock();
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

TEST_CASE("a bad handle passed to percpu_pool_free stops the program in that function's name") {
  const ChildEnd end = fresh(nullptr, [] { percpu_pool_free(percpu_pool_create(nullptr), reinterpret_cast<void*>(8)); });
  CHECK(end.signal == SIGABRT);
  CHECK(contains(end.standard_error, "libpercpu: percpu_pool_free(0x8)"));
}

TEST_CASE("a message that names a pool is one line, whatever the name") {
  const ChildEnd end = fresh(nullptr, [] {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.name = "two\nlines\x7f";
    percpu_pool_free(percpu_pool_create(&attr), reinterpret_cast<void*>(8));
  });
  CHECK(end.signal == SIGABRT);
  CHECK(count_lines(end.standard_error) == 1);
  CHECK(contains(end.standard_error, "'two?lines?'"));
}

TEST_CASE("no pool, and no such report, is EINVAL for every question, and no pool the end for a handle that is to be freed in it") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_stats stats;
    char text[8] = "text";
    const auto refused = [](bool failed) {
      EXPECT(failed && errno == EINVAL);
      errno = 0;
    };
    refused(percpu_pool_alloc(nullptr, 8, 8, 0) == nullptr);
    refused(percpu_pool_alloc_size(nullptr, text) == 0);
    refused(percpu_pool_max_alloc(nullptr) == 0);
    refused(percpu_pool_balance(nullptr) == -1);
    refused(percpu_pool_stats_read(nullptr, &stats, sizeof stats) == -1);
    refused(percpu_pool_chunks(nullptr, nullptr, 0, sizeof(percpu_chunk_stats)) == 0);
    refused(percpu_pool_report(nullptr, PERCPU_REPORT_TEXT, text, sizeof text) == 0);
    EXPECT_EQ(text[0], 0);
    refused(percpu_pool_check(nullptr) == -1);
    std::memcpy(text, "text", 5);
    refused(percpu_report(static_cast<percpu_report_kind>(3), text, sizeof text) == 0);
    EXPECT_EQ(text[0], 0);
    percpu_pool_free(nullptr, nullptr);
    percpu_pool_free_rcu(nullptr, nullptr);
  }));
  for (bool grace : {false, true}) {
    const ChildEnd end =
        fresh(nullptr, [grace] { (grace ? percpu_pool_free_rcu : percpu_pool_free)(nullptr, reinterpret_cast<void*>(8)); });
    CHECK(end.signal == SIGABRT);
    CHECK(end.standard_error == std::string("libpercpu: percpu_pool_free") + (grace ? "_rcu" : "") +
                                    "(NULL, 0x8): expected the handle's pool, found NULL\n");
  }
}

TEST_CASE("a pool whose areas wait for a grace period can be destroyed: the grace period is waited for") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_pool_t* pool = percpu_pool_create(nullptr);
    for (int i = 0; i < 100; i++) percpu_pool_free_rcu(pool, percpu_pool_alloc(pool, 64, 8, 0));
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

TEST_CASE("pools that come and go leave no address space and no memory behind") {
  CHECK_FINE(fresh("balance:off", [] {
    const auto make_one = [] {
      percpu_pool_t* pool = percpu_pool_create(nullptr);
      EXPECT(pool != nullptr);
      void* handle = percpu_pool_alloc(pool, 100000, 8, 0);
      EXPECT(handle != nullptr);
      percpu_pool_free(pool, handle);
      EXPECT_EQ(percpu_pool_destroy(pool), 0);
    };
    make_one();
    const size_t size_before = status_kib("VmSize");
    const size_t resident_before = status_kib("VmRSS");
    for (int i = 0; i < 200; i++) make_one();
    EXPECT(status_kib("VmSize") < size_before + 1024);
    if (!kSanitized) EXPECT(status_kib("VmRSS") < resident_before + 4096);  // they keep memory of their own
  }));
}

TEST_CASE("the pool of the preload's caches: whole pages on every CPU that cost nothing until they are written to, and is full") {
  CHECK_FINE(fresh(nullptr, [] {
    const size_t page = page_size_bytes();
    const size_t bytes = 4096 * page;
    void* area = nullptr;
    percpu_pool_t* pool = percpu_pool_create_bare_("bare", bytes, &area);
    EXPECT(pool != nullptr);
    EXPECT(reinterpret_cast<uintptr_t>(area) % page == 0);
    EXPECT(library.default_pool_if_made() == nullptr);
    percpu_stats stats;
    EXPECT_EQ(percpu_pool_stats_read(pool, &stats, sizeof stats), 0);
    EXPECT_EQ(stats.populated_bytes, 0u);
    for (unsigned cpu = 0; cpu < percpu_machine_cpus_(); cpu++) {
      auto* copy = static_cast<char*>(percpu_pool_ptr(pool, area, static_cast<int>(cpu)));
      if (copy == nullptr) continue;
      EXPECT_EQ(pages_of_own(copy, bytes), 0u);
      copy[bytes - 1] = 1;
      EXPECT_EQ(pages_of_own(copy, bytes), 1u);
      EXPECT_EQ(copy[0], 0);
    }
    // Nothing is left for others.
    EXPECT(percpu_pool_alloc(pool, 4, 4, PERCPU_NOWARN) == nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

// ---- CPUs, copies, fences ---------------------------------------------------------------------------------------------

TEST_CASE("a fence on a possible CPU succeeds, on another is EINVAL") {
  CHECK_FINE(fresh(nullptr, [] {
    errno = 0;
    EXPECT_EQ(percpu_fence(PERCPU_ALL_CPUS), 0);
    for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) {
      EXPECT_EQ(percpu_fence(static_cast<int>(cpu)), percpu_cpu_possible(cpu) != 0 ? 0 : -1);
    }
    EXPECT_EQ(errno, 0);
    for (int cpu : {-2, static_cast<int>(percpu_nr_cpu_ids()), 1 << 20, INT_MIN}) {
      errno = 0;
      EXPECT(percpu_fence(cpu) == -1 && errno == EINVAL);
    }
  }));
}

TEST_CASE("where neither membarrier nor moving is to be had, a fence is ENOSYS") {
  CHECK_FINE(fresh(nullptr, [] {
    if (!process_has_rseq()) return;
    library.use_system(
        FaultySystem::reset().fail_always(Call::kMembarrier, EPERM).fail_always(Call::kSchedSetaffinity, EPERM).system());
    EXPECT(percpu_fence(0) == -1 && errno == ENOSYS);
    EXPECT(percpu_fence(PERCPU_ALL_CPUS) == -1 && errno == ENOSYS);
    // And all that would like one goes on without.
    std::vector<void*> handles;
    for (int i = 0; i < 5000; i++) handles.push_back(percpu_alloc(64, 8));
    for (void* handle : handles) percpu_free(handle);
    EXPECT_EQ(percpu_balance(), 0);
    EXPECT_EQ(live(percpu_pool_default()), 0);
  }));
}

#if defined(__x86_64__)
constexpr uint32_t kSignature = 0x53053053;
#else
constexpr uint32_t kSignature = 0xd428bc00;
#endif

// Takes rseq from the calling thread, as a thread that was made without libc is.
bool unregister_rseq() {
  return syscall(SYS_rseq, rseq_area(), 32, 1 /* unregister */, kSignature) == 0;
}

TEST_CASE("a thread without rseq counts in an extra copy, all sums are exact, and used areas are zero there again") {
  CHECK_FINE(fresh(nullptr, [] {
    if (!process_has_rseq()) return;
    auto* count = static_cast<uint64_t*>(percpu_alloc(8, 8));
    EXPECT_EQ(percpu_thread_has_rseq(), 1);
    std::thread without([&] {
      EXPECT(unregister_rseq());
      EXPECT_EQ(percpu_thread_has_rseq(), 0);
      for (int i = 0; i < 1000; i++) percpu_inc(count);
      // Allocation and free work for it too.
      for (int i = 0; i < 1000; i++) percpu_free(percpu_alloc(32, 8));
    });
    for (int i = 0; i < 1000; i++) percpu_inc(count);
    without.join();
    EXPECT_EQ(percpu_sum(count), 2000);
    uint64_t on_cpus = 0;
    for (unsigned cpu = 0; cpu < percpu_nr_cpu_ids(); cpu++) {
      if (percpu_cpu_possible(cpu)) on_cpus += *percpu_ptr(count, static_cast<int>(cpu));
    }
    EXPECT_EQ(on_cpus, kHaveSequences ? 1000 : 0);
    percpu_free(count);
    for (int i = 0; i < 100; i++) {
      auto* again = static_cast<uint64_t*>(percpu_alloc(8, 8));
      EXPECT_EQ(percpu_sum(again), 0);
      if (again == count) return;
    }
    EXPECT(false);
  }));
}

TEST_CASE("the node of a page that is backed is a node; of one that is not ENOENT; of nothing EFAULT") {
  CHECK_FINE(fresh("nodes:auto", [] {
    auto* handle = static_cast<char*>(percpu_alloc(8, 8));
    EXPECT(percpu_page_node(percpu_ptr(handle, sched_getcpu())) >= 0);
    errno = 0;
    EXPECT(percpu_page_node(handle) == -1);
    EXPECT(errno == EFAULT || errno == ENOENT);
    errno = 0;
    EXPECT(percpu_page_node(nullptr) == -1 && errno == EFAULT);
    percpu_free(handle);
  }));
}

TEST_CASE("the node of a page is ENOSYS where a sandbox refuses the question") {
  CHECK_FINE(fresh("nodes:one", [] {
    library.use_system(FaultySystem::reset().fail_always(Call::kQueryPage, EPERM).fail_always(Call::kGetMempolicy, EPERM).system());
    int here = 0;
    EXPECT(percpu_page_node(&here) == -1 && errno == ENOSYS);
  }));
}

TEST_CASE("the largest allocation is a multiple of 4, whatever waits in a front cache") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.max_alloc = 6;
    percpu_pool_t* pool = percpu_pool_create(&attr);
    EXPECT_EQ(percpu_pool_max_alloc(pool), 4);
    percpu_pool_free(pool, percpu_pool_alloc(pool, 4, 4, 0));
    EXPECT(percpu_pool_alloc(pool, 5, 4, PERCPU_NOWARN) == nullptr && errno == EINVAL);
  }));
}

TEST_CASE("an address in any pool is told; one in none is not per-CPU") {
  CHECK_FINE(fresh(nullptr, [] {
    percpu_pool_t* pools[3] = {percpu_pool_default(), percpu_pool_create(nullptr), percpu_pool_create(nullptr)};
    percpu_address info;
    int local = 0;
    for (percpu_pool_t* pool : pools) {
      void* handle = percpu_pool_alloc(pool, 40, 8, 0);
      EXPECT_EQ(percpu_address_info(static_cast<char*>(percpu_pool_ptr(pool, static_cast<char*>(handle), 1)) + 9, &info),
                1);
      EXPECT(info.pool == pool && info.handle == handle);
      EXPECT(info.cpu == 1 && info.area_offset == 9 && info.area_bytes == 40);
      EXPECT_EQ(info.flags, PERCPU_INFO_LIVE);
      EXPECT_EQ(percpu_address_info(handle, &info), 1);
      EXPECT((info.flags & PERCPU_INFO_HANDLE) != 0);
      percpu_pool_free(pool, handle);
    }
    EXPECT_EQ(percpu_address_info(&local, &info), 0);
    EXPECT_EQ(percpu_address_info(nullptr, &info), 0);
    EXPECT_EQ(percpu_pool_destroy(pools[1]), 0);
    EXPECT_EQ(percpu_pool_destroy(pools[2]), 0);
  }));
}

// ---- domains ---------------------------------------------------------------------------------------------------------

TEST_CASE("the ABI of domains: names, limits, parents, current, and the thread's own") {
  CHECK_FINE(fresh("unit_size:32K", [] {
    EXPECT(percpu_domain_create("a name of thirty-two characters!", 1, nullptr) == nullptr && errno == EINVAL);
    EXPECT(percpu_domain_create(nullptr, 1, nullptr) == nullptr && errno == EINVAL);
    percpu_domain_t* parent = percpu_domain_create("parent", PERCPU_NO_LIMIT, nullptr);
    percpu_domain_t* child = percpu_domain_create("a name of thirty-one characters", 1 << 20, parent);
    EXPECT(parent != nullptr && child != nullptr);
    EXPECT(percpu_domain_current() == nullptr);
    EXPECT(percpu_domain_set(child) == nullptr);
    EXPECT(percpu_domain_current() == child);
    std::thread([] { EXPECT(percpu_domain_current() == nullptr); }).join();
    std::vector<void*> handles;
    percpu_domain_stats stats{};
    for (int i = 0; i < 100000 && stats.nr_refused == 0; i++) {
      void* handle = percpu_alloc_flags(1000, 4, PERCPU_ACCOUNT | PERCPU_NOWARN);
      if (handle != nullptr) handles.push_back(handle);
      percpu_domain_read(child, &stats);
    }
    EXPECT_EQ(errno, ENOMEM);
    EXPECT(strcmp(stats.name, "a name of thirty-one characters") == 0);
    EXPECT_EQ(stats.limit_bytes, 1 << 20);
    EXPECT(stats.charged_bytes > 1000000 - 10000 && stats.charged_bytes <= 1 << 20);
    EXPECT(stats.peak_charged_bytes >= stats.charged_bytes && stats.peak_charged_bytes <= 1 << 20);
    void* uncharged = percpu_alloc(1000, 4);
    EXPECT(uncharged != nullptr);
    percpu_free(uncharged);
    percpu_domain_set_limit(child, PERCPU_NO_LIMIT);
    handles.push_back(percpu_alloc_flags(1000, 4, PERCPU_ACCOUNT));
    EXPECT(handles.back() != nullptr);
    const ChildEnd end = run_in_child([&] { return percpu_domain_current() == child ? 0 : 1; });
    EXPECT_EQ(end.exit_code, 0);
    EXPECT(percpu_domain_set(nullptr) == child);
    EXPECT(percpu_domain_get(parent) == parent);
    percpu_domain_put(child);
    for (void* handle : handles) percpu_free(handle);
    percpu_domain_read(parent, &stats);
    EXPECT_EQ(stats.charged_bytes, 0);
    percpu_domain_put(parent);
    percpu_domain_put(parent);
    percpu_domain_put(nullptr);
  }));
}

TEST_CASE("what is no domain, or one without references, stops the program with one line that names it") {
  static const struct {
    const char* call;
    void (*use)(percpu_domain_t*);
  } kUses[] = {
      {"create", [](percpu_domain_t* d) { (void)!percpu_domain_create("child", 1, d); }},
      {"get", [](percpu_domain_t* d) { percpu_domain_get(d); }},
      {"put", [](percpu_domain_t* d) { percpu_domain_put(d); }},
      {"set", [](percpu_domain_t* d) { percpu_domain_set(d); }},
      {"read", [](percpu_domain_t* d) { percpu_domain_stats stats; percpu_domain_read(d, &stats); }},
      {"set_limit", [](percpu_domain_t* d) { percpu_domain_set_limit(d, 1); }},
  };
  for (const auto& use : kUses) {
    const std::string begin = std::string("libpercpu: percpu_domain_") + use.call + "(0x";
    for (const char* what : {"wild", "gone", "inside", "before"}) {
      const ChildEnd end = fresh(nullptr, [&] {
        percpu_domain_t* domain = nullptr;
        if (strcmp(what, "before") != 0) domain = percpu_domain_create("domain", 1, nullptr);
        if (strcmp(what, "gone") == 0) percpu_domain_put(domain);
        if (strcmp(what, "inside") == 0) domain = reinterpret_cast<percpu_domain_t*>(reinterpret_cast<char*>(domain) + 8);
        if (strcmp(what, "wild") == 0 || strcmp(what, "before") == 0) domain = reinterpret_cast<percpu_domain_t*>(8);
        use.use(domain);
      });
      CAPTURE(end.standard_error);
      CHECK(end.signal == SIGABRT);
      CHECK(count_lines(end.standard_error) == 1);
      CHECK(end.standard_error.rfind(begin, 0) == 0);
      CHECK(contains(end.standard_error, strcmp(what, "gone") == 0 ? "no reference left" : "a value that is none"));
    }
  }
}

// ---- address space ---------------------------------------------------------------------------------------------------

TEST_CASE("a list in a pool for more CPUs than there are is drained everywhere") {
  CHECK_FINE(fresh("balance:off", [] {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.nr_cpus = percpu_nr_cpu_ids() + 62;
    percpu_pool_t* pool = percpu_pool_create(&attr);
    EXPECT(pool != nullptr);
    auto* list = static_cast<percpu_list*>(percpu_pool_alloc(pool, sizeof(percpu_list), alignof(percpu_list), 0));
    percpu_list_node nodes[3];
    for (percpu_list_node& node : nodes) percpu_pool_list_push(pool, list, &node);
    percpu_stats stats;
    EXPECT_EQ(percpu_pool_stats_read(pool, &stats, sizeof stats), 0);
    size_t found = 0;
    for (uint32_t copy = 0; copy < stats.nr_copies; copy++) {
      percpu_list_node* chain = nullptr;
      errno = 77;
      EXPECT_EQ(percpu_pool_list_drain(pool, list, copy, &chain), 0);
      EXPECT_EQ(errno, 77);
      for (; chain != nullptr; chain = chain->next) found++;
    }
    EXPECT_EQ(found, 3u);
    percpu_pool_free(pool, list);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }));
}

TEST_CASE("under a limit on address space the library works with less, and leaves the program its share") {
  if (kSanitized) return;  // they need terabytes
  // In steps below 256 MiB: what a pool takes of what it finds depends on how many of its chunks fit.
  for (size_t mega : {48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 1024, 8192}) {
    const size_t for_8_cpus = mega << 20;
    const size_t limit = for_cpus(for_8_cpus);
    CAPTURE(limit);
    CHECK_FINE(fresh("balance:thread", [limit] {
      const size_t used = status_kib("VmSize") * 1024;
      const rlimit limits = {used + limit, used + limit};
      EXPECT_EQ(setrlimit(RLIMIT_AS, &limits), 0);
      std::vector<void*> handles;
      handles.push_back(percpu_alloc(8, 8));
      EXPECT(handles.back() != nullptr);
      // Not charged: a machine may have less memory than that, and would refuse it whatever the library left.
      void* own = mmap(nullptr, limit / 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      EXPECT(own != MAP_FAILED);
      std::thread([] { percpu_free(percpu_alloc(8, 8)); }).join();
      percpu_pool_t* another = percpu_pool_create(nullptr);
      EXPECT(another != nullptr);
      EXPECT_EQ(percpu_pool_destroy(another), 0);
      while (handles.size() < 2000) {
        handles.push_back(percpu_alloc_flags(4096, 4, PERCPU_NOWARN));
        if (handles.back() == nullptr) break;
      }
      EXPECT(handles.size() > 200);
      if (handles.back() == nullptr) {
        EXPECT_EQ(errno, ENOMEM);
        handles.pop_back();
      }
      for (void* handle : handles) percpu_free(handle);
      EXPECT_EQ(percpu_balance(), 0);
      EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
      void* again = percpu_alloc(4096, 8);
      EXPECT(again != nullptr);
      percpu_free(again);
    }));
  }
}

TEST_CASE("under a limit on data the library works with less") {
  if (kSanitized) return;
  CHECK_FINE(fresh("balance:sync", [] {
    const size_t used = status_kib("VmData") * 1024;
    const size_t allowed = used + for_cpus(size_t{16} << 20);
    const rlimit limits = {allowed, allowed};
    EXPECT_EQ(setrlimit(RLIMIT_DATA, &limits), 0);
    std::vector<void*> handles;
    while (void* handle = percpu_alloc_flags(4096, 4, PERCPU_NOWARN)) handles.push_back(handle);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT(handles.size() > 100);
    for (void* handle : handles) percpu_free(handle);
    percpu_balance();
    EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
    void* again = percpu_alloc(4096, 4);
    EXPECT(again != nullptr);
    percpu_free(again);
  }));
}

// A machine with strict overcommit, as the library sees one: every byte that it makes writable is charged, reserved or not.
std::atomic<size_t> charged{0};
size_t may_charge = 0;

bool charge(size_t size_bytes, int protection) {
  if ((protection & PROT_WRITE) == 0) return true;
  if (size_bytes > may_charge - charged) return false;
  charged += size_bytes;
  return true;
}

const System& strict_system() {
  static System system = real_system();
  system.open = [](const char* path) {
    if (strcmp(path, "/proc/sys/vm/overcommit_memory") != 0) return real_system().open(path);
    const int file = memfd_create("overcommit_memory", 0);
    EXPECT(file >= 0 && pwrite(file, "2\n", 2, 0) == 2);
    return file;
  };
  system.mmap = [](uintptr_t address, size_t size_bytes, int protection, int flags) {
    return charge(size_bytes, protection) ? real_system().mmap(address, size_bytes, protection, flags) : intptr_t{-ENOMEM};
  };
  system.mprotect = [](uintptr_t address, size_t size_bytes, int protection) {
    return charge(size_bytes, protection) ? real_system().mprotect(address, size_bytes, protection) : -ENOMEM;
  };
  return system;
}

TEST_CASE("under strict overcommit the library charges little of the machine's memory for what may never come") {
  CHECK_FINE(fresh("balance:sync", [] {
    may_charge = SIZE_MAX;
    library.use_system(strict_system());
    void* handle = percpu_alloc(8, 8);
    EXPECT(handle != nullptr);
    EXPECT(charged < size_t{64} << 20);
    percpu_free(handle);
  }));
}

TEST_CASE("under strict overcommit what is refused is ENOMEM, and what was freed can be had again") {
  for (size_t limit : {for_cpus(size_t{32} << 20), std::max(size_t{128} << 20, for_cpus(size_t{64} << 20))}) {
    CAPTURE(limit);
    CHECK_FINE(fresh("balance:sync", [limit] {
      may_charge = limit;
      library.use_system(strict_system());
      std::vector<void*> handles;
      while (void* handle = percpu_alloc_flags(4096, 4, PERCPU_NOWARN)) handles.push_back(handle);
      EXPECT_EQ(errno, ENOMEM);
      EXPECT(handles.size() > 20);
      for (void* handle : handles) percpu_free(handle);
      EXPECT_EQ(percpu_balance(), 0);
      EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
      void* again = percpu_alloc(4096, 4);
      EXPECT(again != nullptr);
      percpu_free(again);
    }));
  }
}

TEST_CASE("a window that the configuration limits is used up, ENOMEM, and works again") {
  const std::string conf = "window:" + std::to_string(for_cpus(16 << 10)) + "K,unit_size:32K,balance:thread";
  CHECK_FINE(fresh(conf.c_str(), [] {
    for (int round = 0; round < 3; round++) {
      std::vector<void*> handles;
      while (void* handle = percpu_alloc_flags(1024, 4, PERCPU_NOWARN)) handles.push_back(handle);
      EXPECT_EQ(errno, ENOMEM);
      EXPECT(handles.size() > 200);
      for (void* handle : handles) percpu_free(handle);
      EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
    }
  }));
}

TEST_CASE("too large a reservation is given up in steps, not found wanting") {
  CHECK_FINE(fresh("window:64T", [] {
    void* handle = percpu_alloc(8, 8);
    EXPECT(handle != nullptr);
    percpu_free(handle);
  }));
}

TEST_CASE("locked memory: a reservation is not backed under mlockall, and the library works") {
  CHECK_FINE(fresh("balance:sync", [] {
    if (mlockall(MCL_FUTURE) != 0) return;  // not allowed here
    const size_t before = status_kib("VmRSS");
    std::vector<void*> handles;
    for (int i = 0; i < 200; i++) handles.push_back(percpu_alloc(4096, 4));
    for (void* handle : handles) EXPECT(handle != nullptr);
    EXPECT(status_kib("VmRSS") < before + (64 << 10));
    for (void* handle : handles) percpu_free(handle);
    percpu_balance();
    EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
  }));
}

// ---- fork and exit ---------------------------------------------------------------------------------------------------

TEST_CASE("after a fork both go on, and the child's balance thread is its own, started when it needs one") {
  CHECK_FINE(fresh("unit_size:32K,balance:thread", [] {
    std::vector<void*> handles;
    for (int i = 0; i < 200; i++) handles.push_back(percpu_alloc(4096, 4));
    EXPECT(eventually([] { return nr_balancers() == 1; }));
    const ChildEnd end = run_in_child([&] {
      EXPECT_EQ(nr_balancers(), 0);
      EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
      EXPECT_EQ(live(percpu_pool_default()), 200);
      for (void* handle : handles) percpu_free(handle);
      EXPECT_EQ(live(percpu_pool_default()), 0);
      for (int i = 0; i < 100; i++) handles[static_cast<size_t>(i)] = percpu_alloc(4096, 4);
      EXPECT(eventually([] { return nr_balancers() == 1; }));
      for (int i = 0; i < 100; i++) percpu_free(handles[static_cast<size_t>(i)]);
      percpu_stats stats;
      EXPECT(eventually([&] {
        percpu_stats_read(&stats, sizeof stats);
        return stats.nr_chunks <= 2;
      }));
      return 0;
    });
    INFO(end.standard_error);
    EXPECT_EQ(end.exit_code, 0);
    EXPECT_EQ(nr_balancers(), 1);
    EXPECT_EQ(live(percpu_pool_default()), 200);
    for (void* handle : handles) percpu_free(handle);
    EXPECT_EQ(live(percpu_pool_default()), 0);
  }));
}

TEST_CASE("a child that only frees gives its memory back") {
  CHECK_FINE(fresh("unit_size:32K,balance:thread", [] {
    std::vector<void*> handles;
    for (int i = 0; i < 400; i++) handles.push_back(percpu_alloc(4096, 4));
    const ChildEnd end = run_in_child([&] {
      for (void* handle : handles) percpu_free(handle);
      percpu_stats stats;
      percpu_stats_read(&stats, sizeof stats);
      EXPECT(stats.nr_chunks <= 2);
      return 0;
    });
    EXPECT_EQ(end.exit_code, 0);
  }));
}

TEST_CASE("areas that wait for a grace period when the process forks are freed in both") {
  CHECK_FINE(fresh("balance:thread", [] {
    auto* pool = percpu::to_pool(percpu_pool_default());
    const auto all_freed = [&] {
      percpu_free(percpu_alloc(4096, 4));  // an ordinary call starts the thread
      return eventually([&] { return !pool->grace_waiting(); }) && nr_balancers() == 1;
    };
    // The parent's thread may be done with them before the fork: then that was not what is tested.
    constexpr int kNoneWaited = 2;
    int exit_code = kNoneWaited;
    for (int tries = 0; tries < 1000 && exit_code == kNoneWaited; tries++) {
      std::vector<void*> handles;
      for (int i = 0; i < 100; i++) handles.push_back(percpu_alloc(64, 4));
      for (void* handle : handles) percpu_free_rcu(handle);
      exit_code = run_in_child([&] { return !pool->grace_waiting() ? kNoneWaited : all_freed() ? 0 : 1; }).exit_code;
    }
    EXPECT_EQ(exit_code, 0);
    EXPECT(all_freed());
    EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
  }));
}

TEST_CASE("at exit the thread is gone before the handlers of the program that are older than the library's first use") {
  CHECK_FINE(fresh("unit_size:32K,balance:thread", [] {
    atexit([] { _exit(eventually([] { return nr_balancers() == 0; }) ? 0 : 1); });
    std::vector<void*> handles;
    for (int i = 0; i < 200; i++) handles.push_back(percpu_alloc(4096, 4));
    EXPECT(eventually([] { return nr_balancers() == 1; }));
    exit(3);  // the handler decides
  }));
}

TEST_CASE("exit while the thread waits for a grace period that does not end does not wait for it") {
  CHECK_FINE(fresh("balance:thread", [] {
    std::atomic<bool> reading{false};
    std::thread reader([&] {
      urcu_bp_read_lock();
      reading = true;
      for (;;) pause();
    });
    while (!reading) std::this_thread::yield();
    percpu_free_rcu(percpu_alloc(64, 4));
    percpu_free(percpu_alloc(64, 4));
    EXPECT(eventually([] { return nr_balancers() == 1; }));
    usleep(50000);
    exit(0);
  }));
}

TEST_CASE("allocations, frees and counts go on while the process exits") {
  CHECK_FINE(fresh("unit_size:32K,balance:thread", [] {
    static std::vector<void*> handles;
    atexit([] {  // runs after the library's own
      for (void* handle : handles) percpu_free(handle);
      for (int i = 0; i < 100; i++) percpu_free(percpu_alloc(4096, 4));
      EXPECT_EQ(percpu_pool_check(percpu_pool_default()), 0);
      _exit(eventually([] { return nr_balancers() == 0; }) ? 0 : 1);
    });
    for (int i = 0; i < 200; i++) handles.push_back(percpu_alloc(4096, 4));
    exit(3);
  }));
}

TEST_CASE("fork from several threads at once: each child finds the library whole") {
  CHECK_FINE(fresh("unit_size:32K,balance:thread", [] {
    // A child of AddressSanitizer's hangs where it allocates from a place in which another thread was allocating when its parent forked
    // (tests/sanitizers.c): there libnuma's allocations, and the balance thread's, are made before.
    if (kSanitized) {
      percpu_free_rcu(percpu_alloc(64, 4));
      EXPECT(eventually([] { return nr_balancers() == 1; }));
    }
    std::atomic<int> bad{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; t++) {
      threads.emplace_back([&, t] {
        for (int i = 0; i < 25; i++) {
          const pid_t child = fork();
          if (child == 0) {
            alarm(kHangSeconds);
            void* handle = percpu_alloc(2000, 4);
            percpu_free_rcu(percpu_alloc(64, 4));
            percpu_address info;
            EXPECT(handle != nullptr);
            EXPECT_EQ(percpu_address_info(percpu_this_ptr(static_cast<char*>(handle)), &info), 1);
            percpu_free(handle);
            percpu_pool_check(percpu_pool_default());
            percpu_pool_t* pool = percpu_pool_create(nullptr);  // waits for a grace period when it goes
            EXPECT(pool != nullptr);
            EXPECT_EQ(percpu_pool_destroy(pool), 0);
            _exit(0);
          }
          int status = -1;
          waitpid(child, &status, 0);
          if (status != 0) fprintf(stderr, "child %d of thread %d ended with status 0x%x\n", i, t, status);
          bad += status != 0;
        }
      });
    }
    std::atomic<bool> stop{false};
    threads.emplace_back([&] {
      while (!stop) {
        percpu_free_rcu(percpu_alloc(64, 4));
        percpu_address info;
        percpu_address_info(&info, &info);
      }
    });
    for (int t = 0; t < 3; t++) threads[static_cast<size_t>(t)].join();
    stop = true;
    threads.back().join();
    EXPECT_EQ(bad.load(), 0);
  }));
}

}  // namespace
}  // namespace percpu
