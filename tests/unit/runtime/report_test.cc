// SPDX-License-Identifier: MIT
#include "runtime/report.h"

#include <doctest/doctest.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "world.h"

namespace percpu {
namespace {

template <class Write>
std::string written(Write write) {
  Text measure(nullptr, 0);
  write(measure);
  std::vector<char> buffer(measure.needed_bytes() + 1);
  Text text(buffer.data(), buffer.size());
  write(text);
  CHECK_FALSE(text.truncated());
  return text.c_str();
}

// A JSON reader of the few things that a report holds, strict about the rest.
class Json {
 public:
  explicit Json(const std::string& text) : text_(text) {}
  // Reads one value; counts what it finds.
  bool value() {
    switch (peek()) {
      case '{': return sequence('{', '}', [this] { return string() && take(':') && value(); });
      case '[': return sequence('[', ']', [this] { return value(); });
      case '"': return string();
      case 't': return word("true");
      case 'f': return word("false");
      default: return number();
    }
  }
  bool at_end() const { return at_ == text_.size(); }
  size_t at() const { return at_; }

 private:
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) { return peek() == c && ++at_ != 0; }
  bool word(const std::string& what) {
    if (text_.compare(at_, what.size(), what) != 0) return false;
    at_ += what.size();
    return true;
  }
  bool number() {
    const size_t from = at_;
    while (peek() >= '0' && peek() <= '9') at_++;
    return at_ != from && (at_ - from == 1 || text_[from] != '0');
  }
  bool string() {
    if (!take('"')) return false;
    while (peek() != '"') {
      if (static_cast<unsigned char>(peek()) < 0x20) return false;
      if (peek() == '\\') at_++;
      at_++;
    }
    return take('"');
  }
  template <class Item>
  bool sequence(char open, char close, Item item) {
    if (!take(open)) return false;
    if (take(close)) return true;
    do {
      if (!item()) return false;
    } while (take(','));
    return take(close);
  }

  const std::string text_;
  size_t at_ = 0;
};

struct Reported {
  World world;
  TestPool pool{world, {.unit_size_bytes = 32 << 10, .reserved_bytes = 4096, .nr_cpus = 4}};
  std::vector<void*> handles;
  Reported() {
    for (size_t size : {8, 100, 2000, 30000, 30000}) handles.push_back(pool.alloc(size));
  }
  ~Reported() { free_all(pool, handles); }
};

TEST_CASE("the text names every statistic and every chunk") {
  Reported test;
  const std::string text = written([&](Text& out) { report_text(*test.pool, out); });
  CHECK(text.rfind("pool test\n", 0) == 0);
  CHECK(contains(text, "  nr_live                5\n"));
  CHECK(contains(text, "  live_bytes             62108\n"));
  CHECK(contains(text, "chunk 0 reserved slot"));
  CHECK(contains(text, "chunk 2 slot"));
  CHECK(count_lines(text, "chunk ") == 4);
}

TEST_CASE("the JSON is one object that a strict reader takes, with the same numbers") {
  Reported test;
  const std::string json = written([&](Text& out) { report_json(*test.pool, out); });
  Json reader(json);
  CAPTURE(json);
  CHECK(reader.value());
  CHECK(reader.at_end());
  CHECK(contains(json, "\"pool\":\"test\""));
  CHECK(contains(json, "\"nr_live\":5,"));
  CHECK(contains(json, "\"chunk\":2,"));
  CHECK(contains(json, "\"reserved\":true"));
}

TEST_CASE("every member of the statistics is in both reports, under its own name") {
  Reported test;
  const std::string text = written([&](Text& out) { report_text(*test.pool, out); });
  const std::string json = written([&](Text& out) { report_json(*test.pool, out); });
  for (const char* name :
       {"nr_allocs", "nr_frees", "nr_live", "nr_peak_live", "nr_failed", "live_bytes", "min_request", "max_request",
        "nr_chunks", "nr_peak_chunks", "populated_pages", "empty_populated_pages", "populated_bytes", "metadata_bytes",
        "unit_bytes", "nr_cpus", "nr_copies", "nr_groups", "page_bytes", "nr_balance_rounds", "nr_chunks_created",
        "nr_chunks_destroyed", "nr_pages_populated", "nr_pages_depopulated", "largest_live", "median_live",
        "smallest_live", "first_free", "free_bytes", "largest_run", "fragment_sum", "fragment_max"}) {
    CAPTURE(name);
    CHECK(contains(text, std::string("  ") + name + " "));
    CHECK(contains(json, std::string("\"") + name + "\":"));
  }
}

TEST_CASE("a report into a buffer that is too small is cut, terminated, and says how long it is") {
  Reported test;
  const std::string whole = written([&](Text& out) { report_json(*test.pool, out); });
  for (size_t capacity : {size_t{1}, size_t{2}, size_t{17}, whole.size(), whole.size() + 1}) {
    std::string buffer(capacity + 1, '#');
    Text text(buffer.data(), capacity);
    report_json(*test.pool, text);
    CHECK(text.needed_bytes() == whole.size());
    CHECK(buffer[capacity] == '#');
    CHECK(std::string(buffer.c_str()) == whole.substr(0, capacity - 1));
  }
}

TEST_CASE("the layout tells the parts, the unit, the groups and the CPUs in unit order") {
  Reported test;
  const std::string text = written([&](Text& out) { report_layout(*test.pool, out); });
  CAPTURE(text);
  CHECK(count_lines(text) >= 3);
  CHECK(contains(text, "4096"));
  CHECK(contains(text, "32768"));
  for (const char* cpu : {"0", "1", "2", "3", "++"}) CHECK(contains(text, cpu));
}

TEST_CASE("a report of many chunks is complete, and can be made while chunks come and go") {
  World world("balance:off");
  TestPool pool(world, {.unit_size_bytes = 32 << 10});
  std::vector<void*> handles;
  for (int i = 0; i < 100; i++) handles.push_back(pool.alloc(30000));
  const std::string text = written([&](Text& out) { report_text(*pool, out); });
  CHECK(count_lines(text, "chunk ") == 101);
  free_all(pool, handles);
}

}  // namespace
}  // namespace percpu
