// SPDX-License-Identifier: MIT
//
// jemalloc's own functions, for programs that Debian links with it (redis-server): the ones that allocate, so that no block
// comes from a second heap, and mallctl with the names that programs ask for. The set is complete, for programs that look
// whether it is; those that test for jemalloc by "thread.allocatedp" learn that this is another allocator.
//
//   reads        version epoch stats.{allocated,active,resident,mapped,retained,metadata}
//                thread.tcache.enabled opt.{narenas,background_thread} background_thread arenas.{narenas,page,quantum}
//                arenas.{dirty,muzzy}_decay_ms arena.N.{dirty,muzzy}_decay_ms: `decay`, and 0; what is written is accepted, and
//                changes nothing
//   does         arena.N.{purge,decay}: malloc_trim()   thread.tcache.flush, epoch (written): nothing is needed
//                arenas.create: arena 0, the only one   arena.N.destroy: nothing, blocks stay
//                N: 0, the only arena; all arenas: 1, which is what arenas.narenas says, as redis-server asks, or 4096
//   else         ENOENT, as jemalloc says of names that it does not know
//
// Flags of the *allocx functions: bits 0 to 5 the log2 of the alignment, bit 6 zero; tcache and arena are ignored.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include <bit>
#include <cstring>
#include <initializer_list>
#include <string_view>

#include "base/check.h"
#include "preload/abi/export.h"
#include "preload/heap/heap.h"

using percpu::heap::heap;
using percpu::heap::HeapTotals;

namespace {

constexpr int kAlignMask = 63;
constexpr int kLargestAlignBits = std::countr_zero(percpu::heap::kLargestAlign);
constexpr int kZero = 64;

size_t align_of(int flags) { return size_t{1} << (flags & kAlignMask); }

void* take(size_t size, int flags) {
  if ((flags & kAlignMask) > kLargestAlignBits) return nullptr;
  // Every block lies at a multiple of 8; those of 8 bytes at no larger one.
  if ((flags & kAlignMask) <= 3) return (flags & kZero) != 0 ? heap.allocate_zeroed(size) : heap.allocate(size);
  void* block = heap.allocate_aligned(align_of(flags), size);
  if (block != nullptr && (flags & kZero) != 0) memset(block, 0, size);
  return block;
}

// What mallctl can say or do.
enum class Name : uint8_t {
  kVersion, kEpoch, kAllocated, kActive, kResident, kMapped, kRetained, kMetadata, kTcacheEnabled, kTcacheFlush,
  kBackground, kOptBackground, kNarenas, kPage, kQuantum, kCreate, kDirtyDecay, kMuzzyDecay, kPurge, kDestroy,
};

struct Entry {
  const char* name;
  Name id;
};

constexpr Entry kEntries[] = {
    {"version", Name::kVersion},
    {"epoch", Name::kEpoch},
    {"stats.allocated", Name::kAllocated},
    {"stats.active", Name::kActive},
    {"stats.resident", Name::kResident},
    {"stats.mapped", Name::kMapped},
    {"stats.retained", Name::kRetained},
    {"stats.metadata", Name::kMetadata},
    {"thread.tcache.enabled", Name::kTcacheEnabled},
    {"thread.tcache.flush", Name::kTcacheFlush},
    {"background_thread", Name::kBackground},
    {"opt.background_thread", Name::kOptBackground},
    {"opt.narenas", Name::kNarenas},
    {"arenas.narenas", Name::kNarenas},
    {"arenas.page", Name::kPage},
    {"arenas.quantum", Name::kQuantum},
    {"arenas.create", Name::kCreate},
    {"arenas.dirty_decay_ms", Name::kDirtyDecay},
    {"arenas.muzzy_decay_ms", Name::kMuzzyDecay},
    {"dirty_decay_ms", Name::kDirtyDecay},
    {"muzzy_decay_ms", Name::kMuzzyDecay},
    {"purge", Name::kPurge},
    {"decay", Name::kPurge},
    {"destroy", Name::kDestroy},
};
constexpr size_t kNrEntries = sizeof kEntries / sizeof kEntries[0];
constexpr size_t kNrOfArena = 5;  // the last ones are an arena's, behind whose name they come
static_assert(std::string_view(kEntries[kNrEntries - kNrOfArena].name) == "dirty_decay_ms");

// A name's number, which is one word of a mib too: its place in the table. kNrEntries: there is no such name.
size_t number_of(const char* name) {
  size_t from = 0;
  size_t to = kNrEntries - kNrOfArena;
  for (const char* arena : {"arena.0.", "arena.1.", "arena.4096."}) {
    const size_t length = strlen(arena);
    if (strncmp(name, arena, length) != 0) continue;
    name += length;
    from = to;
    to = kNrEntries;
    break;
  }
  for (size_t i = from; i < to; ++i) {
    if (strcmp(kEntries[i].name, name) == 0) return i;
  }
  return kNrEntries;
}

template <class T>
int answer(void* out, size_t* out_bytes, T value) {
  if (out == nullptr || out_bytes == nullptr) return 0;
  if (*out_bytes != sizeof value) {
    memcpy(out, &value, *out_bytes < sizeof value ? *out_bytes : sizeof value);
    *out_bytes = *out_bytes < sizeof value ? *out_bytes : sizeof value;
    return EINVAL;
  }
  memcpy(out, &value, sizeof value);
  return 0;
}

// What is true here and cannot be changed: a value that says so may be written, another one not.
int answer_true(void* out, size_t* out_bytes, const void* in, size_t in_bytes) {
  if (const int error = answer(out, out_bytes, true); error != 0 || in == nullptr) return error;
  bool wish = false;
  if (in_bytes != sizeof wish) return EINVAL;
  memcpy(&wish, in, sizeof wish);
  return wish ? 0 : EPERM;
}

// What is given back when is decided by PERCPU_CONF: times that jemalloc would take are taken, and change nothing.
int answer_decay(void* out, size_t* out_bytes, const void* in, size_t in_bytes, bool dirty) {
  const uint64_t ms = heap.config().decay_ms;
  const ssize_t value = !dirty ? 0 : ms == percpu::kDecayOff ? -1 : static_cast<ssize_t>(ms);
  if (const int error = answer(out, out_bytes, value); error != 0 || in == nullptr) return error;
  ssize_t wish = 0;
  if (in_bytes != sizeof wish) return EINVAL;
  memcpy(&wish, in, sizeof wish);
  return wish >= -1 ? 0 : EFAULT;
}

// The figures of the last epoch, as jemalloc has them: to gather them takes long on a machine of many CPUs, and redis-server asks for each
// some ten times a second. Each is a word of its own.
class EpochTotals {
 public:
  void look() {
    const HeapTotals now = heap.totals();
    for (size_t i = 0; i < kWords; ++i) percpu::store_relaxed(&words_[i], reinterpret_cast<const uint64_t*>(&now)[i]);
    percpu::store_relaxed(&looked_, true);
  }
  HeapTotals get() {
    if (!percpu::load_relaxed(&looked_)) look();
    HeapTotals then;
    for (size_t i = 0; i < kWords; ++i) reinterpret_cast<uint64_t*>(&then)[i] = percpu::load_relaxed(&words_[i]);
    return then;
  }

 private:
  static constexpr size_t kWords = sizeof(HeapTotals) / sizeof(uint64_t);
  uint64_t words_[kWords] = {};
  bool looked_ = false;
};
constinit EpochTotals epoch_totals;

int control(size_t number, void* out, size_t* out_bytes, const void* in, size_t in_bytes) {
  if (number >= kNrEntries) return ENOENT;
  const Name id = kEntries[number].id;
  static uint64_t epoch = 1;
  switch (id) {
    case Name::kEpoch:
      if (in != nullptr && in_bytes != sizeof epoch) return EINVAL;
      if (in != nullptr) {
        __atomic_fetch_add(&epoch, 1, __ATOMIC_RELAXED);
        epoch_totals.look();
      }
      return answer(out, out_bytes, __atomic_load_n(&epoch, __ATOMIC_RELAXED));
    case Name::kTcacheEnabled:
    case Name::kBackground: return answer_true(out, out_bytes, in, in_bytes);
    case Name::kDirtyDecay:
    case Name::kMuzzyDecay: return answer_decay(out, out_bytes, in, in_bytes, id == Name::kDirtyDecay);
    case Name::kTcacheFlush:
    case Name::kPurge:
    case Name::kDestroy:
      if (in != nullptr || in_bytes != 0 || out != nullptr || out_bytes != nullptr) return EPERM;  // there is nothing to say
      if (id == Name::kPurge) (void)heap.trim();
      return 0;
    default: break;
  }
  if (id == Name::kCreate) return answer(out, out_bytes, 0u);  // how its pages are to be made is jemalloc's own
  if (in != nullptr || in_bytes != 0) return EPERM;  // the rest can only be asked for
  switch (id) {
    case Name::kOptBackground: return answer(out, out_bytes, true);
    case Name::kVersion: return answer<const char*>(out, out_bytes, "5.3.0-percpu");
    case Name::kNarenas: return answer(out, out_bytes, 1u);
    case Name::kPage: return answer(out, out_bytes, size_t{percpu::heap::kPageBytes});
    case Name::kQuantum: return answer(out, out_bytes, size_t{16});
    default: break;
  }
  const HeapTotals totals = epoch_totals.get();
  size_t value = 0;
  switch (id) {
    case Name::kAllocated: value = totals.live_bytes(); break;
    case Name::kActive: value = totals.used_bytes; break;
    case Name::kResident: value = totals.used_bytes + totals.dirty_bytes + totals.metadata_bytes; break;
    case Name::kMapped: value = totals.open_bytes; break;
    case Name::kRetained: value = totals.clean_bytes; break;
    default: value = totals.metadata_bytes; break;
  }
  return answer(out, out_bytes, value);
}

}  // namespace

PRELOAD_EXPORT void* mallocx(size_t size, int flags) { return take(size, flags); }

PRELOAD_EXPORT void* rallocx(void* block, size_t size, int flags) {
  if ((flags & kAlignMask) <= 3 && (flags & kZero) == 0) return heap.reallocate(block, size);
  const size_t old_bytes = heap.usable_bytes(block, "rallocx");
  void* other = take(size, flags);
  if (other == nullptr) return nullptr;
  memcpy(other, block, old_bytes < size ? old_bytes : size);
  heap.release(block);
  return other;
}

// Blocks never move here, nor grow: what there is is all there is.
PRELOAD_EXPORT size_t xallocx(void* block, size_t, size_t, int) { return heap.usable_bytes(block, "xallocx"); }
PRELOAD_EXPORT size_t sallocx(const void* block, int) { return heap.usable_bytes(block, "sallocx"); }
PRELOAD_EXPORT void dallocx(void* block, int) { heap.release(block); }
PRELOAD_EXPORT void sdallocx(void* block, size_t, int) { heap.release(block); }
PRELOAD_EXPORT size_t nallocx(size_t size, int flags) {
  return (flags & kAlignMask) > kLargestAlignBits ? 0 : heap.usable_for(align_of(flags), size);
}

PRELOAD_EXPORT int mallctl(const char* name, void* out, size_t* out_bytes, void* in, size_t in_bytes) {
  return control(number_of(name), out, out_bytes, in, in_bytes);
}

PRELOAD_EXPORT int mallctlnametomib(const char* name, size_t* mib, size_t* mib_words) {
  const size_t number = number_of(name);
  if (number == kNrEntries) return ENOENT;
  if (*mib_words < 1) return EINVAL;
  mib[0] = number;
  *mib_words = 1;
  return 0;
}

PRELOAD_EXPORT int mallctlbymib(const size_t* mib, size_t mib_words, void* out, size_t* out_bytes, void* in,
                                  size_t in_bytes) {
  return mib_words == 1 ? control(mib[0], out, out_bytes, in, in_bytes) : ENOENT;
}

// jemalloc's way to print: pieces of text to the program's own function, or to stderr.
PRELOAD_EXPORT void malloc_stats_print(void (*write)(void*, const char*), void* context, const char*) {
  struct Reader {
    void (*write)(void*, const char*);
    void* context;
  } reader{write, context};
  percpu::heap::Pieces text(
      [](void* to, const char* chars, size_t len_bytes) {
        const auto& [its_write, its_context] = *static_cast<const Reader*>(to);
        if (its_write == nullptr) return percpu::report_raw(chars, len_bytes);
        its_write(its_context, chars);
      },
      &reader);
  heap.print_stats(text);
}
