// SPDX-License-Identifier: MIT
//
// Operations on a pool and on its naive twin, side by side. After every operation the records of the blocks and the chunk that
// it touched are recomputed from the twin's bytes.
//
// The operations are those of the runtime, interleaved as its locks allow: while a step of balancing is in flight, or an area
// waits for its pages, others allocate and free; an area's release may be queued behind the clearing of its mark. Populating and
// creating chunks fails now and then. Which comes next is the choice of who runs it: random numbers (model_test.cc), or a
// fuzzer's bytes (tests/fuzz/area_map.cc).
#ifndef PERCPU_TESTS_MODEL_ROUND_H
#define PERCPU_TESTS_MODEL_ROUND_H

#include <sys/mman.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/balance_plan.h"
#include "model/reference.h"

namespace percpu::model {

class Choices {
 public:
  virtual uint32_t below(uint32_t limit) = 0;
  bool one_in(uint32_t n) { return below(n) == 0; }

 protected:
  ~Choices() = default;
};

// Pools of few pages and chunks, parts with odd borders.
PoolShape choose_shape(Choices& choices);
void print_shape(const PoolShape& shape);

// One pool, its twin, and what is in flight between them.
class Round {
 public:
  Round(Choices& choices, const PoolShape& shape)
      : random_(choices),
        shape_(shape),
        storage_bytes_(PoolCore::storage_bytes(shape)),
        storage_(mmap(nullptr, storage_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)),
        core_(PoolCore::create(storage_, shape)),
        twin_(shape, storage_) {}
  ~Round() { munmap(storage_, storage_bytes_); }
  Round(const Round&) = delete;
  Round& operator=(const Round&) = delete;

  // Runs one operation. Returns: whether all is well; wrong() says what is not.
  bool step();
  bool compare_all() { return fine(twin_.compare_all()); }
  // Frees everything and balances: what must be left is checked.
  bool wind_down();
  [[nodiscard]] const std::string& wrong() const { return wrong_; }

 private:
  bool fine(const std::string& wrong) {
    if (wrong_.empty()) wrong_ = wrong;
    return wrong_.empty();
  }
  bool expect(bool holds, const char* what) { return fine(holds ? "" : what); }

  uint32_t random_size();
  uint32_t random_align();
  bool allocate(Context context, Region region);
  bool took(const Area& area, Context context, Region region);
  bool populate_next(size_t index, bool fails);
  bool free_random();
  bool release(const Area& area);
  bool ask_about_random_offset();
  bool create_chunk();
  bool balance_step();
  bool finish_balance_step();
  bool compare(const Area& area);

  Choices& random_;
  PoolShape shape_;
  uint64_t storage_bytes_;
  void* storage_;
  PoolCore core_;
  Reference twin_;
  std::vector<Area> live_;     // complete areas
  std::vector<Area> waiting_;  // normal areas whose pages were not looked at yet
  std::vector<Area> queued_;   // live mark cleared, release to come
  std::optional<BalancePlan> plan_;
  BalanceStep step_{};  // in flight when its kind is not done
  uint32_t mood_ = 50;  // percent of operations that allocate
  std::string wrong_;
};

}  // namespace percpu::model

#endif  // PERCPU_TESTS_MODEL_ROUND_H
