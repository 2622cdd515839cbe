// SPDX-License-Identifier: MIT
#include "preload/heap/memory_limit.h"

#include <errno.h>

#include <cstring>

#include "base/text.h"
#include "os/file.h"

namespace percpu::heap {
namespace {

// Cuts off what is in front of the separator. Null: there is no more.
char* cut(char** rest, char separator) {
  char* const start = *rest;
  if (start == nullptr) return nullptr;
  char* const end = strchr(start, separator);
  *rest = end == nullptr ? nullptr : end + 1;
  if (end != nullptr) *end = 0;
  return start;
}

bool lists(char* names, const char* name) {
  while (const char* item = cut(&names, ',')) {
    if (strcmp(item, name) == 0) return true;
  }
  return false;
}

// kNoLimit for "max", and for what is no number.
uint64_t to_number(const char* text) { return text == nullptr ? kNoLimit : leading_number(text).value_or(kNoLimit); }

// Version 1 says "no limit" by the largest multiple of a page.
bool is_limit(uint64_t bytes) { return bytes < uint64_t{1} << 60; }

}  // namespace

// One look at the files of the control group.
struct MemoryLimit::Look {
  const System& system;
  bool blind = false;  // what would have to be known was not told

  // There was no descriptor left, in the process or the system, or no memory. was_read: the file could be read before, and what cannot be
  // read any more (in a sandbox, after chroot) is no other than it was.
  void note(const Lines& file, bool was_read) {
    const int error = file.error();
    if (error == -EMFILE || error == -ENFILE || error == -ENOMEM || (was_read && error != 0 && error != -ENOENT)) blind = true;
  }
};

// Where the group is mounted: the mount's root stands for a part of the group's path, which is cut off. (In a container the
// file may name a path that is not visible inside it; the mount's root is its group then.)
bool MemoryLimit::find_directory(Look& look, bool was_found, size_t* mount_bytes) {
  char group[kPathBytes] = {};
  bool found = false;
  Lines groups(look.system, "/proc/self/cgroup");
  look.note(groups, was_found);
  while (char* line = groups.next()) {
    cut(&line, ':');
    char* const controllers = cut(&line, ':');
    if (line == nullptr || strlen(line) >= sizeof group) continue;
    const bool version_1 = lists(controllers, "memory");
    if (!version_1 && (found || *controllers != 0)) continue;
    found = true;
    version_1_ = version_1;
    memcpy(group, line, strlen(line) + 1);
    if (version_1) break;
  }
  if (!found) return false;

  // "36 35 98:0 ROOT POINT options [tags] - TYPE source SUPER-OPTIONS"
  Lines mounts(look.system, "/proc/self/mountinfo", "/proc/thread-self/mountinfo");  // the main thread may have ended
  look.note(mounts, was_found);
  while (char* line = mounts.next()) {
    for (int i = 0; i < 3; ++i) cut(&line, ' ');
    const char* root = cut(&line, ' ');
    const char* const point = cut(&line, ' ');
    const char* field = cut(&line, ' ');
    while (field != nullptr && strcmp(field, "-") != 0) field = cut(&line, ' ');
    const char* const type = cut(&line, ' ');
    cut(&line, ' ');
    char* const options = cut(&line, ' ');
    if (options == nullptr || strcmp(type, version_1_ ? "cgroup" : "cgroup2") != 0) continue;
    if (version_1_ && !lists(options, "memory")) continue;
    const size_t root_bytes = strcmp(root, "/") == 0 ? 0 : strlen(root);
    const bool inside = strncmp(group, root, root_bytes) == 0 && (group[root_bytes] == '/' || group[root_bytes] == 0) &&
                        strncmp(group, "/..", 3) != 0;
    const char* below = inside ? group + root_bytes : "";
    if (strcmp(below, "/") == 0) below = "";
    Text text(directory_);
    text.put(point);
    *mount_bytes = text.length_bytes();
    text.put(below);
    return !text.truncated();
  }
  return false;
}

uint64_t MemoryLimit::number_in(Look& look, uint32_t path_bytes, const char* file, bool was_read) const {
  char path[kPathBytes + 64];
  Text text(path);
  text.put(directory_, path_bytes).put('/').put(file);
  Lines lines(look.system, path);
  look.note(lines, was_read);
  return to_number(lines.next());
}

bool MemoryLimit::find(const System& system) {
  MemoryLimit now;
  Look look{system};
  now.find_levels(look, *this);
  if (look.blind) return false;
  *this = now;
  return true;
}

// The level of that path; null: that has no limit.
const MemoryLimit::Level* MemoryLimit::level_of(const char* path, uint32_t path_bytes) const {
  for (uint32_t i = 0; i < nr_levels_; ++i) {
    if (levels_[i].path_bytes == path_bytes && strncmp(directory_, path, path_bytes) == 0) return &levels_[i];
  }
  return nullptr;
}

void MemoryLimit::find_levels(Look& look, const MemoryLimit& before) {
  size_t mount_bytes = 0;
  if (!find_directory(look, before.any(), &mount_bytes)) {
    directory_[0] = 0;
    look.blind = look.blind || before.any();  // there is no /proc any more, or none that shows where groups are
    return;
  }
  for (size_t end = strlen(directory_); nr_levels_ < kMaxLevels;) {
    const uint32_t bytes = static_cast<uint32_t>(end);
    const Level* const known = before.level_of(directory_, bytes);
    uint64_t limit = number_in(look, bytes, version_1_ ? "memory.limit_in_bytes" : "memory.max", known != nullptr);
    if (!version_1_) {
      // Above this a group is slowed down without an end: as good as a limit.
      const uint64_t high = number_in(look, bytes, "memory.high", known != nullptr);
      if (high < limit) limit = high;
    }
    if (is_limit(limit)) levels_[nr_levels_++] = {bytes, limit, known != nullptr && known->usage_told};
    if (end <= mount_bytes) break;
    while (end > mount_bytes && directory_[end - 1] != '/') --end;
    if (end > mount_bytes) --end;
  }
}

uint64_t MemoryLimit::page_cache(Look& look, uint32_t path_bytes) const {
  char path[kPathBytes + 64];
  Text text(path);
  text.put(directory_, path_bytes).put("/memory.stat");
  uint64_t sum = 0;
  Lines lines(look.system, path);
  look.note(lines, false);  // without it nothing counts as left
  while (char* line = lines.next()) {
    // Version 1 has the group's own numbers, and those with its descendants'.
    const char* name = cut(&line, ' ');
    if (version_1_) {
      if (strncmp(name, "total_", 6) != 0) continue;
      name += 6;
    }
    const uint64_t bytes = to_number(line);
    if (bytes == kNoLimit) continue;
    if (strcmp(name, "inactive_file") == 0) sum += bytes;
    if (strcmp(name, "active_file") == 0) sum += bytes / 2;
  }
  return sum;
}

bool MemoryLimit::look(const System& system, Room* room) {
  Room least;
  Look look{system};
  for (uint32_t i = 0; i < nr_levels_; ++i) {
    Level& level = levels_[i];
    const uint64_t used = number_in(look, level.path_bytes, version_1_ ? "memory.usage_in_bytes" : "memory.current", level.usage_told);
    if (used == kNoLimit) {
      look.blind = look.blind || level.usage_told;
      continue;
    }
    level.usage_told = true;
    uint64_t left = used < level.limit_bytes ? level.limit_bytes - used : 0;
    if (left < level.limit_bytes / 4) left += page_cache(look, level.path_bytes);
    if (left > level.limit_bytes) left = level.limit_bytes;
    if (left < least.left_bytes) least = {level.limit_bytes, left};
  }
  if (look.blind) return false;
  *room = least;
  return true;
}

}  // namespace percpu::heap
