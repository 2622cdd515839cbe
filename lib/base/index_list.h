// SPDX-License-Identifier: MIT
//
// Doubly linked lists of things that are named by an index, for state that holds no pointers. The links live in the
// things themselves; the caller says how to reach them: links(index) returns the IndexLink& of a thing.
//
// Invariants: an index is stored plus one, and 0 stands for none, so zeroed memory is an empty list and an unlinked
// thing. A thing is in one list at most; which one, the caller knows.
#ifndef PERCPU_BASE_INDEX_LIST_H
#define PERCPU_BASE_INDEX_LIST_H

#include <cstdint>

namespace percpu {

struct IndexLink {
  uint32_t prev_plus1;
  uint32_t next_plus1;
};

class IndexList {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  [[nodiscard]] bool empty() const { return first_plus1_ == 0; }
  [[nodiscard]] uint32_t first() const { return first_plus1_ - 1; }
  [[nodiscard]] uint32_t last() const { return last_plus1_ - 1; }

  // The neighbours of a thing in its list, kNone at the ends.
  [[nodiscard]] static uint32_t next(const IndexLink& link) { return link.next_plus1 - 1; }
  [[nodiscard]] static uint32_t prev(const IndexLink& link) { return link.prev_plus1 - 1; }

  // Requires: `index` is in no list.
  template <class Links>
  void push_front(uint32_t index, Links links) {
    links(index) = {0, first_plus1_};
    if (first_plus1_ != 0)
      links(first_plus1_ - 1).prev_plus1 = index + 1;
    else
      last_plus1_ = index + 1;
    first_plus1_ = index + 1;
  }

  template <class Links>
  void push_back(uint32_t index, Links links) {
    links(index) = {last_plus1_, 0};
    if (last_plus1_ != 0)
      links(last_plus1_ - 1).next_plus1 = index + 1;
    else
      first_plus1_ = index + 1;
    last_plus1_ = index + 1;
  }

  // Requires: `index` is in this list.
  template <class Links>
  void remove(uint32_t index, Links links) {
    IndexLink& link = links(index);
    (link.prev_plus1 != 0 ? links(link.prev_plus1 - 1).next_plus1 : first_plus1_) = link.next_plus1;
    (link.next_plus1 != 0 ? links(link.next_plus1 - 1).prev_plus1 : last_plus1_) = link.prev_plus1;
    link = {0, 0};
  }

 private:
  uint32_t first_plus1_ = 0;
  uint32_t last_plus1_ = 0;
};

static_assert(IndexList::kNone + 1 == 0);

}  // namespace percpu

#endif  // PERCPU_BASE_INDEX_LIST_H
