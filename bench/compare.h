// SPDX-License-Identifier: MIT
//
// Benchmarks that are compared with each other in one run. Google Benchmark runs each of them several times, in random
// order, so that what else the machine does falls on all alike; this gathers the times, and prints medians with their spread
// and the ratios that were asked for. A ratio of medians of interleaved runs holds where single times do not.
//
// Options besides Google Benchmark's: --json FILE (json_rows.h), and --quick for shorter and fewer runs.
#ifndef PERCPU_BENCH_COMPARE_H
#define PERCPU_BENCH_COMPARE_H

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "json_rows.h"

class Comparison {
 public:
  using Body = std::function<void(benchmark::State&)>;

  // Adds a benchmark; the order of adding is the order of the table.
  benchmark::internal::Benchmark* add(const std::string& name, Body body) {
    names_.push_back(name);
    benchmarks_.push_back(benchmark::RegisterBenchmark(name.c_str(), std::move(body)));
    return benchmarks_.back();
  }
  // One whose body measures long enough by itself: one iteration a repetition.
  benchmark::internal::Benchmark* add_once(const std::string& name, Body body) {
    benchmark::internal::Benchmark* added = add(name, std::move(body))->Iterations(1);
    once_.push_back(added);
    return added;
  }
  // Asks for the ratio of two of them.
  void ratio(std::string over, std::string under) { ratios_.emplace_back(std::move(over), std::move(under)); }

  // Runs all. Takes Google Benchmark's options and ours. Returns the exit status.
  int run(int argc, char** argv) {
    std::vector<char*> arguments(argv, argv + argc);
    arguments.push_back(nullptr);
    JsonRows json(&argc, arguments.data());
    arguments.resize(static_cast<size_t>(argc));
    const auto quick = std::find_if(arguments.begin() + 1, arguments.end(),
                                    [](const char* argument) { return std::strcmp(argument, "--quick") == 0; });
    if (quick != arguments.end()) {
      arguments.erase(quick);
      repetitions_ = 3;
      seconds_ = 0.005;
    }
    for (benchmark::internal::Benchmark* one : benchmarks_) {
      one->Repetitions(repetitions_);
      if (std::find(once_.begin(), once_.end(), one) == once_.end()) one->MinTime(seconds_);
    }
    char interleave[] = "--benchmark_enable_random_interleaving=true";
    arguments.insert(arguments.begin() + 1, interleave);
    int count = static_cast<int>(arguments.size());
    arguments.push_back(nullptr);
    benchmark::Initialize(&count, arguments.data());
    if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 2;
    Reporter reporter(*this);
    benchmark::RunSpecifiedBenchmarks(&reporter);
    print();
    for (const std::string& name : names_)
      if (!times_[name].empty()) json.add(name, "ns", times_[name]);
    return json.write() ? 0 : 1;
  }

 private:
  class Reporter : public benchmark::ConsoleReporter {
   public:
    explicit Reporter(Comparison& comparison) : ConsoleReporter(OO_None), comparison_(comparison) {}
    bool ReportContext(const Context&) override { return true; }
    void ReportRuns(const std::vector<Run>& runs) override {
      for (const Run& run : runs) {
        if (run.run_type != Run::RT_Iteration) continue;
        // The benchmark's own clock where it has one, else the CPU time of its thread.
        const bool own_clock = run.run_name.time_type == "manual_time";
        comparison_.times_[run.run_name.function_name].push_back(own_clock ? run.GetAdjustedRealTime()
                                                                           : run.GetAdjustedCPUTime());
      }
    }

   private:
    Comparison& comparison_;
  };

  double median(const std::string& name) {
    std::vector<double>& times = times_[name];
    if (times.empty()) return 0;
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
  }

  void print() {
    std::printf("\n%-28s %10s %10s %10s   (ns, %d interleaved runs)\n", "", "median", "min", "max", repetitions_);
    for (const std::string& name : names_) {
      const double middle = median(name);
      if (times_[name].empty()) continue;
      std::printf("%-28s %10.2f %10.2f %10.2f\n", name.c_str(), middle, times_[name].front(), times_[name].back());
    }
    std::printf("\n");
    for (const auto& [over, under] : ratios_) {
      if (times_[over].empty() || times_[under].empty()) continue;
      std::printf("%-28s / %-28s %6.2f\n", over.c_str(), under.c_str(), median(over) / median(under));
    }
  }

  int repetitions_ = 9;
  double seconds_ = 0.05;
  std::vector<std::string> names_;
  std::vector<benchmark::internal::Benchmark*> benchmarks_, once_;
  std::vector<std::pair<std::string, std::string>> ratios_;
  std::map<std::string, std::vector<double>> times_;
};

#endif  // PERCPU_BENCH_COMPARE_H
