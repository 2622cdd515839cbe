// SPDX-License-Identifier: MIT
//
// Which memory limit holds, and what is left under it: from files as kernels and containers show them.
#include "preload/heap/memory_limit.h"

#include <doctest/doctest.h>

#include <errno.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace percpu::heap {
namespace {

constexpr uint64_t kMega = 1 << 20;

// Files by path; each open one is what is left to read of it.
std::map<std::string, std::string> files;
std::vector<std::string> open_files;
size_t piece = 4096;  // what a read gives at most
int opens_left = -1;   // so many more find a descriptor; negative: all
int no_descriptor = -EMFILE;

const System& fake_system() {
  static System fake = real_system();
  fake.open = [](const char* path) {
    if (opens_left == 0) return no_descriptor;
    if (opens_left > 0) opens_left--;
    const auto found = files.find(path);
    if (found == files.end()) return -ENOENT;
    open_files.push_back(found->second);
    return static_cast<int>(open_files.size()) - 1;
  };
  fake.read = [](int file, void* buffer, size_t size_bytes) -> ssize_t {
    std::string& rest = open_files[static_cast<size_t>(file)];
    size_t got = rest.size() < size_bytes ? rest.size() : size_bytes;
    if (got > piece) got = piece;
    memcpy(buffer, rest.data(), got);
    rest.erase(0, got);
    return static_cast<ssize_t>(got);
  };
  fake.close = [](int) { return 0; };
  return fake;
}

MemoryLimit found() {
  MemoryLimit limit;
  REQUIRE(limit.find(fake_system()));
  return limit;
}

MemoryLimit::Room look(MemoryLimit& limit) {
  MemoryLimit::Room room{1, 1};
  REQUIRE(limit.look(fake_system(), &room));
  return room;
}

MemoryLimit::Room look_at_found() {
  MemoryLimit limit = found();
  return look(limit);
}

TEST_CASE("version 2: the tightest of all levels, high before max") {
  files = {
      {"/proc/self/cgroup", "0::/a/b\n"},
      {"/proc/self/mountinfo", "22 21 0:20 / / rw - ext4 /dev/root rw\n30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"},
      {"/sys/fs/cgroup/a/b/memory.max", "max\n"},
      {"/sys/fs/cgroup/a/b/memory.high", "104857600\n"},
      {"/sys/fs/cgroup/a/b/memory.current", "10485760\n"},
      {"/sys/fs/cgroup/a/memory.max", "209715200\n"},
      {"/sys/fs/cgroup/a/memory.high", "max\n"},
      {"/sys/fs/cgroup/a/memory.current", "157286400\n"},
  };
  for (piece = 1; piece <= 4096; piece *= 16) {
    MemoryLimit limit = found();
    REQUIRE(limit.any());
    CHECK(std::string(limit.directory()) == "/sys/fs/cgroup/a/b");
    files["/sys/fs/cgroup/a/memory.current"] = "157286400\n";
    MemoryLimit::Room room = look(limit);
    CHECK(room.limit_bytes == 200 * kMega);
    CHECK(room.left_bytes == 50 * kMega);
    files["/sys/fs/cgroup/a/memory.current"] = "10485760\n";
    room = look(limit);
    CHECK(room.limit_bytes == 100 * kMega);
    CHECK(room.left_bytes == 90 * kMega);
  }
  piece = 4096;
}

TEST_CASE("the process's main thread has ended: its own file of mounts is not there") {
  files = {
      {"/proc/self/cgroup", "0::/a\n"},
      {"/proc/thread-self/mountinfo", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
      {"/sys/fs/cgroup/a/memory.max", "104857600\n"},
      {"/sys/fs/cgroup/a/memory.current", "10485760\n"},
  };
  CHECK(look_at_found().limit_bytes == 100 * kMega);
}

TEST_CASE("page cache counts as left: all of the inactive, half of the active") {
  files = {
      {"/proc/self/cgroup", "0::/\n"},
      {"/proc/self/mountinfo", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 none rw\n"},
      {"/sys/fs/cgroup/memory.max", "104857600\n"},
      {"/sys/fs/cgroup/memory.current", "104857600\n"},
      {"/sys/fs/cgroup/memory.stat", "anon 5\nfile 31457280\ninactive_file 20971520\nactive_file 10485760\n"},
  };
  MemoryLimit limit = found();
  CHECK(look(limit).left_bytes == 25 * kMega);
  files["/sys/fs/cgroup/memory.stat"] = "inactive_file 999999999999\n";
  CHECK(look(limit).left_bytes == 100 * kMega);
  files.erase("/sys/fs/cgroup/memory.stat");
  CHECK(look(limit).left_bytes == 0);
}

TEST_CASE("version 1, beside a version 2 without the controller; its word for no limit") {
  files = {
      {"/proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/job\n0::/elsewhere\n"},
      {"/proc/self/mountinfo",
       "31 30 0:27 / /cg/systemd rw - cgroup cgroup rw,name=systemd\n32 30 0:28 / /cg/mem rw - cgroup cgroup rw,cpu,memory\n"
       "33 30 0:29 / /cg/unified rw - cgroup2 cgroup2 rw\n"},
      {"/cg/mem/job/memory.limit_in_bytes", "67108864\n"},
      {"/cg/mem/job/memory.usage_in_bytes", "62914560\n"},
      {"/cg/mem/job/memory.stat", "inactive_file 1\ntotal_inactive_file 1048576\ntotal_active_file 0\n"},
      {"/cg/mem/memory.limit_in_bytes", "9223372036854771712\n"},
  };
  MemoryLimit limit = found();
  REQUIRE(limit.any());
  const MemoryLimit::Room room = look(limit);
  CHECK(room.limit_bytes == 64 * kMega);
  CHECK(room.left_bytes == 5 * kMega);
  files["/cg/mem/job/memory.limit_in_bytes"] = "9223372036854771712\n";
  CHECK_FALSE(found().any());
}

TEST_CASE("in a container the mount shows a part of the tree, or the path lies outside") {
  files = {
      {"/proc/self/cgroup", "0::/docker/abc/job\n"},
      {"/proc/self/mountinfo", "30 22 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"},
      {"/sys/fs/cgroup/job/memory.max", "1048576\n"},
      {"/sys/fs/cgroup/job/memory.current", "0\n"},
  };
  CHECK(std::string(found().directory()) == "/sys/fs/cgroup/job");
  CHECK(look_at_found().limit_bytes == kMega);
  for (const char* outside : {"0::/../other\n", "0::/docker/abcd\n", "0::/docker/abc\n"}) {
    files["/proc/self/cgroup"] = outside;
    CHECK(std::string(found().directory()) == "/sys/fs/cgroup");
  }
}

TEST_CASE("where nothing can be read, there is no limit") {
  files = {};
  CHECK_FALSE(found().any());
  CHECK(look_at_found().limit_bytes == kNoLimit);
  files = {{"/proc/self/cgroup", "0::/\n"}};
  CHECK_FALSE(found().any());
  files["/proc/self/mountinfo"] = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
  CHECK_FALSE(found().any());
  files["/sys/fs/cgroup/memory.max"] = "104857600\n";
  CHECK(found().any());
  CHECK(look_at_found().limit_bytes == kNoLimit);  // what is used is not told
}

TEST_CASE("without a descriptor nothing is known: neither that there is no limit, nor how much is left") {
  files = {
      {"/proc/self/cgroup", "0::/a\n"},
      {"/proc/self/mountinfo", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
      {"/sys/fs/cgroup/a/memory.max", "104857600\n"},
      {"/sys/fs/cgroup/a/memory.current", "83886080\n"},
      {"/sys/fs/cgroup/a/memory.stat", "inactive_file 1048576\n"},
  };
  for (const int error : {-EMFILE, -ENFILE, -ENOMEM}) {
    no_descriptor = error;
    MemoryLimit limit = found();
    for (opens_left = 0; opens_left < 6;) {  // two, and two files of each of two levels
      const int before = opens_left;
      CAPTURE(before);
      CHECK_FALSE(limit.find(fake_system()));
      CHECK(limit.any());
      CHECK(std::string(limit.directory()) == "/sys/fs/cgroup/a");
      opens_left = before + 1;
    }
    CHECK(limit.find(fake_system()));
    MemoryLimit::Room room{7, 7};
    for (opens_left = 0; opens_left < 2;) {
      const int before = opens_left;
      CHECK_FALSE(limit.look(fake_system(), &room));
      CHECK(room.left_bytes == 7);
      opens_left = before + 1;
    }
    CHECK(limit.look(fake_system(), &room));
    CHECK(room.left_bytes == 21 * kMega);
    opens_left = -1;
  }
}

TEST_CASE("a limit that was found holds when its files cannot be read any more, and is found anew when they can") {
  const std::map<std::string, std::string> all = {
      {"/proc/self/cgroup", "0::/a\n"},
      {"/proc/self/mountinfo", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"},
      {"/sys/fs/cgroup/a/memory.max", "104857600\n"},
      {"/sys/fs/cgroup/a/memory.current", "41943040\n"},
  };
  files = all;
  MemoryLimit limit = found();
  CHECK(look(limit).left_bytes == 60 * kMega);
  const auto expect_unknown = [&limit](const char* how) {
    CAPTURE(how);
    MemoryLimit::Room room{7, 7};
    CHECK_FALSE(limit.find(fake_system()));
    CHECK_FALSE(limit.look(fake_system(), &room));
    CHECK(room.left_bytes == 7);
    CHECK(std::string(limit.directory()) == "/sys/fs/cgroup/a");
  };
  files = {};
  expect_unknown("chroot to nothing");
  files = {{"/proc/self/cgroup", all.at("/proc/self/cgroup")}, {"/proc/self/mountinfo", "22 21 0:20 / / rw - ext4 /dev/root rw\n"}};
  expect_unknown("chroot to where only /proc is");
  files = all;
  for (const int error : {-EACCES, -EPERM, -ENOSYS}) {
    no_descriptor = error;
    opens_left = 0;
    expect_unknown("a sandbox");
    opens_left = -1;
  }
  CHECK(limit.find(fake_system()));
  CHECK(look(limit).left_bytes == 60 * kMega);
  // What could never be read is no reason not to look: here what an ancestor uses.
  files["/sys/fs/cgroup/memory.max"] = "209715200\n";
  CHECK(limit.find(fake_system()));
  CHECK(look(limit).left_bytes == 60 * kMega);
  files.erase("/sys/fs/cgroup/memory.max");
  // Moved to a group without a limit, which goes.
  files["/proc/self/cgroup"] = "0::/\n";
  files.erase("/sys/fs/cgroup/a/memory.max");
  files.erase("/sys/fs/cgroup/a/memory.current");
  CHECK(limit.find(fake_system()));
  CHECK_FALSE(limit.any());
}

TEST_CASE("lines that are too long are passed over, files that are no such files too") {
  const std::string tail = "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
  for (size_t length = 900; length < 3300; length += 100) {
    files = {{"/proc/self/cgroup", "0::/\n"},
             {"/proc/self/mountinfo", "23 22 0:20 / /" + std::string(length, 'x') + " rw - overlay overlay rw\n" + tail},
             {"/sys/fs/cgroup/memory.max", "104857600\n"}};
    CAPTURE(length);
    CHECK(found().any());
  }
  for (const char* text : {"", "\n", "::::", "a b c\n", "1 2 3 4 5 6 -\n", "1 2 3 / / rw - cgroup2\n"}) {
    files["/proc/self/mountinfo"] = text;
    CHECK_FALSE(found().any());
    files["/proc/self/cgroup"] = text;
    CHECK_FALSE(found().any());
  }
}

}  // namespace
}  // namespace percpu::heap
