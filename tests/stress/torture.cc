// SPDX-License-Identifier: MIT
//
// Everything that programs do to the library, at once and without rest, in one process:
//
//   workers    count, allocate, free what others allocated, malloc and free blocks of each other; are moved and signalled
//   lives      threads that are born, do all that for a moment, and die; some unregister from rseq first
//   handlers   count, and allocate and free atomically, wherever a signal finds a thread
//   children   are forked in the middle of it, allocate, free, count, fork again, and must end well
//   modules    with static per-CPU variables are opened, counted in, and closed
//   balance    runs in a loop
//   questions  statistics, reports and checks are asked for in a loop
//
// usage: torture SECONDS [MODULE...]      (PERCPU_SEED is the seed)
//
// In the end the sum of all counts is exact, no area and no domain is left, every block held what was written to it, and the memory that the
// process holds is what it was after a first tenth of the time, but for a margin (under ASan, which keeps freed memory, it is only printed).
#include "expect.h"
#include "leave_rseq.h"
#include "storm.h"

#include <dlfcn.h>
#include <malloc.h>
#include <sys/wait.h>

#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "../abi/plugin.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

namespace {

constexpr size_t kMargin = size_t{24} << 20;  // bytes
constexpr int kMailboxes = 512;

std::atomic<bool> stop{false};
uint64_t *events;                         // per CPU: counted by everybody, handlers included
std::atomic<uint64_t> expected_events{0};  // what the sum must be
std::atomic<uint64_t> handled{0};

// A block of malloc, or an area, that one thread leaves for another.
struct Parcel {
  uint32_t size_bytes;
  unsigned char mark;
  bool is_area;
  void *what;
};
std::atomic<Parcel *> mailbox[kMailboxes];

// Counts `n` events, and says so. The thread-local sum reaches the shared one in pieces.
struct Tally {
  uint64_t counted = 0;
  ~Tally() { expected_events += counted; }
  void count() {
    percpu_inc(events);
    ++counted;
  }
};

void on_storm(int) {
  const int saved_errno = errno;
  percpu_add(events, 3);
  handled.fetch_add(1, std::memory_order_relaxed);
  void *area = percpu_alloc_flags(24, 8, PERCPU_ATOMIC | PERCPU_NOWARN);
  if (area != nullptr) percpu_free(area);
  errno = saved_errno;
}

void check_copies(const Parcel &parcel) {
  const unsigned char *copy;
  percpu_for_each_copy(copy, static_cast<const unsigned char *>(parcel.what)) {
    for (uint32_t i = 0; i < parcel.size_bytes; ++i) EXPECT(copy[i] == parcel.mark);
  }
}

void open_parcel(Parcel *parcel) {
  if (parcel == nullptr) return;
  if (parcel->is_area) {
    check_copies(*parcel);
    if (parcel->mark % 8 == 0) {
      percpu_free_rcu(parcel->what);
    } else {
      percpu_free(parcel->what);
    }
  } else {
    const auto *bytes = static_cast<unsigned char *>(parcel->what);
    for (uint32_t i = 0; i < parcel->size_bytes; i += 1 + parcel->size_bytes / 64) EXPECT(bytes[i] == parcel->mark);
    free(parcel->what);
  }
  delete parcel;
}

Parcel *new_parcel(std::mt19937_64 &random) {
  auto *parcel = new Parcel{};
  parcel->mark = static_cast<unsigned char>(1 + random() % 255);
  parcel->is_area = random() % 2 == 0;
  if (parcel->is_area) {
    parcel->size_bytes = 4 + static_cast<uint32_t>(random() % (random() % 16 == 0 ? 6000 : 120));
    parcel->what = percpu_alloc(parcel->size_bytes, size_t{4} << random() % 6);
    EXPECT(parcel->what != nullptr);
    unsigned char *copy;
    percpu_for_each_copy(copy, static_cast<unsigned char *>(parcel->what)) {
      for (uint32_t i = 0; i < parcel->size_bytes; ++i) EXPECT(copy[i] == 0);
      memset(copy, parcel->mark, parcel->size_bytes);
    }
  } else {
    parcel->size_bytes = 1 + static_cast<uint32_t>(random() % (random() % 64 == 0 ? 300'000 : 2000));
    parcel->what = malloc(parcel->size_bytes);
    EXPECT(parcel->what != nullptr);
    memset(parcel->what, parcel->mark, parcel->size_bytes);
  }
  return parcel;
}

// One round of everything that a thread does.
void one_round(std::mt19937_64 &random, Tally *tally) {
  for (int i = 0; i < 50; ++i) tally->count();
  for (int i = 0; i < 4; ++i) open_parcel(mailbox[random() % kMailboxes].exchange(new_parcel(random)));
}

void work(uint64_t seed) {
  std::mt19937_64 random(seed);
  Tally tally;
  percpu_domain_t *domain = percpu_domain_create("torture", size_t{4} << 20, nullptr);
  EXPECT(domain != nullptr);
  percpu_domain_set(domain);
  while (!stop) {
    one_round(random, &tally);
    percpu_free(percpu_alloc_flags(40, 8, PERCPU_ACCOUNT | PERCPU_NOWARN));
  }
  percpu_domain_set(nullptr);
  percpu_domain_put(domain);
}

void give_birth(uint64_t seed) {
  std::mt19937_64 random(seed);
  while (!stop) {
    std::vector<std::thread> lives;
    const size_t count = 1 + random() % 12;
    for (size_t i = 0; i < count; ++i) {
      lives.emplace_back([own = random()] {
        std::mt19937_64 mine(own);
        if (mine() % 8 == 0) (void)leave_rseq();
        Tally tally;
        for (uint64_t rounds = mine() % 6; rounds-- > 0;) one_round(mine, &tally);
      });
    }
    for (std::thread &life : lives) life.join();
  }
}

// In a child, which has this thread only.
[[noreturn]] void live_as_child(uint64_t seed, int generation) {
  std::mt19937_64 random(seed);
  alarm(storm::kHangSeconds);  // a child that hangs is a finding, not a wait for ever
  const uint64_t before = percpu_sum(events);
  for (int i = 0; i < 100; ++i) percpu_inc(events);
  EXPECT(percpu_sum(events) == before + 100);
  for (int i = 0; i < 20; ++i) open_parcel(new_parcel(random));
  std::thread([&] {
    for (int i = 0; i < 20; ++i) open_parcel(new_parcel(random));
  }).join();
  if (generation < 2) {
    const pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) live_as_child(random(), generation + 1);
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child);
    EXPECT(status == 0);
  }
  percpu_balance();
  percpu_pool_check(percpu_pool_default());
  _exit(0);
}

void beget(uint64_t seed, std::atomic<uint64_t> *forks) {
  std::mt19937_64 random(seed);
  sigset_t storm, before;
  sigemptyset(&storm);
  sigaddset(&storm, SIGUSR1);
  while (!stop) {
    // The child's count is its own; signals would add to it.
    pthread_sigmask(SIG_BLOCK, &storm, &before);
    const uint64_t own = random();
    const pid_t child = fork();
    EXPECT(child >= 0);
    if (child == 0) live_as_child(own, 0);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    int status = -1;
    while (waitpid(child, &status, 0) < 0) EXPECT(errno == EINTR);
    EXPECT(status == 0);
    ++*forks;
  }
}

void open_and_close(std::vector<const char *> paths, uint64_t seed) {
  std::mt19937_64 random(seed);
  while (!stop) {
    void *library = dlopen(paths[random() % paths.size()], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) fprintf(stderr, "%s\n", dlerror());
    EXPECT(library != nullptr);
    const auto face = reinterpret_cast<plugin_face_function>(dlsym(library, "plugin_face"))();
    const auto begun = percpu_sum(face->count());
    face->work(100);
    EXPECT(percpu_sum(face->count()) == begun + 100);
    EXPECT(dlclose(library) == 0);
  }
}

void ask(uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<char> text(1 << 16);
  uint64_t last = 0;
  while (!stop) {
    const percpu_stats stats = storm::stats_of(percpu_pool_default());
    EXPECT(stats.nr_live == stats.nr_allocs - stats.nr_frees);
    const uint64_t sum = percpu_sum(events);
    EXPECT(sum >= last);  // counts only grow
    last = sum;
    percpu_report(static_cast<percpu_report_kind>(random() % 3), text.data(), text.size());
    if (random() % 64 == 0) percpu_pool_check(percpu_pool_default());
    (void)mallinfo2();
    if (random() % 256 == 0) malloc_trim(0);
    usleep(200);
  }
}

void balance() {
  while (!stop) {
    percpu_balance();
    std::this_thread::yield();
  }
}

size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  size_t pages = 0;
  statm >> pages >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// What the process holds at its least over a second: between the waves.
size_t level() {
  size_t least = SIZE_MAX;
  for (int i = 0; i < 50; ++i) {
    least = std::min(least, resident_bytes());
    usleep(20'000);
  }
  return least;
}

}  // namespace

int main(int argc, char **argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 10;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  fflush(stdout);
  storm::on_signal(on_storm);
  events = static_cast<uint64_t *>(percpu_alloc(sizeof *events, 8));
  EXPECT(events != nullptr);
  const uint64_t live_before = storm::stats_of(percpu_pool_default()).nr_live;

  std::atomic<uint64_t> forks{0};
  std::vector<std::thread> workers;
  for (uint64_t t = 0; t < 4; ++t) workers.emplace_back(work, seed + t);
  std::vector<pthread_t> victims;
  for (std::thread &worker : workers) victims.push_back(worker.native_handle());
  size_t early = 0, late = 0;
  {
    storm::Storm blows(victims, seed + 100, {true, true, 200});
    // Made while the storm's signal is blocked here: they have no handler of theirs interrupted, which the workers have.
    std::vector<std::thread> others;
    others.emplace_back(give_birth, seed + 10);
    others.emplace_back(beget, seed + 11, &forks);
    others.emplace_back(ask, seed + 12);
    others.emplace_back(balance);
    if (argc > 2) others.emplace_back(open_and_close, std::vector<const char *>(argv + 2, argv + argc), seed + 13);
    const storm::Deadline first(seconds / 10), end(seconds);
    while (!first.passed()) usleep(10'000);
    early = level();
    while (!end.passed() || forks == 0 || handled == 0) usleep(10'000);
    late = level();
    blows.end();
    stop = true;
    for (std::thread &other : others) other.join();
  }
  for (std::thread &worker : workers) worker.join();
  for (auto &box : mailbox) open_parcel(box.exchange(nullptr));

  const uint64_t sum = percpu_sum(events);
  EXPECT(sum == expected_events.load() + 3 * handled.load());
  EXPECT(storm::eventually([&] {
    percpu_balance();
    return storm::stats_of(percpu_pool_default()).nr_live <= live_before;
  }));
  percpu_pool_check(percpu_pool_default());
  printf("%" PRIu64 " events, %" PRIu64 " signals handled, %" PRIu64 " forks; resident %zu MiB early, %zu MiB late\n", sum,
         handled.load(), forks.load(), early >> 20, late >> 20);
  if (!kSanitized) EXPECT(late <= early + early / 4 + kMargin);
  return 0;
}
