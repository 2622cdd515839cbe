// SPDX-License-Identifier: MIT
#include "core/config.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "../seed.h"

namespace percpu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kKilo = 1024;

struct Parsed {
  Config config;
  std::vector<std::string> notices;
};

Parsed parse(const char* string, size_t page_size = kPage) {
  Parsed parsed;
  parsed.config = parse_config(
      string, page_size,
      [](void* context, const char* message) {
        static_cast<std::vector<std::string>*>(context)->push_back(message);
      },
      &parsed.notices);
  return parsed;
}

std::string printed(const Config& config) {
  char buffer[1024];
  Text text(buffer);
  print_config(config, text);
  CHECK_FALSE(text.truncated());
  return buffer;
}

constexpr char kDefaults[] =
    "unit_size:128K,reserved:8K,dynamic:28K,first_chunk:auto,balance:thread,empty_low:2,empty_high:4,window:0,"
    "max_alloc:128K,warnings:10,nodes:auto,decay:1000,cache:0,stats:none,check:usual,thp:auto,limit:auto,pin:auto,pin_skip:,pin_verbose:no,help:no";

constexpr char kKeys[] =
    "unit_size, reserved, dynamic, first_chunk, balance, empty_low, empty_high, window, max_alloc, warnings, nodes, "
    "decay, cache, stats, check, thp, limit, pin, pin_skip, pin_verbose, help";

TEST_CASE("without a string there are the defaults, and no notice") {
  for (const char* string : {static_cast<const char*>(nullptr), "", ",", ",,,"}) {
    Parsed parsed = parse(string);
    CHECK(printed(parsed.config) == kDefaults);
    CHECK(parsed.notices.empty());
  }
}

TEST_CASE("every option can be set") {
  Parsed parsed = parse(
      "unit_size:64K,reserved:0,dynamic:20480,first_chunk:embed,balance:sync,empty_low:0,empty_high:100,window:64M,"
      "max_alloc:32K,warnings:0,nodes:one,decay:250,cache:1M,stats:exit,check:full,thp:off,limit:off,pin:scatter,pin_skip:writer+3,pin_verbose,help");
  CHECK(parsed.notices.empty());
  const Config& c = parsed.config;
  CHECK(c.unit_size_bytes == 64 * kKilo);
  CHECK(c.reserved_size_bytes == 0);
  CHECK(c.dynamic_size_bytes == 20 * kKilo);
  CHECK(c.first_chunk == FirstChunk::kEmbed);
  CHECK(c.balance == BalanceMode::kSync);
  CHECK(c.empty_low_pages == 0);
  CHECK(c.empty_high_pages == 100);
  CHECK(c.window_bytes == 64 * kKilo * kKilo);
  CHECK(c.max_alloc_bytes == 32 * kKilo);
  CHECK(c.warnings == 0);
  CHECK(c.nodes == NodesMode::kOne);
  CHECK(c.decay_ms == 250);
  CHECK(c.cache_bytes == 1024 * kKilo);
  CHECK(c.stats == HeapStats::kExit);
  CHECK(c.check == HeapCheck::kFull);
  CHECK(c.thp == HeapThp::kOff);
  CHECK(c.limit == HeapLimit::kOff);
  CHECK(c.pin == PinPolicy::kScatter);
  CHECK(std::string(c.pin_skip.text) == "writer+3");
  CHECK(c.pin_verbose);
  CHECK(c.help);
}

std::string listed(const Config& config) {
  std::string text;
  for (uint32_t i = 0; i < config.pin_list.count; ++i)
    text += std::to_string(config.pin_list.ranges[i].first) + "-" + std::to_string(config.pin_list.ranges[i].last) + " ";
  return text;
}

TEST_CASE("a list of CPUs goes on over the commas that digits follow, in the order written") {
  Parsed parsed = parse("pin:list:5,0,2-3,warnings:3");
  CHECK(parsed.notices.empty());
  CHECK(parsed.config.pin == PinPolicy::kList);
  CHECK(listed(parsed.config) == "5-5 0-0 2-3 ");
  CHECK(parsed.config.warnings == 3);
  CHECK(listed(parse("warnings:3,pin:list:8191").config) == "8191-8191 ");
  CHECK(listed(parse("pin:list:0-8191").config) == "0-8191 ");
  // What ends it: a key, an empty item, the end of the string.
  CHECK(parse("pin:list:0,,2").notices.size() == 1);
  CHECK(listed(parse("pin:list:0,nodes:one,2").config) == "0-0 ");
  CHECK(parse("pin:list:0,nodes:one,2").notices.size() == 1);
  CHECK(parse("warnings:3,2").notices.size() == 1);
  // Another policy behind it forgets the list.
  CHECK(parse("pin:list:0,1,pin:none").config.pin == PinPolicy::kNone);
  CHECK(parse("pin:list:0,1,pin:none").config.pin_list.count == 0);
}

TEST_CASE("a list that cannot be kept is said, and the default is used") {
  std::string many = "pin:list:0";
  for (size_t i = 1; i < PinList::kMaxRanges; ++i) many += ",0";
  CHECK(parse(many.c_str()).config.pin_list.count == PinList::kMaxRanges);
  many += ",0";
  for (const char* string : {"pin:list", "pin:list:", "pin:list:x", "pin:list:3-1", "pin:list:8192", "pin:list:0-8192",
                             "pin:list:1-", "pin:list:-1", "pin:list:0,1x", "pin:list:0-8191,0", "pin:lists:0",
                             "pin:list:0,5-", "pin:list:1K", many.c_str()}) {
    CAPTURE(string);
    Parsed parsed = parse(string);
    REQUIRE(parsed.notices.size() == 1);
    CHECK(parsed.notices[0].find("pin: expected none|auto|compact|scatter|node|list, found") == 0);
    CHECK(printed(parsed.config) == kDefaults);
  }
}

TEST_CASE("names to skip are kept as written, as far as there is room") {
  CHECK(std::string(parse("pin_skip:io*+2,warnings:3").config.pin_skip.text) == "io*+2");
  CHECK(parse("pin_skip:io,pin_skip:").config.pin_skip.text[0] == 0);
  CHECK(parse("pin_skip").notices.size() == 1);
  const std::string fits(PinSkip::kCapacityBytes - 1, 'n');
  CHECK(std::string(parse(("pin_skip:" + fits).c_str()).config.pin_skip.text) == fits);
  Parsed parsed = parse(("pin_skip:" + fits + "n").c_str());
  CHECK(parsed.notices.size() == 1);
  CHECK(parsed.config.pin_skip.text[0] == 0);
}

TEST_CASE("each word of each choice is understood") {
  CHECK(parse("stats:none").config.stats == HeapStats::kNone);
  CHECK(parse("stats:signal").config.stats == HeapStats::kSignal);
  CHECK(parse("stats:json").config.stats == HeapStats::kJson);
  CHECK(parse("check:off").config.check == HeapCheck::kOff);
  CHECK(parse("check:usual").config.check == HeapCheck::kUsual);
  CHECK(parse("first_chunk:auto").config.first_chunk == FirstChunk::kAuto);
  CHECK(parse("first_chunk:page").config.first_chunk == FirstChunk::kPage);
  CHECK(parse("balance:thread").config.balance == BalanceMode::kThread);
  CHECK(parse("balance:off").config.balance == BalanceMode::kOff);
  CHECK(parse("nodes:auto").config.nodes == NodesMode::kAuto);
  for (const char* yes : {"help", "help:yes", "help:1"}) CHECK(parse(yes).config.help);
  for (const char* no : {"help:no", "help:0"}) CHECK_FALSE(parse(no).config.help);
}

TEST_CASE("sizes count in bytes, K, M and G, and units are whole pages") {
  CHECK(parse("unit_size:131072").config.unit_size_bytes == 131072);
  CHECK(parse("unit_size:1m").config.unit_size_bytes == 1048576);
  CHECK(parse("unit_size:1G").config.unit_size_bytes == size_t{1} << 30);
  CHECK(parse("unit_size:33000").config.unit_size_bytes == 36864);
  CHECK(parse("unit_size:33000", 65536).config.unit_size_bytes == 65536);
  CHECK(parse("unit_size:32k").config.unit_size_bytes == 32768);
}

TEST_CASE("the largest allocation is a unit unless a smaller one is set") {
  CHECK(parse("unit_size:1M").config.max_alloc_bytes == 1048576);
  CHECK(parse("unit_size:1M,max_alloc:64K").config.max_alloc_bytes == 65536);
  CHECK(parse("unit_size:32K,max_alloc:0").config.max_alloc_bytes == 32768);
  CHECK(parse("unit_size:33000,max_alloc:36864").config.max_alloc_bytes == 36864);
}

TEST_CASE("a reserved part of any size in range is one that a pool can have") {
  CHECK(parse("reserved:10").config.reserved_size_bytes == 12);
  CHECK(parse("reserved:1").config.reserved_size_bytes == 4);
  CHECK(parse("reserved:12").notices.empty());
}

TEST_CASE("a key given twice counts as given last") {
  Parsed parsed = parse("warnings:3,warnings:7");
  CHECK(parsed.config.warnings == 7);
  CHECK(parsed.notices.empty());
}

TEST_CASE("an unknown key is said once, with the keys there are, and the rest counts") {
  for (const char* string : {"nonsense,warnings:3", "warnings:3,nonsense:5"}) {
    Parsed parsed = parse(string);
    REQUIRE(parsed.notices.size() == 1);
    CHECK(parsed.notices[0] == std::string("unknown key 'nonsense'; expected one of ") + kKeys);
    CHECK(parsed.config.warnings == 3);
  }
  CHECK(parse("Warnings:3").notices.size() == 1);
  CHECK(parse(" warnings:3").notices.size() == 1);
  CHECK(parse("warning:3").notices.size() == 1);
  CHECK(parse(":3").notices.size() == 1);
}

TEST_CASE("a bad value is said once, with what was expected and found, and the default is used") {
  struct Case {
    const char* string;
    const char* notice;
  };
  const Case cases[] = {
      {"unit_size:31K", "unit_size: expected 32K..1G, found '31K'; using 128K"},
      {"unit_size:1025M", "unit_size: expected 32K..1G, found '1025M'; using 128K"},
      {"unit_size:", "unit_size: expected 32K..1G, found ''; using 128K"},
      {"unit_size", "unit_size: expected 32K..1G, found no value; using 128K"},
      {"unit_size:-64K", "unit_size: expected 32K..1G, found '-64K'; using 128K"},
      {"unit_size:+64K", "unit_size: expected 32K..1G, found '+64K'; using 128K"},
      {"unit_size: 64K", "unit_size: expected 32K..1G, found ' 64K'; using 128K"},
      {"unit_size:64K ", "unit_size: expected 32K..1G, found '64K '; using 128K"},
      {"unit_size:0x10000", "unit_size: expected 32K..1G, found '0x10000'; using 128K"},
      {"unit_size:64KB", "unit_size: expected 32K..1G, found '64KB'; using 128K"},
      {"unit_size:64T", "unit_size: expected 32K..1G, found '64T'; using 128K"},
      {"unit_size:K", "unit_size: expected 32K..1G, found 'K'; using 128K"},
      {"unit_size:1.5M", "unit_size: expected 32K..1G, found '1.5M'; using 128K"},
      {"unit_size:64K:3", "unit_size: expected 32K..1G, found '64K:3'; using 128K"},
      {"unit_size:18446744073709617152", "unit_size: expected 32K..1G, found '18446744073709617152'; using 128K"},
      {"unit_size:18014398509482048K", "unit_size: expected 32K..1G, found '18014398509482048K'; using 128K"},
      {"dynamic:19K", "dynamic: expected 20K..256M, found '19K'; using 28K"},
      {"first_chunk:huge", "first_chunk: expected auto|embed|page, found 'huge'; using auto"},
      {"first_chunk:", "first_chunk: expected auto|embed|page, found ''; using auto"},
      {"balance:Thread", "balance: expected thread|sync|off, found 'Thread'; using thread"},
      {"balance:threa", "balance: expected thread|sync|off, found 'threa'; using thread"},
      {"empty_high:4K", "empty_high: expected 0..1000000, found '4K'; using 4"},
      {"window:1000K", "window: expected 0 or 1M..65536G, found '1000K'; using 0"},
      {"max_alloc:1", "max_alloc: expected 0 or 32K..1G, found '1'; using 0"},
      {"warnings:4294967296", "warnings: expected 0..1000000, found '4294967296'; using 10"},
      {"nodes:2", "nodes: expected auto|one, found '2'; using auto"},
      {"help:maybe", "help: expected yes|no, found 'maybe'; using no"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.string);
    Parsed parsed = parse(c.string);
    REQUIRE(parsed.notices.size() == 1);
    CHECK(parsed.notices[0] == std::string(c.notice) + "; keys are " + kKeys);
    CHECK(printed(parsed.config) == kDefaults);
  }
  // A bad value takes an earlier good one with it: which of the two was meant is not for us to guess.
  CHECK(parse("warnings:3,warnings:x").config.warnings == 10);
}

TEST_CASE("each problem of several is said, and what is right between them counts") {
  Parsed parsed = parse("bogus:1,unit_size:64K,balance:never,warnings:5,worse,nodes:one");
  CHECK(parsed.notices.size() == 3);
  CHECK(parsed.config.unit_size_bytes == 65536);
  CHECK(parsed.config.balance == BalanceMode::kThread);
  CHECK(parsed.config.warnings == 5);
  CHECK(parsed.config.nodes == NodesMode::kOne);
}

TEST_CASE("options that do not fit together are said, and their defaults used") {
  Parsed reserve = parse("empty_low:9");
  REQUIRE(reserve.notices.size() == 1);
  CHECK(reserve.notices[0] ==
        std::string("empty_low must not exceed empty_high, found 9 and 4; using 2 and 4; keys are ") + kKeys);
  CHECK(reserve.config.empty_low_pages == 2);
  CHECK(reserve.config.empty_high_pages == 4);
  CHECK(parse("empty_low:9,empty_high:9").notices.empty());
  CHECK(parse("empty_high:1").notices.size() == 1);
  Parsed largest = parse("unit_size:64K,max_alloc:128K");
  REQUIRE(largest.notices.size() == 1);
  CHECK(largest.notices[0] ==
        std::string("max_alloc must not exceed unit_size, found 131072 and 65536; using 65536; keys are ") + kKeys);
  CHECK(largest.config.max_alloc_bytes == 65536);
}

TEST_CASE("decay may be off") {
  Parsed parsed = parse("decay:off");
  CHECK(parsed.notices.empty());
  CHECK(parsed.config.decay_ms == kDecayOff);
  CHECK(printed(parsed.config).find("decay:off,") != std::string::npos);
  CHECK(parse("decay:of").notices.size() == 1);
}

TEST_CASE("the help names every option with type, range, default and meaning") {
  char buffer[4096];
  Text text(buffer);
  config_help(text);
  REQUIRE_FALSE(text.truncated());
  std::string help = buffer;
  CHECK(help.find("  unit_size    bytes   32K..1G            128K    smallest size") != std::string::npos);
  CHECK(help.find("  first_chunk  word    auto|embed|page    auto    how the") != std::string::npos);
  CHECK(help.find("  max_alloc    bytes   0 or 32K..1G       0       the largest") != std::string::npos);
  CHECK(help.find("  help         flag    yes|no             no      print") != std::string::npos);
  std::string keys = kKeys;
  for (size_t at = 0; at < keys.size();) {
    size_t end = std::min(keys.find(", ", at), keys.size());
    CHECK(help.find("\n  " + keys.substr(at, end - at) + " ") != std::string::npos);
    at = end + 2;
  }
}

TEST_CASE("what is printed is read back as the same") {
  Parsed parsed = parse("unit_size:100000,reserved:12345,first_chunk:page,balance:off,window:4G,help,max_alloc:33000,"
                       "pin:list:3,0-1,pin_skip:a+2,pin_verbose");
  REQUIRE(parsed.notices.empty());
  Parsed again = parse(printed(parsed.config).c_str());
  CHECK(again.notices.empty());
  CHECK(printed(again.config) == printed(parsed.config));
}

TEST_CASE("any string is survived, and leaves a configuration within its ranges") {
  std::mt19937_64 random(test_seed());
  const char* pieces[] = {"unit_size", "reserved", ":",  ",",   "64K", "empty_low", "window", "G", "9999999999999999999",
                          "help",      "balance",  "off", "\xff", "-",   "%s%n",     "max_alloc", "0", " ", "1M", "::",
                          "pin:list:",  "pin_skip", "3-5"};
  for (int round = 0; round < 20000; ++round) {
    std::string string;
    for (size_t i = 0, n = random() % 14; i < n; ++i) string += pieces[random() % std::size(pieces)];
    Config c = parse(string.c_str()).config;
    CHECK(c.unit_size_bytes % kPage == 0);
    CHECK(c.unit_size_bytes >= 32 * kKilo);
    CHECK(c.unit_size_bytes <= size_t{1} << 30);
    CHECK(c.dynamic_size_bytes >= 20 * kKilo);
    CHECK(c.empty_low_pages <= c.empty_high_pages);
    CHECK(c.max_alloc_bytes >= 32 * kKilo);
    CHECK(c.max_alloc_bytes <= c.unit_size_bytes);
  }
}

TEST_CASE("a very long key or value is shown cut, and nothing is overrun") {
  std::string key(5000, 'k');
  Parsed parsed = parse(key.c_str());
  REQUIRE(parsed.notices.size() == 1);
  CHECK(parsed.notices[0].find(kKeys) != std::string::npos);
  std::string value = "unit_size:" + std::string(5000, '9');
  parsed = parse(value.c_str());
  REQUIRE(parsed.notices.size() == 1);
  CHECK(parsed.notices[0].find(kKeys) != std::string::npos);
}

TEST_CASE("nobody need listen to notices") {
  Config config = parse_config("nonsense,unit_size:64K", kPage, nullptr, nullptr);
  CHECK(config.unit_size_bytes == 65536);
}

}  // namespace
}  // namespace percpu
