// SPDX-License-Identifier: MIT
//
// What allocation costs, beside what else there is (alloc_subjects.h). Each row is measured by all subjects in turn, round
// after round; printed are medians in ns, of one allocation and its free unless the row says otherwise.
//
//   size/B        B bytes, 2 units: taken and given back at once
//   align/B       64 bytes aligned to B
//   live/N        8 bytes while N others live
//   units/N       8 bytes in N units. The copies of CPUs that may not run us (all but those of this machine) are backed only
//                 where a program writes to them; here nobody does
//   written/N     the same, each copy written to before it is freed (not timed): all units are backed and to be zeroed.
//                 64 areas taken, then freed; CPU time of the process, background threads included, of taking and freeing
//   memset/N      beside it: the bytes of as many areas set to zero by memset() of each copy
//   burst/N       32 areas taken, then freed, then a pause (not timed) as programs have it; the median burst
//   threads/T     pairs by T threads at once, each on a CPU of its own as far as there are some; ns a pair of one thread
//   stack/N queue/N random/N    N areas live; the last, the first, a random one is freed, one is taken
//   holes/N       N areas taken, every second freed in random order, and taken again: one free and one allocation
//
// Options: --json FILE (json_rows.h), --quick, --only PART: rows whose name contains PART.
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <ctime>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <thread>
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

template <class S>
Sample live(std::shared_ptr<S> subject, size_t count) {
  (void)filled(*subject, count);
  return pair(subject, 2);
}

template <class S>
void write_all(S& subject, const std::vector<void*>& items, unsigned units) {
  for (void* item : items) {
    for (unsigned unit = 0; unit < units; unit++) *reinterpret_cast<volatile uint64_t*>(subject.copy(item, unit)) = 1;
  }
}

constexpr size_t kWritten = 64;

template <class S>
Sample take_written(std::shared_ptr<S> subject, unsigned units) {
  return [=] {
    // What other threads do meanwhile, and shortly afterwards, counts; writing does not.
    const double begun = seconds(CLOCK_PROCESS_CPUTIME_ID);
    double written = 0;
    const size_t rounds = std::max<size_t>(20 / scale, 2);
    for (size_t round = 0; round < rounds; round++) {
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

template <class S>
Sample memset_of_written(std::shared_ptr<S> subject, unsigned units) {
  const std::vector<void*> items = filled(*subject, kWritten);
  return [=] {
    double spent = 0;
    const size_t rounds = std::max<size_t>(20 / scale, 2);
    for (size_t round = 0; round < rounds; round++) {
      write_all(*subject, items, units);
      const double before = seconds(CLOCK_THREAD_CPUTIME_ID);
      for (void* item : items) {
        for (unsigned unit = 0; unit < units; unit++) {
          char* at = subject->copy(item, unit);
          std::memset(at, 0, 8);
          __asm__ volatile("" ::"r"(at) : "memory");
        }
      }
      spent += seconds(CLOCK_THREAD_CPUTIME_ID) - before;
    }
    return spent * 1e9 / static_cast<double>(rounds * kWritten);
  };
}

template <class S>
Sample burst(std::shared_ptr<S> subject) {
  return [=] {
    constexpr size_t kBurst = 32;
    void* items[kBurst];
    // Their median: one burst takes some microseconds, and a neighbour who has the processor for a millisecond meanwhile would
    // be most of a mean.
    std::vector<double> spent(std::max<size_t>(10 / scale, 3));
    for (double& burst : spent) {
      // A program that comes back to its work finds its caches cold; once round beforehand, so that these are not measured.
      for (int timed_one = 0; timed_one < 2; timed_one++) {
        const double before = seconds(CLOCK_MONOTONIC);
        for (void*& item : items) item = subject->take();
        for (void* item : items) subject->give(item);
        burst = seconds(CLOCK_MONOTONIC) - before;
        const double until = seconds(CLOCK_MONOTONIC) + 25e-3;
        while (seconds(CLOCK_MONOTONIC) < until) usleep(500);
      }
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
  bool percpu_only = false;
};

std::vector<Row> all_rows() {
  std::vector<Row> rows;
  const auto add = [&](std::string name, Subject::Shape shape, auto begin, bool percpu_only = false) {
    rows.push_back({std::move(name), [=](const std::string& subject) { return Subject::with<Sample>(subject, shape, begin); },
                    percpu_only});
  };
  for (const size_t bytes : {8, 64, 256, 4096}) {
    add("size/" + std::to_string(bytes), {bytes, 8, 2}, [](auto subject) { return pair(subject, 2); });
  }
  for (const size_t align : {8, 64, 4096}) {
    add("align/" + std::to_string(align), {64, align, 2}, [](auto subject) { return pair(subject, 2); });
  }
  for (const size_t count : {100, 1000, 10000, 100000, 1000000, 10000000}) {
    add("live/" + std::to_string(count), {8, 8, 2}, [=](auto subject) { return live(subject, count); }, count > 1000000);
  }
  for (const unsigned units : {2u, 64u, 256u}) {
    const std::string n = std::to_string(units);
    add("units/" + n, {8, 8, units}, [=](auto subject) { return pair(subject, units); });
    add("written/" + n, {8, 8, units}, [=](auto subject) { return take_written(subject, units); });
    add("memset/" + n, {8, 8, units}, [=](auto subject) { return memset_of_written(subject, units); });
    add("burst/" + n, {8, 8, units}, [](auto subject) { return burst(subject); });
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

}  // namespace

int main(int argc, char** argv) {
  make_room_for_jemalloc(argv);
  JsonRows json(&argc, argv);
  size_t rounds = 9;
  std::string only;
  for (int i = 1; i < argc; i++) {
    const std::string option = argv[i];
    if (option == "--quick") {
      rounds = 3;
      scale = 5;
    } else if (option == "--only" && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr, "bench_alloc: expected --quick, --only PART or --json FILE, found '%s'\n", argv[i]);
      return 2;
    }
  }
  std::printf("%-18s", "ns");
  for (const char* subject : kSubjects) std::printf(" %12s", subject);
  std::printf("   (medians of %zu rounds in turn; a dash: not here)\n", rounds);
  for (const Row& row : all_rows()) {
    if (row.name.find(only) == std::string::npos) continue;
    std::map<std::string, Sample> samples;
    for (const char* name : kSubjects) {
      if (row.percpu_only && std::strcmp(name, "percpu") != 0) continue;
      if (Sample sample = row.begin(name)) samples[name] = std::move(sample);
    }
    std::map<std::string, std::vector<double>> found;
    for (auto& [name, sample] : samples) (void)sample();  // warms up
    for (size_t round = 0; round < rounds; round++) {
      for (auto& [name, sample] : samples) found[name].push_back(sample());
    }
    std::printf("%-18s", row.name.c_str());
    for (const char* name : kSubjects) {
      if (found.count(name) == 0) {
        std::printf(" %12s", "-");
        continue;
      }
      std::printf(" %12.1f", median(found[name]));
      json.add(row.name + " " + name, "ns", found[name]);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return json.write() ? 0 : 1;
}
