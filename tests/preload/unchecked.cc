// SPDX-License-Identifier: MIT
//
// Under the preload with PERCPU_CONF=check:off: what free() no longer looks at, and what is told all the same.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

namespace {

template <class T>
T opaque(T value) {
  volatile T hidden = value;
  return hidden;
}

// What the child wrote on stderr, and how it ended.
template <class Act>
std::string ended(Act act, int* status) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(SIGABRT, SIG_DFL);
    dup2(ends[1], 2);
    _exit(act());
  }
  close(ends[1]);
  std::string text;
  char buffer[1024];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  REQUIRE(waitpid(child, status, 0) == child);
  return text;
}

}  // namespace

TEST_CASE("a small block freed twice in a row is not told: it is handed out twice") {
  int status = 0;
  const std::string text = ended([] {
    // On one CPU, so that one stack is meant.
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(static_cast<size_t>(sched_getcpu()), &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) return 9;
    // Half of what this CPU's stack of the class has held is taken: it has room. (A full one goes the checked way.)
    void* held[256];
    for (void*& each : held) each = opaque(malloc(100));
    for (void* each : held) free(opaque(each));
    for (int i = 0; i < 128; ++i) held[i] = opaque(malloc(100));
    void* block = malloc(100);
    free(opaque(block));
    free(opaque(block));
    void* first = opaque(malloc(100));
    void* second = opaque(malloc(100));
    return first == block && second == block ? 7 : 8;
  }, &status);
  INFO(text);
  CHECK(text.empty());
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 7);
}

TEST_CASE("what does not come by the caches is told as ever") {
  int status = 0;
  int local = 0;
  std::string text = ended([&] { return free(opaque<void*>(&local)), 0; }, &status);
  CHECK(WTERMSIG(status) == SIGABRT);
  CHECK(text.find("not a block of this heap") != std::string::npos);
  text = ended([] {
    void* block = malloc(1000000);
    free(opaque(block));
    free(opaque(block));
    return 0;
  }, &status);
  CHECK(WTERMSIG(status) == SIGABRT);
  CHECK(text.find("freed already") != std::string::npos);
}
