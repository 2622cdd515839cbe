// SPDX-License-Identifier: MIT
//
// A server with a thread for each session, as many are built: requests arrive at some of its many threads, each answers what it
// got, and sleeps again. Knows nothing of any allocator.
//
//   many_threads [--threads N] [--requests N] [--underway N] [--seed N]
//
// `--underway` requests are passed from session to session. Whoever gets one reads its text into a map of fields, frees it (another
// thread allocated it), changes a field, keeps the map in the session's history in place of an older one, and writes the text anew
// for the next session. The fields' sum tells at the end whether anything got lost. Prints one line of JSON: requests a second, and
// the latency from one session to the next in microseconds.
#include <algorithm>
#include <atomic>
#include <charconv>
#include <cinttypes>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "latency.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "many_threads: %s\n", what.c_str());
  std::exit(1);
}

struct Options {
  uint64_t threads = 200, requests = 200'000, underway = 8, seed = 1;
};

constexpr uint64_t kFields = 24;
constexpr size_t kHistory = 32;

using Fields = std::map<std::string, std::string>;

struct Request {
  std::string text;
  uint64_t sent_ns = 0;
};

// "name=number filling;" and so on.
Fields read_fields(const std::string& text) {
  Fields fields;
  for (size_t at = 0; at < text.size();) {
    const size_t equals = text.find('=', at), end = text.find(';', at);
    if (equals == std::string::npos || end == std::string::npos) fail("a request is broken: " + text.substr(at, 40));
    fields.emplace(text.substr(at, equals - at), text.substr(equals + 1, end - equals - 1));
    at = end + 1;
  }
  return fields;
}

std::string write_fields(const Fields& fields) {
  std::string text;
  for (const auto& [name, value] : fields) text += name + '=' + value + ';';
  return text;
}

uint64_t number_in(const std::string& value) {
  uint64_t number = 0;
  std::from_chars(value.data(), value.data() + value.size(), number);
  return number;
}

class Session {
 public:
  void send(std::unique_ptr<Request> request) {
    const std::lock_guard guard(mutex_);
    inbox_.push_back(std::move(request));
    arrived_.notify_one();
  }
  // Returns: the next request, or null when there will be none any more.
  std::unique_ptr<Request> wait() {
    std::unique_lock guard(mutex_);
    arrived_.wait(guard, [this] { return !inbox_.empty(); });
    std::unique_ptr<Request> request = std::move(inbox_.front());
    inbox_.pop_front();
    return request;
  }

  Latencies latencies;
  uint64_t random = 0;
  std::deque<Fields> history;

 private:
  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<std::unique_ptr<Request>> inbox_;
};

uint64_t next_random(uint64_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

class Server {
 public:
  explicit Server(const Options& options) : options_(options), sessions_(options.threads), left_(options.requests) {}

  void serve(uint64_t number) {
    Session& session = sessions_[number];
    session.random = (options_.seed * 1'000'003 + number + 1) * 0x9e3779b97f4a7c15;
    while (const std::unique_ptr<Request> request = session.wait()) {
      const uint64_t now = now_ns();
      session.latencies.record(now - request->sent_ns);
      answer(session, request->text);
    }
  }

  void start(uint64_t number) {
    Fields fields;
    for (uint64_t i = 0; i < kFields; ++i) fields["field" + std::to_string(i * 7 + number)] = "0 ";
    pass_on(number % options_.threads, write_fields(fields));
  }

  // Blocks until all requests were passed on, and returns the sum of all fields of those that were under way at the end.
  uint64_t wait_for_all() {
    std::unique_lock guard(done_mutex_);
    done_.wait(guard, [this] { return ended_ == options_.underway; });
    for (Session& session : sessions_) session.send(nullptr);
    return sum_;
  }

  Latencies latencies() const {
    Latencies all;
    for (const Session& session : sessions_) all.add(session.latencies);
    return all;
  }

 private:
  void answer(Session& session, const std::string& text) {
    Fields fields = read_fields(text);
    const uint64_t random = next_random(&session.random);
    auto field = std::next(fields.begin(), static_cast<std::ptrdiff_t>(random % fields.size()));
    // One more in one field, and a filling of another length.
    field->second = std::to_string(number_in(field->second) + 1) + std::string(1 + (random >> 20) % 120, 'x');
    std::string next = write_fields(fields);
    session.history.push_back(std::move(fields));
    if (session.history.size() > kHistory) session.history.pop_front();
    // As many requests as are under way get their last answer here.
    if (left_.fetch_sub(1, std::memory_order_relaxed) > static_cast<int64_t>(options_.underway)) {
      pass_on((random >> 32) % options_.threads, std::move(next));
      return;
    }
    uint64_t sum = 0;
    for (const auto& [name, value] : session.history.back()) sum += number_in(value);
    const std::lock_guard guard(done_mutex_);
    sum_ += sum;
    if (++ended_ == options_.underway) done_.notify_one();
  }
  void pass_on(uint64_t to, std::string text) {
    auto request = std::make_unique<Request>();
    request->text = std::move(text);
    request->sent_ns = now_ns();
    sessions_[to].send(std::move(request));
  }

  const Options& options_;
  std::vector<Session> sessions_;
  std::atomic<int64_t> left_;
  std::mutex done_mutex_;
  std::condition_variable done_;
  uint64_t ended_ = 0, sum_ = 0;
};

Options parse(int argc, char** argv) {
  Options options;
  const std::pair<std::string_view, uint64_t*> numbers[] = {{"--threads", &options.threads},
                                                            {"--requests", &options.requests},
                                                            {"--underway", &options.underway},
                                                            {"--seed", &options.seed}};
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    const auto* at = std::find_if(std::begin(numbers), std::end(numbers), [name](const auto& one) { return one.first == name; });
    if (at == std::end(numbers)) fail(std::string(name) + ": expected --threads, --requests, --underway or --seed");
    const std::string_view value = i + 1 < argc ? argv[i + 1] : "";
    if (std::from_chars(value.data(), value.data() + value.size(), *at->second).ptr != value.data() + value.size() || value.empty())
      fail(std::string(name) + ": expected a number, found '" + std::string(value) + "'");
  }
  if (options.threads == 0 || options.underway == 0 || options.requests < options.underway)
    fail("expected at least one thread, one request under way, and as many requests as are under way");
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Server server(options);
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < options.threads; ++i) threads.emplace_back([&server, i] { server.serve(i); });
  const uint64_t begin_ns = now_ns();
  for (uint64_t i = 0; i < options.underway; ++i) server.start(i);
  const uint64_t sum = server.wait_for_all();
  const double seconds = static_cast<double>(now_ns() - begin_ns) / 1e9;
  for (std::thread& thread : threads) thread.join();
  const Latencies all = server.latencies();
  if (all.count() != options.requests || sum != options.requests)
    fail("expected " + std::to_string(options.requests) + " requests and as many changes, found " + std::to_string(all.count()) +
         " and " + std::to_string(sum));
  std::printf("{\"requests\": %" PRIu64 ", \"per_second\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", all.count(),
              static_cast<double>(all.count()) / seconds, all.percentile_us(0.5), all.percentile_us(0.99));
  return 0;
}
