// SPDX-License-Identifier: MIT
//
// What is known of each thread that the program created, in records that come from slabs of pages of their own: a thread may
// be created where malloc must not be called. Slabs are never given back.
//
// Invariants: a record is in the list of live ones, or in that of free ones.
// Locking: none of its own; whoever has the list locks it. reset_after_fork_in_child() trusts only the chain of slabs, which
// single stores have made.
#ifndef PERCPU_PRELOAD_PIN_RECORDS_H
#define PERCPU_PRELOAD_PIN_RECORDS_H

#include <pthread.h>
#include <sys/types.h>
#include <threads.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "os/system.h"

namespace percpu::heap {

inline constexpr int32_t kNoPlace = -1;
inline constexpr int32_t kNoSlot = -1;

struct ThreadRecord {
  ThreadRecord* next = nullptr;  // in the list of live records, or of free ones
  ThreadRecord* before = nullptr;
  void* (*start)(void*) = nullptr;
  thrd_start_t c11_start = nullptr;
  void* argument = nullptr;
  pthread_t thread = {};
  pid_t tid = 0;  // 0: the thread has not begun
  uint32_t number = 0;
  int32_t slot = kNoSlot;
  int32_t place = kNoPlace;
  int32_t inherited = kNoPlace;  // its creator's place
  int32_t left = kNoPlace;       // the place that it had, when it has none; but for one where the program wants it to be
  bool counted = false;
  bool mask_in_attr = false;
  bool name_read = false;
  uint64_t looked_ns = 0;
  uint64_t ran_ns = 0;
  uint64_t waited_ns = 0;
};

class RecordList {
 public:
  constexpr RecordList() = default;

  // A new record, live from now on. Null: no memory.
  [[nodiscard]] ThreadRecord* add(const System& system);
  void remove(ThreadRecord* record);
  // The live ones, newest first.
  ThreadRecord* first() const { return live_; }

  // No record is live any more, whatever the other lists say.
  void reset_after_fork_in_child();

 private:
  struct Slab {
    static constexpr size_t kBytes = 16384;
    static constexpr size_t kRecords = (kBytes - sizeof(void*)) / sizeof(ThreadRecord);

    Slab* next;
    ThreadRecord records[kRecords];
  };
  static_assert(sizeof(Slab) <= Slab::kBytes);

  void add_to_free(Slab* slab);
  [[nodiscard]] bool new_slab(const System& system);

  std::atomic<Slab*> slabs_{nullptr};
  ThreadRecord* free_ = nullptr;
  ThreadRecord* live_ = nullptr;
};

}  // namespace percpu::heap

#endif  // PERCPU_PRELOAD_PIN_RECORDS_H
