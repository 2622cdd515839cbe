// SPDX-License-Identifier: MIT
//
// Makes each system call fail that a program's copy of libpercpu or of the preload makes: one call in each run of the program.
// Nothing of the libraries is changed for it: the program runs under ptrace, with all its threads and children (run.h).
//
//   syscall_faults [--first N] [--step N] [--errors one|all] [--sites DEPTH] [--spare CALL] [--expect passed|held|sites]
//                  LIBRARY... -- PROGRAM [ARGUMENT...]
//
// Which call fails:
//   1 none, kUndisturbed times: how many calls there are, where they come from, and what the program holds (scenario.h).
//   2 the n-th, for each n from --first by --step. The runs of one program differ: one has 270 calls, another 300, and the n-th of
//     one is not the n-th of another. So this ends when n is beyond the most that were seen, and kUnreached runs in a row did not
//     come to n.
//   3 with --sites the first call of each site that 1 has and 2 did not fail. A site is the call's name and the innermost DEPTH
//     return addresses in the libraries. One that most runs of 1 have, and that never failed, is a finding. (One that few have may
//     not come again.)
//
// A system call is a library's when one of the return addresses that lie on top of the stack (or, on arm64, in the link register)
// is in LIBRARY (how a mapped file's name begins: "libpercpu" is both). What the program does after its first getppid() is left
// alone: there it sees whether everything is in order again, and by FAULTS_HELD whether it holds no more than in the runs without
// faults. It must exit with status 0; a signal, any other status, or kRunSeconds without an end is a finding. (kHoldsMemory is none
// where the call was to give memory back.)
//
// Each call fails as it can fail on a real system (kErrors); --errors all tries every errno of its row, else the first one. A
// call that cannot fail, or whose failure nobody could survive, is passed over (kPassedOver), and close, which closes the file
// even where it fails, as a call that is left out does not; so are those that liburcu makes for the library, since it ends the
// program itself where its membarrier or its mmap fails. A call of which neither list knows is a finding.
//
// Controls: --expect held passes if every run of 2 and 3 ended with kHoldsMore or kHoldsMemory, where the program leaves something
// behind on purpose; --expect sites if of all sites those of CALL, which --spare never makes fail, are told.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "calls.h"
#include "run.h"

namespace faults {
namespace {

// The program's status (scenario.h).
constexpr int kHoldsMore = 3;
constexpr int kHoldsMemory = 4;
constexpr int kUndisturbed = 5;
constexpr int kMostOfThem = 3;
constexpr int kUnreached = 5;
// How many runs may wait for a site to come again. One that comes in a run of 30 is in three of five, and then in none of a
// hundred, once in 80,000 times; what comes more often, or less, still more seldom.
constexpr int kTries = 100;
constexpr int kTriesForRareOnes = 10;

std::string tell(int status) {
  if (status == -1) return "it did not end within " + std::to_string(kRunSeconds) + " s";
  if (WIFSIGNALED(status)) return std::string("signal ") + strsignal(WTERMSIG(status));
  return "exit status " + std::to_string(WEXITSTATUS(status));
}

bool is_exit(int status, int code) { return status >= 0 && WIFEXITED(status) && WEXITSTATUS(status) == code; }

class Sweep {
 public:
  Sweep(const Program& program, bool all_errors) : program_(program), all_errors_(all_errors) {}

  // Returns whether they passed.
  bool run_undisturbed();
  void fail_each(long first, long step);
  void fail_sites();
  // The program's exit status.
  int conclude(const std::string& expected);

 private:
  struct Site {
    int runs = 0;  // undisturbed ones that have it
    bool failed = false;
  };

  bool is_spared(const std::string& site) const { return site.compare(0, program_.spared.size() + 1, program_.spared + " ") == 0; }
  void finding(const std::string& text);
  void look_at(const std::string& name, const Run& run, int status);
  bool fail(Fault fault, const std::string& name);
  void fail_site(const std::string& name, const Site& site);

  const Program& program_;
  const bool all_errors_;
  std::map<std::string, Site> sites_;
  std::map<std::string, long> by_call_;
  Sites unknown_;
  long most_calls_ = 0;
  long nr_failed_ = 0;
  long nr_held_ = 0;  // runs that ended with kHoldsMore or kHoldsMemory
  long nr_runs_ = 0;  // but for the undisturbed
  long findings_ = 0;
  bool sites_count_ = false;
};

void Sweep::finding(const std::string& text) {
  ++findings_;
  printf("%s\n", text.c_str());
  fflush(stdout);
}

void Sweep::look_at(const std::string& name, const Run& run, int status) {
  unknown_.insert(run.unknown().begin(), run.unknown().end());
  if (!run.failed()) most_calls_ = std::max(most_calls_, run.nr_calls());
  nr_held_ += is_exit(status, kHoldsMore) || is_exit(status, kHoldsMemory);
  const bool excused = run.failed_to_give() && is_exit(status, kHoldsMemory);
  if (status != 0 && !excused) finding(name + ", " + run.what() + ": " + tell(status));
}

bool Sweep::run_undisturbed() {
  setenv("FAULTS_LEARN", "1", 1);
  for (int i = 0; i < kUndisturbed; ++i) {
    Run run(program_, {});
    const int status = run.run();
    look_at("without any fault", run, status);
    for (const std::string& site : run.sites()) ++sites_[site].runs;
  }
  unsetenv("FAULTS_LEARN");
  return findings_ == 0;
}

// Returns whether there was such a call.
bool Sweep::fail(Fault fault, const std::string& name) {
  for (int missed = 0;;) {
    Run run(program_, fault);
    const int status = run.run();
    ++nr_runs_;
    look_at(name, run, status);
    if (!run.failed()) {
      // A call that was there may be missing in another run: for the sake of its other errors it is waited for.
      if (fault.which_error == 0) return false;
      if (++missed == kTriesForRareOnes) return true;
      continue;
    }
    missed = 0;
    ++nr_failed_;
    ++by_call_[run.failed_name()];
    if (const auto site = sites_.find(run.failed_site()); site != sites_.end()) site->second.failed = true;
    if (!all_errors_ || !run.has_more_errors()) return true;
    ++fault.which_error;
  }
}

void Sweep::fail_each(long first, long step) {
  int unreached = 0;
  for (long n = first; n <= most_calls_ || unreached < kUnreached; n += step)
    unreached = fail({.at = n, .site = "", .which_error = 0}, "call " + std::to_string(n)) ? 0 : unreached + 1;
}

void Sweep::fail_site(const std::string& name, const Site& site) {
  const int tries = site.runs >= kMostOfThem ? kTries : kTriesForRareOnes;
  for (int i = 0; i < tries && !site.failed; ++i) (void)fail({.at = LONG_MAX, .site = name, .which_error = 0}, "call of a site");
}

void Sweep::fail_sites() {
  sites_count_ = true;
  for (const auto& [name, site] : sites_) {
    if (!site.failed && !is_spared(name)) fail_site(name, site);
  }
}

int Sweep::conclude(const std::string& expected) {
  for (const std::string& call : unknown_) finding(call + ": neither in kErrors nor in kPassedOver");
  const long others = findings_;
  long nr_sites = 0;
  long spared = 0;
  long missing = 0;
  for (const auto& [name, site] : sites_) {
    nr_sites += site.failed;
    if (!sites_count_ || site.failed) continue;
    if (site.runs < kMostOfThem) {
      printf("not met again, in %d runs of %d: %s\n", site.runs, kUndisturbed, name.c_str());
      continue;
    }
    finding("never made to fail: " + name);
    ++(is_spared(name) ? spared : missing);
  }
  printf("%ld faults at %ld of %zu sites, up to %ld calls in a run, %ld findings;", nr_failed_, nr_sites, sites_.size(),
         most_calls_, findings_);
  for (const auto& [name, count] : by_call_) printf(" %s %ld", name.c_str(), count);
  printf("\n");
  // A run in which nothing could fail proves nothing.
  if (nr_failed_ == 0) printf("expected calls of the libraries to fail, found none\n");
  if (nr_failed_ == 0) return 1;
  if (expected == "held") return nr_held_ == nr_runs_ && unknown_.empty() ? 0 : 1;
  if (expected == "sites") return spared > 0 && missing == 0 && others == 0 ? 0 : 1;
  return findings_ == 0 ? 0 : 1;
}

[[noreturn]] void usage() {
  fprintf(stderr,
          "usage: syscall_faults [--first N] [--step N] [--errors one|all] [--sites DEPTH] [--spare CALL]\n"
          "                      [--expect passed|held|sites] LIBRARY... -- PROGRAM [ARGUMENT...]\n");
  exit(2);
}

long number_of(const char* text) {
  char* end = nullptr;
  const long value = text == nullptr ? 0 : strtol(text, &end, 10);
  if (value < 1 || *end != 0) usage();
  return value;
}

}  // namespace
}  // namespace faults

int main(int argc, char** argv) {
  using namespace faults;
  Program program;
  long first = 1;
  long step = 1;
  std::string errors = "one";
  std::string expected = "passed";
  bool with_sites = false;
  int i = 1;
  for (; i < argc && strcmp(argv[i], "--") != 0; ++i) {
    const std::string word = argv[i];
    if (word.compare(0, 2, "--") != 0) {
      program.libraries.push_back(word);
      continue;
    }
    if (i + 1 == argc) usage();
    const char* value = argv[++i];
    if (word == "--first") {
      first = number_of(value);
    } else if (word == "--step") {
      step = number_of(value);
    } else if (word == "--sites") {
      with_sites = true;
      program.depth = static_cast<size_t>(number_of(value));
    } else if (word == "--errors") {
      errors = value;
    } else if (word == "--spare") {
      program.spared = value;
    } else if (word == "--expect") {
      expected = value;
    } else {
      usage();
    }
  }
  const bool known = (errors == "one" || errors == "all") && (expected == "passed" || expected == "held" || expected == "sites");
  if (!known || program.libraries.empty() || i + 1 >= argc) usage();
  program.command = argv + i + 1;

  char held[] = "/tmp/syscall_faults-XXXXXX";
  const int held_file = mkstemp(held);
  if (held_file < 0) {
    perror("syscall_faults: mkstemp");
    return 1;
  }
  setenv("FAULTS_HELD", held, 1);
  Sweep sweep(program, errors == "all");
  if (sweep.run_undisturbed()) {
    sweep.fail_each(first, step);
    if (with_sites) sweep.fail_sites();
  }
  close(held_file);
  unlink(held);
  return sweep.conclude(expected);
}
