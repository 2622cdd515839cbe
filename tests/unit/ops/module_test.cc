// SPDX-License-Identifier: MIT
// Code that is gone leaves nothing behind that the kernel could stumble over: a shared object's operations clear
// rseq_cs on every way out, so that it may be closed, and the thread goes on, is interrupted, and migrates.
#include <doctest/doctest.h>

#include <dlfcn.h>

#include <string>

#include "fixture.h"
#include "storm.h"

namespace {

struct Areas {
  uint64_t *word = static_cast<uint64_t *>(fixture_alloc(8, 8));
  double *real = static_cast<double *>(fixture_alloc(8, 8));
  percpu_pair *pair = static_cast<percpu_pair *>(fixture_alloc(16, 16));
  percpu_list *list = static_cast<percpu_list *>(fixture_alloc(16, 16));
};

unsigned nr_left, nr_steps;
std::string left_by;

void look(const char *what) {
  ++nr_steps;
  if (fixture_rseq_cs() == 0) return;
  ++nr_left;
  left_by = what;
}

struct Module {
  explicit Module(const char *path) : handle(dlopen(path, RTLD_NOW)) {
    if (handle == nullptr) FAIL(std::string(dlerror()));
    steps = reinterpret_cast<void (*)(const Areas *, void (*)(const char *))>(dlsym(handle, "module_steps"));
  }
  void run() {
    nr_left = nr_steps = 0;
    steps(&areas, look);
  }
  Areas areas;
  void *handle;
  void (*steps)(const Areas *, void (*)(const char *));
};

}  // namespace

TEST_CASE("an operation in a shared object leaves no descriptor, whichever way it ends") {
  fixture_pin(fixture_next_cpu(-1));
  Module module(OPS_MODULE);
  for (int i = 0; i < 1000; ++i) {
    module.run();
    INFO("left by " << left_by);
    REQUIRE(nr_left == 0);
  }
  CHECK(nr_steps == 19);
  dlclose(module.handle);
  fixture_pin(-1);
}

TEST_CASE("one that is told it will never be unloaded does leave it, which shows that we would notice") {
  if (!fixture_process_has_rseq()) return;
  fixture_pin(fixture_next_cpu(-1));
  Module module(OPS_MODULE_THAT_STAYS);
  module.run();
  CHECK(nr_left > 10);
  fixture_pin(-1);
}

TEST_CASE("a thread survives signals and migrations after the module that it used was closed") {
  storm::on_signal([](int) {});
  std::atomic<bool> stop{false};
  std::atomic<unsigned> nr_opened{0};
  std::thread worker([&] {
    while (!stop.load()) {
      Module module(OPS_MODULE);
      module.steps(&module.areas, [](const char *) {});
      dlclose(module.handle);
      REQUIRE(dlopen(OPS_MODULE, RTLD_NOW | RTLD_NOLOAD) == nullptr);  // it is unmapped
      for (int i = 0; i < 20; ++i) sched_yield();
      nr_opened.fetch_add(1);
    }
  });
  {
    storm::Storm storm({worker.native_handle()}, storm::seed());
    while (nr_opened.load() < 300) usleep(1000);
  }
  stop.store(true);
  worker.join();
  CHECK(nr_opened.load() >= 300);
}
