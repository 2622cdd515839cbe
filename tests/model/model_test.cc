// SPDX-License-Identifier: MIT
//
// Random operations on a pool and on its naive twin (round.h). After every operation what it touched is compared; after every
// thousandth, everything. Every round has another shape of pool.
//
//   model_test [--ops N] [--seed S]        (the environment's PERCPU_SEED is the seed where none is given)
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "model/round.h"

namespace percpu::model {
namespace {

struct Options {
  uint64_t ops = 200'000;
  uint64_t seed = 0;
};

class Random final : public Choices {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint32_t below(uint32_t limit) override { return static_cast<uint32_t>(engine_() % limit); }

 private:
  std::mt19937_64 engine_;
};

int run(const Options& options) {
  std::printf("model_test --ops %" PRIu64 " --seed %" PRIu64 "\n", options.ops, options.seed);
  Random random(options.seed);
  const uint64_t ops_a_round = options.ops / 16 + 1;
  for (uint64_t done = 0; done < options.ops;) {
    const PoolShape shape = choose_shape(random);
    Round round(random, shape);
    bool good = round.compare_all();
    for (uint64_t i = 0; good && i < ops_a_round && done < options.ops; ++i, ++done) {
      good = round.step();
      if (good && done % 1000 == 999) good = round.compare_all();
    }
    good = good && round.wind_down();
    if (good) continue;
    std::printf("wrong after operation %" PRIu64 " (--seed %" PRIu64 "): %s\n", done, options.seed,
                round.wrong().c_str());
    print_shape(shape);
    return 1;
  }
  std::printf("%" PRIu64 " operations, all as expected\n", options.ops);
  return 0;
}

}  // namespace
}  // namespace percpu::model

int main(int argc, char** argv) {
  percpu::model::Options options;
  const char* seed = std::getenv("PERCPU_SEED");
  options.seed = seed != nullptr ? std::strtoull(seed, nullptr, 0) : std::random_device{}();
  for (int i = 1; i + 1 < argc; i += 2) {
    const uint64_t value = std::strtoull(argv[i + 1], nullptr, 0);
    if (std::strcmp(argv[i], "--ops") == 0)
      options.ops = value;
    else if (std::strcmp(argv[i], "--seed") == 0)
      options.seed = value;
    else
      return 2;
  }
  return percpu::model::run(options);
}
