// SPDX-License-Identifier: MIT
#include "api/statics.h"

#include <algorithm>
#include <cerrno>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/check.h"
#include "percpu.h"

namespace percpu {
namespace {

// What the images may ask for: no variable is aligned more strictly than the section it lies in, nor that than its address.
size_t piece_alignment(uintptr_t image_begin, size_t page_bytes) {
  return std::min<size_t>(image_begin & -image_begin, page_bytes);
}

}  // namespace

int Statics::lay_out(const System& system, std::span<const ImageRange> ranges, size_t page_bytes, size_t* static_bytes) {
  SleepMutexGuard guard(lock_);
  *static_bytes = 0;
  if (modules_ == nullptr) {
    const intptr_t memory = system.mmap(0, kMaxModules * sizeof(Module), PROT_READ | PROT_WRITE, MAP_NORESERVE);
    if (memory < 0) return -ENOMEM;
    modules_ = reinterpret_cast<Module*>(memory);
  }
  nr_modules_ = 0;
  size_t offset = 0;
  for (const ImageRange& range : ranges) {
    offset = round_up(offset, piece_alignment(range.begin, page_bytes));
    modules_[nr_modules_++] = {range, offset, true, Module::State::kListed};
    offset += range.size_bytes();
  }
  *static_bytes = offset;
  return 0;
}

void Statics::place(Pool& pool) {
  SleepMutexGuard guard(lock_);
  for (uint32_t i = 0; i < nr_modules_; i++) modules_[i].handle += pool.first_handle();
}

// The module that has exactly these images, now that one of its variables is used. What overlaps them otherwise is gone, and no
// destructor said so: those had run when it was listed, or it failed to load.
Module& Statics::open(Pool& pool, const ImageRange& images) {
  Module* module = nullptr;
  for (uint32_t i = 0; i < nr_modules_; i++) {
    Module& other = modules_[i];
    if (other.state == Module::State::kClosed || !other.images.overlaps(images)) continue;
    if (other.images == images) {
      module = &other;
    } else {
      give_back(&pool, other);
    }
  }
  if (module == nullptr) module = &add(pool, images);
  if (module->state != Module::State::kOpen) {
    pool.write_copies(module->handle, reinterpret_cast<const void*>(images.begin), images.size_bytes());
    module->state = Module::State::kOpen;
  }
  return *module;
}

// A module that was there when the pool was made, was closed, and comes again finds its piece waiting.
Module* Statics::reuse_static_piece(const Pool& pool, const ImageRange& images) {
  const uintptr_t align = piece_alignment(images.begin, pool.page_bytes());
  for (uint32_t i = 0; i < nr_modules_; i++) {
    Module& module = modules_[i];
    if (module.state != Module::State::kClosed || !module.in_static_part || module.images.size_bytes() != images.size_bytes() ||
        module.handle % align != 0) {
      continue;
    }
    module.images = images;
    return &module;
  }
  return nullptr;
}

Module& Statics::add(Pool& pool, const ImageRange& images) {
  Module* module = reuse_static_piece(pool, images);
  if (module == nullptr) {
    for (uint32_t i = 0; i < nr_modules_ && module == nullptr; i++) {
      if (modules_[i].state == Module::State::kClosed && !modules_[i].in_static_part) module = &modules_[i];
    }
    if (module == nullptr) {
      if (nr_modules_ == kMaxModules) {
        fatal("static per-CPU variables: expected at most %u modules that define some, found more", kMaxModules);
      }
      module = &modules_[nr_modules_++];
    }
    const size_t size = images.size_bytes();
    const size_t align = piece_alignment(images.begin, pool.page_bytes());
    void* handle = pool.allocate_statics(size, align);
    if (handle == nullptr) {
      fatal("static per-CPU variables: a module needs %zu bytes, found no room for them (%s; the largest allocation is "
            "%zu)", size, size > pool.max_alloc_bytes() ? "too large" : "no memory", pool.max_alloc_bytes());
    }
    *module = {images, reinterpret_cast<uintptr_t>(handle), false, Module::State::kClosed};
  }
  return *module;
}

void* Statics::resolve(Pool& pool, void** cell) {
  const auto image = reinterpret_cast<uintptr_t>(cell[1]);
  const ImageRange images = ModuleImages::around(image);
  if (images.empty()) {
    fatal("percpu_static: expected the cell of a variable made by PERCPU_DEFINE, found image %p in no module's note", cell[1]);
  }
  SleepMutexGuard guard(lock_);
  void* handle = reinterpret_cast<void*>(open(pool, images).handle + (image - images.begin));
  __atomic_store_n(cell, handle, __ATOMIC_RELEASE);
  return handle;
}

void Statics::close(Pool* pool, void** cell) {
  const auto image = reinterpret_cast<uintptr_t>(cell[1]);
  SleepMutexGuard guard(lock_);
  // None where it was not listed and never used, or an earlier variable's destructor was here.
  for (uint32_t i = 0; i < nr_modules_; i++) {
    Module& module = modules_[i];
    if (module.state == Module::State::kClosed || !module.images.has(image)) continue;
    give_back(pool, module);
    return;
  }
}

void Statics::give_back(Pool* pool, Module& module) {
  module.state = Module::State::kClosed;
  if (!module.in_static_part) pool->free_statics(reinterpret_cast<void*>(module.handle));
}

bool Statics::owns(uintptr_t handle, uintptr_t* piece, size_t* piece_bytes) {
  SleepMutexGuard guard(lock_);
  for (uint32_t i = 0; i < nr_modules_; i++) {
    const Module& module = modules_[i];
    if (module.state != Module::State::kOpen || handle < module.handle || handle >= module.handle + module.images.size_bytes()) continue;
    *piece = module.handle;
    *piece_bytes = module.images.size_bytes();
    return true;
  }
  return false;
}

}  // namespace percpu
