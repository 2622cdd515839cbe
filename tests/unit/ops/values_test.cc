// SPDX-License-Identifier: MIT
// Each operation does what the same C does to a plain variable: in every way of compiling it, in a thread that runs
// sequences and in one without rseq, on each CPU.
#include "values.h"

#include <doctest/doctest.h>

#include <string>
#include <thread>

#include "fixture.h"

#define VARIANTS(X) X(c) X(c_pool) X(c_pic) X(c_O0) X(c_no_rseq) X(cxx) X(cxx_pool) X(cxx_no_rseq)

extern "C" {
#define DECLARE(name) void values_##name(struct values_result *into);
VARIANTS(DECLARE)
#undef DECLARE
}

namespace {

struct Variant {
  const char *name;
  void (*run)(values_result *);
};

#define ROW(name) {#name, values_##name},
constexpr Variant kVariants[] = {VARIANTS(ROW)};
#undef ROW

void run_all(int cpu, bool leave_rseq) {
  std::thread([=] {
    if (leave_rseq) fixture_leave_rseq();
    fixture_pin(cpu);
    fixture_free_all();  // the fixture has not enough for dozens of CPUs
    for (const Variant &variant : kVariants) {
      values_result result{};
      variant.run(&result);
      INFO(std::string("variant ") << variant.name << " on CPU " << cpu << ", " << result.nr_failures << " of "
                                   << result.nr_checks << " failed, first: " << result.first);
      CHECK(result.nr_checks > 1000);
      CHECK(result.nr_failures == 0);
    }
  }).join();
}

}  // namespace

TEST_CASE("every operation equals plain C on every CPU") {
  for (int cpu = fixture_next_cpu(-1); cpu >= 0; cpu = fixture_next_cpu(cpu)) run_all(cpu, false);
}

TEST_CASE("every operation equals plain C in a thread without rseq") {
  run_all(fixture_next_cpu(-1), true);
}
