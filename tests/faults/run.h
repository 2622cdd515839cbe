// SPDX-License-Identifier: MIT
//
// One run of a program under ptrace, with all its threads and children, in which one system call of the libraries' fails, or none.
#ifndef PERCPU_TESTS_FAULTS_RUN_H
#define PERCPU_TESTS_FAULTS_RUN_H

#include <sys/types.h>

#include <climits>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "calls.h"

namespace faults {

constexpr unsigned kRunSeconds = 600;

// What all runs have in common.
struct Program {
  std::vector<std::string> libraries;  // whose calls: how the names of their files begin
  size_t depth = 1;                    // how many return addresses in the libraries name a site
  std::string spared;                  // the name of a call that never fails: for a control
  char** command = nullptr;
};

// A site is where a call comes from: its name, and the innermost return addresses in the libraries that lie on the stack. Where an
// old address lies among them it is taken for one, so a site may have several names.
using Sites = std::set<std::string>;

// Which call fails, and how.
struct Fault {
  long at = LONG_MAX;  // the n-th call
  std::string site;    // the first one from there instead; empty: wherever it comes from
  int which_error = 0;
};

class Run {
 public:
  Run(const Program& program, const Fault& fault) : program_(program), fault_(fault) {}

  // Returns the program's wait status; -1: it did not end.
  int run();

  // How many calls could have failed, and where they came from; of the sites, those before the fault.
  long nr_calls() const { return count_; }
  const Sites& sites() const { return sites_; }
  // Calls of the libraries' of which no list knows.
  const Sites& unknown() const { return unknown_; }

  bool failed() const { return failed_ != nullptr; }
  const std::string& failed_site() const { return failed_site_; }
  const char* failed_name() const { return failed_ == nullptr ? "none" : failed_->name; }
  // Whether the call was to give memory back.
  bool failed_to_give() const { return failed_to_give_; }
  // What failed, for people.
  const std::string& what() const { return what_; }
  // Whether the call that failed has another errno to try.
  bool has_more_errors() const {
    return failed_ != nullptr && fault_.which_error + 1 < kMostErrors && failed_->errors[fault_.which_error + 1] != 0;
  }

 private:
  struct Task {
    bool inside = false;  // a system call, between its entry and its exit
    bool maps_code = false;
    int pending_error = 0;
  };
  struct Code {
    uint64_t begin, end;
    uint64_t offset;  // of `begin` in the file
    std::string file;
    enum class Whose { kLibraries, kLiburcu, kLinker } whose;
  };

  void find_code(pid_t process);
  const Code* code_at(uint64_t address) const;
  bool is_in(uint64_t address, Code::Whose whose) const;
  std::string site_of(pid_t task, const Call& call, const std::string& name);
  bool is_to_fail(const std::string& site);
  void at_entry(pid_t task, Task* state);
  void at_exit(pid_t task, Task* state);
  void follow(pid_t task, int status);

  const Program& program_;
  const Fault fault_;
  long count_ = 0;
  bool over_ = false;  // the program asked for its parent: no more faults
  const CallErrors* failed_ = nullptr;
  bool failed_to_give_ = false;
  std::string failed_site_;
  std::string what_ = "nothing";
  Sites sites_;
  Sites unknown_;
  bool code_is_known_ = false;
  std::vector<Code> code_;
  std::map<pid_t, Task> tasks_;
};

}  // namespace faults

#endif
