// SPDX-License-Identifier: MIT
#include "api/statics.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <link.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "base/check.h"
#include "percpu.h"

namespace percpu {
namespace {

struct ImageRange {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};

constexpr char kNoteName[] = "percpu";
constexpr uint32_t kNoteType = 1;

// Our note in one PT_NOTE segment, as the range of images that it tells; an empty range where there is none.
ImageRange range_in_segment(uintptr_t at, size_t left_bytes, size_t align_bytes) {
  while (left_bytes >= sizeof(ElfW(Nhdr))) {
    ElfW(Nhdr) head;
    std::memcpy(&head, reinterpret_cast<const void*>(at), sizeof head);
    const size_t desc_offset = round_up<size_t>(sizeof head + head.n_namesz, align_bytes);
    const size_t note_bytes = round_up<size_t>(desc_offset + head.n_descsz, align_bytes);
    if (desc_offset > left_bytes || note_bytes < desc_offset) break;
    const void* name = reinterpret_cast<const void*>(at + sizeof head);
    if (head.n_type == kNoteType && head.n_namesz == sizeof kNoteName && head.n_descsz == 2 * sizeof(int32_t) &&
        desc_offset + head.n_descsz <= left_bytes && std::memcmp(name, kNoteName, sizeof kNoteName) == 0) {
      int32_t distance[2];
      std::memcpy(distance, reinterpret_cast<const void*>(at + desc_offset), sizeof distance);
      const uintptr_t desc = at + desc_offset;
      return {desc + static_cast<uintptr_t>(static_cast<intptr_t>(distance[0])),
              desc + sizeof(int32_t) + static_cast<uintptr_t>(static_cast<intptr_t>(distance[1]))};
    }
    if (note_bytes >= left_bytes) break;
    at += note_bytes;
    left_bytes -= note_bytes;
  }
  return {};
}

ImageRange range_in_module(const dl_phdr_info& info) {
  for (int i = 0; i < info.dlpi_phnum; i++) {
    const ElfW(Phdr)& segment = info.dlpi_phdr[i];
    if (segment.p_type != PT_NOTE) continue;
    const ImageRange range =
        range_in_segment(info.dlpi_addr + segment.p_vaddr, segment.p_memsz, segment.p_align == 8 ? 8 : 4);
    if (range.end > range.begin) return range;
  }
  return {};
}

// All modules' ranges, as many as there is room for.
struct Collected {
  ImageRange* ranges;
  uint32_t room;
  uint32_t count;
};

int collect_one(dl_phdr_info* info, size_t, void* argument) {
  auto& collected = *static_cast<Collected*>(argument);
  const ImageRange range = range_in_module(*info);
  if (range.end > range.begin && collected.count < collected.room) collected.ranges[collected.count++] = range;
  return 0;
}

// The range that holds one image.
struct Wanted {
  uintptr_t image;
  ImageRange found;
};

int find_one(dl_phdr_info* info, size_t, void* argument) {
  auto& wanted = *static_cast<Wanted*>(argument);
  const ImageRange range = range_in_module(*info);
  if (wanted.image < range.begin || wanted.image >= range.end) return 0;
  wanted.found = range;
  return 1;
}

// What the images may ask for: no variable is aligned more strictly than the section it lies in, nor that than its address.
size_t piece_alignment(uintptr_t image_begin, size_t page_bytes) {
  return std::min<size_t>(image_begin & -image_begin, page_bytes);
}

}  // namespace

int Statics::collect(const System& system, size_t page_bytes, size_t* static_bytes) {
  SleepMutexGuard guard(lock_);
  *static_bytes = 0;
  if (modules_ == nullptr) {
    const intptr_t memory = system.mmap(0, kMaxModules * (sizeof(Module) + sizeof(ImageRange)), PROT_READ | PROT_WRITE,
                                        MAP_NORESERVE);
    if (memory < 0) return -ENOMEM;
    modules_ = reinterpret_cast<Module*>(memory);
  }
  nr_modules_ = 0;
  Collected collected{reinterpret_cast<ImageRange*>(modules_ + kMaxModules), kMaxModules, 0};
  dl_iterate_phdr(collect_one, &collected);
  size_t offset = 0;
  for (uint32_t i = 0; i < collected.count; i++) {
    const ImageRange& range = collected.ranges[i];
    const size_t align = piece_alignment(range.begin, page_bytes);
    offset = round_up(offset, align);
    modules_[nr_modules_++] = {range.begin, range.end, offset, true, true};
    offset += range.end - range.begin;
  }
  *static_bytes = offset;
  return 0;
}

void Statics::place(Pool& pool) {
  SleepMutexGuard guard(lock_);
  for (uint32_t i = 0; i < nr_modules_; i++) {
    Module& module = modules_[i];
    module.handle += pool.first_handle();
    if (!module.open) continue;  // closed meanwhile: its images are there no more
    pool.write_copies(module.handle, reinterpret_cast<const void*>(module.image_begin), module.size_bytes());
  }
}

Module* Statics::find(uintptr_t image) {
  for (uint32_t i = 0; i < nr_modules_; i++) {
    Module& module = modules_[i];
    if (module.open && image >= module.image_begin && image < module.image_end) return &module;
  }
  return nullptr;
}

// A module that was there when the pool was made, was closed, and comes again finds its piece waiting.
Module* Statics::reuse_static_piece(const Pool& pool, uintptr_t image_begin, uintptr_t image_end) {
  const uintptr_t align = piece_alignment(image_begin, pool.page_bytes());
  for (uint32_t i = 0; i < nr_modules_; i++) {
    Module& module = modules_[i];
    if (module.open || !module.in_static_part || module.size_bytes() != image_end - image_begin ||
        module.handle % align != 0) {
      continue;
    }
    module.image_begin = image_begin;
    module.image_end = image_end;
    return &module;
  }
  return nullptr;
}

Module& Statics::add(Pool& pool, uintptr_t image_begin, uintptr_t image_end) {
  Module* module = reuse_static_piece(pool, image_begin, image_end);
  if (module == nullptr) {
    for (uint32_t i = 0; i < nr_modules_ && module == nullptr; i++) {
      if (!modules_[i].open && !modules_[i].in_static_part) module = &modules_[i];
    }
    if (module == nullptr) {
      if (nr_modules_ == kMaxModules) {
        fatal("static per-CPU variables: expected at most %u modules that define some, found more", kMaxModules);
      }
      module = &modules_[nr_modules_++];
    }
    const size_t size = image_end - image_begin;
    const size_t align = piece_alignment(image_begin, pool.page_bytes());
    void* handle = pool.allocate_statics(size, align);
    if (handle == nullptr) {
      fatal("static per-CPU variables: a module needs %zu bytes, found no room for them (%s; the largest allocation is "
            "%zu)", size, size > pool.max_alloc_bytes() ? "too large" : "no memory", pool.max_alloc_bytes());
    }
    *module = {image_begin, image_end, reinterpret_cast<uintptr_t>(handle), false, true};
  }
  module->open = true;
  pool.write_copies(module->handle, reinterpret_cast<const void*>(image_begin), image_end - image_begin);
  return *module;
}

void* Statics::resolve(Pool& pool, void** cell) {
  const auto image = reinterpret_cast<uintptr_t>(cell[1]);
  SleepMutexGuard guard(lock_);
  Module* module = find(image);
  if (module == nullptr) {
    Wanted wanted{image, {}};
    dl_iterate_phdr(find_one, &wanted);
    if (wanted.found.begin == wanted.found.end) {
      fatal("percpu_static: expected the cell of a variable made by PERCPU_DEFINE, found image %p in no module's note",
            cell[1]);
    }
    module = &add(pool, wanted.found.begin, wanted.found.end);
  }
  void* handle = reinterpret_cast<void*>(module->handle + (image - module->image_begin));
  __atomic_store_n(cell, handle, __ATOMIC_RELEASE);
  return handle;
}

void Statics::close(Pool* pool, void** cell) {
  SleepMutexGuard guard(lock_);
  Module* module = find(reinterpret_cast<uintptr_t>(cell[1]));
  if (module == nullptr) return;  // never used, or an earlier variable's destructor was here
  module->open = false;
  if (!module->in_static_part) pool->free_statics(reinterpret_cast<void*>(module->handle));
}

bool Statics::owns(uintptr_t handle, uintptr_t* piece, size_t* piece_bytes) {
  SleepMutexGuard guard(lock_);
  for (uint32_t i = 0; i < nr_modules_; i++) {
    const Module& module = modules_[i];
    if (!module.open || handle < module.handle || handle >= module.handle + module.size_bytes()) continue;
    *piece = module.handle;
    *piece_bytes = module.size_bytes();
    return true;
  }
  return false;
}

}  // namespace percpu
