// SPDX-License-Identifier: MIT
//
// Everything that programs do to the library, at once and without rest, in one process:
//
//   workers    count, allocate, free what others allocated, malloc and free blocks of each other; are moved and signalled
//   lives      threads that are born, do all that for a moment, and die, signalled until they are gone; half of them move themselves
//              from CPU to CPU, some unregister from rseq first
//   handlers   count, and allocate and free atomically, wherever a signal finds a thread
//   children   are forked in the middle of it, allocate, free, count, fork again, and must end well
//   modules    with static per-CPU variables are opened, counted in, and closed
//   balance    runs in a loop
//   questions  statistics, reports and checks are asked for in a loop
//
// usage: torture SECONDS [MODULE...]      (PERCPU_SEED is the seed)
//
// In the end the sum of all counts is exact, and so are the numbers of areas allocated and alive (ledger.h); no area and no domain is left,
// every block held what was written to it, and the memory that the process holds, and what malloc has given out of it, is what it was
// after a first tenth of the time, but for a margin (under ASan, which keeps freed memory, they are only printed).
#include "expect.h"
#include "leave_rseq.h"
#include "ledger.h"
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
#include "../as_told.h"

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

// By how many bytes the levels may rise. In 18 runs of 10 to 60 s on 2 CPUs, half of them under the preload, what was resident rose by 4.4
// MiB at most, in half of them by less than 1; what was in use by 0.2. Each CPU has caches of its own.
constexpr size_t kResidentMarginOfCpu = size_t{4} << 20;
constexpr size_t kInUseMargin = size_t{2} << 20;
constexpr int kMailboxes = 512;
constexpr size_t kMostDomains = 4095;

std::atomic<bool> stop{false};
uint64_t *events;                         // per CPU: counted by everybody, handlers included
std::atomic<uint64_t> expected_events{0};  // what the sum must be
std::atomic<uint64_t> handled{0}, handled_by_lives{0};
thread_local bool is_life = false;
storm::Ledger *ledger;  // of the default pool

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
  if (is_life) handled_by_lives.fetch_add(1, std::memory_order_relaxed);
  void *area = percpu_alloc_flags(24, 8, PERCPU_ATOMIC | PERCPU_NOWARN);
  if (area != nullptr) {
    ledger->note_alloc();
    percpu_free(area);
  }
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
    ledger->note_alloc();
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
    void *area = percpu_alloc_flags(40, 8, PERCPU_ACCOUNT | PERCPU_NOWARN);
    if (area == nullptr) continue;
    ledger->note_alloc();
    percpu_free(area);
  }
  percpu_domain_set(nullptr);
  percpu_domain_put(domain);
}

sigset_t storm_signal() {
  sigset_t signal;
  sigemptyset(&signal);
  sigaddset(&signal, SIGUSR1);
  return signal;
}

void live(uint64_t seed, const std::vector<int> &cpus) {
  std::mt19937_64 random(seed);
  is_life = true;
  if (random() % 8 == 0) (void)leave_rseq();  // before a handler uses it
  const sigset_t signal = storm_signal();
  pthread_sigmask(SIG_UNBLOCK, &signal, nullptr);
  const bool moves = random() % 2 == 0;
  Tally tally;
  for (uint64_t rounds = random() % 6; rounds-- > 0;) {
    if (moves) storm::pin(pthread_self(), cpus[random() % cpus.size()]);
    one_round(random, &tally);
  }
}

void give_birth(uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<int> cpus = storm::allowed_cpus();
  while (!stop) {
    std::vector<std::thread> lives;
    std::atomic<size_t> nr_left{1 + random() % 12};
    for (size_t i = nr_left; i > 0; --i) {
      lives.emplace_back([&nr_left, &cpus, own = random()] {
        live(own, cpus);
        --nr_left;
      });
    }
    while (nr_left != 0) {
      pthread_kill(lives[random() % lives.size()].native_handle(), SIGUSR1);
      usleep(static_cast<useconds_t>(random() % 50));
    }
    // Once more, in the middle of their death.
    for (std::thread &life : lives) pthread_kill(life.native_handle(), SIGUSR1);
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
  const sigset_t signal = storm_signal();
  sigset_t before;
  while (!stop) {
    // The child's count is its own; signals would add to it.
    pthread_sigmask(SIG_BLOCK, &signal, &before);
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
    ledger->note_alloc();  // its variables
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
    ledger->check_meanwhile();
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

// How many domains can be made until one is refused. They are put back.
size_t nr_domains_to_be_had() {
  std::vector<percpu_domain_t *> domains;
  while (percpu_domain_t *domain = percpu_domain_create("one of all", PERCPU_NO_LIMIT, nullptr)) domains.push_back(domain);
  EXPECT(errno == ENOMEM);
  for (percpu_domain_t *domain : domains) percpu_domain_put(domain);
  return domains.size();
}

size_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  size_t pages = 0;
  statm >> pages >> pages;
  return pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// What the process holds, and what malloc has given out, at their least over a second: between the waves.
struct Level {
  size_t resident_bytes = SIZE_MAX, in_use_bytes = SIZE_MAX;

  static Level now() {
    Level least;
    for (int i = 0; i < 50; ++i) {
      const auto in_use = mallinfo2();
      least.resident_bytes = std::min(least.resident_bytes, ::resident_bytes());
      least.in_use_bytes = std::min(least.in_use_bytes, in_use.uordblks + in_use.hblkhd);
      usleep(20'000);
    }
    return least;
  }
  bool is_level_with(const Level &before) const {
    return resident_bytes <= before.resident_bytes + storm::allowed_cpus().size() * kResidentMarginOfCpu &&
           in_use_bytes <= before.in_use_bytes + kInUseMargin;
  }
};

}  // namespace

int main(int argc, char **argv) {
  expect_preload_as_told();
  const double seconds = argc > 1 ? atof(argv[1]) : 10;
  const uint64_t seed = storm::seed();
  printf("PERCPU_SEED=%" PRIu64 "\n", seed);
  fflush(stdout);
  events = static_cast<uint64_t *>(percpu_alloc(sizeof *events, 8));
  EXPECT(events != nullptr);
  storm::Ledger all_allocs(percpu_pool_default());
  ledger = &all_allocs;
  storm::on_signal(on_storm);

  std::atomic<uint64_t> forks{0};
  std::vector<std::thread> workers;
  for (uint64_t t = 0; t < 4; ++t) workers.emplace_back(work, seed + t);
  std::vector<pthread_t> victims;
  for (std::thread &worker : workers) victims.push_back(worker.native_handle());
  Level early, late;
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
    early = Level::now();
    while (!end.passed() || forks == 0 || handled == 0 || handled_by_lives == 0) usleep(10'000);
    // What is resident goes up and comes down again; what leaks stays.
    (void)storm::eventually([&] {
      late = Level::now();
      return kSanitized || late.is_level_with(early);
    });
    blows.end();
    stop = true;
    for (std::thread &other : others) other.join();
  }
  for (std::thread &worker : workers) worker.join();
  for (auto &box : mailbox) open_parcel(box.exchange(nullptr));

  const uint64_t sum = percpu_sum(events);
  EXPECT(sum == expected_events.load() + 3 * handled.load());
  all_allocs.check_at_rest();
  EXPECT(storm::eventually([] {
    percpu_balance();
    return nr_domains_to_be_had() == kMostDomains;
  }));
  percpu_pool_check(percpu_pool_default());
  printf("%" PRIu64 " events, %" PRIu64 " signals handled, %" PRIu64 " of them by threads that die, %" PRIu64
         " forks\n",
         sum, handled.load(), handled_by_lives.load(), forks.load());
  printf("KiB early and late: resident %zu and %zu, in use %zu and %zu\n", early.resident_bytes >> 10, late.resident_bytes >> 10,
         early.in_use_bytes >> 10, late.in_use_bytes >> 10);
  if (!kSanitized) {
    EXPECT(late.is_level_with(early));
  }
  return 0;
}
