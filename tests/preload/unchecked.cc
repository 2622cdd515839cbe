// SPDX-License-Identifier: MIT
//
// Under the preload with PERCPU_CONF=check:off: what free() no longer looks at, and what is told all the same.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

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
    // The class has a cache on this CPU once it was asked for and given back.
    for (int i = 0; i < 100; ++i) free(opaque(malloc(100)));
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
  // 8: the thread moved to another CPU in between.
  CHECK((WEXITSTATUS(status) == 7 || WEXITSTATUS(status) == 8));
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
