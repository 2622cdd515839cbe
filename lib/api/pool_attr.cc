// SPDX-License-Identifier: MIT
#include "api/pool_attr.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "api/c_enum.h"
#include "base/check.h"

namespace percpu {

namespace {

// One line on stderr, and EINVAL.
int bad_member(const char* member, const char* expected, size_t found) {
  report("percpu_pool_create: %s: expected %s, found %zu", member, expected, found);
  return -EINVAL;
}

constexpr size_t kMinUnitBytes = 32 << 10;
constexpr size_t kMinDynamicBytes = 20 << 10;

// A later version's members come behind the last one, in what is no padding of this one.
static_assert(sizeof(percpu_pool_attr) == offsetof(percpu_pool_attr, reserved) + sizeof(unsigned));

// No version of the attributes will be longer; a caller who says so forgot to say anything.
constexpr size_t kMaxAttrBytes = 4096;

int check_attr(const percpu_pool_attr& attr, size_t default_unit_bytes) {
  if (attr.name != nullptr && std::strlen(attr.name) >= kPoolNameBytes) {
    return bad_member("name", "at most 31 bytes", std::strlen(attr.name));
  }
  if (attr.unit_size != 0 && (attr.unit_size < kMinUnitBytes || attr.unit_size > kMaxUnitSizeBytes)) {
    return bad_member("unit_size", "0, or 32 KiB to 1 GiB", attr.unit_size);
  }
  if (attr.reserved_size > kMaxUnitSizeBytes / 4) return bad_member("reserved_size", "at most 256 MiB", attr.reserved_size);
  if (attr.reserved_size % kFragmentBytes != 0) return bad_member("reserved_size", "a multiple of 4", attr.reserved_size);
  if (attr.dynamic_size != 0 && (attr.dynamic_size < kMinDynamicBytes || attr.dynamic_size > kMaxUnitSizeBytes / 4)) {
    return bad_member("dynamic_size", "0, or 20 KiB to 256 MiB", attr.dynamic_size);
  }
  const size_t unit_size = attr.unit_size != 0 ? attr.unit_size : default_unit_bytes;
  if (attr.max_alloc != 0 && (attr.max_alloc < kFragmentBytes || attr.max_alloc > unit_size)) {
    return bad_member("max_alloc", "0, or 4 to the unit size", attr.max_alloc);
  }
  if (attr.max_bytes != 0 && attr.max_bytes < unit_size) {
    return bad_member("max_bytes", "0, or at least one unit", attr.max_bytes);
  }
  if (attr.nr_cpus > kMaxCpus) return bad_member("nr_cpus", "at most 8192", attr.nr_cpus);
  if (number_of(attr.balance) > PERCPU_BALANCE_OFF) {
    return bad_member("balance", "an enum percpu_balance_mode", number_of(attr.balance));
  }
  if (number_of(attr.first_chunk) > PERCPU_FIRST_PAGE) {
    return bad_member("first_chunk", "an enum percpu_first_chunk", number_of(attr.first_chunk));
  }
  if (attr.reserved != 0) return bad_member("reserved", "0", attr.reserved);
  return 0;
}

BalanceMode balance_mode(percpu_balance_mode wish, BalanceMode otherwise) {
  switch (wish) {
    case PERCPU_BALANCE_THREAD: return BalanceMode::kThread;
    case PERCPU_BALANCE_SYNC: return BalanceMode::kSync;
    case PERCPU_BALANCE_OFF: return BalanceMode::kOff;
    case PERCPU_BALANCE_DEFAULT: break;
  }
  return otherwise;
}

FirstChunk first_chunk(percpu_first_chunk wish, FirstChunk otherwise) {
  switch (wish) {
    case PERCPU_FIRST_AUTO: return FirstChunk::kAuto;
    case PERCPU_FIRST_EMBED: return FirstChunk::kEmbed;
    case PERCPU_FIRST_PAGE: return FirstChunk::kPage;
    case PERCPU_FIRST_DEFAULT: break;
  }
  return otherwise;
}

}  // namespace

int read_pool_attr(const percpu_pool_attr& given, const Config& config, PoolSetup* setup) {
  if (given.struct_bytes < offsetof(percpu_pool_attr, unit_size) || given.struct_bytes > kMaxAttrBytes) {
    return bad_member("struct_bytes", "sizeof(struct percpu_pool_attr)", given.struct_bytes);
  }
  // A caller that was compiled against a longer struct may not mean what we do not know; zero means nothing.
  percpu_pool_attr attr{};
  const auto* bytes = reinterpret_cast<const unsigned char*>(&given);
  for (size_t i = sizeof attr; i < given.struct_bytes; i++) {
    if (bytes[i] != 0) return bad_member("struct_bytes", "no members that this version does not know", given.struct_bytes);
  }
  std::memcpy(&attr, &given, std::min(given.struct_bytes, sizeof attr));
  const int result = check_attr(attr, config.unit_size_bytes);
  if (result != 0) return result;
  setup->name = attr.name != nullptr ? attr.name : "pool";
  setup->unit_size_bytes = attr.unit_size != 0 ? attr.unit_size : config.unit_size_bytes;
  setup->reserved_bytes = attr.reserved_size;
  setup->dynamic_bytes = attr.dynamic_size != 0 ? attr.dynamic_size : config.dynamic_size_bytes;
  setup->max_alloc_bytes = attr.max_alloc;
  setup->max_bytes = attr.max_bytes;
  setup->nr_cpus = attr.nr_cpus;
  setup->balance = balance_mode(attr.balance, config.balance);
  setup->first_chunk = first_chunk(attr.first_chunk, config.first_chunk);
  return 0;
}

}  // namespace percpu
