// SPDX-License-Identifier: MIT
//
// Lists of indices: order, removal at every place, and zeroed memory as the empty list.
#include "base/index_list.h"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

using namespace percpu;

namespace {

struct Things {
  std::vector<IndexLink> links = std::vector<IndexLink>(5);
  IndexLink& operator()(uint32_t index) { return links[index]; }
};

std::vector<uint32_t> forwards(const IndexList& list, const Things& things) {
  std::vector<uint32_t> order;
  for (uint32_t i = list.first(); i != IndexList::kNone; i = IndexList::next(things.links[i])) order.push_back(i);
  return order;
}

std::vector<uint32_t> backwards(const IndexList& list, const Things& things) {
  std::vector<uint32_t> order;
  for (uint32_t i = list.last(); i != IndexList::kNone; i = IndexList::prev(things.links[i])) order.push_back(i);
  return order;
}

using Order = std::vector<uint32_t>;

}  // namespace

TEST_CASE("zeroed memory is an empty list") {
  alignas(IndexList) unsigned char memory[sizeof(IndexList)];
  std::memset(memory, 0, sizeof memory);
  IndexList list;
  std::memcpy(&list, memory, sizeof list);
  CHECK(list.empty());
  CHECK(list.first() == IndexList::kNone);
  CHECK(list.last() == IndexList::kNone);
}

TEST_CASE("things stand where they were put") {
  Things things;
  IndexList list;
  const auto links = [&](uint32_t i) -> IndexLink& { return things(i); };
  list.push_back(0, links);
  list.push_back(3, links);
  list.push_front(4, links);
  CHECK(forwards(list, things) == Order{4, 0, 3});
  CHECK(backwards(list, things) == Order{3, 0, 4});
  CHECK_FALSE(list.empty());
}

TEST_CASE("a thing leaves the list from any place") {
  for (const uint32_t leaves : {0u, 1u, 2u}) {
    Things things;
    IndexList list;
    const auto links = [&](uint32_t i) -> IndexLink& { return things(i); };
    for (const uint32_t i : {0u, 1u, 2u}) list.push_back(i, links);
    list.remove(leaves, links);
    Order rest;
    for (const uint32_t i : {0u, 1u, 2u})
      if (i != leaves) rest.push_back(i);
    CHECK(forwards(list, things) == rest);
    CHECK(backwards(list, things) == Order(rest.rbegin(), rest.rend()));
    CHECK(things.links[leaves].prev_plus1 == 0);
    CHECK(things.links[leaves].next_plus1 == 0);
    list.push_front(leaves, links);
    CHECK(list.first() == leaves);
  }
}

TEST_CASE("the last thing to leave leaves an empty list") {
  Things things;
  IndexList list;
  const auto links = [&](uint32_t i) -> IndexLink& { return things(i); };
  list.push_front(2, links);
  list.remove(2, links);
  CHECK(list.empty());
  CHECK(list.last() == IndexList::kNone);
}
