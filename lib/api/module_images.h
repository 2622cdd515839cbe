// SPDX-License-Identifier: MIT
//
// Which modules of the process have images of static per-CPU variables, and where these lie: what the dynamic linker and the
// modules' notes (docs/static.md) say.
//
// A list of all modules is a hint. The linker lists a module before it has relocated it, and still does when the module's
// destructors have run, so a module may be gone, or have failed to come, when the list is read. What is said about the address
// of an image holds for as long as its module is used.
//
// Locking: no lock of ours is taken, and none may be held: the linker's may be waited for here, and who holds it, in a callback
// of the program's from dl_iterate_phdr(), may wait for ours.
#ifndef PERCPU_API_MODULE_IMAGES_H
#define PERCPU_API_MODULE_IMAGES_H

#include <cstddef>
#include <cstdint>
#include <span>

#include "os/system.h"

namespace percpu {

// The images of one module: from the first to behind the last.
struct ImageRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;
  bool empty() const { return begin >= end; }
  bool has(uintptr_t address) const { return address >= begin && address < end; }
  bool overlaps(const ImageRange& other) const { return begin < other.end && other.begin < end; }
  size_t size_bytes() const { return end - begin; }
  bool operator==(const ImageRange&) const = default;
};

// More modules with static variables than this a process cannot have.
inline constexpr uint32_t kMaxModules = 4096;

class ModuleImages {
 public:
  // Gives back the memory that read() took from `system`, which outlives this.
  explicit ModuleImages(const System& system) : system_(system) {}
  ~ModuleImages();
  ModuleImages(const ModuleImages&) = delete;
  ModuleImages& operator=(const ModuleImages&) = delete;

  // Asks for all modules. Called once. 0, or -ENOMEM where memory for the list cannot be had.
  [[nodiscard]] int read();
  std::span<const ImageRange> ranges() const { return {ranges_, count_}; }

  // The images of the module that has one at this address; empty where none has.
  // Requires: the module, if there is one, does not go meanwhile.
  static ImageRange around(uintptr_t image);

  // Around fork, in the thread that forks: nobody is inside the linker's lock on our behalf while the process is copied, or, after a
  // second of patience, somebody is. Context: none of our locks is held.
  static void fork_prepare();
  static void fork_parent();
  static void fork_child();

 private:
  const System& system_;
  ImageRange* ranges_ = nullptr;
  uint32_t count_ = 0;
};

}  // namespace percpu

#endif  // PERCPU_API_MODULE_IMAGES_H
