// SPDX-License-Identifier: MIT
//
// realloc_growth: what texts and tables do. 64 buffers grow together from 16 bytes to 64 KiB, by a half each time, so that none finds free
// room behind it; then one grows alone to 16 MiB. All bytes are written as they come and compared at the end. us for all of it.
#include <array>
#include <vector>

#include "driver.h"

namespace {

struct Buffer {
  uint64_t* words = nullptr;
  size_t used = 0, room = 0;

  void grow() {
    room = room == 0 ? 2 : room + (room + 1) / 2;
    words = static_cast<uint64_t*>(std::realloc(words, room * sizeof(uint64_t)));
    if (words == nullptr) bench::fail("realloc() found no memory");
    for (; used < room; used++) words[used] = used * 3;
  }
  void end() {
    for (size_t i = 0; i < used; i++)
      if (words[i] != i * 3) bench::fail("realloc() lost bytes");
    std::free(words);
  }
};

void grow_all(size_t most_words, size_t most_alone) {
  std::array<Buffer, 64> buffers{};
  while (buffers[0].room < most_words)
    for (Buffer& buffer : buffers) buffer.grow();
  for (Buffer& buffer : buffers) buffer.end();
  Buffer alone;
  while (alone.room < most_alone) alone.grow();
  alone.end();
}

}  // namespace

double bench::realloc_growth(const Scale& scale) {
  return median_ns(scale, 3, [&] { grow_all((64 << 10) / 8, scale.of((16 << 20) / 8)); }) / 1e3;
}
