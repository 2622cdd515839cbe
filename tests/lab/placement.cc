// SPDX-License-Identifier: MIT
// Every populated page of every unit lies on its CPU's node, or, where that has no memory, on the nearest that has. The kernel is
// asked page by page (move_pages), and where CPUs are is read from sysfs here, not from the library.
//
// usage: placement [late]      (every pool: both ways to back the first chunk, several chunks, static variables)
//
// late: CPUs that are offline when the program starts come online when its pools are there already; a thread goes to each and
// counts, and then the pages of their copies are looked at, too.
#include <percpu.h>

#include <cstdio>
#include <cstring>
#include <set>
#include <vector>

#include "../stress/leave_rseq.h"
#include "hotplug.h"

PERCPU_DEFINE(long, lab_static) = 7;

namespace {

struct Found {
  uint64_t right = 0, wrong = 0, absent = 0, units = 0;
};

// Populated means: in the copies of the CPUs that the process could run on when the library began.
std::vector<bool> allowed_at_start;

// A unit that was looked at, so that it is looked at once.
using Seen = std::set<const char *>;

// All pages of the unit that `address` lies in. `cpu`: whose copy it is, or the CPU whose group the extra copy belongs to.
void look_at_unit(const lab::Nodes &nodes, const char *address, size_t unit_bytes, int cpu, Found *found, Seen *seen) {
  percpu_address info;
  if (percpu_address_info(address, &info) != 1) {
    ++found->wrong;
    std::printf("%p, CPU %d: expected per-CPU memory, found none\n", static_cast<const void *>(address), cpu);
    return;
  }
  const char *unit = address - info.unit_offset;
  if (!seen->insert(unit).second) return;
  ++found->units;
  const std::vector<int> backing = lab::nodes_of_pages(unit, unit_bytes);
  for (size_t page = 0; page < backing.size(); ++page) {
    if (backing[page] < 0) {
      ++found->absent;
    } else if (nodes.right_for(cpu, backing[page])) {
      ++found->right;
    } else {
      ++found->wrong;
      std::printf("chunk %u, CPU %d, page %zu of its unit: expected on node %s, found on %d\n", info.chunk, cpu, page,
                  nodes.expected(cpu).c_str(), backing[page]);
    }
  }
}

// Each copy of one area: its own pages are there where the CPU may run us, and every page of its unit lies right.
void look_at_area(const lab::Nodes &nodes, percpu_pool_t *pool, char *handle, size_t size_bytes, size_t unit_bytes, Found *found,
                  Seen *seen) {
  unsigned cpu;
  percpu_pool_for_each_possible_cpu(pool, cpu) {
    const char *copy = percpu_pool_ptr(pool, handle, cpu);
    look_at_unit(nodes, copy, unit_bytes, static_cast<int>(cpu), found, seen);
    if (!allowed_at_start[cpu]) continue;
    for (const int backing : lab::nodes_of_pages(copy, size_bytes)) {
      if (backing >= 0) continue;
      ++found->wrong;
      std::printf("CPU %u, area of %zu bytes: expected populated pages, found one that is not there\n", cpu, size_bytes);
    }
  }
}

// The extra copies: a thread without rseq, on each CPU, changes that of its group. Where all CPUs are one group it lies anywhere.
void look_at_extra_copies(const lab::Nodes &nodes, percpu_pool_t *pool, uint64_t *area, Found *found) {
  for (int cpu : lab::read_list("/sys/devices/system/cpu/online")) {
    std::thread([&] {
      if (leave_rseq() != 0 || !lab::go_to(cpu)) {
        ++found->wrong;
        std::printf("CPU %d: expected a thread without rseq there, found that it cannot be made\n", cpu);
        return;
      }
      percpu_pool_add(pool, area, 1);
      const std::vector<int> backing = lab::nodes_of_pages(percpu_pool_this_ptr(pool, area), 8);
      ++(nodes.right_for(cpu, backing[0]) ? found->right : found->wrong);
      if (!nodes.right_for(cpu, backing[0]))
        std::printf("the extra copy of CPU %d's group: expected on node %s, found on %d\n", cpu, nodes.expected(cpu).c_str(),
                    backing[0]);
    }).join();
  }
}

void look_at_pool(const lab::Nodes &nodes, const char *name, percpu_pool_t *pool, Found *sum) {
  percpu_stats stats;
  percpu_pool_stats_read(pool, &stats, sizeof stats);
  Found found;
  Seen seen;
  std::vector<char *> areas;
  // Until there are four chunks: small areas among large ones, so that pages are populated one by one, too.
  for (size_t i = 0; i < 100000; ++i) {
    const size_t size_bytes = i % 3 == 0 ? stats.unit_bytes / 4 : 8 + i % 5000;
    char *handle = static_cast<char *>(percpu_pool_alloc(pool, size_bytes, 8, 0));
    if (handle == nullptr) {
      ++found.wrong;
      std::perror(name);
      break;
    }
    areas.push_back(handle);
    look_at_area(nodes, pool, handle, size_bytes, stats.unit_bytes, &found, &seen);
    percpu_stats now;
    percpu_pool_stats_read(pool, &now, sizeof now);
    if (now.nr_chunks >= 4) break;
  }
  // Once more, when all is populated that will be.
  seen.clear();
  found.right = found.absent = found.units = 0;
  for (char *handle : areas) look_at_area(nodes, pool, handle, 8, stats.unit_bytes, &found, &seen);
  if (stats.nr_groups > 1) look_at_extra_copies(nodes, pool, reinterpret_cast<uint64_t *>(areas.front()), &found);
  for (char *handle : areas) percpu_pool_free(pool, handle);
  std::printf("%s: %lu units, %lu pages, %lu of them on another node than their CPU's, %lu not populated\n", name,
              static_cast<unsigned long>(found.units), static_cast<unsigned long>(found.right + found.wrong),
              static_cast<unsigned long>(found.wrong), static_cast<unsigned long>(found.absent));
  sum->right += found.right;
  sum->wrong += found.wrong;
  sum->units += found.units;
}

percpu_pool_t *make_pool(percpu_first_chunk first_chunk) {
  percpu_pool_attr attr{};
  attr.struct_bytes = sizeof attr;
  attr.first_chunk = first_chunk;
  attr.unit_size = 64 << 10;
  attr.reserved_size = 8 << 10;
  return percpu_pool_create(&attr);
}

// Brings these CPUs online, and counts on each in an area of each pool, so that pages of its copies are backed there.
bool bring_online_and_count(const std::vector<percpu_pool_t *> &pools, const std::vector<int> &late) {
  bool good = true;
  std::vector<uint64_t *> areas;
  for (percpu_pool_t *pool : pools) areas.push_back(static_cast<uint64_t *>(percpu_pool_alloc(pool, 8, 8, 0)));
  for (int cpu : late) {
    good = lab::set_online(cpu, true) && good;
    std::thread([&] {
      good = lab::go_to(cpu) && good;
      for (size_t i = 0; i < pools.size(); ++i) {
        percpu_pool_add(pools[i], areas[i], 1);
        // The pages of its copies that nobody touched yet.
        for (size_t page = 0; page < 8; ++page) {
          char *area = static_cast<char *>(percpu_pool_alloc(pools[i], 4096, 8, 0));
          percpu_pool_add(pools[i], reinterpret_cast<uint64_t *>(area), 1);
          percpu_pool_free(pools[i], area);
        }
      }
    }).join();
  }
  for (size_t i = 0; i < pools.size(); ++i) {
    const uint64_t found = percpu_pool_sum(pools[i], areas[i]);
    if (found != late.size()) std::printf("expected one event on each of %zu CPUs, found %lu\n", late.size(), static_cast<unsigned long>(found));
    good = good && found == late.size();
  }
  std::printf("%zu CPUs came online\n", late.size());
  return good;
}

}  // namespace

int main(int argc, char **argv) {
  const lab::Nodes nodes = lab::read_nodes();
  nodes.print();
  for (int cpu = 0; cpu < 8192; ++cpu) allowed_at_start.push_back(lab::is_allowed(cpu));
  Found sum;
  percpu_add(percpu_static(lab_static), 1);
  percpu_pool_t *pages = make_pool(PERCPU_FIRST_PAGE);
  percpu_pool_t *embedded = make_pool(PERCPU_FIRST_EMBED);
  if (pages == nullptr || embedded == nullptr) {
    std::perror("percpu_pool_create");
    return 1;
  }
  const std::vector<int> late = argc > 1 && std::strcmp(argv[1], "late") == 0 ? lab::offline_cpus() : std::vector<int>();
  if (!late.empty() && !bring_online_and_count({percpu_pool_default(), pages, embedded}, late)) return 1;
  look_at_pool(nodes, "default pool", percpu_pool_default(), &sum);
  look_at_pool(nodes, "first chunk page by page", pages, &sum);
  look_at_pool(nodes, "first chunk embedded", embedded, &sum);
  for (int cpu : late) lab::set_online(cpu, false);
  std::printf("lab: %lu pages of %lu units, %lu on a wrong node\n", static_cast<unsigned long>(sum.right + sum.wrong),
              static_cast<unsigned long>(sum.units), static_cast<unsigned long>(sum.wrong));
  return sum.wrong == 0 && sum.right > 0 ? 0 : 1;
}
