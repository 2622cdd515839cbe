// SPDX-License-Identifier: MIT
//
// Whole scenarios in which the n-th system call fails, for n from 1 until the scenario ends without reaching n, with each
// errno that such a call may give. Every run must end in success or a clean error, with a pool that passes its own check,
// nothing live, and a retry without faults that succeeds. Each run is a process of its own, so first use is part of it.
#include <dirent.h>
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <initializer_list>
#include <string>
#include <vector>

#include <percpu.h>

#include "../runtime/world.h"
#include "api/library.h"
#include "fresh.h"

namespace percpu {
namespace {

constexpr int kNotReached = 42;

// A clean refusal for want of what the system did not give, whatever it said.
bool clean(int error) { return error == ENOMEM; }

// What a life without faults holds in the end: open files, and address space. Written by the first child, read by all. And how many calls
// it makes that may fail, where those that give back do not, and where they do.
struct Held {
  size_t files, kib;
  int nr_calls[2];
};
Held* undisturbed = nullptr;
// The stack of the balance thread, which libc keeps or not, and what malloc took for the test's own handles.
constexpr size_t kSlackKib = 9 << 10;

size_t nr_open_files() {
  size_t count = 0;
  DIR* folder = opendir("/proc/self/fd");
  EXPECT(folder != nullptr);
  while (readdir(folder) != nullptr) count++;
  closedir(folder);
  return count;
}

size_t mapped_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmSize:", 0) == 0) return std::stoul(line.substr(7));
  }
  return 0;
}

// One program's life with the library. Refusals are fine; wrong results are not.
class Scenario {
 public:
  void run() {
    allocate();
    count();
    atomic();
    percpu_balance();
    other_pools();
    domains();
    questions();
    fork_once();
    free_half();
    fork_once();
    free_all_of_it();
    percpu_balance();
  }
  void free_all_of_it() {
    for (void* handle : handles_) percpu_free(handle);
    handles_.clear();
  }

 private:
  void keep(void* handle, bool atomic = false) {
    if (handle == nullptr) {
      EXPECT(clean(errno) || (atomic && errno == EAGAIN));
      return;
    }
    handles_.push_back(handle);
  }
  void allocate() {
    for (size_t i = 0; i < 30; i++) keep(percpu_alloc_flags(i % 3 == 0 ? 9000 : 200, 8, PERCPU_NOWARN));
  }
  void count() {
    auto* count = static_cast<uint64_t*>(percpu_alloc_flags(8, 8, PERCPU_NOWARN));
    if (count == nullptr) {
      EXPECT(clean(errno));
      return;
    }
    for (int i = 0; i < 100; i++) percpu_inc(count);
    EXPECT_EQ(percpu_sum(count), 100);
    keep(count);
  }
  void atomic() {
    for (int i = 0; i < 20; i++) keep(percpu_alloc_flags(600, 8, PERCPU_ATOMIC | PERCPU_NOWARN), true);
  }
  void other_pools() {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.nr_cpus = 8;
    attr.unit_size = 32 << 10;
    percpu_pool_t* pool = percpu_pool_create(&attr);
    if (pool == nullptr) {
      EXPECT(clean(errno));
      return;
    }
    std::vector<void*> handles;
    for (int i = 0; i < 8; i++) {
      handles.push_back(percpu_pool_alloc(pool, 20000, 8, PERCPU_NOWARN));
      if (handles.back() == nullptr) {
        EXPECT(clean(errno));
        handles.pop_back();
      }
    }
    for (void* handle : handles) percpu_pool_free(pool, handle);
    percpu_pool_balance(pool);
    percpu_pool_check(pool);
    EXPECT_EQ(percpu_pool_destroy(pool), 0);
  }
  void domains() {
    percpu_domain_t* domain = percpu_domain_create("faulty", PERCPU_NO_LIMIT, nullptr);
    if (domain == nullptr) {
      EXPECT(clean(errno));
      return;
    }
    percpu_domain_set(domain);
    void* handle = percpu_alloc_flags(20000, 8, PERCPU_ACCOUNT | PERCPU_NOWARN);
    if (handle == nullptr) EXPECT(clean(errno));
    percpu_domain_set(nullptr);
    percpu_free(handle);
    percpu_domain_stats stats;
    percpu_domain_read(domain, &stats);
    EXPECT_EQ(stats.charged_bytes, 0);
    percpu_domain_put(domain);
  }
  void questions() {
    percpu_stats stats;
    EXPECT(percpu_stats_read(&stats, sizeof stats) == 0 || clean(errno));
    char text[4096];
    percpu_report(PERCPU_REPORT_JSON, text, sizeof text);
    percpu_report(PERCPU_REPORT_LAYOUT, text, sizeof text);
    if (!handles_.empty()) {
      percpu_address info;
      EXPECT_EQ(percpu_address_info(percpu_this_ptr(static_cast<char*>(handles_[0])), &info), 1);
      (void)percpu_page_node(percpu_this_ptr(static_cast<char*>(handles_[0])));
    }
    (void)percpu_fence(PERCPU_ALL_CPUS);
  }
  void fork_once() {
    const ChildEnd end = run_in_child([&] {
      alarm(kHangSeconds);
      if (percpu_pool_default() != nullptr) percpu_pool_check(percpu_pool_default());
      for (void* handle : handles_) percpu_free(handle);
      for (int i = 0; i < 5; i++) percpu_free(percpu_alloc_flags(9000, 8, PERCPU_NOWARN));
      percpu_balance();
      if (percpu_pool_default() != nullptr) percpu_pool_check(percpu_pool_default());
      return 0;
    });
    fputs(end.standard_error.c_str(), stderr);
    EXPECT_EQ(end.signal, 0);
    EXPECT_EQ(end.exit_code, 0);
  }
  void free_half() {
    for (size_t i = 0; i < handles_.size(); i += 2) percpu_free(handles_[i]);
    std::vector<void*> left;
    for (size_t i = 1; i < handles_.size(); i += 2) left.push_back(handles_[i]);
    handles_ = left;
  }

  std::vector<void*> handles_;
};

// In the child: the scenario with the n-th call failing, then everything that must hold afterwards.
void run_with_fault(int n, int error, bool giving_back_fails) {
  FaultySystem& faulty = FaultySystem::reset();
  library.use_system(faulty.system());
  faulty.fails_giving_back(giving_back_fails).fail_nth_of_all(n, error);
  Scenario scenario;
  scenario.run();
  const bool reached = faulty.failed_any();
  if (n == INT_MAX) undisturbed->nr_calls[giving_back_fails] = faulty.total();
  faulty.reset();

  percpu_pool_t* pool = percpu_pool_default();
  EXPECT(pool != nullptr);
  percpu_pool_check(pool);
  percpu_stats stats;
  EXPECT_EQ(percpu_stats_read(&stats, sizeof stats), 0);
  EXPECT_EQ(stats.nr_live, 0);
  std::vector<void*> handles;
  for (int i = 0; i < 100; i++) {
    handles.push_back(percpu_alloc(i % 2 == 0 ? 9000 : 64, 8));
    EXPECT(handles.back() != nullptr);
    char* copy;
    percpu_for_each_copy(copy, static_cast<char*>(handles.back())) {
      for (int byte = 0; byte < 64; byte++) EXPECT_EQ(copy[byte], 0);
    }
  }
  percpu_pool_t* another = percpu_pool_create(nullptr);
  EXPECT(another != nullptr);
  EXPECT_EQ(percpu_pool_destroy(another), 0);
  for (void* handle : handles) percpu_free(handle);
  percpu_balance();
  percpu_pool_check(pool);
  // Nothing is left behind, wherever it failed; but of address space what the system would not take back.
  if (undisturbed->files == 0) {
    undisturbed->files = nr_open_files();
    undisturbed->kib = mapped_kib();
  }
  EXPECT_EQ(nr_open_files(), undisturbed->files);
  if (!giving_back_fails) EXPECT(mapped_kib() <= undisturbed->kib + kSlackKib);
  if (!reached) _exit(kNotReached);
}

// How far apart the n are: 1 in the long form, as PERCPU_FAULTS_STRIDE says in the lab.
int stride() {
  if (const char* told = getenv("PERCPU_FAULTS_STRIDE"); told != nullptr && atoi(told) > 0) return atoi(told);
  return getenv("PERCPU_FULL") != nullptr ? 1 : (kSanitized ? 31 : 10);
}

// The window holds enough chunks even where nobody tells which CPUs are possible, and a place is kept for 8,192 of them. A life whose
// calls are not the same each time, since the balance thread makes some of them as it gets to run, may end with half of them.
enum class Calls { kSameEachTime, kOfAThreadToo };
void try_every_call(const char* conf, Calls calls) {
  void* shared = mmap(nullptr, sizeof(Held), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  undisturbed = static_cast<Held*>(shared);
  for (const bool giving_back_fails : {false, true})
    REQUIRE(fresh(conf, [&] { run_with_fault(INT_MAX, ENOMEM, giving_back_fails); }).exit_code == kNotReached);
  for (int error : {ENOMEM, EAGAIN, EPERM, EINVAL, EINTR}) {
    for (bool giving_back_fails : {false, true}) {
      // Each pass begins at another place, so that the short forms together see more of them.
      const int first = 1 + (error * 2 + (giving_back_fails ? 1 : 0)) % stride();
      for (int n = first;; n += stride()) {
        const ChildEnd end = fresh(conf, [&] { run_with_fault(n, error, giving_back_fails); });
        if (end.exit_code == kNotReached) {
          CHECK(n > undisturbed->nr_calls[giving_back_fails] / (calls == Calls::kOfAThreadToo ? 2 : 1));
          break;
        }
        CAPTURE(n);
        CAPTURE(error);
        CAPTURE(giving_back_fails);
        INFO(end.standard_error);
        CHECK(end.signal == 0);
        CHECK(end.exit_code == 0);
        if (end.signal != 0 || end.exit_code != 0) break;  // what fails at one place may do so at all, without end
      }
    }
  }
}

TEST_CASE("any system call may fail at any place, balance:sync") {
  try_every_call("unit_size:32K,window:32G,balance:sync,first_chunk:page", Calls::kSameEachTime);
}

TEST_CASE("any system call may fail at any place, balance:thread") {
  try_every_call("unit_size:32K,window:32G,balance:thread,first_chunk:page", Calls::kOfAThreadToo);
}

TEST_CASE("any system call may fail at any place, first chunk embedded") {
  try_every_call("unit_size:32K,window:32G,balance:off,first_chunk:embed", Calls::kSameEachTime);
}

TEST_CASE("every call of one kind may fail for good: refusals are clean, and end when the calls succeed again") {
  for (unsigned kind = 0; kind < static_cast<unsigned>(Call::kCount); kind++) {
    const Call call = static_cast<Call>(kind);
    // A lock or a bell that cannot sleep is not what this is about.
    if (call == Call::kFutexWait || call == Call::kFutexWake) continue;
    for (int error : {ENOMEM, EPERM, ENOSYS}) {
      for (const char* conf : {"unit_size:32K,window:32G,balance:sync", "unit_size:32K,window:32G,balance:thread"}) {
        const ChildEnd end = fresh(conf, [&] {
          FaultySystem& faulty = FaultySystem::reset();
          library.use_system(faulty.system());
          faulty.fail_always(call, error);
          Scenario scenario;
          scenario.run();
          faulty.reset();
          void* handle = percpu_alloc(9000, 8);
          EXPECT(handle != nullptr);
          percpu_free(handle);
          percpu_stats stats;
          EXPECT_EQ(percpu_stats_read(&stats, sizeof stats), 0);
          EXPECT_EQ(stats.nr_live, 0);
          percpu_pool_check(percpu_pool_default());
        });
        CAPTURE(kind);
        CAPTURE(error);
        CAPTURE(conf);
        CHECK_FINE(end);
      }
    }
  }
}

}  // namespace
}  // namespace percpu
