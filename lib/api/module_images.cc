// SPDX-License-Identifier: MIT
#include "api/module_images.h"

#include <cerrno>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "os/gate.h"

namespace percpu {
namespace {

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

// Whether all of a segment is in memory: some tools leave notes in files that are in none of what is loaded.
bool is_loaded(const ElfW(Phdr)& segment, const ElfW(Phdr)* segments, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const ElfW(Phdr)& other = segments[i];
    if (other.p_type == PT_LOAD && segment.p_vaddr >= other.p_vaddr && segment.p_memsz <= other.p_memsz &&
        segment.p_vaddr - other.p_vaddr <= other.p_memsz - segment.p_memsz) {
      return true;
    }
  }
  return false;
}

// Reads nothing that the linker has yet to relocate.
ImageRange range_in_module(uintptr_t base, const ElfW(Phdr)* segments, size_t count) {
  for (size_t i = 0; i < count; i++) {
    const ElfW(Phdr)& segment = segments[i];
    if (segment.p_type != PT_NOTE || !is_loaded(segment, segments, count)) continue;
    const ImageRange range = range_in_segment(base + segment.p_vaddr, segment.p_memsz, segment.p_align == 8 ? 8 : 4);
    if (!range.empty()) return range;
  }
  return {};
}

// Inside: in the dynamic linker's lock on our behalf. Shut while a fork is in progress: its child would have the lock as it was.
constinit Gate asking;

// Who is inside leaves soon, unless a callback of the program's there waits for who forks.
constexpr uint32_t kForkPatienceMs = 1000;

void ask_linker(int (*callback)(dl_phdr_info*, size_t, void*), void* argument) {
  asking.enter();
  dl_iterate_phdr(callback, argument);
  asking.leave();
}

// All modules' ranges, as many as there is room for.
struct Collected {
  ImageRange* ranges;
  uint32_t room;
  uint32_t count;
};

int collect_one(dl_phdr_info* info, size_t, void* argument) {
  auto& collected = *static_cast<Collected*>(argument);
  const ImageRange range = range_in_module(info->dlpi_addr, info->dlpi_phdr, info->dlpi_phnum);
  if (!range.empty() && collected.count < collected.room) collected.ranges[collected.count++] = range;
  return 0;
}

// The range that holds one image.
struct Wanted {
  uintptr_t image;
  ImageRange found;
};

int find_one(dl_phdr_info* info, size_t, void* argument) {
  auto& wanted = *static_cast<Wanted*>(argument);
  const ImageRange range = range_in_module(info->dlpi_addr, info->dlpi_phdr, info->dlpi_phnum);
  if (!range.has(wanted.image)) return 0;
  wanted.found = range;
  return 1;
}

// The same by the linker's answer that takes no lock (glibc 2.35 on), for a module whose program headers lie where linkers place
// them: behind the ELF header, on the first page. Empty for any other.
ImageRange range_without_lock([[maybe_unused]] uintptr_t image) {
#ifdef DLFO_STRUCT_HAS_EH_DBASE
  constexpr size_t kLeastPageBytes = 4096;
  dl_find_object module;
  if (_dl_find_object(reinterpret_cast<void*>(image), &module) != 0 || module.dlfo_map_start == nullptr) return {};
  const auto& header = *static_cast<const ElfW(Ehdr)*>(module.dlfo_map_start);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_phentsize != sizeof(ElfW(Phdr)) ||
      header.e_phoff > kLeastPageBytes || header.e_phoff + header.e_phnum * sizeof(ElfW(Phdr)) > kLeastPageBytes) {
    return {};
  }
  const auto segments = reinterpret_cast<uintptr_t>(module.dlfo_map_start) + header.e_phoff;
  return range_in_module(module.dlfo_link_map->l_addr, reinterpret_cast<const ElfW(Phdr)*>(segments), header.e_phnum);
#else
  return {};
#endif
}

}  // namespace

int ModuleImages::read() {
  const intptr_t memory = system_.mmap(0, kMaxModules * sizeof(ImageRange), PROT_READ | PROT_WRITE, MAP_NORESERVE);
  if (memory < 0) return -ENOMEM;
  ranges_ = reinterpret_cast<ImageRange*>(memory);
  Collected collected{ranges_, kMaxModules, 0};
  ask_linker(collect_one, &collected);
  count_ = collected.count;
  return 0;
}

void ModuleImages::fork_prepare() {
  if (asking.shut()) (void)asking.wait_empty(kForkPatienceMs);
}
void ModuleImages::fork_parent() { asking.open(); }
void ModuleImages::fork_child() { asking.reset(); }

ModuleImages::~ModuleImages() {
  if (ranges_ != nullptr) (void)system_.munmap(reinterpret_cast<uintptr_t>(ranges_), kMaxModules * sizeof(ImageRange));
}

ImageRange ModuleImages::around(uintptr_t image) {
  const ImageRange range = range_without_lock(image);
  if (range.has(image)) return range;
  Wanted wanted{image, {}};
  ask_linker(find_one, &wanted);
  return wanted.found;
}

}  // namespace percpu
