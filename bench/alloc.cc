// SPDX-License-Identifier: MIT
//
// What allocation costs, beside what else there is (alloc_subjects.h). Each row is measured by all subjects in turn, round
// after round, every second time the other way round, in a process of its own; printed are medians in ns, of one allocation
// and its free unless the row says otherwise.
//
//   size/B             B bytes, 2 units: taken and given back at once
//   align/B            64 bytes aligned to B
//   live/N             8 bytes while N others live
//   live_random/N      200,000 areas of 8 bytes taken while N others live, then freed in random order: three times what our caches
//                      and shelf hold (runtime/shelf.h), so that the maps of all areas are reached
//   units/N            8 bytes in N units. The copies of CPUs that may not run us (all but those of this machine) are backed only
//                      where a program writes to them; here nobody does
//   sustained/N        the same, each copy written to before it is freed (not timed): all units are backed and to be zeroed.
//                      64 areas taken, then freed, again and again for half a second without a pause; CPU time of the process,
//                      background threads included, of taking and freeing
//   memset/N           beside it: the bytes of as many areas set to zero where they lie, by a memset() of each copy, area by area
//   memset_copies/N    the same copy by copy: one CPU's bytes of all areas, then the next CPU's
//   memset_contiguous/N  as many bytes in one piece, by one memset()
//   burst/N            32 areas taken, then freed, after a pause asleep (not timed) as programs have it; the median burst
//   warm_burst/N       the same after a pause spent spinning, and 16 areas taken and freed right before (not timed)
//   threads/T          pairs by T threads at once, each on a CPU of its own as far as there are some; ns a pair of one thread, by the
//                      wall's clock: with more threads than CPUs they wait for each other
//   stack/N queue/N random/N    N areas live; the last, the first, a random one is freed, one is taken
//   holes/N            N areas taken, every second freed in random order, and taken again: one free and one allocation
//
// Options: --json FILE (json_rows.h), --quick, --only PART: rows whose name contains PART; --row NAME: that row (both may be given
// more than once), --subject NAME: no others; --list: the names of all rows.
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <ctime>
#include <deque>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <map>
#include <numeric>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "alloc_subjects.h"
#include "json_rows.h"

namespace {

double seconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

size_t scale = 1;  // --quick: all counts of operations divided by it

// Runs `body` some thousand times and says what one costs, ns of the thread's CPU time.
template <class Body>
double timed(size_t count, Body body) {
  count = std::max<size_t>(count / scale, 1);
  const double before = seconds(CLOCK_THREAD_CPUTIME_ID);
  for (size_t i = 0; i < count; i++) body();
  return (seconds(CLOCK_THREAD_CPUTIME_ID) - before) * 1e9 / static_cast<double>(count);
}

// A way to take one sample, with all that it needs.
using Sample = std::function<double()>;

size_t affordable(unsigned units) { return units > 2 ? 20000 : 200000; }

template <class S>
Sample pair(std::shared_ptr<S> subject, unsigned units) {
  subject->give(subject->take());
  return [=] { return timed(affordable(units), [&] { subject->give(subject->take()); }); };
}

template <class S>
std::vector<void*> filled(S& subject, size_t count) {
  std::vector<void*> items(count);
  for (void*& item : items) item = subject.take();
  return items;
}

// Areas that live as long as a row is measured.
template <class S>
Sample live(std::shared_ptr<S> subject, size_t count) {
  (void)filled(*subject, count);
  return pair(subject, 2);
}

template <class S>
Sample live_random(std::shared_ptr<S> subject, size_t count) {
  constexpr size_t kTaken = 200000;
  (void)filled(*subject, count);
  auto order = std::make_shared<std::vector<size_t>>(kTaken);
  std::iota(order->begin(), order->end(), size_t{0});
  std::minstd_rand random(1);
  std::shuffle(order->begin(), order->end(), random);
  auto items = std::make_shared<std::vector<void*>>(kTaken);
  return [=] {
    const double sample = timed(1, [&] {
      for (void*& item : *items) item = subject->take();
      for (const size_t i : *order) subject->give((*items)[i]);
    });
    return sample / static_cast<double>(kTaken);
  };
}

template <class S>
void write_all(S& subject, const std::vector<void*>& items, unsigned units) {
  for (void* item : items) {
    for (unsigned unit = 0; unit < units; unit++) *reinterpret_cast<volatile uint64_t*>(subject.copy(item, unit)) = 1;
  }
}

constexpr size_t kWritten = 64;

template <class S>
Sample sustained(std::shared_ptr<S> subject, unsigned units) {
  return [=] {
    // What other threads do meanwhile, and shortly afterwards, counts; writing does not.
    const double begun = seconds(CLOCK_PROCESS_CPUTIME_ID);
    const double end = seconds(CLOCK_MONOTONIC) + 0.5 / static_cast<double>(scale);
    double written = 0;
    size_t rounds = 0;
    for (; rounds < 2 || seconds(CLOCK_MONOTONIC) < end; rounds++) {
      std::vector<void*> items = filled(*subject, kWritten);
      const double before = seconds(CLOCK_THREAD_CPUTIME_ID);
      write_all(*subject, items, units);
      written += seconds(CLOCK_THREAD_CPUTIME_ID) - before;
      for (void* item : items) subject->give(item);
    }
    usleep(30000);
    const double spent = seconds(CLOCK_PROCESS_CPUTIME_ID) - begun - written;
    return spent * 1e9 / static_cast<double>(rounds * kWritten);
  };
}

enum class Bytes { kAreaByArea, kCopyByCopy, kContiguous };

void zero(char* at, size_t bytes) {
  std::memset(at, 0, bytes);
  __asm__ volatile("" ::"r"(at) : "memory");
}

template <class S>
Sample memset_of_written(std::shared_ptr<S> subject, unsigned units, Bytes bytes) {
  const std::vector<void*> items = filled(*subject, kWritten);
  auto piece = std::make_shared<std::vector<char>>(kWritten * units * 8);
  return [=] {
    double spent = 0;
    const size_t rounds = std::max<size_t>(200 / scale, 2);
    for (size_t round = 0; round < rounds; round++) {
      if (bytes == Bytes::kContiguous) std::memset(piece->data(), 1, piece->size());
      else write_all(*subject, items, units);
      const double before = seconds(CLOCK_THREAD_CPUTIME_ID);
      if (bytes == Bytes::kContiguous) {
        zero(piece->data(), piece->size());
      } else if (bytes == Bytes::kCopyByCopy) {
        for (unsigned unit = 0; unit < units; unit++)
          for (void* item : items) zero(subject->copy(item, unit), 8);
      } else {
        for (void* item : items)
          for (unsigned unit = 0; unit < units; unit++) zero(subject->copy(item, unit), 8);
      }
      spent += seconds(CLOCK_THREAD_CPUTIME_ID) - before;
    }
    return spent * 1e9 / static_cast<double>(rounds * kWritten);
  };
}

// Until an allocator that works in the background has done so.
void rest(bool asleep) {
  const double until = seconds(CLOCK_MONOTONIC) + 25e-3;
  while (seconds(CLOCK_MONOTONIC) < until)
    if (asleep) usleep(500);
}

template <class S>
Sample burst(std::shared_ptr<S> subject, bool warm) {
  return [=] {
    // Together fewer than an allocator is likely to have ready.
    constexpr size_t kBurst = 32, kBefore = 16;
    void* items[kBurst];
    const auto take_and_give = [&](size_t count) {
      for (size_t i = 0; i < count; i++) items[i] = subject->take();
      for (size_t i = 0; i < count; i++) subject->give(items[i]);
    };
    take_and_give(kBurst);
    // Their median: one burst takes some microseconds, and a neighbour who has the processor for a millisecond meanwhile would
    // be most of a mean.
    std::vector<double> spent(std::max<size_t>(6 / scale, 3));
    for (double& burst : spent) {
      rest(!warm);
      if (warm) take_and_give(kBefore);
      const double before = seconds(CLOCK_MONOTONIC);
      take_and_give(kBurst);
      burst = seconds(CLOCK_MONOTONIC) - before;
    }
    std::nth_element(spent.begin(), spent.begin() + static_cast<ptrdiff_t>(spent.size() / 2), spent.end());
    return spent[spent.size() / 2] * 1e9 / kBurst;
  };
}

template <class S>
Sample threads(std::shared_ptr<S> subject, unsigned count) {
  return [=] {
    std::atomic<unsigned> ready{0};
    std::vector<double> spent(count);
    std::vector<std::thread> running;
    const size_t pairs = 300000 / scale;
    for (unsigned t = 0; t < count; t++) {
      running.emplace_back([&, t] {
        cpu_set_t own;
        CPU_ZERO(&own);
        CPU_SET(t % static_cast<unsigned>(sysconf(_SC_NPROCESSORS_ONLN)), &own);
        (void)pthread_setaffinity_np(pthread_self(), sizeof own, &own);  // where it is not allowed, the scheduler places it
        subject->give(subject->take());
        ready.fetch_add(1);
        while (ready.load() < count) sched_yield();
        const double before = seconds(CLOCK_MONOTONIC);
        for (size_t i = 0; i < pairs; i++) subject->give(subject->take());
        spent[t] = seconds(CLOCK_MONOTONIC) - before;
      });
    }
    for (std::thread& thread : running) thread.join();
    double sum = 0;
    for (const double one : spent) sum += one;
    return sum / count * 1e9 / static_cast<double>(pairs);
  };
}

enum class Order { kStack, kQueue, kRandom };

template <class S>
Sample pattern(std::shared_ptr<S> subject, size_t count, Order order) {
  auto items = std::make_shared<std::deque<void*>>();
  for (size_t i = 0; i < count; i++) items->push_back(subject->take());
  auto random = std::make_shared<std::minstd_rand>(1);
  if (order == Order::kStack) {
    // Down and up again, so that what is freed is not what was just taken.
    return [=] {
      std::vector<void*> down(items->begin(), items->end());
      const double sample = timed(20, [&] {
        for (size_t i = down.size(); i-- > 0;) subject->give(down[i]);
        for (void*& item : down) item = subject->take();
      });
      items->assign(down.begin(), down.end());
      return sample / static_cast<double>(count);
    };
  }
  return [=] {
    return timed(100000, [&] {
      if (order == Order::kQueue) {
        subject->give(items->front());
        items->pop_front();
        items->push_back(subject->take());
      } else {
        void*& item = (*items)[(*random)() % items->size()];
        subject->give(item);
        item = subject->take();
      }
    });
  };
}

template <class S>
Sample holes(std::shared_ptr<S> subject, size_t count) {
  auto items = std::make_shared<std::vector<void*>>(filled(*subject, count));
  auto order = std::make_shared<std::vector<size_t>>();
  for (size_t i = 0; i < count; i += 2) order->push_back(i);
  std::minstd_rand random(1);
  std::shuffle(order->begin(), order->end(), random);
  return [=] {
    const double sample = timed(1, [&] {
      for (const size_t i : *order) subject->give((*items)[i]);
      for (const size_t i : *order) (*items)[i] = subject->take();
    });
    return sample / static_cast<double>(order->size());
  };
}

struct Row {
  std::string name;
  std::function<Sample(const std::string& subject)> begin;  // a Sample(): that subject is not here
  // Of all subjects together, beyond which the row is measured for percpu alone; 0: whatever it takes.
  double needed_bytes = 0;
  bool percpu_only = false;
  size_t rounds = 9;
};

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  const auto add = [&](std::string name, Subject::Shape shape, auto begin) -> Row& {
    return rows.emplace_back(
        Row{std::move(name), [=](const std::string& subject) { return Subject::with<Sample>(subject, shape, begin); }});
  };
  for (const size_t bytes : {8, 64, 256, 4096}) {
    add("size/" + std::to_string(bytes), {bytes, 8, 2}, [](auto subject) { return pair(subject, 2); });
  }
  for (const size_t align : {8, 64, 4096}) {
    add("align/" + std::to_string(align), {64, align, 2}, [](auto subject) { return pair(subject, 2); });
  }
  for (const bool random : {false, true}) {
    for (const size_t count : {100, 1000, 10000, 100000, 1000000, 10000000}) {
      const std::string name = (random ? "live_random/" : "live/") + std::to_string(count);
      Row& row = random ? add(name, {8, 8, 2}, [=](auto subject) { return live_random(subject, count); })
                        : add(name, {8, 8, 2}, [=](auto subject) { return live(subject, count); });
      // An area of ours and of librseq's takes 24 bytes or less, a padded array 144; and the list of them while they are made.
      if (count > 1000000) row.needed_bytes = 400.0 * static_cast<double>(count);
    }
  }
  for (const unsigned units : {2u, 64u, 256u}) {
    const std::string n = std::to_string(units);
    const Subject::Shape shape{8, 8, units};
    add("units/" + n, shape, [=](auto subject) { return pair(subject, units); });
    add("sustained/" + n, shape, [=](auto subject) { return sustained(subject, units); }).rounds = 3;
    add("memset/" + n, shape, [=](auto subject) { return memset_of_written(subject, units, Bytes::kAreaByArea); });
    add("memset_copies/" + n, shape, [=](auto subject) { return memset_of_written(subject, units, Bytes::kCopyByCopy); });
    add("memset_contiguous/" + n, shape, [=](auto subject) {
      return memset_of_written(subject, units, Bytes::kContiguous);
    }).percpu_only = true;  // nobody's bytes, so one column
    add("burst/" + n, shape, [](auto subject) { return burst(subject, false); });
    add("warm_burst/" + n, shape, [](auto subject) { return burst(subject, true); });
  }
  for (const unsigned count : {1u, 2u, 4u}) {
    add("threads/" + std::to_string(count), {8, 8, 2}, [=](auto subject) { return threads(subject, count); });
  }
  add("stack/1000", {8, 8, 2}, [](auto subject) { return pattern(subject, 1000, Order::kStack); });
  add("queue/1000", {8, 8, 2}, [](auto subject) { return pattern(subject, 1000, Order::kQueue); });
  add("random/1000", {8, 8, 2}, [](auto subject) { return pattern(subject, 1000, Order::kRandom); });
  add("random/100000", {8, 8, 2}, [](auto subject) { return pattern(subject, 100000, Order::kRandom); });
  add("holes/100000", {8, 8, 2}, [](auto subject) { return holes(subject, 100000); });
  return rows;
}

double median(std::vector<double> samples) {
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

// What the system says could be allocated without swapping; 0 where it says nothing.
double available_bytes() {
  std::FILE* file = std::fopen("/proc/meminfo", "r");
  if (file == nullptr) return 0;
  char line[128];
  double kib = 0;
  while (std::fgets(line, sizeof line, file) != nullptr && std::sscanf(line, "MemAvailable: %lf kB", &kib) != 1) continue;
  std::fclose(file);
  return kib * 1024;
}

using Found = std::map<std::string, std::vector<double>>;

// The samples of each of some subjects, in turn.
Found measure(const Row& row, const std::vector<std::string>& subjects, size_t rounds) {
  std::vector<std::pair<std::string, Sample>> samples;
  for (const std::string& name : subjects) {
    if (Sample sample = row.begin(name)) samples.emplace_back(name, std::move(sample));
  }
  Found found;
  for (auto& [name, sample] : samples) (void)sample();  // warms up
  for (size_t round = 0; round < rounds; round++) {
    for (auto& [name, sample] : samples) found[name].push_back(sample());
    std::reverse(samples.begin(), samples.end());
  }
  return found;
}

// The same in a child, so that each row starts from the same state, and leaves nothing to the next.
Found measure_apart(const Row& row, const std::vector<std::string>& subjects, size_t rounds) {
  int ends[2];
  if (pipe(ends) != 0) std::exit(1);
  const pid_t child = fork();
  if (child == 0) {
    std::FILE* told = fdopen(ends[1], "w");
    if (told == nullptr) _exit(1);
    for (const auto& [name, samples] : measure(row, subjects, rounds))
      for (const double sample : samples) std::fprintf(told, "%s %.9g\n", name.c_str(), sample);
    _exit(std::fclose(told) == 0 ? 0 : 1);
  }
  close(ends[1]);
  Found found;
  std::FILE* told = fdopen(ends[0], "r");
  char name[32];
  double sample = 0;
  while (told != nullptr && std::fscanf(told, "%31s %lf", name, &sample) == 2) found[name].push_back(sample);
  if (told != nullptr) std::fclose(told);
  int status = 0;
  if (child < 0 || told == nullptr || waitpid(child, &status, 0) != child || status != 0) {
    std::fprintf(stderr, "bench_alloc: %s: the process failed\n", row.name.c_str());
    std::exit(1);
  }
  return found;
}

struct Options {
  size_t most_rounds = 9;
  bool list = false;
  std::vector<std::string> parts, rows, subjects;

  // Returns false, having said why, when there is something that it does not know. Sets `scale` too.
  bool parse(int argc, char** argv) {
    const std::pair<const char*, std::vector<std::string>*> lists[] = {{"--only", &parts}, {"--row", &rows}, {"--subject", &subjects}};
    for (int i = 1; i < argc; i++) {
      const std::string option = argv[i];
      const auto* into = std::find_if(std::begin(lists), std::end(lists), [&](const auto& one) { return option == one.first; });
      if (into != std::end(lists) && i + 1 < argc) {
        into->second->push_back(argv[++i]);
      } else if (option == "--quick") {
        most_rounds = 3;
        scale = 10;
      } else if (option == "--list") {
        list = true;
      } else {
        std::fprintf(stderr,
                     "bench_alloc: expected --quick, --only PART, --row NAME, --subject NAME, --list or --json FILE, found '%s'\n", argv[i]);
        return false;
      }
    }
    return true;
  }

  bool wants(const std::string& name) const {
    const auto part_of = [&](const std::string& part) { return name.find(part) != std::string::npos; };
    return (parts.empty() && rows.empty()) || std::find(rows.begin(), rows.end(), name) != rows.end() ||
           std::any_of(parts.begin(), parts.end(), part_of);
  }
  bool compares(const std::string& subject) const {
    return subjects.empty() || std::find(subjects.begin(), subjects.end(), subject) != subjects.end();
  }
};

}  // namespace

int main(int argc, char** argv) {
  make_room_for_jemalloc(argv);
  JsonRows json(&argc, argv);
  Options options;
  if (!options.parse(argc, argv)) return 2;
  if (options.list) {
    for (const Row& row : all_rows()) std::printf("%s\n", row.name.c_str());
    return 0;
  }
  std::printf("%-22s", "ns");
  for (const char* subject : kSubjects) std::printf(" %12s", subject);
  std::printf("   (medians of up to %zu rounds in turn; a dash: not here)\n", options.most_rounds);
  std::fflush(stdout);
  for (const Row& row : all_rows()) {
    if (!options.wants(row.name)) continue;
    const bool percpu_only = row.percpu_only || row.needed_bytes > available_bytes() || (scale > 1 && row.needed_bytes > 0);
    std::vector<std::string> subjects;
    for (const std::string name : kSubjects)
      if (options.compares(name) && (!percpu_only || name == "percpu")) subjects.push_back(name);
    const Found found = measure_apart(row, subjects, std::min(row.rounds, options.most_rounds));
    std::printf("%-22s", row.name.c_str());
    for (const char* name : kSubjects) {
      const auto samples = found.find(name);
      if (samples == found.end()) {
        std::printf(" %12s", "-");
        continue;
      }
      std::printf(" %12.1f", median(samples->second));
      json.add(row.name + " " + name, "ns", samples->second);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return json.write() ? 0 : 1;
}
