// SPDX-License-Identifier: MIT
//
// Runs a fuzz target without a fuzzer: over files, or over inputs that are made from its seeds at random.
//
//   TARGET [--runs N]      random inputs; PERCPU_SEED is the seed, which is printed
//   TARGET FILE...         these, as libFuzzer leaves them behind
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "../unit/seed.h"
#include "fuzz.h"

namespace {

constexpr size_t kMostBytes = 4096;

using Input = std::vector<uint8_t>;

void change(Input* input, std::mt19937_64& random, const std::vector<std::string_view>& seeds) {
  const size_t at = input->empty() ? 0 : random() % (input->size() + 1);
  const auto here = input->begin() + static_cast<std::ptrdiff_t>(at);
  switch (random() % 6) {
    case 0:
      if (at < input->size()) (*input)[at] ^= static_cast<uint8_t>(1u << random() % 8);
      break;
    case 1:
      if (at < input->size()) (*input)[at] = static_cast<uint8_t>(random());
      break;
    case 2:
      input->insert(here, static_cast<uint8_t>(random()));
      break;
    case 3:
      if (at < input->size()) input->erase(here, here + 1 + static_cast<std::ptrdiff_t>(random() % (input->size() - at)));
      break;
    case 4:
      if (!seeds.empty()) {
        const std::string_view seed = seeds[random() % seeds.size()];
        const size_t from = random() % (seed.size() + 1);
        const std::string_view part = seed.substr(from, random() % (seed.size() - from + 1));
        input->insert(here, part.begin(), part.end());
      }
      break;
    default:
      for (uint64_t more = random() % 64; more-- > 0;) input->push_back(static_cast<uint8_t>(random()));
  }
  if (input->size() > kMostBytes) input->resize(kMostBytes);
}

}  // namespace

int main(int argc, char** argv) {
  LLVMFuzzerInitialize(&argc, &argv);
  uint64_t runs = 20'000;
  bool files = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--runs") == 0 && i + 1 < argc) {
      runs = std::strtoull(argv[++i], nullptr, 0);
    } else {
      std::ifstream file(argv[i], std::ios::binary);
      if (!file) {
        fprintf(stderr, "%s: expected --runs N, or a file that can be read\n", argv[i]);
        return 2;
      }
      const std::string text((std::istreambuf_iterator<char>(file)), {});
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
      files = true;
    }
  }
  if (files) return 0;
  std::mt19937_64 random(percpu::test_seed());
  const std::vector<std::string_view> seeds = fuzz_seeds();
  for (const std::string_view each : seeds) LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(each.data()), each.size());
  Input input;
  for (uint64_t run = 0; run < runs; ++run) {
    if (random() % 8 == 0 || input.empty()) {
      input.clear();
      if (!seeds.empty() && random() % 8 != 0) {
        const std::string_view begin = seeds[random() % seeds.size()];
        input.assign(begin.begin(), begin.end());
      }
    }
    for (uint64_t changes = 1 + random() % 8; changes-- > 0;) change(&input, random, seeds);
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  return 0;
}
