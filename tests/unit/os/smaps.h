// SPDX-License-Identifier: MIT
//
// What the kernel says of this process's mappings, for tests.
#ifndef PERCPU_TESTS_OS_SMAPS_H
#define PERCPU_TESTS_OS_SMAPS_H

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

namespace percpu {

// The two-letter flags of the mapping that holds the address, each followed by a space ("rd wr mr mw me ac dd "); "" if
// there is none.
inline std::string vm_flags(uintptr_t address) {
  FILE* file = fopen("/proc/self/smaps", "r");
  if (file == nullptr) return "";
  char line[1024];
  bool inside = false;
  std::string flags;
  while (fgets(line, sizeof line, file) != nullptr) {
    unsigned long start = 0;
    unsigned long end = 0;
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2) inside = start <= address && address < end;
    if (inside && strncmp(line, "VmFlags:", 8) == 0) flags = std::string(line + 9, strcspn(line + 9, "\n"));
  }
  fclose(file);
  return flags;
}

inline bool has_vm_flag(uintptr_t address, const char* flag) {
  return vm_flags(address).find(std::string(flag) + " ") != std::string::npos;
}

// How many mappings overlap [start, end).
inline int count_vmas(uintptr_t first, uintptr_t last) {
  FILE* file = fopen("/proc/self/maps", "r");
  if (file == nullptr) return -1;
  char line[1024];
  int count = 0;
  while (fgets(line, sizeof line, file) != nullptr) {
    unsigned long start = 0;
    unsigned long end = 0;
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && start < last && end > first) ++count;
  }
  fclose(file);
  return count;
}

}  // namespace percpu

#endif  // PERCPU_TESTS_OS_SMAPS_H
