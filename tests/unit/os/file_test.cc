// SPDX-License-Identifier: MIT
#include "os/file.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <unistd.h>

namespace percpu {
namespace {

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& content) {
    const int file = mkstemp(path_);
    REQUIRE(file >= 0);
    REQUIRE(write(file, content.data(), content.size()) == static_cast<ssize_t>(content.size()));
    close(file);
  }
  ~TemporaryFile() { unlink(path_); }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const char* path() const { return path_; }

 private:
  char path_[32] = "/tmp/percpu-file-XXXXXX";
};

std::vector<std::string> lines_of(const System& system, const std::string& content) {
  const TemporaryFile file(content);
  Lines lines(system, file.path());
  CHECK(lines.error() == 0);
  std::vector<std::string> all;
  while (const char* line = lines.next()) all.emplace_back(line);
  return all;
}

int interruptions = 0;
ssize_t interrupted_read(int file, void* buffer, size_t size_bytes) {
  if (interruptions-- > 0) return -EINTR;
  return real_system().read(file, buffer, size_bytes < 3 ? size_bytes : 3);  // little at a time, too
}

TEST_CASE("the beginning of a file is terminated, however long it is") {
  char text[6];
  CHECK(read_beginning(real_system(), TemporaryFile("abc").path(), text, sizeof text) == 3);
  CHECK(std::string(text) == "abc");
  CHECK(read_beginning(real_system(), TemporaryFile("abcdefgh").path(), text, sizeof text) == 5);
  CHECK(std::string(text) == "abcde");
  CHECK(read_beginning(real_system(), TemporaryFile("").path(), text, sizeof text) == 0);
  CHECK(std::string(text).empty());
  memset(text, 'x', sizeof text);
  CHECK(read_beginning(real_system(), "/does/not/exist", text, sizeof text) == -ENOENT);
  CHECK(std::string(text).empty());
  memset(text, 'x', sizeof text);
  CHECK(read_beginning(real_system(), "/tmp", text, sizeof text) == -EISDIR);
  CHECK(std::string(text).empty());
}

TEST_CASE("a read that a signal interrupts is made again, but not for ever") {
  System system = real_system();
  system.read = interrupted_read;
  const TemporaryFile file("123\n");
  char text[16];
  interruptions = kMaxRetries - 1;
  CHECK(read_beginning(system, file.path(), text, sizeof text) == 3);
  interruptions = kMaxRetries;
  CHECK(read_beginning(system, file.path(), text, sizeof text) == -EINTR);
  CHECK(std::string(text).empty());
  interruptions = 5;
  CHECK(lines_of(system, "one\ntwo\n") == std::vector<std::string>{"one", "two"});
}

TEST_CASE("a number at the beginning of a text") {
  CHECK(leading_number("0") == 0);
  CHECK(leading_number("007 pages") == 7);
  CHECK(leading_number("18446744073709551615\n") == UINT64_MAX);
  CHECK(leading_number("18446744073709551616") == std::nullopt);
  CHECK(leading_number("99999999999999999999") == std::nullopt);
  CHECK(leading_number("") == std::nullopt);
  CHECK(leading_number("max") == std::nullopt);
  CHECK(leading_number("-1") == std::nullopt);
  CHECK(leading_number(" 1") == std::nullopt);
}

TEST_CASE("lines: empty ones, one without an end, and those that are too long") {
  using Text = std::vector<std::string>;
  CHECK(lines_of(real_system(), "") == Text{});
  CHECK(lines_of(real_system(), "\n\na\n") == Text{"", "", "a"});
  CHECK(lines_of(real_system(), "a\nunfinished") == Text{"a"});
  // Around the size of the buffer: with their newlines 1023, 1024, 1025 bytes, and several buffers.
  for (const size_t length : {1022u, 1023u}) {
    const std::string line(length, 'l');
    CHECK(lines_of(real_system(), "a\n" + line + "\nb\n") == Text{"a", line, "b"});
    CHECK(lines_of(real_system(), line + "\n" + line + "\n") == Text{line, line});
  }
  for (const size_t length : {1024u, 1025u, 2047u, 2048u, 5000u}) {
    const std::string line(length, 'l');
    CHECK(lines_of(real_system(), "a\n" + line + "\nb\n") == Text{"a", "b"});
    CHECK(lines_of(real_system(), line + "\nb\n" + line + "\n") == Text{"b"});
  }
  std::string many;
  Text expected;
  for (int i = 0; i < 1000; i++) {
    expected.push_back(std::string(static_cast<size_t>(i % 97), static_cast<char>('a' + i % 26)));
    many += expected.back() + "\n";
  }
  CHECK(lines_of(real_system(), many) == expected);
  CHECK(Lines(real_system(), "/does/not/exist").error() == -ENOENT);
  CHECK(Lines(real_system(), "/does/not/exist").next() == nullptr);
}

}  // namespace
}  // namespace percpu
