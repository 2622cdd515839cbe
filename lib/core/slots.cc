// SPDX-License-Identifier: MIT
//
// Moving chunks between the lists. See slots.h.
#include "core/slots.h"

namespace percpu {

void Slots::insert(ChunkId chunk, End end) { insert_into(due(heads_[chunk.value]), chunk, end); }

void Slots::insert_into(uint32_t slot, ChunkId chunk, End end) {
  ChunkHead& head = heads_[chunk.value];
  const auto links = [this](uint32_t index) -> IndexLink& { return heads_[index].link; };
  if (end == End::front)
    table_->lists[slot].push_front(chunk.value, links);
  else
    table_->lists[slot].push_back(chunk.value, links);
  table_->nonempty |= 1u << slot;
  if (slot == table_->free() && !head.immutable()) store_relaxed(&table_->free_chunks, table_->free_chunks + 1);
  head.list = static_cast<uint8_t>(slot);
  head.due = static_cast<uint8_t>(due(head));
}

void Slots::unlink(ChunkId chunk) {
  ChunkHead& head = heads_[chunk.value];
  if (head.list == ChunkHead::kNoSlot) return;
  IndexList& list = table_->lists[head.list];
  list.remove(chunk.value, [this](uint32_t index) -> IndexLink& { return heads_[index].link; });
  if (list.empty()) table_->nonempty &= ~(1u << head.list);
  if (head.list == table_->free() && !head.immutable()) store_relaxed(&table_->free_chunks, table_->free_chunks - 1);
  head.list = ChunkHead::kNoSlot;
}

void Slots::put_aside(ChunkId chunk) {
  const uint8_t due = heads_[chunk.value].due;
  move(chunk, 0, End::back);
  heads_[chunk.value].due = due;
}

}  // namespace percpu
