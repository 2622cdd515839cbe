// SPDX-License-Identifier: MIT
//
// Under the preload: misuse stops the program by one line that says what was wrong and where. Each case runs in a child.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <malloc.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

extern "C" void free_sized(void*, size_t) __attribute__((weak));

namespace {

template <class T>
T opaque(T value) {
  volatile T hidden = value;
  return hidden;
}

// What the child wrote on stderr; it must have been stopped by abort().
template <class Act>
std::string stopped_by(Act act) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit none{0, 0};
    setrlimit(RLIMIT_CORE, &none);
    signal(SIGABRT, SIG_DFL);
    dup2(ends[1], 2);
    act();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char buffer[1024];
  for (ssize_t got; (got = read(ends[0], buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(got));
  close(ends[0]);
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGABRT);
  CHECK(text.find('\n') == text.size() - 1);
  return text;
}

bool says(const std::string& text, const char* what) {
  INFO(text);
  return text.find(what) != std::string::npos;
}

char* at(void* block, size_t offset) { return static_cast<char*>(opaque(block)) + offset; }

}  // namespace

TEST_CASE("a pointer to the stack") {
  int local = 0;
  const std::string text = stopped_by([&] { free(opaque<void*>(&local)); });
  CHECK(says(text, "not a block of this heap"));
}

TEST_CASE("a wild pointer") {
  const std::string text = stopped_by([] { free(opaque(reinterpret_cast<void*>(uintptr_t{0x10}))); });
  CHECK(says(text, "free(0x10): not a block of this heap"));
}

TEST_CASE("a pointer inside a small block, misaligned or not") {
  CHECK(says(stopped_by([] { free(at(malloc(100), 16)); }), "inside a block of 112 bytes, 16 behind its start"));
  CHECK(says(stopped_by([] { free(at(malloc(100), 3)); }), "inside a block of 112 bytes, 3 behind its start"));
}

TEST_CASE("a pointer inside a large block") {
  CHECK(says(stopped_by([] { free(at(malloc(1000000), 16)); }), "inside the large block"));
  CHECK(says(stopped_by([] { free(at(malloc(1000000), 8192)); }), "no block begins there"));
}

TEST_CASE("a small block freed twice in a row") {
  CHECK(says(stopped_by([] {
    void* block = malloc(100);
    free(opaque(block));
    free(opaque(block));
  }), "freed twice"));
}

TEST_CASE("a small block freed twice with another in between, told when the caches are given back") {
  CHECK(says(stopped_by([] {
    void* block = malloc(100);
    void* other = malloc(100);
    free(opaque(block));
    free(opaque(other));
    free(opaque(block));
    malloc_trim(0);
  }), "freed twice"));
}

TEST_CASE("a large block freed twice") {
  CHECK(says(stopped_by([] {
    void* block = malloc(1000000);
    free(opaque(block));
    free(opaque(block));
  }), "freed already"));
}

TEST_CASE("realloc of a freed large block") {
  CHECK(says(stopped_by([] {
    void* block = malloc(1000000);
    free(opaque(block));
    block = realloc(opaque(block), 10);
  }), "realloc"));
}

TEST_CASE("free_sized with a size of another class") {
  REQUIRE(free_sized != nullptr);
  CHECK(says(stopped_by([] { free_sized(malloc(100), 500); }), "the block has 112 bytes"));
}
