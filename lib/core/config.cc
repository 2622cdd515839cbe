// SPDX-License-Identifier: MIT
#include "core/config.h"

#include <cstring>
#include <type_traits>

#include "base/bits.h"
#include "base/cpu_mask.h"
#include "core/pool_shape.h"

namespace percpu {

namespace {

constexpr uint64_t kKilo = 1024;
constexpr uint64_t kMega = kKilo * kKilo;
constexpr uint64_t kGiga = kMega * kKilo;

enum class Type : uint8_t { kBytes, kCount, kMillis, kChoice, kFlag, kPin, kNames };

// The members of Config have several widths; a row reads and writes its own through these, as a number.
// kNames has none: pin_skip is the only one, and what kPin has besides is in pin_list.
using Setter = void (*)(Config*, uint64_t);
using Getter = uint64_t (*)(const Config&);

struct Row {
  const char* name;
  Type type;
  uint64_t initial;
  uint64_t lowest;
  uint64_t highest;
  bool zero_too;        // 0 is in range besides
  const char* choices;  // "first|second|...", in the order of the enumerators; null for other types
  const char* help;
  Setter set;
  Getter get;
};

template <auto member>
void set_member(Config* config, uint64_t value) {
  config->*member = static_cast<std::remove_reference_t<decltype(config->*member)>>(value);
}

template <auto member>
uint64_t get_member(const Config& config) {
  return static_cast<uint64_t>(config.*member);
}

#define PERCPU_MEMBER_(name) set_member<&Config::name>, get_member<&Config::name>

// clang-format off
constexpr Row kRows[] = {
    {"unit_size", Type::kBytes, 128 * kKilo, 32 * kKilo, kGiga, false, nullptr,
     "smallest size of one CPU's memory in a chunk; whole pages", PERCPU_MEMBER_(unit_size_bytes)},
    {"reserved", Type::kBytes, 8 * kKilo, 0, 256 * kMega, false, nullptr,
     "kept in the first chunk for the static variables of libraries loaded later", PERCPU_MEMBER_(reserved_size_bytes)},
    {"dynamic", Type::kBytes, 28 * kKilo, 20 * kKilo, 256 * kMega, false, nullptr,
     "for allocations in the first chunk", PERCPU_MEMBER_(dynamic_size_bytes)},
    {"first_chunk", Type::kChoice, uint64_t(FirstChunk::kAuto), 0, 2, false, "auto|embed|page",
     "how the first chunk is backed: by huge pages, by pages, or as pays", PERCPU_MEMBER_(first_chunk)},
    {"balance", Type::kChoice, uint64_t(BalanceMode::kThread), 0, 2, false, "thread|sync|off",
     "who keeps pages in reserve and gives empty ones back", PERCPU_MEMBER_(balance)},
    {"empty_low", Type::kCount, 2, 0, 1000000, false, nullptr,
     "with fewer empty populated pages than this, more are populated", PERCPU_MEMBER_(empty_low_pages)},
    {"empty_high", Type::kCount, 4, 0, 1000000, false, nullptr,
     "how many empty populated pages are kept in reserve", PERCPU_MEMBER_(empty_high_pages)},
    {"window", Type::kBytes, 0, kMega, 64 * 1024 * kGiga, true, nullptr,
     "address space for one pool; 0: chosen", PERCPU_MEMBER_(window_bytes)},
    {"max_alloc", Type::kBytes, 0, 32 * kKilo, kGiga, true, nullptr,
     "the largest allocation; 0: unit_size", PERCPU_MEMBER_(max_alloc_bytes)},
    {"warnings", Type::kCount, 10, 0, 1000000, false, nullptr,
     "how many failed allocations are logged", PERCPU_MEMBER_(warnings)},
    {"nodes", Type::kChoice, uint64_t(NodesMode::kAuto), 0, 1, false, "auto|one",
     "one: as if the machine had one NUMA node", PERCPU_MEMBER_(nodes)},
    {"decay", Type::kMillis, 1000, 0, 3600 * 1000, false, nullptr,
     "preload: half-life of free memory in ms; 0: given back at once", PERCPU_MEMBER_(decay_ms)},
    {"cache", Type::kBytes, 0, 64 * kKilo, kGiga, true, nullptr,
     "preload: most bytes of free blocks a CPU caches; 0: chosen", PERCPU_MEMBER_(cache_bytes)},
    {"stats", Type::kChoice, uint64_t(HeapStats::kNone), 0, 3, false, "none|exit|signal|json",
     "preload: print what the heap holds on stderr at exit (json: as JSON), or on SIGUSR2", PERCPU_MEMBER_(stats)},
    {"check", Type::kChoice, uint64_t(HeapCheck::kUsual), 0, 2, false, "off|usual|full",
     "preload: off: free() trusts; full: every double free, writes behind a block and after free; slow", PERCPU_MEMBER_(check)},
    {"thp", Type::kChoice, uint64_t(HeapThp::kAuto), 0, 2, false, "auto|on|off",
     "preload: huge pages for small blocks (auto), for large ones too (on), for none (off)", PERCPU_MEMBER_(thp)},
    {"limit", Type::kChoice, uint64_t(HeapLimit::kAuto), 0, 1, false, "auto|off",
     "preload: keep less in reserve near the memory limit of the process's control group", PERCPU_MEMBER_(limit)},
    {"pin", Type::kPin, uint64_t(PinPolicy::kAuto), 0, 5, false, "none|auto|compact|scatter|node|list",
     "where the preload's threads run; list:0,2-5 names the CPUs", PERCPU_MEMBER_(pin)},
    {"pin_skip", Type::kNames, 0, 0, 0, false, nullptr,
     "threads that stay free: names (a last * stands for any end) and creation numbers", nullptr, nullptr},
    {"pin_verbose", Type::kFlag, 0, 0, 1, false, nullptr,
     "tell on stderr which thread runs where", PERCPU_MEMBER_(pin_verbose)},
    {"help", Type::kFlag, 0, 0, 1, false, nullptr,
     "print this table on stderr when the library starts", PERCPU_MEMBER_(help)},
};
// clang-format on

#undef PERCPU_MEMBER_

struct Slice {
  const char* start;
  size_t len_bytes;

  bool is(const char* string) const {
    return strlen(string) == len_bytes && memcmp(start, string, len_bytes) == 0;
  }
  // For "%.*s".
  int shown() const { return len_bytes < 200 ? static_cast<int>(len_bytes) : 200; }
};

Slice cut_at(Slice slice, char separator, Slice* rest) {
  const void* found = memchr(slice.start, separator, slice.len_bytes);
  if (found == nullptr) {
    *rest = {nullptr, 0};
    return slice;
  }
  size_t len = static_cast<size_t>(static_cast<const char*>(found) - slice.start);
  *rest = {slice.start + len + 1, slice.len_bytes - len - 1};
  return {slice.start, len};
}

// What a size counts in: the largest of K, M and G that divides it.
void put_bytes(Text& text, uint64_t bytes) {
  if (bytes >= kGiga && bytes % kGiga == 0) {
    text.format("%luG", static_cast<unsigned long>(bytes / kGiga));
  } else if (bytes >= kMega && bytes % kMega == 0) {
    text.format("%luM", static_cast<unsigned long>(bytes / kMega));
  } else if (bytes >= kKilo && bytes % kKilo == 0) {
    text.format("%luK", static_cast<unsigned long>(bytes / kKilo));
  } else {
    text.format("%lu", static_cast<unsigned long>(bytes));
  }
}

Slice nth_choice(const char* choices, uint64_t n) {
  Slice rest{choices, strlen(choices)};
  Slice choice{nullptr, 0};
  for (uint64_t i = 0; i <= n && rest.start != nullptr; ++i) choice = cut_at(rest, '|', &rest);
  return choice;
}

void put_value(Text& text, const Row& row, uint64_t value) {
  switch (row.type) {
    case Type::kNames: break;
    case Type::kBytes: put_bytes(text, value); break;
    case Type::kMillis:
      if (value == kDecayOff) {
        text.put("off");
        break;
      }
      [[fallthrough]];
    case Type::kCount: text.format("%lu", static_cast<unsigned long>(value)); break;
    case Type::kFlag: text.put(value != 0 ? "yes" : "no"); break;
    case Type::kPin:
    case Type::kChoice: {
      Slice choice = nth_choice(row.choices, value);
      text.put(choice.start, choice.len_bytes);
      break;
    }
  }
}

void put_range(Text& text, const Row& row) {
  if (row.type == Type::kChoice || row.type == Type::kPin) {
    text.put(row.choices);
  } else if (row.type == Type::kNames) {
    text.put("name+number");
  } else if (row.type == Type::kFlag) {
    text.put("yes|no");
  } else {
    if (row.zero_too) text.put("0 or ");
    put_value(text, row, row.lowest);
    text.put("..");
    put_value(text, row, row.highest);
    if (row.type == Type::kMillis) text.put(" or off");
  }
}

// Digits only, and for bytes one of K, M, G behind them. Returns: false if it is no number, or one beyond 64 bits.
bool parse_number(Slice text, bool bytes, uint64_t* number) {
  uint64_t value = 0;
  size_t i = 0;
  for (; i < text.len_bytes && text.start[i] >= '0' && text.start[i] <= '9'; ++i) {
    if (__builtin_mul_overflow(value, uint64_t{10}, &value) ||
        __builtin_add_overflow(value, static_cast<uint64_t>(text.start[i] - '0'), &value))
      return false;
  }
  if (i == 0) return false;
  *number = value;
  if (i == text.len_bytes) return true;
  if (!bytes || i + 1 != text.len_bytes) return false;
  switch (text.start[i]) {
    case 'K':
    case 'k': return !__builtin_mul_overflow(value, kKilo, number);
    case 'M':
    case 'm': return !__builtin_mul_overflow(value, kMega, number);
    case 'G':
    case 'g': return !__builtin_mul_overflow(value, kGiga, number);
    default: return false;
  }
}

bool parse_choice(Slice text, const char* choices, uint64_t* number) {
  Slice rest{choices, strlen(choices)};
  for (uint64_t i = 0; rest.start != nullptr; ++i) {
    Slice choice = cut_at(rest, '|', &rest);
    if (choice.len_bytes != text.len_bytes || memcmp(choice.start, text.start, text.len_bytes) != 0) continue;
    *number = i;
    return true;
  }
  return false;
}

// "0" or "2-5".
bool parse_range(Slice text, PinList::Range* range) {
  Slice last_text;
  const Slice first_text = cut_at(text, '-', &last_text);
  uint64_t first = 0;
  uint64_t last = 0;
  if (!parse_number(first_text, false, &first)) return false;
  if (last_text.start == nullptr) {
    last = first;
  } else if (!parse_number(last_text, false, &last)) {
    return false;
  }
  if (last < first || last >= kMaxCpus) return false;
  *range = {static_cast<uint16_t>(first), static_cast<uint16_t>(last)};
  return true;
}

// "0,2-5": of no more ranges, and no more CPUs, than there is room for.
bool parse_list(Slice text, PinList* list) {
  *list = {};
  size_t cpus = 0;
  while (text.start != nullptr) {
    const Slice item = cut_at(text, ',', &text);
    if (list->count == PinList::kMaxRanges || !parse_range(item, &list->ranges[list->count])) return false;
    cpus += size_t{list->ranges[list->count].last} - list->ranges[list->count].first + 1;
    list->count++;
  }
  return cpus <= kMaxCpus;
}

void put_list(Text& text, const PinList& list) {
  for (uint32_t i = 0; i < list.count; ++i) {
    const PinList::Range& range = list.ranges[i];
    text.format("%c%u", i == 0 ? ':' : ',', range.first);
    if (range.last != range.first) text.format("-%u", range.last);
  }
}

constexpr char kListItem[] = "pin:list:";
constexpr size_t kListItemLen = sizeof kListItem - 1;

// An item of the configuration; one of pin:list goes on over the commas that digits follow.
Slice cut_item(Slice slice, Slice* rest) {
  Slice item = cut_at(slice, ',', rest);
  if (item.len_bytes < kListItemLen || memcmp(item.start, kListItem, kListItemLen) != 0) return item;
  while (rest->start != nullptr && rest->len_bytes > 0 && *rest->start >= '0' && *rest->start <= '9') {
    const Slice next = cut_at(*rest, ',', rest);
    item.len_bytes = static_cast<size_t>(next.start + next.len_bytes - item.start);
  }
  return item;
}

bool parse_value(const Row& row, Slice text, uint64_t* value) {
  switch (row.type) {
    case Type::kChoice: return parse_choice(text, row.choices, value);
    case Type::kPin: return parse_choice(text, row.choices, value) && *value != uint64_t(PinPolicy::kList);
    case Type::kFlag:
      *value = text.is("yes") || text.is("1") ? 1 : 0;
      return *value == 1 || text.is("no") || text.is("0");
    case Type::kMillis:
      if (text.is("off")) {
        *value = kDecayOff;
        return true;
      }
      break;
    default: break;
  }
  if (!parse_number(text, row.type == Type::kBytes, value)) return false;
  return (row.zero_too && *value == 0) || (*value >= row.lowest && *value <= row.highest);
}

// What one parse needs besides the string.
class Parser {
 public:
  Parser(ConfigNotice notice, void* context) : notice_(notice), context_(context) {
    for (const Row& row : kRows) {
      if (row.set != nullptr) row.set(&config_, row.initial);
    }
  }

  void take(Slice item) {
    Slice value;
    Slice key = cut_at(item, ':', &value);
    for (const Row& row : kRows) {
      if (key.is(row.name)) return take_value(row, value);
    }
    char buffer[1024];
    Text text(buffer);
    text.put("unknown key '").put_visible(key.start, static_cast<size_t>(key.shown())).put("'; expected one of");
    put_keys(text);
    complain(text);
  }

  Config finish(size_t page_size_bytes) {
    config_.unit_size_bytes = round_up(config_.unit_size_bytes, page_size_bytes);
    config_.reserved_size_bytes = round_up(config_.reserved_size_bytes, size_t{kFragmentBytes});
    check_reserve();
    check_max_alloc();
    return config_;
  }

 private:
  // Returns: whether it is a list that can be kept; then it has been taken.
  bool take_pin_list(Slice text) {
    Slice list;
    if (!cut_at(text, ':', &list).is("list") || list.start == nullptr || !parse_list(list, &config_.pin_list)) {
      config_.pin_list = {};
      return false;
    }
    config_.pin = PinPolicy::kList;
    return true;
  }

  // Returns: false if there is no value, or too long a one. "" skips nothing.
  bool take_names(Slice text) {
    config_.pin_skip = {};
    if (text.start == nullptr || text.len_bytes >= PinSkip::kCapacityBytes) return false;
    memcpy(config_.pin_skip.text, text.start, text.len_bytes);
    return true;
  }

  void take_value(const Row& row, Slice text) {
    if (row.type == Type::kFlag && text.start == nullptr) return row.set(&config_, 1);  // the name alone means yes
    uint64_t value = 0;
    if (row.type == Type::kPin) config_.pin_list = {};
    if (row.type == Type::kNames) {
      if (take_names(text)) return;
    } else if (row.type == Type::kPin && text.start != nullptr && take_pin_list(text)) {
      return;
    } else if (text.start != nullptr && parse_value(row, text, &value)) {
      return row.set(&config_, value);
    }
    char buffer[1024];
    Text message(buffer);
    message.format("%s: expected ", row.name);
    put_range(message, row);
    if (text.start == nullptr) {
      message.put(", found no value");
    } else {
      message.put(", found '").put_visible(text.start, static_cast<size_t>(text.shown())).put("'");
    }
    message.put("; using ");
    if (row.set != nullptr) row.set(&config_, row.initial);  // an earlier value of the same key does not count either
    put_value(message, row, row.initial);
    complain_of_value(message);
  }

  void check_reserve() {
    if (config_.empty_low_pages <= config_.empty_high_pages) return;
    char buffer[1024];
    Text text(buffer);
    text.format("empty_low must not exceed empty_high, found %u and %u; using 2 and 4", config_.empty_low_pages,
                config_.empty_high_pages);
    complain_of_value(text);
    config_.empty_low_pages = 2;
    config_.empty_high_pages = 4;
  }

  // An area lies in one unit, so none can be larger. (A unit is never smaller than the smallest max_alloc.)
  void check_max_alloc() {
    if (config_.max_alloc_bytes > config_.unit_size_bytes) {
      char buffer[1024];
      Text text(buffer);
      text.format("max_alloc must not exceed unit_size, found %zu and %zu; using %zu", config_.max_alloc_bytes,
                  config_.unit_size_bytes, config_.unit_size_bytes);
      complain_of_value(text);
      config_.max_alloc_bytes = 0;
    }
    if (config_.max_alloc_bytes == 0) config_.max_alloc_bytes = config_.unit_size_bytes;
  }

  static void put_keys(Text& text) {
    for (const Row& row : kRows) text.format("%s %s", &row == kRows ? "" : ",", row.name);
  }

  void complain_of_value(Text& text) {
    text.put("; keys are");
    put_keys(text);
    complain(text);
  }

  void complain(const Text& text) {
    if (notice_ != nullptr) notice_(context_, text.c_str());
  }

  ConfigNotice notice_;
  void* context_;
  Config config_;
};

const char* type_name(Type type) {
  switch (type) {
    case Type::kBytes: return "bytes";
    case Type::kCount: return "number";
    case Type::kMillis: return "ms";
    case Type::kChoice: return "word";
    case Type::kFlag: return "flag";
    case Type::kPin: return "word";
    case Type::kNames: return "text";
  }
  return "";
}

}  // namespace

Config parse_config(const char* string, size_t page_size_bytes, ConfigNotice notice, void* context) {
  Parser parser(notice, context);
  Slice rest{string, string == nullptr ? 0 : strlen(string)};
  while (rest.start != nullptr) {
    Slice item = cut_item(rest, &rest);
    if (item.len_bytes > 0) parser.take(item);
  }
  return parser.finish(page_size_bytes);
}

void config_help(Text& text) {
  text.put("PERCPU_CONF=\"key:value,...\"; bytes may end in K, M or G\n");
  for (const Row& row : kRows) {
    char buffer[64];
    Text range(buffer);
    put_range(range, row);
    char initial_buffer[32];
    Text initial(initial_buffer);
    put_value(initial, row, row.initial);
    text.format("  %-12s %-7s %-18s %-7s %s\n", row.name, type_name(row.type), range.c_str(), initial.c_str(), row.help);
  }
}

void print_config(const Config& config, Text& text) {
  for (const Row& row : kRows) {
    text.format("%s%s:", &row == kRows ? "" : ",", row.name);
    if (row.type == Type::kNames) {
      text.put(config.pin_skip.text);
    } else {
      put_value(text, row, row.get(config));
    }
    if (row.type == Type::kPin) put_list(text, config.pin_list);
  }
}

}  // namespace percpu
