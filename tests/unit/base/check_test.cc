// SPDX-License-Identifier: MIT
#include "base/check.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <string>

#include <fcntl.h>
#include <unistd.h>

#include "../child.h"

namespace percpu {
namespace {

TEST_CASE("fatal writes one line and aborts") {
  ChildEnd end = run_in_child([]() -> int { fatal("free of %p: not a handle", reinterpret_cast<void*>(0x1234)); });
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error == "libpercpu: free of 0x1234: not a handle\n");
}

TEST_CASE("a check that holds does nothing, and evaluates its condition once") {
  int evaluated = 0;
  PERCPU_CHECK(++evaluated == 1, "found %d", evaluated);
  CHECK(evaluated == 1);
}

TEST_CASE("a check that fails names the place, the condition, what was expected and what was found") {
  ChildEnd end = run_in_child([] {
    int found = 5;
    PERCPU_CHECK(found % 4 == 0, "a size must be a multiple of 4, found %d", found);
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error.find("libpercpu: ") == 0);
  CHECK(end.standard_error.find("check_test.cc:") != std::string::npos);
  CHECK(end.standard_error.find("broken invariant (found % 4 == 0): a size must be a multiple of 4, found 5\n") !=
        std::string::npos);
  CHECK(end.standard_error.find("../") == std::string::npos);
}

TEST_CASE("a report goes on, and keeps errno, even with stderr closed") {
  ChildEnd end = run_in_child([] {
    errno = EXDEV;
    report("%d pages", 3);
    report_raw("a\nb\n", 4);
    report_raw_to(dup(STDERR_FILENO), "c\n", 2);
    if (errno != EXDEV) return 1;
    close(STDERR_FILENO);
    report("into nothing");
    return errno == EXDEV ? 0 : 2;
  });
  CHECK(end.exit_code == 0);
  CHECK(end.standard_error == "libpercpu: 3 pages\na\nb\nc\n");
}

TEST_CASE("a line that is too long is cut, marked, and still one line") {
  ChildEnd end = run_in_child([] {
    std::string long_text(3 * kLineBytes, 'x');
    report("%s", long_text.c_str());
    return 0;
  });
  CHECK(end.exit_code == 0);
  CHECK(end.standard_error.size() == kLineBytes);
  CHECK(end.standard_error.substr(kLineBytes - 5) == "x...\n");
  CHECK(end.standard_error.find('\n') == kLineBytes - 1);
}

TEST_CASE("the last line comes out in a signal handler too") {
  ChildEnd end = run_in_child([] {
    signal(SIGUSR1, [](int number) { fatal("in handler %d", number); });
    raise(SIGUSR1);
    return 0;
  });
  CHECK(end.signal == SIGABRT);
  CHECK(end.standard_error == "libpercpu: in handler 10\n");
}

}  // namespace
}  // namespace percpu
