// SPDX-License-Identifier: MIT
#include "preload/pin/order.h"

#include <cstring>

#include "base/text.h"

namespace percpu::heap {

namespace {

// Heap sort: no allocation, no recursion, no bad case.
template <class Before>
void sift_down(uint16_t* ids, size_t root, size_t count, Before before) {
  for (size_t child = 2 * root + 1; child < count; child = 2 * root + 1) {
    if (child + 1 < count && before(ids[child], ids[child + 1])) ++child;
    if (!before(ids[root], ids[child])) return;
    const uint16_t moved = ids[root];
    ids[root] = ids[child];
    ids[child] = moved;
    root = child;
  }
}

template <class Before>
void sort(uint16_t* ids, size_t count, Before before) {
  for (size_t root = count / 2; root-- > 0;) sift_down(ids, root, count, before);
  for (size_t end = count; end-- > 1;) {
    const uint16_t largest = ids[0];
    ids[0] = ids[end];
    ids[end] = largest;
    sift_down(ids, 0, end, before);
  }
}

// By the members in turn, then by number.
template <auto... members>
void sort_by(const CpuPlace* places, SlotOrder* order) {
  sort(order->ids, order->count, [places](uint16_t left, uint16_t right) {
    int sign = 0;
    ((sign = sign != 0 ? sign : int{places[left].*members} - int{places[right].*members}), ...);
    return sign != 0 ? sign < 0 : left < right;
  });
}

void add_listed(const PinList& list, SlotOrder* order) {
  for (uint32_t i = 0; i < list.count; ++i) {
    for (uint32_t cpu = list.ranges[i].first; cpu <= list.ranges[i].last && order->count < order->capacity; ++cpu)
      order->ids[order->count++] = static_cast<uint16_t>(cpu);
  }
}

void add_nodes(const CpuMask& allowed, const CpuPlace* places, SlotOrder* order) {
  NodeMask nodes;
  for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) nodes.add({places[cpu.index()].node});
  for (NodeId node = nodes.first(); node.valid(); node = nodes.after(node))
    order->ids[order->count++] = static_cast<uint16_t>(node.index());
}

// A CPU's turn, made of its number among those beside it in the order that are of one group with it.
template <class Same, class Turn>
void give_turns(CpuPlace* places, const SlotOrder& order, Same same, Turn turn) {
  uint16_t number = 0;
  for (size_t i = 0; i < order.count; ++i) {
    CpuPlace& place = places[order.ids[i]];
    number = i == 0 || !same(places[order.ids[i - 1]], place) ? uint16_t{0} : static_cast<uint16_t>(number + 1);
    place.turn = turn(number);
  }
}

// The bits of the number in the other direction: of such turns, any that follow one another are spread over all numbers (van der Corput's
// sequence).
uint16_t far_apart(uint16_t number) {
  uint16_t turn = 0;
  for (int bit = 0; bit < 16; ++bit) turn = static_cast<uint16_t>(turn | (number >> bit & 1) << (15 - bit));
  return turn;
}

bool equal(const char* string, const char* chars, size_t len) {
  return strlen(string) == len && memcmp(string, chars, len) == 0;
}

// A last '*' stands for any end. An empty pattern matches nothing.
bool matches(const char* pattern, size_t len, const char* name) {
  if (len == 0) return false;
  if (pattern[len - 1] == '*') return strncmp(name, pattern, len - 1) == 0;
  return equal(name, pattern, len);
}

// Calls `test(item, length)` for each item between the '+'. Returns: whether it said yes to one.
template <class Test>
bool any_item(const char* text, Test test) {
  for (;;) {
    const char* end = strchrnul(text, '+');
    if (test(text, static_cast<size_t>(end - text))) return true;
    if (*end == 0) return false;
    text = end + 1;
  }
}

}  // namespace

void order_slots(PinPolicy policy, const CpuMask& allowed, CpuPlace* places, const PinList& list, SlotOrder* order) {
  order->count = 0;
  order->nr_cores = 0;
  if (policy == PinPolicy::kList) return add_listed(list, order);
  if (policy == PinPolicy::kNode) return add_nodes(allowed, places, order);
  for (CpuId cpu = allowed.first(); cpu.valid(); cpu = allowed.after(cpu)) {
    CpuPlace& place = places[cpu.index()];
    if (place.core < 0 || place.core > cpu.value) place.core = static_cast<int16_t>(cpu.value);
    place.rank = places[place.core].siblings++;
    if (place.rank == 0) order->nr_cores++;
    order->ids[order->count++] = static_cast<uint16_t>(cpu.index());
  }
  if (policy == PinPolicy::kAuto) {
    sort_by<&CpuPlace::rank, &CpuPlace::node, &CpuPlace::package>(places, order);
    give_turns(places, *order, [](const CpuPlace& one, const CpuPlace& other) { return one.rank == other.rank && one.node == other.node; },
               far_apart);
    return sort_by<&CpuPlace::rank, &CpuPlace::turn, &CpuPlace::node>(places, order);
  }
  sort_by<&CpuPlace::node, &CpuPlace::rank, &CpuPlace::package>(places, order);
  if (policy == PinPolicy::kCompact) return;
  give_turns(places, *order, [](const CpuPlace& one, const CpuPlace& other) { return one.node == other.node; },
             [](uint16_t number) { return number; });
  sort_by<&CpuPlace::turn, &CpuPlace::node>(places, order);
}

CpuId first_not_allowed(const PinList& list, const CpuMask& allowed) {
  for (uint32_t i = 0; i < list.count; ++i) {
    for (int32_t cpu = list.ranges[i].first; cpu <= list.ranges[i].last; ++cpu) {
      if (!allowed.has({cpu})) return {cpu};
    }
  }
  return {};
}

// libc makes its secrets (stack guard, pointer guard) of the same bytes, and where a thread runs everybody may see: so no bits of
// theirs are taken as they are, but some of a product's middle.
size_t first_core(const uint64_t (&random)[2], int32_t process, size_t nr_cores) {
  constexpr uint64_t kOdd[] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f};  // the golden ratio's bits; a prime of xxHash's
  const uint64_t mixed = (random[0] ^ random[1] * kOdd[1]) * kOdd[0];
  return ((mixed >> 32) + static_cast<uint32_t>(process)) % nr_cores;
}

// A thread that is alone on its CPU waits only for the kernel's own work: per mille of the time. One beside an equal waits
// half of it; one that runs seldom, beside one that always runs, waits little by the clock but much for what it does.
bool cpu_is_shared(uint64_t elapsed_ns, uint64_t ran_ns, uint64_t waited_ns) {
  constexpr uint64_t kNoticeableNs = 5 * 1000 * 1000;
  if (waited_ns < kNoticeableNs) return false;
  return waited_ns > elapsed_ns / 20 || waited_ns > ran_ns / 4;
}

bool skips_name(const char* skip, const char* name) {
  return any_item(skip, [name](const char* item, size_t len) { return matches(item, len, name); });
}

bool skips_number(const char* skip, uint32_t number) {
  char buffer[16];
  Text text(buffer);
  text.format("%u", number);
  return any_item(skip, [&text](const char* item, size_t len) { return equal(text.c_str(), item, len); });
}

bool name_is_due(uint32_t number, uint32_t nr_looks, uint32_t nr_threads) {
  constexpr uint32_t kNamesALook = 64;
  return (number + nr_looks) % (nr_threads / kNamesALook + 1) == 0;
}

bool is_exempt_name(const char* name) { return skips_name("percpu-*+jemalloc_bg*", name); }

}  // namespace percpu::heap
