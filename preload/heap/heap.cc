// SPDX-License-Identifier: MIT
#include "preload/heap/heap.h"

#include <errno.h>
#include <link.h>
#include <linux/mempolicy.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include <cstring>

#include "base/check.h"
#include "os/env.h"
#include "preload/heap/nodes.h"

namespace percpu::heap {

extern "C" {
__thread uint32_t in_vfork_word __attribute__((tls_model("initial-exec"))) = 0;
}
Heap heap;

namespace {

constinit uint64_t shelves[kMaxHeapNodes][kNrClasses][CentralList::kShelf] = {};

// From here on a growing block moves by moving its pages, which costs less than copying them.
constexpr size_t kMoveBytes = size_t{512} * 1024;

// Whether the process was started with a memory policy of its own (numactl): it holds where nothing is bound to a node.
bool has_memory_policy(const System& system) {
  int mode = MPOL_DEFAULT;
  if (system.get_mempolicy(&mode, nullptr, 0, 0, 0) != 0) return false;
  mode &= ~MPOL_MODE_FLAGS;
  return mode != MPOL_DEFAULT && mode != MPOL_LOCAL;
}

}  // namespace

// ---- the beginning -----------------------------------------------------------------------------------------------------

int Heap::prepare() {
  return prepared_.run([this] { return prepare_now(); });
}

// The first call of all: system calls only, since nothing else is ready, the libc that could do more included.
int Heap::prepare_now() {
  use_mapping_calls(nullptr);  // until main.cc has found libc's own
  const System& system = real_system();
  CpuMask nodes;
  uint32_t nr_nodes = 0;
  if (!has_memory_policy(system) && read_memory_nodes(system, &nodes) == 0) nr_nodes = static_cast<uint32_t>(nodes.count());
  if (nr_nodes < 1) nr_nodes = 1;
  if (nr_nodes > kMaxHeapNodes) nr_nodes = kMaxHeapNodes;
  if (const int result = window_.reserve_all(system, nr_nodes); result != 0) return result;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    pages_[node].init(window_, node);
    for (uint32_t i = 0; i < kNrClasses; ++i) lists_[node][i].init(window_, pages_[node], lane_of(node, i), shelves[node][i]);
  }
  return 0;
}

void Heap::start() {
  if (prepare() != 0) return;
  char conf[4096];
  (void)read_conf(conf, sizeof conf);
  config_ = parse_config(conf, page_size_bytes(), nullptr, nullptr);  // libpercpu itself says what is wrong in it
  decay_ms_ = config_.decay_ms;
  if (config_.check == HeapCheck::kFull) {
    for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
      for (CentralList& list : lists_[node]) list.begin_anew();
      checked_from_[node] = pages_[node].begin_anew();
    }
    (void)percpu_machine_cpus_();  // nothing else here asks libpercpu, which is to say what is wrong in the configuration
    // The pages before: a thread that is there already, and finds the checker, finds these.
    if (checker_.open(real_system()) != 0) report("check:full: no memory for its records; the usual checks are made");
  } else if (cache_.open(window_, config_.cache_bytes, config_.check == HeapCheck::kOff) != 0) {
    report("the CPUs' caches cannot be made; malloc works without them");
  }
  CpuMask nodes;
  if (read_memory_nodes(real_system(), &nodes) == 0) place_nodes(nodes);
}

// Which node's page heap serves which CPU: the node that libpercpu took the CPU's own copy from, so a node without memory is
// served by the nearest that has some. The nodes have the page heaps in order, but that the first page heap is that of the node we run on:
// what was allocated so far came from it, and lies there.
void Heap::place_nodes(const CpuMask& nodes) {
  const uint32_t nr_heaps = window_.nr_nodes();
  if (nr_heaps == 1 || !cache_.is_open() || config_.nodes == NodesMode::kOne) return;
  const auto number_of = [&nodes](int node) {
    uint32_t number = 0;
    for (CpuId at = nodes.first(); at.valid() && at.value != node; at = nodes.after(at)) number++;
    return number;
  };
  const uint32_t first = number_of(node_of_cpu(cache_, cache_.asked_cpu())) % nodes.count();
  const auto place_of = [first](uint32_t number) { return number == first ? 0 : number == 0 ? first : number; };
  for (uint32_t cpu = 0; cpu < cache_.nr_cpus(); ++cpu) cache_.set_home(cpu, place_of(number_of(node_of_cpu(cache_, cpu))) % nr_heaps);
  uint32_t number = 0;
  for (CpuId at = nodes.first(); at.valid(); at = nodes.after(at), number++) {
    const uint32_t place = place_of(number);
    const bool shared = place >= nr_heaps || place + nr_heaps < nodes.count();  // there are more nodes than page heaps
    if (!shared) pages_[place].bind_to(NodeId{at.value});
  }
}

bool Heap::caches() {
  if (thread_caches.malloc_limit != 0) return true;
  return in_vfork_word == 0 && !checker_.on() && cache_.attach();
}

// ---- small blocks --------------------------------------------------------------------------------------------------------

void* Heap::allocate(size_t size_bytes) {
  return __builtin_expect(checker_.on(), 0) ? allocate_checked(1, size_bytes) : take_block(size_bytes);
}

// Not inlined: one sequence, whoever comes here.
__attribute__((noinline)) void* Heap::take_block(size_t size_bytes) {
  if (size_bytes > kMaxSmallBytes) return allocate_large(size_bytes, 1, nullptr);
  const uint32_t size_class = class_of(size_bytes);
  if (__builtin_expect(thread_caches.malloc_limit != 0, 1)) {
    if (void* block = pop_home(cache_places.table, head_of_lane(size_class)); __builtin_expect(block != nullptr, 1)) return block;
  }
  return allocate_small(size_class);
}

// The stack is empty: it takes a batch from the central list of this node.
void* Heap::allocate_small(uint32_t size_class) {
  if (__builtin_expect(!prepared_.done(), 0) && prepare() != 0) return nullptr;
  const bool cached = caches();
  const uint32_t first = this_node(cached);
  uint32_t lane = lane_of(first, size_class);
  uint32_t want = 1;
  if (cached) {
    // The thread may have been new, or the stack filled meanwhile.
    if (uint64_t block = 0; pop_many(lane, &block, 1) == 1) return reinterpret_cast<void*>(block);
    const uint32_t room = cache_.demand(lane, sink_to_lists, this);
    want = room + 1 < kClasses.info[size_class].batch ? room + 1 : kClasses.info[size_class].batch;
  }
  uint64_t blocks[kMaxBatch];
  uint32_t got = list_of(lane).take(blocks, want);
  // Where this node has no memory, the next one's; and what idle CPUs keep may be what is missing.
  for (uint32_t i = 1; i < window_.nr_nodes() && got == 0; ++i) {
    lane = lane_of((first + i) % window_.nr_nodes(), size_class);
    got = list_of(lane).take(blocks, 1);
  }
  if (got == 0) {
    if (!trim()) return nullptr;
    lane = lane_of(first, size_class);
    got = list_of(lane).take(blocks, 1);
    if (got == 0) return nullptr;
  }
  put_all(lane, blocks + 1, got - 1);
  heed_limit();
  return reinterpret_cast<void*>(blocks[0]);
}

void Heap::release(void* block) {
  if (__builtin_expect(checker_.on(), 0)) return release_checked(block, "free");
  drop_block(block);
}

void Heap::drop_block(void* block) {
  uint64_t page = 0;
  if (window_.page_of(block, &page)) {
    const PageEntry entry = window_.entry(page);
    if (const uint32_t lane = entry.kind() - kKindLane; lane < kMaxLanes) {
      if (!begins_block(static_cast<int32_t>(window_.offset_of(block) - entry.first_block), kClasses.info[class_of_lane(lane)].inverse))
        refuse(block, "free");
      return release_small(lane, reinterpret_cast<uint64_t>(block));
    }
  }
  release_large(block);
}

// Onto this CPU's stack; what it has no room for into the list.
void Heap::put_all(uint32_t lane, const uint64_t* blocks, uint32_t count) {
  const uint32_t kept = push_many(lane, blocks, count);
  list_of(lane).give(blocks + kept, count - kept);
}

// The same of a block that the program freed.
void Heap::put_freed(uint32_t lane, uint64_t block) {
  const Pushed pushed = push_lane(lane, block);
  if (pushed == Pushed::kTwice) refuse(reinterpret_cast<void*>(block), "free");
  if (pushed == Pushed::kFull) list_of(lane).give(&block, 1);
}

// A block that is freed is none of these: it would be free already.
void Heap::expect_other(uint64_t block, const uint64_t* blocks, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) {
    if (blocks[i] == block) refuse(reinterpret_cast<void*>(block), "free");
  }
}

// This CPU's stack is full: it may hold more from now on, or a batch leaves it, which is looked through for the block that is
// about to come. The topmost stays, since it may be the next that is freed again.
void Heap::make_room(uint32_t lane, uint64_t block) {
  (void)cache_.demand(lane, sink_to_lists, this);
  if (!cache_.is_full(lane)) return;
  uint64_t batch[kMaxBatch];
  const uint32_t count = pop_many(lane, batch, kClasses.info[class_of_lane(lane)].batch);
  expect_other(block, batch, count);
  if (count == 0) return;
  list_of(lane).give(batch + 1, count - 1);
  put_all(lane, batch, 1);
}

// The stack is full, or closed, or the thread has none yet; or the block is there already.
void Heap::release_small(uint32_t lane, uint64_t block) {
  const bool first_call = thread_caches.malloc_limit == 0;
  if (!caches()) {
    list_of(lane).give(&block, 1);
  } else {
    if (cache_.is_full(lane)) make_room(lane, block);
    const bool shares_line = kClasses.info[class_of_lane(lane)].size_bytes < kLineBytes;
    if (first_call && shares_line && node_of_lane(lane) == this_node(true)) {
      put_beneath(lane, block);
    } else {
      put_freed(lane, block);
    }
  }
  decay_if_due();
}

// What a thread frees before it has taken anything was taken by another thread, which may use its neighbours in the line. On top
// of this CPU's stack it would be the next block to be written here. So it is put beneath another, where free still looks for it;
// where the stack is empty, on a batch from the list, and beneath the last of that. What lay second may be there for the same reason, and
// would come to the top when these two are taken: it goes back to its span.
// Requires: the stack is not full, so that there is room for both when one was popped.
void Heap::put_beneath(uint32_t lane, uint64_t block) {
  uint64_t others[kMaxBatch];
  uint32_t count = pop_many(lane, others, 2);
  if (count == 2) {
    expect_other(block, &others[1], 1);
    list_of(lane).put_away(others[1]);  // the first is the one on top
    count = 1;
  }
  if (const uint32_t limit = cache_.limit(lane); count == 0 && limit > 1) {
    const uint32_t batch = kClasses.info[class_of_lane(lane)].batch;
    count = list_of(lane).take(others, limit - 1 < batch ? limit - 1 : batch, false);
  }
  expect_other(block, others, count);
  if (count > 1) put_all(lane, others, count - 1);
  put_freed(lane, block);
  if (count != 0) put_all(lane, &others[count - 1], 1);
}

void Heap::sink_to_lists(void* self, uint32_t lane, const uint64_t* blocks, uint32_t count) {
  static_cast<Heap*>(self)->list_of(lane).give(blocks, count);
}

// The dynamic linker's blocks lie in its own image, behind its variables. (When that page is full it maps more, which cannot be told
// from a wild pointer; but glibc's keeps what it allocated so early, or notes it.)
size_t Heap::linkers_bytes(const void* block) {
  const uintptr_t image = getauxval(AT_BASE);
  if (image == 0) return 0;
  const auto* const header = reinterpret_cast<const ElfW(Ehdr)*>(image);
  const auto* const segments = reinterpret_cast<const ElfW(Phdr)*>(image + header->e_phoff);
  size_t size = 0;
  for (unsigned i = 0; i < header->e_phnum; ++i) {
    const size_t end = segments[i].p_vaddr + segments[i].p_memsz;
    if (segments[i].p_type == PT_LOAD && end > size) size = end;
  }
  size = round_up(size, page_size_bytes());
  const size_t offset = reinterpret_cast<uintptr_t>(block) - image;
  return offset < size ? size - offset : 0;
}

// Says what is at the address, and ends the program.
void Heap::refuse(const void* block, const char* what) {
  uint64_t page = 0;
  if (!window_.page_of(block, &page)) fatal("%s(%p): not a block of this heap (a wild or stack pointer, or of another malloc)", what, block);
  const PageEntry entry = window_.entry(page);
  const uint32_t kind = entry.kind();
  if (kind == kKindNone || kind == kKindFree)
    fatal("%s(%p): no block begins there: freed already, or inside a large block", what, block);
  if (kind == kKindLarge)
    fatal("%s(%p): inside the large block that begins at %p", what, block, window_.address_of(page));
  const ClassInfo& info = kClasses.info[class_of_lane(kind - kKindLane)];
  const uint32_t size = info.size_bytes;
  const int32_t offset = static_cast<int32_t>(window_.offset_of(block) - entry.first_block);
  if (offset < 0) fatal("%s(%p): before the first block of its span", what, block);
  const uint32_t behind = static_cast<uint32_t>(offset) % size;
  if (behind != 0) fatal("%s(%p): inside a block of %u bytes, %u behind its start", what, block, size, behind);
  fatal("%s(%p): the block of %u bytes is free already (freed twice)", what, block, size);
}

Heap::Found Heap::look_up(const void* block, const char* what) {
  uint64_t page = 0;
  if (!window_.page_of(block, &page)) {
    if (block == nullptr || is_linkers(block)) return {};
    refuse(block, what);
  }
  const PageEntry entry = window_.entry(page);
  const uint32_t kind = entry.kind();
  if (kind == kKindLarge) return {kind, large_span(block, what)};
  if (kind < kKindLane ||
      !begins_block(static_cast<int32_t>(window_.offset_of(block) - entry.first_block),
                    kClasses.info[class_of_lane(kind - kKindLane)].inverse))
    refuse(block, what);
  return {kind, 0};
}

// ---- the rest of the interface ---------------------------------------------------------------------------------------------

void* Heap::allocate_aligned(size_t align_bytes, size_t size_bytes) {
  return checker_.on() ? allocate_checked(align_bytes, size_bytes) : take_aligned(align_bytes, size_bytes);
}

// 0: none is so large, or so well aligned.
size_t Heap::small_aligned(size_t align_bytes, size_t size_bytes) {
  if (align_bytes > kPageBytes || size_bytes > kMaxSmallBytes) return 0;
  // Spans begin at pages: the blocks of a class whose size is a multiple of the alignment are aligned.
  for (uint32_t i = class_of(size_bytes < align_bytes ? align_bytes : size_bytes); i < kNrClasses; ++i) {
    if (kClasses.info[i].size_bytes % align_bytes == 0) return kClasses.info[i].size_bytes;
  }
  return 0;
}

void* Heap::take_aligned(size_t align_bytes, size_t size_bytes) {
  const size_t small_bytes = small_aligned(align_bytes, size_bytes);
  return small_bytes != 0 ? take_block(small_bytes) : allocate_large(size_bytes, align_bytes, nullptr);
}

void* Heap::allocate_zeroed(size_t size_bytes) {
  if (size_bytes <= kMaxSmallBytes) {
    void* block = allocate(size_bytes);
    if (block != nullptr) memset(block, 0, size_bytes);
    return block;
  }
  bool clean = false;
  void* const block = checker_.on() ? allocate_checked(1, size_bytes, &clean) : allocate_large(size_bytes, 1, &clean);
  if (block == nullptr || clean) return block;
  // Of so much a program often touches little, and what was never touched counts as dirty too: the system zeroes what is needed. (Refused
  // where the program has locked the pages, as it may have meant to.)
  size_t zeroed_bytes = 0;
  if (size_bytes >= kFreshBytes) {
    const size_t whole_bytes = round_down(size_bytes, system_page_bytes());
    if (window_.system().madvise(reinterpret_cast<uintptr_t>(block), whole_bytes, MADV_DONTNEED) == 0) zeroed_bytes = whole_bytes;
  }
  memset(static_cast<char*>(block) + zeroed_bytes, 0, size_bytes - zeroed_bytes);
  return block;
}

size_t Heap::bytes_of(Found found) const {
  if (found.kind == kKindNone) return 0;
  if (found.kind == kKindLarge) return window_.span(found.span).nr_pages << kPageShift;
  return kClasses.info[class_of_lane(found.kind - kKindLane)].size_bytes;
}

size_t Heap::block_bytes(const void* block, const char* what) { return bytes_of(look_up(block, what)); }

size_t Heap::usable_bytes(const void* block, const char* what) {
  const size_t bytes = block_bytes(block, what);
  return is_checked(block, what) ? checker_.size_of(block, bytes, what) : bytes;
}

size_t Heap::size_for(size_t size_bytes) {
  if (size_bytes <= kMaxSmallBytes) return kClasses.info[class_of(size_bytes)].size_bytes;
  return size_bytes > kMaxBytes ? 0 : pages_of(size_bytes) << kPageShift;
}

size_t Heap::usable_for(size_t align_bytes, size_t size_bytes) const {
  if (size_bytes > kMaxBytes || checker_.on()) return size_bytes > kMaxBytes ? 0 : size_bytes;
  if (align_bytes <= 8) return size_for(size_bytes);
  const size_t small_bytes = small_aligned(align_bytes, size_bytes);
  return small_bytes != 0 ? small_bytes : pages_of(size_bytes == 0 ? 1 : size_bytes) << kPageShift;
}

void Heap::release_sized(void* block, size_t size_bytes, bool aligned) {
  if (block == nullptr) return;
  const char* const what = aligned ? "free_aligned_sized" : "free_sized";
  const size_t bytes = block_bytes(block, what);
  if (bytes == 0) return;
  const bool checked = is_checked(block, what);
  const size_t usable = checked ? checker_.size_of(block, bytes, what) : bytes;
  const size_t fitting = size_for(size_bytes);
  const bool may_be_larger = aligned || load_relaxed(&kept_longer_);
  if (checked ? size_bytes != usable : fitting == 0 || fitting > bytes || (fitting != bytes && !may_be_larger))
    fatal("%s(%p, %zu): the block has %zu bytes", what, block, size_bytes, usable);
  release(block);
}

void* Heap::reallocate(void* block, size_t size_bytes) {
  if (checker_.on()) return reallocate_checked(block, size_bytes);
  const Found found = look_up(block, "realloc");
  if (size_bytes > kMaxBytes) return nullptr;
  // Of a block of the linker's: how many of these are its own it does not say.
  const size_t old_bytes = found.kind == kKindNone ? linkers_bytes(block) : bytes_of(found);
  if (found.kind == kKindLarge && size_bytes > kMaxSmallBytes) {
    if (resize_in_place(found.span, pages_of(size_bytes))) return block;
    if (old_bytes >= kMoveBytes) return grow_elsewhere(found.span, old_bytes, size_bytes);
  }
  const bool small = found.kind >= kKindLane && size_bytes <= kMaxSmallBytes;
  if (small && class_of(size_bytes) == class_of_lane(found.kind - kKindLane)) return block;
  void* other = take_block(size_bytes);
  if (other == nullptr) {
    // Without memory for a smaller block the larger one serves: programs do not expect that to fail.
    if (found.kind == kKindNone || size_bytes > old_bytes) return nullptr;
    store_relaxed(&kept_longer_, true);
    return block;
  }
  memcpy(other, block, old_bytes < size_bytes ? old_bytes : size_bytes);
  if (!try_release(block)) drop_block(block);
  return other;
}

// ---- asking --------------------------------------------------------------------------------------------------------------------

HeapTotals Heap::totals() {
  HeapTotals sum;
  if (!prepared_.done()) return sum;
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    const PageStats pages = pages_[node].stats();
    sum.open_bytes += pages.open_pages << kPageShift;
    sum.dirty_bytes += pages.dirty_pages << kPageShift;
    sum.clean_bytes += pages.clean_pages << kPageShift;
    sum.purged_bytes += pages.purged_pages << kPageShift;
    for (uint32_t i = 0; i < kNrClasses; ++i)
      sum.free_small_bytes += lists_[node][i].counts().free_blocks * kClasses.info[i].size_bytes;
  }
  sum.used_bytes = sum.open_bytes - sum.dirty_bytes - sum.clean_bytes;
  sum.metadata_bytes = window_.metadata_bytes();
  for (uint32_t cpu = 0; cpu < cache_.nr_cpus(); ++cpu) {
    if (!cache_.is_used(cpu)) continue;
    sum.metadata_bytes += cache_.backed_bytes(cpu);
    for (uint32_t lane = 0; lane < cache_.nr_lanes(); ++lane)
      sum.cached_bytes += uint64_t{cache_.count(cpu, lane)} * kClasses.info[class_of_lane(lane)].size_bytes;
  }
  sum.free_small_bytes += sum.cached_bytes;
  return sum;
}

}  // namespace percpu::heap
