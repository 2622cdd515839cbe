// SPDX-License-Identifier: MIT
#include "os/clock.h"

#include <elf.h>
#include <link.h>
#include <sys/auxv.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstring>
#include <ctime>

#include "base/errno_kept.h"
#include "base/raw_syscall.h"

namespace percpu {
namespace {

using ClockGettime = int (*)(clockid_t, timespec*);

#if defined(__aarch64__)
constexpr char kName[] = "__kernel_clock_gettime";
#else
constexpr char kName[] = "__vdso_clock_gettime";
#endif

int by_system_call(clockid_t clock, timespec* time) {
  return static_cast<int>(raw_syscall(SYS_clock_gettime, clock, reinterpret_cast<long>(time)));
}

// How many symbols the table has that a GNU hash table is about: the last one's chain ends at a hash whose lowest bit is set.
uint32_t count_symbols(const uint32_t* gnu_hash) {
  const uint32_t nr_buckets = gnu_hash[0];
  const uint32_t first = gnu_hash[1];
  const uint32_t* buckets = gnu_hash + 4 + gnu_hash[2] * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
  const uint32_t* chains = buckets + nr_buckets;
  uint32_t last = 0;
  for (uint32_t i = 0; i < nr_buckets; i++) last = buckets[i] > last ? buckets[i] : last;
  if (last < first) return first;
  while ((chains[last - first] & 1) == 0) last++;
  return last + 1;
}

// The vDSO is a shared object that lies in memory from AT_SYSINFO_EHDR on; its addresses are relative to where its first segment
// would lie.
ClockGettime find_in_vdso() {
  const uintptr_t at = getauxval(AT_SYSINFO_EHDR);
  if (at == 0) return nullptr;
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(at);
  const auto* segments = reinterpret_cast<const ElfW(Phdr)*>(at + header->e_phoff);
  uintptr_t bias = 0;
  bool loaded = false;
  const ElfW(Dyn)* entry = nullptr;
  for (int i = 0; i < header->e_phnum; i++) {
    if (segments[i].p_type == PT_LOAD && !loaded) {
      bias = at + segments[i].p_offset - segments[i].p_vaddr;
      loaded = true;
    }
    if (segments[i].p_type == PT_DYNAMIC) entry = reinterpret_cast<const ElfW(Dyn)*>(at + segments[i].p_offset);
  }
  if (!loaded || entry == nullptr) return nullptr;
  const char* names = nullptr;
  const ElfW(Sym)* symbols = nullptr;
  uint32_t nr_symbols = 0;
  for (; entry->d_tag != DT_NULL; entry++) {
    const uintptr_t value = bias + entry->d_un.d_ptr;
    if (entry->d_tag == DT_STRTAB) names = reinterpret_cast<const char*>(value);
    if (entry->d_tag == DT_SYMTAB) symbols = reinterpret_cast<const ElfW(Sym)*>(value);
    if (entry->d_tag == DT_HASH) nr_symbols = reinterpret_cast<const uint32_t*>(value)[1];
    if (entry->d_tag == DT_GNU_HASH && nr_symbols == 0) nr_symbols = count_symbols(reinterpret_cast<const uint32_t*>(value));
  }
  if (names == nullptr || symbols == nullptr) return nullptr;
  for (uint32_t i = 0; i < nr_symbols; i++) {
    if (symbols[i].st_shndx != SHN_UNDEF && std::strcmp(names + symbols[i].st_name, kName) == 0) {
      return reinterpret_cast<ClockGettime>(bias + symbols[i].st_value);
    }
  }
  return nullptr;
}

std::atomic<ClockGettime> clock_call{nullptr};

}  // namespace

uint64_t coarse_ns() {
  ClockGettime call = clock_call.load(std::memory_order_relaxed);
  if (call == nullptr) {
    const ErrnoKept errno_kept;  // getauxval() says by it that there is no vDSO
    call = find_in_vdso();
    if (call == nullptr) call = by_system_call;
    clock_call.store(call, std::memory_order_relaxed);  // whoever else comes here finds the same
  }
  timespec now{};
  if (call(CLOCK_MONOTONIC_COARSE, &now) != 0) (void)by_system_call(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000 + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace percpu
