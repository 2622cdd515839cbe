// SPDX-License-Identifier: MIT
//
// The heap with check:full: the same blocks, laid out by the checker (check.h), which keeps freed ones in its quarantine.
#include <cstring>

#include "preload/heap/heap.h"

namespace percpu::heap {

// Whether the block was laid out by the checker. Requires: it is a block.
bool Heap::is_checked(const void* block, const char* what) {
  if (!checker_.on() || block == nullptr) return false;
  uint64_t page = 0;
  if (!window_.page_of(block, &page)) {
    if (is_linkers(block)) return false;
    refuse(block, what);
  }
  return page >= checked_from_[window_.node_of_page(page)];
}

void* Heap::allocate_checked(size_t align_bytes, size_t size_bytes, bool* clean) {
  if (size_bytes > kMaxBytes) return nullptr;
  const size_t padded = Checker::padded(size_bytes);
  void* block = nullptr;
  if (align_bytes > 16) {
    block = take_aligned(align_bytes, padded);
  } else {
    block = padded > kMaxSmallBytes ? allocate_large(padded, 1, clean) : take_block(padded);
  }
  if (block != nullptr) checker_.lay_out(block, block_bytes(block, "malloc"), size_bytes);
  return block;
}

void Heap::release_checked(void* block, const char* what) {
  const size_t bytes = block == nullptr ? 0 : block_bytes(block, what);
  // Blocks from before the checker stay where they are: their spans are not to hold others.
  if (bytes == 0 || !is_checked(block, what)) return;
  checker_.put(block, bytes, what);
  for (Checker::Left left = checker_.take(false); left.block != nullptr; left = checker_.take(false)) drop_block(left.block);
}

void* Heap::reallocate_checked(void* block, size_t size_bytes) {
  const size_t bytes = block_bytes(block, "realloc");
  const bool checked = is_checked(block, "realloc");
  const size_t old_bytes = bytes == 0 ? linkers_bytes(block) : checked ? checker_.size_of(block, bytes, "realloc") : bytes;
  void* other = allocate_checked(1, size_bytes);
  if (other == nullptr) {
    // As without check:full, a larger block serves.
    if (bytes == 0 || size_bytes > old_bytes) return nullptr;
    if (checked) checker_.lay_out(block, bytes, size_bytes);
    return block;
  }
  memcpy(other, block, old_bytes < size_bytes ? old_bytes : size_bytes);
  release_checked(block, "realloc");
  return other;
}

// Other threads may go on filling it: what waits now leaves.
void Heap::empty_quarantine() {
  for (uint32_t count = checker_.nr_waiting(); count-- > 0;) {
    const Checker::Left left = checker_.take(true);
    if (left.block == nullptr) return;
    drop_block(left.block);
  }
}

}  // namespace percpu::heap
