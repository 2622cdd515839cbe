// SPDX-License-Identifier: MIT
//
// A text of any length arrives as a whole.
#include "preload/heap/pieces.h"

#include <doctest/doctest.h>

#include <cstring>
#include <string>

namespace percpu::heap {
namespace {

struct Taken {
  std::string text;
  size_t pieces = 0;
};

void take(void* context, const char* chars, size_t len_bytes) {
  auto& taken = *static_cast<Taken*>(context);
  CHECK(strlen(chars) == len_bytes);
  taken.text.append(chars, len_bytes);
  taken.pieces++;
}

TEST_CASE("what is longer than the buffer arrives in pieces, in order, and nothing is lost") {
  Taken taken;
  std::string expected;
  {
    Pieces pieces(take, &taken);
    for (int i = 0; i < 20000; ++i) {
      pieces.format("line %d%s\n", i, i % 7 == 0 ? " and some more of it" : "");
      expected += "line " + std::to_string(i) + (i % 7 == 0 ? " and some more of it" : "") + "\n";
    }
  }
  CHECK(taken.text == expected);
  CHECK(taken.pieces > 10);
}

TEST_CASE("what is formatted at once is in one piece, and too much of it is cut off") {
  Taken taken;
  const std::string line(Pieces::kMostAtOnce - 1, 'x');
  {
    Pieces pieces(take, &taken);
    for (int i = 0; i < 9; ++i) pieces.format("%s", line.c_str());
    pieces.format("%s", (line + "yz").c_str());
  }
  CHECK(taken.text == std::string(10 * line.size(), 'x'));
}

TEST_CASE("nothing is handed on where there is none") {
  Taken taken;
  { const Pieces pieces(take, &taken); }
  CHECK(taken.pieces == 0);
}

}  // namespace
}  // namespace percpu::heap
