// SPDX-License-Identifier: MIT
//
// Static per-CPU variables: the modules that define some, and where each module's images have their copies. docs/static.md
// tells the whole protocol; include/percpu/static.h is the other side of it.
//
// Invariants:
//   the images of a module are read by the first use of one of its variables, and by nobody else: who uses it has it mapped and
//   relocated. Before that it is only listed; it may have gone, and another one may be where it was
//   modules that are not closed do not overlap
//   pieces in the static part keep their place for ever; a closed one waits for the module to come again
// Locking: lock_ guards the table (lock 1 of lib/README.md). The dynamic linker is asked only while it is not held
// (module_images.h).
#ifndef PERCPU_API_STATICS_H
#define PERCPU_API_STATICS_H

#include <cstddef>
#include <cstdint>
#include <span>

#include "api/module_images.h"
#include "base/annotations.h"
#include "os/mutex.h"
#include "os/system.h"
#include "runtime/pool.h"

namespace percpu {

struct Module {
  enum class State : uint8_t {
    kListed,  // was there when the pool was made; its piece holds zeros, or what the closed module left that had it before
    kOpen,    // in use: its piece held the initial values when the first handle was given out
    kClosed,  // its piece belongs to nobody
  };
  ImageRange images;
  uintptr_t handle;  // of the piece's first byte; for a static piece, its offset in the unit until there is a pool
  bool in_static_part;
  State state;
};

class Statics {
 public:
  constexpr Statics() = default;

  // Lays out pieces for the modules that were listed, instead of those of an earlier try. Called before the default pool is made;
  // the result is the size of its static part. -errno where memory for the table cannot be had.
  [[nodiscard]] int lay_out(const System& system, std::span<const ImageRange> ranges, size_t page_bytes, size_t* static_bytes)
      PERCPU_EXCLUDES(lock_);
  // Turns offsets into handles. Reads no image: the modules may be gone, or not relocated yet.
  void place(Pool& pool) PERCPU_EXCLUDES(lock_);

  // The handle of the variable whose cell is {handle, image}; stores it in the cell. The first one of a module copies its images to
  // every CPU's copy. Stops the program where the image belongs to no module, or memory for the module's variables cannot be had.
  void* resolve(Pool& pool, void** cell) PERCPU_EXCLUDES(lock_);
  // The module of that cell is being closed. pool: null before there is one, when there are pieces in the static part at most.
  void close(Pool* pool, void** cell) PERCPU_EXCLUDES(lock_);

  // True where the piece of an open module begins at or before `handle` and ends behind it.
  bool owns(uintptr_t handle, uintptr_t* piece, size_t* piece_bytes) PERCPU_EXCLUDES(lock_);

  void lock_for_fork() PERCPU_ACQUIRE(lock_) { lock_.lock(); }
  void unlock_after_fork() PERCPU_RELEASE(lock_) { lock_.unlock(); }

 private:
  Module& open(Pool& pool, const ImageRange& images) PERCPU_REQUIRES(lock_);
  Module& add(Pool& pool, const ImageRange& images) PERCPU_REQUIRES(lock_);
  void give_back(Pool* pool, Module& module) PERCPU_REQUIRES(lock_);
  Module* reuse_static_piece(const Pool& pool, const ImageRange& images) PERCPU_REQUIRES(lock_);

  SleepMutex lock_;
  Module* modules_ PERCPU_GUARDED_BY(lock_) = nullptr;
  uint32_t nr_modules_ PERCPU_GUARDED_BY(lock_) = 0;
};

}  // namespace percpu

#endif  // PERCPU_API_STATICS_H
