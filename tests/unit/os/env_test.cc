// SPDX-License-Identifier: MIT
#include "os/env.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include <unistd.h>

#include "../child.h"

namespace percpu {
namespace {

struct Read {
  std::string text;
  size_t len_bytes;
};

Read read_from(const char* const* environment, bool secure, size_t capacity_bytes = 64) {
  char buffer[64];
  memset(buffer, '#', sizeof buffer);
  size_t len = read_conf_from(environment, secure, buffer, capacity_bytes);
  return {buffer, len};
}

TEST_CASE("the variable is found among others, whole, and the first of two counts") {
  const char* environment[] = {"PATH=/bin", "PERCPU_CONFX=no", "PERCPU_CONF=a:1,b:2", "PERCPU_CONF=later", nullptr};
  Read read = read_from(environment, false);
  CHECK(read.text == "a:1,b:2");
  CHECK(read.len_bytes == 7);
}

TEST_CASE("an empty value, none, and no environment at all are an empty text") {
  const char* empty[] = {"PERCPU_CONF=", nullptr};
  const char* none[] = {"PERCPU_CON=x", "PERCPU_CONF", nullptr};
  CHECK(read_from(empty, false).text == "");
  CHECK(read_from(none, false).text == "");
  CHECK(read_from(nullptr, false).text == "");
  CHECK(read_from(nullptr, false).len_bytes == 0);
}

TEST_CASE("a program with more rights than its caller does not listen") {
  const char* environment[] = {"PERCPU_CONF=a:1", nullptr};
  CHECK(read_from(environment, true).text == "");
  CHECK(read_from(environment, true).len_bytes == 0);
}

TEST_CASE("a long value is cut to the buffer, and its length tells") {
  const char* environment[] = {"PERCPU_CONF=0123456789", nullptr};
  Read read = read_from(environment, false, 5);
  CHECK(read.text == "0123");
  CHECK(read.len_bytes == 10);
}

TEST_CASE("this process's own environment is read, and not after clearenv") {
  ChildEnd end = run_in_child([] {
    char buffer[64];
    setenv("PERCPU_CONF", "unit_size:64K", 1);
    if (read_conf(buffer, sizeof buffer) != 13 || strcmp(buffer, "unit_size:64K") != 0) return 1;
    clearenv();
    return read_conf(buffer, sizeof buffer) == 0 && buffer[0] == '\0' ? 0 : 2;
  });
  CHECK(end.exit_code == 0);
}

// Runs before main, as a library's constructor would.
__attribute__((constructor)) void read_in_constructor() {
  static char buffer[64];
  read_conf(buffer, sizeof buffer);
  setenv("PERCPU_TEST_SEEN_EARLY", buffer, 1);
}

TEST_CASE("reads in a constructor" * doctest::skip()) { CHECK(std::string(getenv("PERCPU_TEST_SEEN_EARLY")) == "x:1"); }

TEST_CASE("the variable can be read before main") {
  CHECK(run_again("reads in a constructor", {"PERCPU_CONF=x:1"}).exit_code == 0);
  CHECK(run_again("reads in a constructor", {"PERCPU_CONF=x:2"}).exit_code == 1);
}

}  // namespace
}  // namespace percpu
