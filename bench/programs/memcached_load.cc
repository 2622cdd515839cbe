// SPDX-License-Identifier: MIT
//
// Load for memcached, which comes with none: stores every key once, then reads and overwrites them over many connections, and
// checks each value that comes back, byte by byte.
//
//   memcached_load SOCKET [--threads N] [--connections N] [--requests N] [--keys N] [--sets PERCENT] [--seconds N] [--seed N]
//
// SOCKET is the path of a Unix socket, so no other machine is ever reached. It ends after that many requests, and at the latest
// after --seconds: then it fails. Prints one line of JSON: requests a second, and latencies in microseconds.
//
// Every value tells its key and the number of its version; both together decide its length and its bytes. So whichever of several
// writers was the last, a reader can tell whether the value is whole. Each connection has one request under way at a time; each
// thread serves its own connections by epoll. Keys are chosen unevenly (the square of an even choice), as users choose them.
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "latency.h"

namespace {

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "memcached_load: %s\n", what.c_str());
  std::exit(1);
}

struct Options {
  std::string socket;
  uint64_t threads = 2, connections = 32, requests = 150'000, keys = 20'000, sets = 20, seconds = 120, seed = 1;
};

uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 27;
  x *= 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// ---- values ----------------------------------------------------------------------------------------------------------------

constexpr size_t kMostBytes = 16384;
constexpr size_t kHeadBytes = 34;  // "%016x:%016x:"

// Bytes that values are cut from.
const std::string& filling() {
  static const std::string bytes = [] {
    std::string text(2 * kMostBytes, ' ');
    for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + mix(i) % 26);
    return text;
  }();
  return bytes;
}

// Seven of eight are from 40 to 1,000 bytes, the others to 16 KiB.
size_t value_bytes(uint64_t key, uint64_t version) {
  const uint64_t random = mix(key * 0x9e3779b97f4a7c15 + version);
  const size_t most = random % 8 == 0 ? kMostBytes : 1000;
  return 40 + (random >> 8) % (most - 40);
}

std::string value_of(uint64_t key, uint64_t version) {
  char head[kHeadBytes + 1];
  std::snprintf(head, sizeof head, "%016" PRIx64 ":%016" PRIx64 ":", key, version);
  std::string value(head);
  const size_t size = value_bytes(key, version);
  value.append(filling(), mix(version ^ key) % kMostBytes, size - kHeadBytes);
  return value;
}

void check_value(uint64_t key, std::string_view found) {
  uint64_t version = 0;
  if (found.size() > kHeadBytes) std::from_chars(found.data() + 17, found.data() + 33, version, 16);
  const std::string expected = value_of(key, version);
  if (found != expected)
    fail("key " + std::to_string(key) + ": expected the " + std::to_string(expected.size()) + " bytes of version " +
         std::to_string(version) + ", found " + std::to_string(found.size()) + " other bytes");
}

// ---- one connection --------------------------------------------------------------------------------------------------------

class Connection {
 public:
  explicit Connection(const std::string& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) fail(path + ": expected a path of at most 107 bytes");
    std::memcpy(address.sun_path, path.data(), path.size());
    fd_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd_ < 0 || connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
      fail("cannot connect to " + path + ": " + std::strerror(errno));
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { close(fd_); }

  int fd() const { return fd_; }

  void set(uint64_t key, uint64_t version) {
    const std::string value = value_of(key, version);
    send_all("set key:" + std::to_string(key) + " 0 0 " + std::to_string(value.size()) + "\r\n" + value + "\r\n");
    begin(key, false);
  }
  void get(uint64_t key) {
    send_all("get key:" + std::to_string(key) + "\r\n");
    begin(key, true);
  }

  // Reads what there is. Returns: whether the answer is complete, and then it was the right one.
  bool receive() {
    char buffer[32768];
    const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
    if (got == 0) fail("the server closed a connection");
    if (got < 0) {
      if (errno == EINTR || errno == EAGAIN) return false;
      fail(std::string("recv: ") + std::strerror(errno));
    }
    answer_.append(buffer, static_cast<size_t>(got));
    return reading_ ? is_value() : is_stored();
  }

  uint64_t began_ns() const { return began_ns_; }

 private:
  void begin(uint64_t key, bool reading) {
    key_ = key;
    reading_ = reading;
    answer_.clear();
  }
  void send_all(const std::string& text) {
    began_ns_ = now_ns();
    for (size_t sent = 0; sent < text.size();) {
      const ssize_t got = send(fd_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (got < 0 && errno != EINTR) fail(std::string("send: ") + std::strerror(errno));
      if (got > 0) sent += static_cast<size_t>(got);
    }
  }
  bool is_stored() const {
    if (!answer_.ends_with("\r\n")) return false;
    if (answer_ != "STORED\r\n") fail("set: expected STORED, found " + answer_);
    return true;
  }
  // VALUE key:7 0 123\r\n, 123 bytes, \r\nEND\r\n
  bool is_value() const {
    const size_t end = answer_.find("\r\n");
    if (end == std::string::npos) return false;
    const std::string head = "VALUE key:" + std::to_string(key_) + " 0 ";
    if (!answer_.starts_with(head)) fail("get key:" + std::to_string(key_) + ": expected its value, found " + answer_.substr(0, end));
    size_t size = 0;
    std::from_chars(answer_.data() + head.size(), answer_.data() + end, size);
    constexpr std::string_view kTail = "\r\nEND\r\n";
    if (answer_.size() < end + 2 + size + kTail.size()) return false;
    if (std::string_view(answer_).substr(end + 2 + size) != kTail) fail("get: expected END behind the value");
    check_value(key_, std::string_view(answer_).substr(end + 2, size));
    return true;
  }

  int fd_ = -1;
  uint64_t key_ = 0;
  bool reading_ = false;
  uint64_t began_ns_ = 0;
  std::string answer_;
};

// ---- all of them -----------------------------------------------------------------------------------------------------------

void store_all(const Options& options) {
  Connection connection(options.socket);
  for (uint64_t key = 0; key < options.keys; ++key) {
    connection.set(key, 0);
    while (!connection.receive()) continue;
  }
}

struct Worker {
  const Options& options;
  uint64_t number;
  std::atomic<int64_t>& left;
  uint64_t deadline_ns;
  Latencies latencies{};
  uint64_t random = 0;
  uint64_t version = 0;

  uint64_t next_random() { return random = mix(random + 0x9e3779b97f4a7c15); }

  void ask(Connection& connection) {
    const double even = static_cast<double>(next_random() >> 11) * 0x1p-53;
    const auto key = std::min(static_cast<uint64_t>(even * even * static_cast<double>(options.keys)), options.keys - 1);
    if (next_random() % 100 < options.sets)
      connection.set(key, (number + 1) << 40 | ++version);
    else
      connection.get(key);
  }

  void run() {
    random = mix(options.seed * 1000 + number + 1);
    const int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) fail(std::string("epoll_create1: ") + std::strerror(errno));
    std::vector<std::unique_ptr<Connection>> connections;
    uint64_t busy = 0;
    for (uint64_t i = number; i < options.connections; i += options.threads) {
      connections.push_back(std::make_unique<Connection>(options.socket));
      epoll_event event{};
      event.events = EPOLLIN;
      event.data.ptr = connections.back().get();
      if (epoll_ctl(epoll, EPOLL_CTL_ADD, connections.back()->fd(), &event) != 0) fail("epoll_ctl");
    }
    for (auto& connection : connections) {
      if (left.fetch_sub(1) <= 0) break;
      ask(*connection);
      busy++;
    }
    while (busy > 0) {
      epoll_event events[64];
      const int count = epoll_wait(epoll, events, 64, 1000);
      if (now_ns() > deadline_ns) fail("not done within " + std::to_string(options.seconds) + " s");
      for (int i = 0; i < count; ++i) {
        auto& connection = *static_cast<Connection*>(events[i].data.ptr);
        if (!connection.receive()) continue;
        latencies.record(now_ns() - connection.began_ns());
        busy--;
        if (left.fetch_sub(1) > 0) {
          ask(connection);
          busy++;
        }
      }
    }
    close(epoll);
  }
};

Options parse(int argc, char** argv) {
  Options options;
  const std::pair<std::string_view, uint64_t*> numbers[] = {
      {"--threads", &options.threads}, {"--connections", &options.connections}, {"--requests", &options.requests},
      {"--keys", &options.keys},       {"--sets", &options.sets},               {"--seconds", &options.seconds},
      {"--seed", &options.seed}};
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    const auto* at = std::find_if(std::begin(numbers), std::end(numbers), [name](const auto& one) { return one.first == name; });
    if (at == std::end(numbers)) {
      if (name.starts_with("-") || !options.socket.empty())
        fail(std::string(name) + ": expected SOCKET, --threads, --connections, --requests, --keys, --sets, --seconds or --seed");
      options.socket = name;
      continue;
    }
    const std::string_view value = i + 1 < argc ? argv[++i] : "";
    if (std::from_chars(value.data(), value.data() + value.size(), *at->second).ptr != value.data() + value.size() || value.empty())
      fail(std::string(name) + ": expected a number, found '" + std::string(value) + "'");
  }
  if (options.socket.empty()) fail("expected the path of memcached's socket, found nothing");
  if (options.threads == 0 || options.keys == 0 || options.connections < options.threads || options.sets > 100)
    fail("expected at least one thread, one key, as many connections as threads, and at most 100 percent of sets");
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  (void)filling();
  store_all(options);
  std::atomic<int64_t> left{static_cast<int64_t>(options.requests)};
  const uint64_t begin_ns = now_ns();
  std::vector<Worker> workers;
  for (uint64_t i = 0; i < options.threads; ++i)
    workers.push_back({options, i, left, begin_ns + options.seconds * 1'000'000'000});
  std::vector<std::thread> threads;
  for (Worker& worker : workers) threads.emplace_back([&worker] { worker.run(); });
  for (std::thread& thread : threads) thread.join();
  const double seconds = static_cast<double>(now_ns() - begin_ns) / 1e9;
  Latencies all;
  for (const Worker& worker : workers) all.add(worker.latencies);
  if (all.count() != options.requests) fail("expected " + std::to_string(options.requests) + " answers, found " + std::to_string(all.count()));
  std::printf("{\"requests\": %" PRIu64 ", \"per_second\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n", all.count(),
              static_cast<double>(all.count()) / seconds, all.percentile_us(0.5), all.percentile_us(0.99));
  return 0;
}
