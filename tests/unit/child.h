// SPDX-License-Identifier: MIT
//
// Runs a piece of a test in a forked child, or this test binary anew, and tells how it ended and what it wrote to stderr.
#ifndef PERCPU_TESTS_CHILD_H
#define PERCPU_TESTS_CHILD_H

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <string>
#include <vector>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../patience.h"

namespace percpu {

struct ChildEnd {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string standard_error;
};

// The exit code of a child whose body threw; it says on stderr what.
inline constexpr int kThrew = 125;

using patience::kHangSeconds;

// As alarm(), by a signal that cannot be blocked: liburcu blocks all signals before it takes its locks.
inline void die_after(unsigned seconds) {
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGKILL;
  itimerspec time{};
  time.it_value.tv_sec = static_cast<time_t>(seconds);
  timer_t timer;
  if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &time, nullptr) != 0) abort();
}

// `body` returns the exit code, or does not return.
template <class Body>
ChildEnd run_in_child(Body body) {
  int pipe_ends[2];
  if (pipe(pipe_ends) != 0) abort();
  fflush(nullptr);
  pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    signal(SIGABRT, SIG_DFL);  // not the test harness's
    signal(SIGSEGV, SIG_DFL);
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    try {
      _exit(body());
    } catch (const std::exception& thrown) {
      dprintf(STDERR_FILENO, "the child's body threw: %s\n", thrown.what());
    } catch (...) {
      dprintf(STDERR_FILENO, "the child's body threw\n");
    }
    _exit(kThrew);  // it must not go on with the other tests
  }
  close(pipe_ends[1]);
  ChildEnd end;
  char buffer[512];
  for (ssize_t got; (got = read(pipe_ends[0], buffer, sizeof buffer)) > 0;)
    end.standard_error.append(buffer, static_cast<size_t>(got));
  close(pipe_ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status)) end.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
  return end;
}

// Executes this binary again for one test case (also one that is skipped by default), with "NAME=value" added to the
// environment. exit_code 0: it passed; 126: there is no such test case.
inline ChildEnd run_again(const char* test_case, const std::vector<std::string>& environment) {
  ChildEnd end = run_in_child([&] {
    for (const std::string& entry : environment) putenv(const_cast<char*>(entry.c_str()));
    dup2(STDERR_FILENO, STDOUT_FILENO);  // what the harness prints is the parent's to show
    std::string name = std::string("--test-case=") + test_case;
    execl("/proc/self/exe", "/proc/self/exe", name.c_str(), "--no-skip", "--no-colors", static_cast<char*>(nullptr));
    return 127;
  });
  if (end.exit_code == 0 && end.standard_error.find("test cases: 1 |") == std::string::npos) end.exit_code = 126;
  return end;
}

}  // namespace percpu

#endif  // PERCPU_TESTS_CHILD_H
