// SPDX-License-Identifier: MIT
//
// How much the CPUs' caches may hold suits 2 CPUs and 256, and is what the user says where the user says something.
#include "preload/heap/cache_limits.h"

#include <doctest/doctest.h>

#include <initializer_list>

namespace percpu::heap {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST_CASE("a CPU's budget is its share of 64 MiB, at least 256 KiB and at most 4 MiB") {
  struct Row {
    uint32_t nr_cpus;
    size_t expected;
  };
  for (const Row row : {Row{1, 4 * kMiB}, Row{2, 4 * kMiB}, Row{16, 4 * kMiB}, Row{17, 64 * kMiB / 17}, Row{64, kMiB}, Row{256, kMiB / 4},
                        Row{257, kMiB / 4}, Row{8192, kMiB / 4}}) {
    CAPTURE(row.nr_cpus);
    CHECK(budget_of_cpu(0, row.nr_cpus) == row.expected);
    CHECK(budget_of_cpu(12345, row.nr_cpus) == 12345);
  }
}

TEST_CASE("a stack holds at most 64 KiB, or 16 blocks, and at most 1,024; a quarter with many CPUs, where these are more than 32 blocks") {
  for (const ClassInfo& info : kClasses.info) {
    CAPTURE(info.size_bytes);
    const uint32_t few = longest_stack(info, 2);
    CHECK(few <= 1024);
    CHECK((few == 16 || few * info.size_bytes <= 64 * 1024));
    CHECK(few >= 16);
    CHECK(longest_stack(info, kManyCpus) == few);
    const uint32_t many = longest_stack(info, kManyCpus + 1);
    CHECK(many == (few <= 32 ? few : few / 4 < 32 ? 32 : few / 4));
    CHECK(longest_stack(info, 8192) == many);
    CHECK(first_limit(info) >= 1);
    CHECK(first_limit(info) <= many);
  }
}

TEST_CASE("blocks of seven other nodes in several sizes leave a CPU's own most of its budget") {
  for (const ClassInfo& info : kClasses.info) {
    CAPTURE(info.size_bytes);
    CHECK(longest_foreign_stack(info, 4 * kMiB) == (info.size_bytes * info.batch <= 64 * 1024 ? info.batch : 64 * 1024 / info.size_bytes));
    const uint32_t short_one = longest_foreign_stack(info, kMiB / 4);
    CHECK(short_one >= 1);
    CHECK(short_one <= info.batch);
    CHECK((short_one == 1 || short_one * info.size_bytes <= 4096));
    if (info.size_bytes <= 4096) CHECK(7 * 4 * short_one * info.size_bytes <= kMiB / 4);  // four sizes
    CHECK(longest_foreign_stack(info, 0) == 1);
  }
}

}  // namespace
}  // namespace percpu::heap
