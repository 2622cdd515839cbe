// SPDX-License-Identifier: MIT
#include "preload/heap/central_list.h"

#include <bit>
#include <cstring>

#include "base/check.h"

namespace percpu::heap {
namespace {

[[noreturn]] void freed_twice(uint64_t block) {
  fatal("free(%p): the block is free already (freed twice; found when it went back to its list)", reinterpret_cast<void*>(block));
}

// How many blocks smaller than a line make whole lines together, and which block of a span begins the first such group; how groups are found
// in a word of the span's bits. (Of 48 bytes four make three lines; a group whose bits are in two words counts as none.)
struct Lines {
  uint32_t together = 1;
  uint32_t first = 0;
  uint64_t group = 1;
  uint64_t groups = ~uint64_t{0};

  explicit Lines(const ClassInfo& info) {
    if (info.size_bytes >= kLineBytes) return;
    together = static_cast<uint32_t>(kLineBytes) >> std::countr_zero(info.size_bytes);
    while (first < together && (info.span_lead + first * info.size_bytes) % kLineBytes != 0) ++first;
    group = word_mask_before(together);
    groups = ~uint64_t{0} / group;
  }
  // Of these bits, those of groups in which all are set.
  uint64_t whole_in(uint64_t bits) const {
    uint64_t whole = bits >> first;
    for (uint32_t step = 1; step < together; step *= 2) whole &= whole >> step;
    return (whole & groups) * group << first;
  }
};

}  // namespace

void CentralList::link(uint32_t number) {
  Span& span = window_->span(number);
  span.prev = 0;
  span.next = spans_;
  if (spans_ != 0) window_->span(spans_).prev = number;
  spans_ = number;
  span.listed = true;
}

void CentralList::unlink(uint32_t number) {
  Span& span = window_->span(number);
  if (span.prev != 0) {
    window_->span(span.prev).next = span.next;
  } else {
    spans_ = span.next;
  }
  if (span.next != 0) window_->span(span.next).prev = span.prev;
  span.listed = false;
}

bool CentralList::add_span() {
  const ClassInfo& info = kClasses.info[size_class_];
  const uint32_t number = pages_->allocate(info.span_pages, 1, Purpose::kBlocks);
  if (number == 0) return false;
  Span& span = window_->span(number);
  span.state = SpanState::kSmall;
  span.size_class = size_class_;
  span.nr_free = info.span_blocks;
  span.hint = 0;
  for (uint32_t word = 0; word < kMaxSpanBlocks / 64; ++word) {
    const uint32_t begin = word * 64;
    span.free_blocks[word] = info.span_blocks >= begin + 64 ? ~uint64_t{0}
                             : info.span_blocks <= begin    ? 0
                                                            : word_mask_before(info.span_blocks - begin);
  }
  const uint32_t first_block = static_cast<uint32_t>(span.first_page << kPageShift) + info.span_lead;
  for (uint64_t page = 0; page < info.span_pages; ++page)
    window_->set_entry(span.first_page + page, number, kKindLane + lane_, first_block);
  free_in_spans_ += span.nr_free;
  nr_spans_++;
  link(number);
  return true;
}

// No line of the processor's caches is divided between two who take, if that can be helped: they would share it. What lies
// in the last line goes back, where the rest of that line is free. Returns how many blocks stay. Where all are of one line they
// stay, unless lines_only.
uint32_t CentralList::whole_lines(Span& span, uint64_t start, const uint64_t* blocks, uint32_t got, bool lines_only) {
  const uint32_t size = kClasses.info[size_class_].size_bytes;
  if (size >= kLineBytes || got == 0) return got;
  const auto index_of = [&](uint32_t i) { return block_index(size_class_, static_cast<uint32_t>(blocks[i] - start)); };
  const auto ends_line = [&](uint32_t i) { return (blocks[i] + size) % kLineBytes == 0; };
  const uint32_t next = index_of(got - 1) + 1;
  if (ends_line(got - 1) || next >= kMaxSpanBlocks || (span.free_blocks[next / 64] >> next % 64 & 1) == 0) return got;
  uint32_t kept = got - 1;
  while (kept > 0 && !ends_line(kept - 1) && blocks[kept] == blocks[kept - 1] + size) --kept;
  if (kept == 0 && !lines_only) return got;
  for (uint32_t i = kept; i < got; ++i) span.free_blocks[index_of(i) / 64] |= uint64_t{1} << index_of(i) % 64;
  return kept;
}

// What lies alone in a line whose other blocks are in use comes when no whole line is left: who takes it shares the line with whoever has
// these. Whoever takes less than a line takes what comes first.
uint32_t CentralList::take_from_span(uint64_t* blocks, uint32_t want, bool lines_only) {
  const uint32_t number = spans_;
  Span& span = window_->span(number);
  const uint32_t size = kClasses.info[size_class_].size_bytes;
  const uint64_t start = reinterpret_cast<uint64_t>(window_->address_of(span.first_page)) + kClasses.info[size_class_].span_lead;
  const Lines lines(kClasses.info[size_class_]);
  uint32_t got = 0;
  while (span.hint < kMaxSpanBlocks / 64 && span.free_blocks[span.hint] == 0) ++span.hint;
  const auto take_of_words = [&](bool whole) {
    for (uint32_t word = span.hint; word < kMaxSpanBlocks / 64 && got < want; ++word) {
      uint64_t left = span.free_blocks[word];
      if (left == 0) continue;
      uint64_t bits = whole ? lines.whole_in(left) : left;
      for (; bits != 0 && got < want; bits &= bits - 1) {
        left &= ~(bits & -bits);
        blocks[got++] = start + uint64_t{size} * (word * 64 + static_cast<uint32_t>(std::countr_zero(bits)));
      }
      span.free_blocks[word] = left;
    }
  };
  if (want >= lines.together) take_of_words(true);
  if (got == 0 && (!lines_only || lines.together == 1)) take_of_words(false);
  got = whole_lines(span, start, blocks, got, lines_only);
  span.nr_free -= got;
  free_in_spans_ -= got;
  if (span.nr_free == 0) unlink(number);
  return got;
}

uint32_t CentralList::take(uint64_t* blocks, uint32_t want, bool new_span) {
  HeapGuard guard(lock_);
  uint32_t got = on_shelf_ < want ? on_shelf_ : want;
  on_shelf_ = static_cast<uint16_t>(on_shelf_ - got);
  if (on_shelf_ < least_on_shelf_) least_on_shelf_ = on_shelf_;
  memcpy(blocks, &shelf_[on_shelf_], got * sizeof *blocks);
  if (got > 0) return got;
  while (got < want) {
    if (spans_ == 0 && (got > 0 || !new_span || !add_span())) break;
    const uint32_t from = spans_;
    got += take_from_span(blocks + got, want - got, got > 0);
    if (spans_ == from) break;  // it has more, but not for us
  }
  return got;
}

void CentralList::give_to_span(uint64_t block) {
  uint64_t page = 0;
  (void)window_->page_of(reinterpret_cast<void*>(block), &page);
  // Where the block was here before, its span may be nobody's by now.
  const PageEntry entry = window_->entry(page);
  if (__builtin_expect(entry.kind() != kKindLane + lane_, 0)) freed_twice(block);
  const uint32_t number = window_->span_of(page);
  Span& span = window_->span(number);
  const uint32_t index = block_index(size_class_, static_cast<uint32_t>(block - window_->base()) - entry.first_block);
  uint64_t& word = span.free_blocks[index / 64];
  const uint64_t bit = uint64_t{1} << index % 64;
  if (__builtin_expect((word & bit) != 0, 0))
    freed_twice(block);
  word |= bit;
  if (index / 64 < span.hint) span.hint = index / 64;
  span.nr_free++;
  free_in_spans_++;
  if (!span.listed) link(number);
  if (span.nr_free < kClasses.info[size_class_].span_blocks) return;
  unlink(number);
  free_in_spans_ -= span.nr_free;
  nr_spans_--;
  pages_->release(number);
}

void CentralList::give(const uint64_t* blocks, uint32_t count) {
  if (count == 0) return;
  HeapGuard guard(lock_);
  // Who has no cache is told here what a cache tells: that a block is one of the upper two already.
  for (uint32_t i = 1; i <= 2 && i <= on_shelf_; ++i) {
    if (shelf_[on_shelf_ - i] == blocks[0]) freed_twice(blocks[0]);
  }
  const uint32_t room = on_shelf_ < shelf_limit() ? shelf_limit() - on_shelf_ : 0;
  const uint32_t shelved = count < room ? count : room;
  memcpy(&shelf_[on_shelf_], blocks, shelved * sizeof *blocks);
  on_shelf_ = static_cast<uint16_t>(on_shelf_ + shelved);
  for (uint32_t i = shelved; i < count; ++i) give_to_span(blocks[i]);
}

bool CentralList::age(bool now) {
  HeapGuard guard(lock_);
  const uint32_t idle = now ? on_shelf_ : least_on_shelf_;
  // The oldest lie at the bottom.
  for (uint32_t i = 0; i < idle; ++i) give_to_span(shelf_[i]);
  on_shelf_ = static_cast<uint16_t>(on_shelf_ - idle);
  memmove(&shelf_[0], &shelf_[idle], on_shelf_ * sizeof shelf_[0]);
  least_on_shelf_ = on_shelf_;
  return on_shelf_ != 0;
}

void CentralList::keep_little(bool little) {
  {
    HeapGuard guard(lock_);
    little_ = little;
  }
  if (little) (void)age(true);
}

void CentralList::begin_anew() {
  HeapGuard guard(lock_);
  spans_ = nr_spans_ = on_shelf_ = least_on_shelf_ = 0;
  free_in_spans_ = 0;
}

CentralList::Counts CentralList::counts() {
  HeapGuard guard(lock_);
  return {free_in_spans_ + on_shelf_, nr_spans_};
}

}  // namespace percpu::heap
