// SPDX-License-Identifier: MIT
#include "base/cpu_mask.h"

#include <doctest/doctest.h>

#include <random>
#include <set>

#include "../seed.h"

namespace percpu {
namespace {

TEST_CASE("a set holds what was added, and walks it in order") {
  CpuMask mask;
  CHECK(mask.empty());
  CHECK_FALSE(mask.first().valid());
  CHECK_FALSE(mask.last().valid());
  for (int cpu : {0, 63, 64, 8191, 100}) mask.add({cpu});
  mask.remove({100});
  std::set<int> walked;
  for (CpuId cpu = mask.first(); cpu.valid(); cpu = mask.after(cpu)) walked.insert(cpu.value);
  CHECK(walked == std::set<int>{0, 63, 64, 8191});
  CHECK(mask.last() == CpuId{8191});
  CHECK(mask.count() == 4);
  CHECK(mask.at_or_after({64}) == CpuId{64});
  CHECK(mask.at_or_after({65}) == CpuId{8191});
  CHECK_FALSE(mask.after({8191}).valid());
}

TEST_CASE("ids out of range are in no set and cannot be added") {
  CpuMask mask;
  mask.add({-1});
  mask.add({8192});
  mask.add({INT32_MAX});
  CHECK(mask.empty());
  CHECK_FALSE(mask.has({-1}));
  CHECK_FALSE(mask.has({8192}));
  CHECK_FALSE(mask.at_or_after({-1}).valid());
  CHECK_FALSE(mask.at_or_after({8192}).valid());
}

TEST_CASE("random sets agree with std::set") {
  std::mt19937_64 random(test_seed());
  for (int round = 0; round < 200; ++round) {
    NodeMask mask;
    std::set<int> model;
    for (int i = 0; i < 200; ++i) {
      int id = static_cast<int>(random() % kMaxNodes);
      if (random() % 3 != 0) {
        mask.add({id});
        model.insert(id);
      } else {
        mask.remove({id});
        model.erase(id);
      }
    }
    std::set<int> walked;
    for (NodeId id = mask.first(); id.valid(); id = mask.after(id)) walked.insert(id.value);
    CHECK(walked == model);
    CHECK(mask.count() == model.size());
    CHECK(mask.last().value == (model.empty() ? -1 : *model.rbegin()));
  }
}

}  // namespace
}  // namespace percpu
