// SPDX-License-Identifier: MIT
//
// Enums that come from C.
#ifndef PERCPU_API_C_ENUM_H
#define PERCPU_API_C_ENUM_H

#include <cstring>

namespace percpu {

// What a caller in C may have put into an enum, where any number fits. To read one that is none as such is undefined in C++.
template <class Enum>
unsigned number_of(const Enum& from) {
  unsigned number;
  static_assert(sizeof from == sizeof number);
  std::memcpy(&number, &from, sizeof number);
  return number;
}

}  // namespace percpu

#endif  // PERCPU_API_C_ENUM_H
