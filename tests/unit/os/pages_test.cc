// SPDX-License-Identifier: MIT
#include "os/pages.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../child.h"
#include "../sanitized.h"
#include "faulty_system.h"
#include "smaps.h"
#include "zero_page.h"

namespace percpu {
namespace {

const System& sys = real_system();
const size_t kPage = page_size_bytes();

// A reservation for the length of a test.
class Reserved {
 public:
  explicit Reserved(size_t pages) { REQUIRE(reserve(sys, pages * kPage, kPage, &range_) == 0); }
  ~Reserved() { CHECK(unreserve(sys, range_) == 0); }
  PageRange all() const { return range_; }
  PageRange pages(size_t first, size_t count) const { return {range_.start + first * kPage, count * kPage}; }
  unsigned char* bytes() const { return reinterpret_cast<unsigned char*>(range_.start); }

 private:
  PageRange range_;
};

size_t resident(PageRange range) {
  size_t pages = SIZE_MAX;
  CHECK(resident_pages(sys, range, &pages) == 0);
  return pages;
}

bool all_zero(PageRange range) {
  const unsigned char* bytes = reinterpret_cast<const unsigned char*>(range.start);
  for (size_t i = 0; i < range.size_bytes; ++i) {
    if (bytes[i] != 0) return false;
  }
  return true;
}

bool strict_overcommit() {
  FILE* file = fopen("/proc/sys/vm/overcommit_memory", "r");
  int mode = file != nullptr ? fgetc(file) : '0';
  if (file != nullptr) fclose(file);
  return mode == '2';
}

// The policy of the mapping, read from the kernel.
int policy_at(uintptr_t address) {
  int mode = -1;
  CHECK(sys.get_mempolicy(&mode, nullptr, 0, address, MPOL_F_ADDR) == 0);
  return mode;
}

TEST_CASE("a reservation is aligned, mapped to nothing, and not dumped") {
  for (size_t align : {kPage, size_t{64} << 10, size_t{2} << 20, size_t{1} << 30}) {
    PageRange range;
    REQUIRE(reserve(sys, 10 * kPage, align, &range) == 0);
    CHECK(range.start % align == 0);
    CHECK(range.size_bytes == 10 * kPage);
    CHECK(resident(range) == 0);
    CHECK(has_vm_flag(range.start, "dd"));
    CHECK_FALSE(has_vm_flag(range.start, "ac"));
    CHECK_FALSE(has_vm_flag(range.start, "rd"));
    CHECK(count_vmas(range.start, range.end()) == 1);
    ChildEnd end = run_in_child([&] { return *reinterpret_cast<volatile char*>(range.start); });
#if !defined(__SANITIZE_ADDRESS__)
    CHECK(end.signal == SIGSEGV);
#endif
    CHECK(unreserve(sys, range) == 0);
    CHECK(count_vmas(range.start, range.end()) == 0);
  }
}

TEST_CASE("a reservation beyond the limit of address space fails and leaves nothing behind") {
  PageRange range;
  CHECK(reserve(sys, size_t{1} << 60, kPage, &range) == -ENOMEM);
  CHECK(reserve(sys, SIZE_MAX / kPage * kPage, size_t{1} << 40, &range) == -ENOMEM);
}

TEST_CASE("whichever call fails, a reservation fails or is complete, and no mapping is left behind") {
  FaultySystem& faulty = FaultySystem::reset();
  const size_t align = size_t{1} << 21;
  int failures = 0;
  for (int nth = 1;; ++nth) {
    FaultySystem::reset().fail_nth_of_all(nth, ENOMEM);
    int before = count_vmas(0, UINTPTR_MAX);
    PageRange range;
    int error = reserve(faulty.system(), 10 * kPage, align, &range);
    bool failed = faulty.failed_any();
    if (error == 0) {
      CHECK(range.start % align == 0);
      CHECK(unreserve(sys, range) == 0);
    } else {
      CHECK(error == -ENOMEM);
      ++failures;
    }
    CHECK(count_vmas(0, UINTPTR_MAX) == before);
    if (!failed) break;
  }
  CHECK(failures >= 2);  // mmap, and at least one munmap
}

// Locks through the system calls: sanitizers replace libc's functions by ones that do nothing.
void lock_future_as_nobody(size_t limit_bytes) {
  rlimit limit = {limit_bytes, limit_bytes};
  if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0) _exit(101);
  if (geteuid() == 0 && setuid(65534) != 0) _exit(102);  // root may lock as much as it likes
  if (syscall(SYS_mlockall, MCL_FUTURE) != 0) _exit(103);
}

TEST_CASE("mlockall(MCL_FUTURE) backs neither a reservation nor what is opened in it") {
  ChildEnd end = run_in_child([] {
    if (syscall(SYS_mlockall, MCL_FUTURE) != 0) return 77;
    PageRange range;
    if (reserve(sys, 1000 * kPage, kPage, &range) != 0) return 1;
    if (has_vm_flag(range.start, "lo")) return 2;
    if (open_range(sys, range) != 0) return 3;
    size_t pages = 1;
    if (resident_pages(sys, range, &pages) != 0 || pages != 0) return 4;
    if (retire(sys, range, kNoNode) != kRetired || has_vm_flag(range.start, "lo")) return 5;
    return 0;
  });
  CHECK((end.exit_code == 0 || end.exit_code == 77));
}

TEST_CASE("under mlockall(MCL_FUTURE) a reservation may exceed the lock limit") {
  ChildEnd end = run_in_child([] {
    lock_future_as_nobody(size_t{4} << 20);
    PageRange range;
    if (sys.mmap(0, size_t{1} << 30, PROT_NONE, MAP_NORESERVE) != -EAGAIN) return 1;  // what must be got around
    if (reserve(sys, size_t{1} << 30, size_t{1} << 21, &range) != 0) return 2;
    if (range.start % (size_t{1} << 21) != 0 || has_vm_flag(range.start, "lo")) return 3;
    if (open_range(sys, {range.start, 4096 * kPage}) != 0) return 4;
    if (populate(sys, {range.start, kPage}) != 0) return 5;
    // A new mapping may not be locked beyond the limit, so the charge stays; the memory goes.
    if (retire(sys, {range.start, 4096 * kPage}, kNoNode) != kOnlyDepopulated) return 6;
    size_t pages = 1;
    if (resident_pages(sys, range, &pages) != 0 || pages != 0) return 7;
    return 0;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("addresses can be reserved where nobody has them, and only there; also under mlockall(MCL_FUTURE)") {
  if (kThreadSanitized) return;
  const auto works = [] {
    PageRange range;
    if (reserve(sys, size_t{1} << 30, kPage, &range) != 0) return 1;
    // Just as much room as is wanted.
    const PageRange hole{range.start + 16 * kPage, size_t{512} << 20};
    if (unreserve(sys, hole) != 0 || reserve_at(sys, hole) != 0) return 2;
    if (has_vm_flag(hole.start, "lo")) return 3;
    if (open_range(sys, {hole.start, kPage}) != 0) return 4;
    if (populate(sys, {hole.start, kPage}) != 0) return 5;
    if (reserve_at(sys, {hole.start - kPage, 4 * kPage}) != -EEXIST) return 6;
    size_t pages = 0;  // what was there is
    return resident_pages(sys, hole, &pages) == 0 && pages == 1 ? 0 : 7;
  };
  CHECK(run_in_child(works).exit_code == 0);
  const ChildEnd locked = run_in_child([&] {
    lock_future_as_nobody(size_t{4} << 20);
    return works();
  });
  CHECK(locked.exit_code == 0);
}

TEST_CASE("mlockall(MCL_CURRENT) of a reservation does not back what is opened later") {
  ChildEnd end = run_in_child([] {
    PageRange range;
    if (reserve(sys, 1000 * kPage, kPage, &range) != 0) return 1;
    if (syscall(SYS_mlock, range.start, range.size_bytes) == 0) return 2;  // fails: nothing can be backed; but marks it
    if (!has_vm_flag(range.start, "lo")) return 3;
    if (open_range(sys, {range.start, 100 * kPage}) != 0) return 4;
    size_t pages = 1;
    if (resident_pages(sys, range, &pages) != 0 || pages != 0) return 5;
    return 0;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("an opened range is zero, backed by nothing until populated, and keeps its content then") {
  Reserved reserved(8);
  PageRange middle = reserved.pages(2, 4);
  REQUIRE(open_range(sys, middle) == 0);
  // Charged under strict overcommit, and marked as not to be charged otherwise.
  CHECK(has_vm_flag(middle.start, strict_overcommit() ? "ac" : "nr"));
  CHECK(resident(reserved.all()) == 0);
  CHECK(populate(sys, reserved.pages(3, 2)) == 0);
  CHECK(resident(reserved.all()) == 2);
  CHECK(all_zero(middle));
  memset(reserved.bytes() + 3 * kPage, 0xab, kPage);
  CHECK(populate(sys, middle) == 0);
  CHECK(resident(reserved.all()) == 4);
  CHECK(reserved.bytes()[3 * kPage + 17] == 0xab);
}

TEST_CASE("a kernel without MADV_POPULATE_WRITE populates as well, and keeps the content") {
  FaultySystem& faulty = FaultySystem::reset();
  faulty.fail_always(Call::kMadvise, EINVAL);
  Reserved reserved(64);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  memset(reserved.bytes() + 5 * kPage, 0xcd, kPage);
  CHECK(populate(faulty.system(), reserved.all()) == 0);
  CHECK(faulty.count(Call::kTouchWord) == 64);
  CHECK(resident(reserved.all()) == 64);
  CHECK(reserved.bytes()[5 * kPage] == 0xcd);
  CHECK(reserved.bytes()[5 * kPage + kPage - 1] == 0xcd);
  CHECK(all_zero(reserved.pages(6, 58)));
}

TEST_CASE("populating loses nothing that others write meanwhile, by either means") {
  for (bool old_kernel : {false, true}) {
    FaultySystem& faulty = FaultySystem::reset();
    if (old_kernel) faulty.fail_always(Call::kMadvise, EINVAL);
    Reserved reserved(4);
    REQUIRE(open_range(sys, reserved.all()) == 0);
    auto* counter = reinterpret_cast<std::atomic<uint64_t>*>(reserved.all().start);
    constexpr uint64_t kAdds = 300000;
    std::thread writer([&] {
      for (uint64_t i = 0; i < kAdds; ++i) counter->fetch_add(1, std::memory_order_relaxed);
    });
    for (int i = 0; i < 2000; ++i) CHECK(populate(faulty.system(), reserved.all()) == 0);
    writer.join();
    CHECK(counter->load() == kAdds);
  }
}

TEST_CASE("populating what is not open fails without a signal, by either means") {
  Reserved reserved(4);
  CHECK(populate(sys, reserved.all()) < 0);
  REQUIRE(open_range(sys, reserved.pages(0, 2)) == 0);
  CHECK(populate(sys, reserved.all()) < 0);
  FaultySystem& faulty = FaultySystem::reset();
  faulty.fail_always(Call::kMadvise, EINVAL);
  CHECK(populate(faulty.system(), reserved.all()) == -EFAULT);
  CHECK(resident(reserved.pages(2, 2)) == 0);
}

TEST_CASE("populating tries again when the kernel says so, but not forever") {
  Reserved reserved(2);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  FaultySystem& faulty = FaultySystem::reset();
  faulty.fail_nth(Call::kMadvise, 1, EAGAIN);
  CHECK(populate(faulty.system(), reserved.all()) == 0);
  CHECK(faulty.count(Call::kMadvise) == 2);
  faulty.fail_always(Call::kMadvise, EINTR);
  CHECK(populate(faulty.system(), reserved.all()) == -EINTR);
  FaultySystem::reset().fail_nth(Call::kMadvise, 1, ENOMEM);
  CHECK(populate(faulty.system(), reserved.all()) == -ENOMEM);
}

TEST_CASE("depopulated pages are gone, and read as zero") {
  Reserved reserved(4);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  REQUIRE(populate(sys, reserved.all()) == 0);
  memset(reserved.bytes(), 0xff, 4 * kPage);
  CHECK(depopulate(sys, reserved.pages(1, 2)) == 0);
  CHECK(resident(reserved.all()) == 2);
  CHECK(all_zero(reserved.pages(1, 2)));
  CHECK(reserved.bytes()[0] == 0xff);
  CHECK(reserved.bytes()[3 * kPage] == 0xff);
}

// MADV_DONTNEED_LOCKED, since Linux 5.18.
bool kernel_gives_back_locked_pages() {
  const Reserved page(1);
  REQUIRE(open_range(sys, page.all()) == 0);
  return syscall(SYS_madvise, page.all().start, page.all().size_bytes, 24) == 0;
}

TEST_CASE("locked pages are given back too, also by a kernel that cannot but unlock them") {
  for (const auto& failing : {std::pair(0, 0), {1, EINVAL}, {2, EINVAL}, {2, EPERM}, {2, ENOSYS}}) {
    const int failing_advices = failing.first;
    const int error = failing.second;
    CAPTURE(error);
    Reserved reserved(4);
    REQUIRE(open_range(sys, reserved.all()) == 0);
    REQUIRE(syscall(SYS_mlock, reserved.all().start, reserved.all().size_bytes) == 0);
    CHECK(resident(reserved.all()) == 4);
    // The plain advice fails by itself on locked memory; the second is made to fail as on an old kernel.
    FaultySystem& faulty = FaultySystem::reset();
    if (failing_advices > 0) faulty.fail_nth(Call::kMadvise, failing_advices, error);
    CHECK(depopulate(faulty.system(), reserved.all()) == 0);
    CHECK(resident(reserved.all()) == 0);
    CHECK(has_vm_flag(reserved.all().start, "lo") == (failing_advices != 2 && kernel_gives_back_locked_pages()));
  }
}

TEST_CASE("depopulating what is not mapped fails") {
  PageRange range;
  REQUIRE(reserve(sys, 2 * kPage, kPage, &range) == 0);
  REQUIRE(unreserve(sys, range) == 0);
  CHECK(depopulate(sys, range) == -ENOMEM);
}

TEST_CASE("binding to no node makes no system call; to one, the kernel knows it") {
  FaultySystem& faulty = FaultySystem::reset();
  Reserved reserved(4);
  CHECK(bind(faulty.system(), reserved.all(), kNoNode) == 0);
  CHECK(faulty.total() == 0);
  CHECK(policy_at(reserved.all().start) == MPOL_DEFAULT);
  CHECK(bind(sys, reserved.all(), NodeId{0}) == 0);
  CHECK(policy_at(reserved.all().start) == MPOL_PREFERRED);
  CHECK(bind(sys, reserved.all(), NodeId{1023}) == -EINVAL);
  CHECK(bind(sys, reserved.all(), NodeId{1024}) == -EINVAL);
  for (int error : {EPERM, ENOSYS, EINVAL}) {
    FaultySystem::reset().fail_always(Call::kMbind, error);
    CHECK(bind(faulty.system(), reserved.all(), NodeId{0}) == -error);
  }
}

TEST_CASE("a retired range is as after reserve and bind: no access, no charge, no memory, same node, not dumped") {
  Reserved reserved(12);
  REQUIRE(bind(sys, reserved.all(), NodeId{0}) == 0);
  CHECK(count_vmas(reserved.all().start, reserved.all().end()) == 1);
  PageRange middle = reserved.pages(4, 4);
  for (int round = 0; round < 3; ++round) {
    REQUIRE(open_range(sys, middle) == 0);
    REQUIRE(populate(sys, middle) == 0);
    CHECK(has_vm_flag(middle.start, "ac") == strict_overcommit());
    CHECK(count_vmas(reserved.all().start, reserved.all().end()) == 3);
    CHECK(retire(sys, middle, NodeId{0}) == kRetired);
    CHECK(resident(reserved.all()) == 0);
    CHECK(count_vmas(reserved.all().start, reserved.all().end()) == 1);
    CHECK_FALSE(has_vm_flag(middle.start, "ac"));
    CHECK_FALSE(has_vm_flag(middle.start, "rd"));
    CHECK(has_vm_flag(middle.start, "dd"));
    CHECK(policy_at(middle.start) == MPOL_PREFERRED);
  }
  REQUIRE(open_range(sys, middle) == 0);
  CHECK(all_zero(middle));
}

TEST_CASE("a range that cannot be replaced is depopulated, stays open, and its return says so") {
  FaultySystem& faulty = FaultySystem::reset();
  Reserved reserved(4);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  memset(reserved.bytes(), 1, 4 * kPage);
  faulty.fail_nth(Call::kMmap, 1, ENOMEM);
  CHECK(retire(faulty.system(), reserved.all(), kNoNode) == kOnlyDepopulated);
  CHECK(resident(reserved.all()) == 0);
  CHECK(all_zero(reserved.all()));
  FaultySystem::reset().fail_always(Call::kMbind, EPERM);
  CHECK(retire(faulty.system(), reserved.all(), NodeId{0}) == kRetiredUnplaced);
  CHECK(resident(reserved.all()) == 0);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  FaultySystem::reset().fail_nth(Call::kMadvise, 1, ENOMEM);
  CHECK(retire(faulty.system(), reserved.all(), kNoNode) == kRetiredUnplaced);
  FaultySystem::reset().fail_always(Call::kMmap, ENOMEM).fail_always(Call::kMadvise, ENOMEM);
  CHECK(retire(faulty.system(), reserved.all(), kNoNode) == -ENOMEM);
}

TEST_CASE("with no mapping left, a range is depopulated and nothing is lost") {
  ChildEnd end = run_in_child([] {
    // Two neighbours with different rights are two mappings; so every second page of a large range uses all there are.
    PageRange filler;
    PageRange range;
    if (reserve(sys, 16 * kPage, kPage, &range) != 0 || open_range(sys, range) != 0) return 1;
    if (reserve(sys, 200000 * kPage, kPage, &filler) != 0) return 2;
    int error = 0;
    for (size_t i = 0; i < 100000 && error == 0; ++i)
      error = open_range(sys, {filler.start + 2 * i * kPage, kPage});
    if (error != -ENOMEM) return 3;
    memset(reinterpret_cast<void*>(range.start), 1, range.size_bytes);
    // A mapping in the middle of another makes two more.
    PageRange middle = {range.start + 4 * kPage, 4 * kPage};
    if (retire(sys, middle, kNoNode) != kOnlyDepopulated) return 4;
    size_t pages = 0;
    if (resident_pages(sys, range, &pages) != 0 || pages != 12) return 5;
    if (!all_zero(middle)) return 6;
    return reinterpret_cast<unsigned char*>(range.start)[3 * kPage] == 1 ? 0 : 7;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("neighbours that are opened one after the other are one mapping") {
  Reserved reserved(64);
  REQUIRE(bind(sys, reserved.all(), NodeId{0}) == 0);
  for (size_t i = 0; i < 16; ++i) {
    REQUIRE(open_range(sys, reserved.pages(i * 4, 4)) == 0);
    REQUIRE(populate(sys, reserved.pages(i * 4, 4)) == 0);
  }
  CHECK(count_vmas(reserved.all().start, reserved.all().end()) == 1);
}

TEST_CASE("huge pages are forbidden in a reservation, can be allowed, and are forbidden again once it is retired") {
  Reserved reserved(1024);
  int error = advise_huge(sys, reserved.pages(0, 1), true);
  if (error == -EINVAL) return;  // a kernel without
  CHECK(has_vm_flag(reserved.all().start + kPage, "nh"));
  REQUIRE(open_range(sys, reserved.all()) == 0);
  error = advise_huge(sys, reserved.all(), true);
  CHECK(error == 0);
  CHECK(has_vm_flag(reserved.all().start, "hg"));
  CHECK(retire(sys, reserved.all(), kNoNode) == kRetired);
  CHECK(has_vm_flag(reserved.all().start, "nh"));
  CHECK(advise_huge(sys, reserved.all(), true) == 0);
  CHECK(advise_huge(sys, reserved.all(), false) == 0);
  CHECK(has_vm_flag(reserved.all().start, "nh"));
}

TEST_CASE("resident pages are counted in long ranges and refused for unmapped ones") {
  Reserved reserved(3000);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  REQUIRE(populate(sys, reserved.pages(500, 1500)) == 0);
  CHECK(resident(reserved.all()) == 1500);
  CHECK(resident(reserved.pages(511, 2)) == 2);
  CHECK(resident(reserved.pages(0, 500)) == 0);
  size_t pages = 0;
  CHECK(resident_pages(sys, {0, kPage}, &pages) == -ENOMEM);
}

TEST_CASE("the node of a page is told by either means, and asking backs nothing") {
  Reserved reserved(4);
  REQUIRE(bind(sys, reserved.all(), NodeId{0}) == 0);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  REQUIRE(populate(sys, reserved.pages(1, 1)) == 0);
  const uintptr_t start = reserved.all().start;
  volatile unsigned char only_read = reserved.bytes()[2 * kPage];  // backs it by the shared zero page, if there is one
  static_cast<void>(only_read);
  const int only_read_is = has_zero_page() ? -ENOENT : 0;
  for (bool forbidden : {false, true}) {
    FaultySystem& faulty = FaultySystem::reset();
    if (forbidden) faulty.fail_always(Call::kQueryPage, EPERM);
    NodeId node{77};
    CHECK(node_of(faulty.system(), start + 5, &node) == -ENOENT);
    CHECK(node.value == 77);
    CHECK(node_of(faulty.system(), start + kPage + 5, &node) == 0);
    CHECK(node.value == 0);
    CHECK(node_of(faulty.system(), 5, &node) == -EFAULT);
    if (!forbidden) CHECK(node_of(faulty.system(), start + 2 * kPage, &node) == only_read_is);
    CHECK(resident(reserved.pages(0, 1)) == 0);
    CHECK(resident(reserved.pages(3, 1)) == 0);
  }
  FaultySystem& faulty = FaultySystem::reset().fail_always(Call::kQueryPage, EPERM).fail_always(Call::kGetMempolicy, EPERM);
  NodeId node;
  CHECK(node_of(faulty.system(), start + kPage, &node) == -EPERM);
}

TEST_CASE("pages that are there are moved to the node where one lies elsewhere, where that cannot be told, and where there are many") {
  const auto nr_binds = [](const PageRange& range) {
    FaultySystem& faulty = FaultySystem::instance();
    const int before = faulty.count(Call::kMbind);
    CHECK(bind_and_move(faulty.system(), range, NodeId{0}) == 0);
    return faulty.count(Call::kMbind) - before;
  };
  NodeId there;
  Reserved reserved(1024);
  FaultySystem::reset();
  CHECK(nr_binds(reserved.all()) == 1);
  REQUIRE(open_range(sys, reserved.all()) == 0);
  REQUIRE(populate(sys, reserved.pages(3, 4)) == 0);
  REQUIRE(populate(sys, reserved.pages(600, 1)) == 0);
  REQUIRE(node_of(sys, reserved.pages(3, 1).start, &there) == 0);
  if (there.value != 0) return;  // a machine of several nodes, that runs us elsewhere
  CHECK(nr_binds(reserved.all()) == 1);
  FaultySystem::reset().fail_always(Call::kQueryPage, EPERM);  // then policies tell
  CHECK(nr_binds(reserved.all()) == 1);
  FaultySystem::reset().fail_nth(Call::kQueryPage, 5, EINVAL);
  CHECK(nr_binds(reserved.all()) == 2);
  FaultySystem::reset().fail_nth(Call::kMincore, 2, EAGAIN);
  CHECK(nr_binds(reserved.all()) == 2);
  FaultySystem::reset();
  REQUIRE(populate(sys, reserved.pages(0, 300)) == 0);
  CHECK(nr_binds(reserved.all()) == 2);
  CHECK(bind_and_move(FaultySystem::instance().system(), reserved.all(), kNoNode) == 0);
  FaultySystem::reset().fail_always(Call::kMbind, EPERM);
  CHECK(bind_and_move(FaultySystem::instance().system(), reserved.all(), NodeId{0}) == -EPERM);
}

TEST_CASE("memory comes from the node that the range is bound to, on each node that has some") {
  Reserved reserved(64);
  for (int node = 0; node < 64; ++node) {
    PageRange range = reserved.pages(static_cast<size_t>(node), 1);
    int error = bind(sys, range, NodeId{node});
    if (error == -EINVAL) continue;  // no such node, or one without memory
    REQUIRE(error == 0);
    REQUIRE(open_range(sys, range) == 0);
    REQUIRE(populate(sys, range) == 0);
    NodeId found;
    CHECK(node_of(sys, range.start, &found) == 0);
    CHECK(found.value == node);
    REQUIRE(retire(sys, range, NodeId{node}) == kRetired);
    REQUIRE(open_range(sys, range) == 0);
    REQUIRE(populate(sys, range) == 0);
    CHECK(node_of(sys, range.start, &found) == 0);
    CHECK(found.value == node);
  }
}

TEST_CASE("errno survives success and failure") {
  errno = EXDEV;
  Reserved reserved(2);
  CHECK(populate(sys, reserved.all()) < 0);
  CHECK(open_range(sys, reserved.all()) == 0);
  CHECK(retire(sys, reserved.all(), kNoNode) == kRetired);
  CHECK(errno == EXDEV);
}

}  // namespace
}  // namespace percpu
