// SPDX-License-Identifier: MIT
//
// The area maps of a pool of any shape, under any row of operations, beside their naive twin (tests/model/round.h): the first bytes
// choose the shape, the others the operations.
#include "fuzz.h"
#include "model/round.h"

std::vector<std::string_view> fuzz_seeds() { return {}; }

namespace {

class Bytes final : public percpu::model::Choices {
 public:
  Bytes(const uint8_t* data, size_t size_bytes) : decide_(data, size_bytes) {}
  bool done() const { return decide_.done(); }
  uint32_t below(uint32_t limit) override {
    if (limit <= 256) return decide_.byte() % limit;
    return (limit <= 65536 ? uint32_t{decide_.byte()} << 8 | decide_.byte() : decide_.word()) % limit;
  }

 private:
  fuzz::Decisions decide_;
};

void expect(bool holds, const percpu::model::Round& round, const percpu::PoolShape& shape) {
  if (holds) return;
  percpu::model::print_shape(shape);
  printf("%s\n", round.wrong().c_str());
  fflush(stdout);
  abort();
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size_bytes) {
  Bytes bytes(data, size_bytes);
  const percpu::PoolShape shape = percpu::model::choose_shape(bytes);
  percpu::model::Round round(bytes, shape);
  for (unsigned i = 1; !bytes.done(); ++i) expect(round.step() && (i % 64 != 0 || round.compare_all()), round, shape);
  expect(round.wind_down(), round, shape);
  return 0;
}
