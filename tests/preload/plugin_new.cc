// SPDX-License-Identifier: MIT
//
// The C++ plug-in of local_runtime.c, in two libraries: one that is opened, and with LOCAL_RUNTIME_INNER one that comes with it.
#include <new>

namespace {

// 1: bad_alloc was thrown; 2: what was asked for was there.
int throws(unsigned long bytes, bool aligned) {
  try {
    void* const block = aligned ? ::operator new(bytes, std::align_val_t{256}) : ::operator new(bytes);
    ::operator delete(block);
    return 2;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace

#ifdef LOCAL_RUNTIME_INNER
extern "C" int inner_throws(unsigned long bytes) { return throws(bytes, false); }
#else
extern "C" int inner_throws(unsigned long);

static int asked = 0;

// What went wrong; 0: nothing.
extern "C" int try_all(unsigned long bytes) {
  for (int round = 0; round < 100; ++round) {
    if (throws(bytes, false) != 1) return 1;
    if (throws(bytes, true) != 1) return 2;
    if (inner_throws(bytes) != 1) return 3;
    if (::operator new(bytes, std::nothrow) != nullptr) return 4;
  }
  std::set_new_handler([] {
    if (++asked % 3 == 0) std::set_new_handler(nullptr);
  });
  if (throws(bytes, false) != 1 || asked != 3) return 5;
  std::set_new_handler([] {
    if (++asked % 3 == 0) std::set_new_handler(nullptr);
  });
  if (::operator new(bytes, std::nothrow) != nullptr || asked != 6) return 6;
  std::set_new_handler([] { throw 17; });
  if (::operator new(bytes, std::nothrow) != nullptr || ::operator new[](bytes, std::align_val_t{256}, std::nothrow) != nullptr) return 7;
  std::set_new_handler(nullptr);
  return 0;
}
#endif
