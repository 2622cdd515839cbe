// SPDX-License-Identifier: MIT
//
// What the user may choose. One immutable struct, one row per option in config.cc (name, type, default, range, help),
// parsed once from "key:value,key:value". Nothing in the string can stop the program: what cannot be understood is
// reported, its default is used, and the rest of the string still counts.
#ifndef PERCPU_CORE_CONFIG_H
#define PERCPU_CORE_CONFIG_H

#include <cstddef>
#include <cstdint>

#include "base/text.h"
#include "core/layout.h"

namespace percpu {

enum class BalanceMode : uint8_t {
  kThread,  // a background thread
  kSync,    // by the threads that allocate and free
  kOff,     // never
};

enum class NodesMode : uint8_t {
  kAuto,  // as libnuma says
  kOne,   // as if the machine had one node
};

// When the preload says what its heap holds.
enum class HeapStats : uint8_t { kNone, kExit, kSignal, kJson };

// What the preload looks for besides what costs nothing.
enum class HeapCheck : uint8_t { kOff, kUsual, kFull };

// Which parts of the preload's heap may be backed by huge pages.
enum class HeapThp : uint8_t {
  kAuto,  // where small blocks fill them; large blocks as the system's own setting says
  kOn,    // large blocks too
  kOff,
};

// Whether the preload heeds the memory limit of the process's control groups.
enum class HeapLimit : uint8_t { kAuto, kOff };

// decay: never.
inline constexpr uint64_t kDecayOff = UINT64_MAX;

// Where the preload's threads run (docs/pinning.md). The library alone has no use for it.
enum class PinPolicy : uint8_t { kNone, kAuto, kCompact, kScatter, kNode, kList };

// The CPUs of pin:list, in the order in which they were written; one may come twice.
struct PinList {
  static constexpr size_t kMaxRanges = 512;
  struct Range {
    uint16_t first = 0;
    uint16_t last = 0;  // not below first
  };

  uint32_t count = 0;
  Range ranges[kMaxRanges] = {};
};

// Names and creation numbers, separated by '+', as they were written.
struct PinSkip {
  static constexpr size_t kCapacityBytes = 128;

  char text[kCapacityBytes] = {};
};

struct Config {
  size_t unit_size_bytes = 0;  // the minimum unit size: whole pages
  size_t reserved_size_bytes = 0;
  size_t dynamic_size_bytes = 0;
  FirstChunk first_chunk = FirstChunk::kAuto;
  BalanceMode balance = BalanceMode::kThread;
  uint32_t empty_low_pages = 0;
  uint32_t empty_high_pages = 0;
  uint64_t window_bytes = 0;     // address space for one pool, 0: the library chooses
  size_t max_alloc_bytes = 0;    // never 0 after parsing
  uint32_t warnings = 0;
  NodesMode nodes = NodesMode::kAuto;
  // Of the preload only (preload/README.md).
  uint64_t decay_ms = 0;
  size_t cache_bytes = 0;
  HeapStats stats = HeapStats::kNone;
  HeapCheck check = HeapCheck::kUsual;
  HeapThp thp = HeapThp::kAuto;
  HeapLimit limit = HeapLimit::kAuto;
  PinPolicy pin = PinPolicy::kAuto;
  PinList pin_list;  // empty but for kList
  PinSkip pin_skip;
  bool pin_verbose = false;
  bool help = false;
};

// Takes one complaint, without a newline; called once per problem.
using ConfigNotice = void (*)(void* context, const char* message);

// Reads the string; null or "" gives the defaults. White space around keys and values is not allowed, empty items (",,") are
// passed over. A key that is given twice counts as given last. Items that begin with a digit directly behind a pin:list
// continue that list.
// Requires: page_size_bytes is a power of two. `notice` may be null.
[[nodiscard]] Config parse_config(const char* string, size_t page_size_bytes, ConfigNotice notice, void* context);

// The table of the options, one line each with type, default, range and meaning.
void config_help(Text& text);

// The configuration in the form that parse_config() reads, every option named.
void print_config(const Config& config, Text& text);

}  // namespace percpu

#endif  // PERCPU_CORE_CONFIG_H
