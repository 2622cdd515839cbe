// SPDX-License-Identifier: MIT
//
// malloc and its kin in any order, on blocks of any size: under the preload, or over the C library's own malloc, which keeps the
// same promises. Blocks hold what was written to them, are as large and aligned as asked for, and do not overlap (a mark that
// another block overwrote is told). The preload is tried as it is shipped: nothing tells libFuzzer which ways through it an input takes,
// so under it inputs are led by the branches of this file alone.
#include <malloc.h>

#include <cerrno>
#include <cstring>

#include "fuzz.h"

// It asks for sizes that nobody has; null is the right answer, to sanitizers' malloc too.
extern "C" __attribute__((used)) const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" __attribute__((used)) const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

std::vector<std::string_view> fuzz_seeds() {
  return {std::string_view("\0\1\2\3\4\5\6\7\10\11\12\13\14\15\16\17\20\21\22\23", 20),
          std::string_view("\1\377\377\377\3\0\20\0\5\1\0\0\7\2\100\0\6\0\0\1", 20)};
}

namespace {

constexpr size_t kBlocks = 48;
constexpr size_t kMostBytes = size_t{3} << 20;

struct Block {
  unsigned char* bytes = nullptr;
  size_t size = 0;
  unsigned char mark = 0;
};
Block blocks[kBlocks];
unsigned char next_mark = 1;

// The beginning of a block and some places of the rest: the same ones whatever its size, since realloc keeps a part.
template <class Visit>
void visit(size_t size, Visit at) {
  for (size_t i = 0; i < size; i += i < 256 ? 1 : 509) at(i);
}
// And its end, where neighbours would write.
template <class Visit>
void visit_end(size_t size, Visit at) {
  for (size_t i = size > 16 ? size - 16 : 0; i < size; ++i) at(i);
}

void check(const Block& block, size_t size) {
  const auto marked = [&](size_t i) { FUZZ_EXPECT(block.bytes[i] == block.mark); };
  visit(size, marked);
  if (size == block.size) visit_end(size, marked);
}

void keep(Block* block, void* bytes, size_t size) {
  block->bytes = static_cast<unsigned char*>(bytes);
  block->size = 0;
  if (bytes == nullptr) {
    FUZZ_EXPECT(errno == ENOMEM || errno == EINVAL || size == 0);
    return;
  }
  FUZZ_EXPECT(malloc_usable_size(bytes) >= size);
  FUZZ_EXPECT(reinterpret_cast<uintptr_t>(bytes) % (size >= 16 ? 16 : 8) == 0);
  block->size = size;
  block->mark = next_mark++;
  if (next_mark == 0) next_mark = 1;
  const auto mark = [&](size_t i) { block->bytes[i] = block->mark; };
  visit(size, mark);
  visit_end(size, mark);
}

void release(Block* block) {
  check(*block, block->size);
  free(block->bytes);
  *block = {};
}

size_t size_from(fuzz::Decisions& decide) {
  const uint8_t kind = decide.byte();
  const size_t word = decide.word();
  if (kind < 120) return word % 1025;
  if (kind < 200) return word % 40'000;
  if (kind < 252) return word % kMostBytes;
  if (kind == 252) return SIZE_MAX - word % 65536;
  if (kind == 253) return static_cast<size_t>(PTRDIFF_MAX) - 4 + word % 9;
  return size_t{1} << word % 22;
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size_bytes) {
  fuzz::Decisions decide(data, size_bytes);
  while (!decide.done()) {
    const uint8_t what = decide.byte();
    Block* block = &blocks[decide.byte() % kBlocks];
    const size_t size = size_from(decide);
    errno = 0;
    switch (what % 10) {
      case 0:
      case 1:
        release(block);
        keep(block, malloc(size), size);
        break;
      case 2: {
        release(block);
        const size_t count = 1 + decide.byte() % 9;
        void* bytes = calloc(count, size);
        if (bytes != nullptr) {
          const auto zero = [&](size_t i) { FUZZ_EXPECT(static_cast<unsigned char*>(bytes)[i] == 0); };
          visit(count * size, zero);
          visit_end(count * size, zero);
        }
        keep(block, bytes, bytes == nullptr ? size : count * size);
        break;
      }
      case 3: {
        if (size == 0) break;  // frees in some libraries
        void* bytes = realloc(block->bytes, size);
        if (bytes == nullptr) {
          FUZZ_EXPECT(errno == ENOMEM);
          break;  // the old block is as it was
        }
        block->bytes = static_cast<unsigned char*>(bytes);
        check(*block, block->size < size ? block->size : size);
        keep(block, bytes, size);
        break;
      }
      case 4:
      case 5: {
        release(block);
        const size_t align = size_t{8} << decide.byte() % 14;
        void* bytes = nullptr;
        const int result = posix_memalign(&bytes, align, size);
        FUZZ_EXPECT(result == 0 || result == ENOMEM);
        if (result != 0) break;
        FUZZ_EXPECT(reinterpret_cast<uintptr_t>(bytes) % align == 0);
        keep(block, bytes, size);
        break;
      }
      case 6:
        if (block->bytes != nullptr) {
          check(*block, block->size);
          memset(block->bytes, block->mark, malloc_usable_size(block->bytes));  // all of it may be written
        }
        break;
      case 7:
        if (size % 64 == 0) malloc_trim(0);
        break;
      default:
        release(block);
    }
  }
  for (const Block& block : blocks) check(block, block.size);
  return 0;
}
