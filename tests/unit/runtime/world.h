// SPDX-License-Identifier: MIT
//
// A whole runtime for one test: what the library's one object holds, without the library, so that a test makes its own
// pools on a system whose calls it can make fail, on a machine of its own making.
//
//   World world("balance:sync");
//   TestPool pool(world, {.unit_size_bytes = 64 << 10});
//   void* handle = pool.alloc(8);
//
// At its end a world stops its thread; a pool is checked, must hold no area, and is given back.
#ifndef PERCPU_TESTS_RUNTIME_WORLD_H
#define PERCPU_TESTS_RUNTIME_WORLD_H

#include <doctest/doctest.h>

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "../../patience.h"
#include "../os/faulty_system.h"
#include "core/config.h"
#include "os/pages.h"
#include "os/rseq.h"
#include "os/topology.h"
#include "percpu.h"
#include "runtime/accounting.h"
#include "runtime/balancer.h"
#include "runtime/grace.h"
#include "runtime/pool.h"
#include "runtime/warn.h"

namespace percpu {

// What is written to stderr from here on, by write(2) as well as by stdio.
class CapturedStderr {
 public:
  CapturedStderr() : kept_(dup(STDERR_FILENO)), file_(memfd_create("stderr", 0)) {
    fflush(stderr);
    // Threads write at once, and to a memfd only appending is atomic: unlike a regular file it has no lock on its position.
    fcntl(file_, F_SETFL, O_APPEND);
    dup2(file_, STDERR_FILENO);
  }
  ~CapturedStderr() { (void)text(); }
  CapturedStderr(const CapturedStderr&) = delete;
  CapturedStderr& operator=(const CapturedStderr&) = delete;

  // All of it; stderr is itself again.
  const std::string& text() {
    if (kept_ < 0) return text_;
    fflush(stderr);
    dup2(kept_, STDERR_FILENO);
    close(kept_);
    kept_ = -1;
    lseek(file_, 0, SEEK_SET);
    char buffer[4096];
    for (ssize_t got; (got = read(file_, buffer, sizeof buffer)) > 0;) text_.append(buffer, static_cast<size_t>(got));
    close(file_);
    return text_;
  }

 private:
  int kept_;
  int file_;
  std::string text_;
};

inline size_t count_lines(const std::string& text, const std::string& with = "") {
  size_t count = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    if (text.substr(at, end - at).find(with) != std::string::npos) count++;
    at = end + 1;
  }
  return count;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

using patience::eventually;

// How many balance threads the process has. One that was joined is still listed for a moment: where none is expected any more,
// wait until it has gone.
inline size_t nr_balancers(pid_t process = getpid()) {
  const std::string directory = "/proc/" + std::to_string(process) + "/task";
  size_t count = 0;
  DIR* list = opendir(directory.c_str());
  if (list == nullptr) abort();
  while (const dirent* entry = readdir(list)) {
    std::string name;
    std::ifstream(directory + "/" + entry->d_name + "/comm") >> name;
    count += name == "percpu-balance";
  }
  closedir(list);
  return count;
}

// How many pages of [address, address + size) are backed by memory of their own, as the kernel says (mincore() counts the
// shared zero page, which backs what was only read). The address may be anywhere in a page.
inline size_t pages_of_own(const void* address, size_t size_bytes) {
  const size_t page = page_size_bytes();
  size_t pages = 0;
  for (uintptr_t at = reinterpret_cast<uintptr_t>(address) & ~(page - 1);
       at < reinterpret_cast<uintptr_t>(address) + size_bytes; at += page) {
    NodeId node{};
    pages += node_of(real_system(), at, &node) == 0;
  }
  return pages;
}

class World {
 public:
  explicit World(const char* conf = "balance:off") {
    faulty.reset();
    // A gibibyte of address space is plenty for a test, and leaves the state small.
    config = parse_config((std::string("window:1G,") + conf).c_str(), page_size_bytes(), [](void*, const char* message) { FAIL(message); }, nullptr);
    const TopologySize size = measure_topology(faulty.system(), libnuma_source(), &topology);
    topology_storage_.resize((topology_storage_bytes(size) + 7) / 8);
    read_topology(faulty.system(), libnuma_source(), topology_storage_.data(), &topology);
    warnings.set_limit(config.warnings);
    balancer.init(system, grace);
    environment = {&system,   &config,    &topology, &accounting, &grace,           &fence,
                   &balancer, &warnings, false,     false,       size_t{2} << 20};
    faulty.reset();
  }
  ~World() {
    faulty.reset();
    balancer.stop();
    // It waits for a second at most, and for a thread in a grace period not at all: that one ends by itself.
    CHECK(eventually([&] { return !balancer.running() && nr_balancers() == 0; }));
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  FaultySystem& faulty = FaultySystem::instance();
  System system = faulty.system();  // a test may put functions of its own into it before it makes a pool
  Config config;
  Topology topology{};
  Accounting accounting;
  Grace grace;
  Fence fence;
  Balancer balancer;
  Warnings warnings{0};
  Environment environment{};

 private:
  std::vector<uint64_t> topology_storage_;
};

// While one lives a world's balance thread counts as running and does nothing: what it would do, a test does, when it wants to.
// Made before anything starts the thread.
class HeldThread {
 public:
  explicit HeldThread(World& world) {
    run_ = nullptr;
    world.system.start_thread = [](pthread_t* thread, void* (*run)(void*), void* argument) {
      thread_ = thread, run_ = run, argument_ = argument;
      return 0;
    };
  }
  ~HeldThread() {
    if (run_ != nullptr) CHECK(real_system().start_thread(thread_, run_, argument_) == 0);
  }
  HeldThread(const HeldThread&) = delete;
  HeldThread& operator=(const HeldThread&) = delete;

 private:
  static inline pthread_t* thread_;
  static inline void* (*run_)(void*);
  static inline void* argument_;
};

struct TestSetup {
  size_t unit_size_bytes = size_t{64} << 10;
  size_t static_bytes = 0;
  size_t reserved_bytes = 0;
  size_t dynamic_bytes = size_t{20} << 10;
  size_t max_alloc_bytes = 0;
  size_t max_bytes = 0;
  uint32_t nr_cpus = 0;
  FirstChunk first_chunk = FirstChunk::kPage;
};

// What a setup means in this world.
inline PoolSetup pool_setup(const World& world, const TestSetup& wish) {
  PoolSetup setup{};
  setup.name = "test";
  setup.unit_size_bytes = wish.unit_size_bytes;
  setup.static_bytes = wish.static_bytes;
  setup.reserved_bytes = wish.reserved_bytes;
  setup.dynamic_bytes = wish.dynamic_bytes;
  setup.max_alloc_bytes = wish.max_alloc_bytes;
  setup.max_bytes = wish.max_bytes;
  setup.nr_cpus = wish.nr_cpus;
  setup.balance = world.config.balance;
  setup.first_chunk = wish.first_chunk;
  return setup;
}

// A pool of a world, and shorter ways of asking it.
class TestPool {
 public:
  explicit TestPool(World& world, const TestSetup& wish = {}) : world_(world) {
    REQUIRE(Pool::create(world.environment, pool_setup(world, wish), &pool_) == 0);
    world.balancer.add(*pool_);
  }
  ~TestPool() {
    world_.faulty.reset();
    pool_->check();
    CHECK(pool_->nr_live() == 0);
    CHECK(world_.balancer.remove(*pool_));
    pool_->destroy();
  }
  TestPool(const TestPool&) = delete;
  TestPool& operator=(const TestPool&) = delete;

  Pool& operator*() { return *pool_; }
  Pool* operator->() { return pool_; }

  // As percpu_alloc_flags(); the error is left in `error`.
  void* alloc(size_t size_bytes, size_t align_bytes = 4, unsigned flags = 0, DomainId domain = kNoDomain) {
    error = 0;
    return pool_->allocate(size_bytes, align_bytes, flags, domain, &error);
  }
  void free(void* handle) { pool_->free(handle); }

  percpu_stats stats() {
    percpu_stats result;
    pool_->read_stats(&result);
    return result;
  }
  std::vector<percpu_chunk_stats> chunks() {
    std::vector<percpu_chunk_stats> rows;
    ChunkCursor cursor;
    percpu_chunk_stats row;
    while (pool_->read_chunks_from(cursor, &row, 1) == 1) rows.push_back(row);
    return rows;
  }

  // The copy with that id (percpu/abi.h), null in a hole.
  unsigned char* copy(const void* handle, uint32_t id) const {
    const uintptr_t offset = pool_->view().offset[id];
    return offset == 0 ? nullptr : reinterpret_cast<unsigned char*>(reinterpret_cast<uintptr_t>(handle) + offset);
  }
  uint32_t nr_copies() const { return pool_->view().nr_copies; }
  // Calls `visit(copy id, address)` for each copy there is.
  template <class Visit>
  void each_copy(const void* handle, Visit visit) const {
    for (uint32_t id = 0; id < nr_copies(); id++) {
      if (unsigned char* at = copy(handle, id); at != nullptr) visit(id, at);
    }
  }
  bool hot(uint32_t id) const { return world_.topology.allowed.has(CpuId{static_cast<int32_t>(id)}); }

  // How many copies have a byte in [0, size) that is not zero.
  size_t nr_dirty_copies(const void* handle, size_t size_bytes) const {
    size_t dirty = 0;
    each_copy(handle, [&](uint32_t, const unsigned char* at) {
      bool zero = true;
      for (size_t i = 0; i < size_bytes; i++) zero = zero && at[i] == 0;
      dirty += zero ? 0 : 1;
    });
    return dirty;
  }
  void fill_copies(const void* handle, size_t size_bytes, unsigned char byte) {
    each_copy(handle, [&](uint32_t, unsigned char* at) { memset(at, byte, size_bytes); });
  }

  size_t backed_pages(const void* address, size_t size_bytes) const { return pages_of_own(address, size_bytes); }
  // Backed pages of a whole chunk, over all copies.
  size_t backed_pages_of_chunk(uint32_t chunk) const {
    const uintptr_t handle = pool_->memory().handle(ChunkId{chunk}, AreaOffset{0});
    size_t pages = 0;
    each_copy(reinterpret_cast<void*>(handle),
              [&](uint32_t, const unsigned char* at) { pages += backed_pages(at, pool_->memory().unit_size()); });
    return pages;
  }
  uint32_t chunk_of(const void* handle) const {
    Spot spot{};
    REQUIRE(pool_->memory().locate_handle(reinterpret_cast<uintptr_t>(handle), &spot));
    return spot.chunk.value;
  }

  int error = 0;

 private:
  World& world_;
  Pool* pool_ = nullptr;
};

// Frees all and forgets them.
inline void free_all(TestPool& pool, std::vector<void*>& handles) {
  for (void* handle : handles) pool.free(handle);
  handles.clear();
}

}  // namespace percpu

#endif  // PERCPU_TESTS_RUNTIME_WORLD_H
