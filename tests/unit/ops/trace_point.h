// SPDX-License-Identifier: MIT
// The kernel's own count of sequences that it aborted: the trace point rseq:rseq_ip_fixup, of the calling process and the
// threads that it makes from then on. An instance of tracefs of its own, mounted where nobody else sees it, so other users of
// tracing are not disturbed. available() is false without root, and where the kernel has no tracefs or no such trace point.
#ifndef PERCPU_TESTS_OPS_TRACE_POINT_H
#define PERCPU_TESTS_OPS_TRACE_POINT_H

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>

class AbortTracePoint {
 public:
  AbortTracePoint() : instance_("/sys/kernel/tracing/instances/percpu-test-" + std::to_string(getpid())) {
    if (geteuid() != 0 || unshare(CLONE_NEWNS) != 0 || mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return;
    (void)mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, nullptr);  // or it is there already
    if (mkdir(instance_.c_str(), 0700) != 0) return;
    made_ = true;
    available_ = write("options/event-fork", "1") && write("set_event_pid", std::to_string(getpid())) &&
                 write("events/rseq/rseq_ip_fixup/enable", "1") && write("tracing_on", "1");
  }
  ~AbortTracePoint() {
    if (!made_) return;
    (void)write("events/rseq/rseq_ip_fixup/enable", "0");
    rmdir(instance_.c_str());
  }
  AbortTracePoint(const AbortTracePoint &) = delete;
  AbortTracePoint &operator=(const AbortTracePoint &) = delete;

  [[nodiscard]] bool available() const { return available_; }

  // So far; events that found no room in the buffers included.
  [[nodiscard]] uint64_t count() const {
    uint64_t sum = 0;
    DIR *cpus = opendir((instance_ + "/per_cpu").c_str());
    if (cpus == nullptr) return 0;
    while (const dirent *cpu = readdir(cpus)) {
      std::FILE *stats = std::fopen((instance_ + "/per_cpu/" + cpu->d_name + "/stats").c_str(), "r");
      if (stats == nullptr) continue;
      char line[128];
      unsigned long long number;
      while (std::fgets(line, sizeof line, stats) != nullptr)
        if (std::sscanf(line, "entries: %llu", &number) == 1 || std::sscanf(line, "overrun: %llu", &number) == 1 ||
            std::sscanf(line, "dropped events: %llu", &number) == 1)
          sum += number;
      std::fclose(stats);
    }
    closedir(cpus);
    return sum;
  }

 private:
  [[nodiscard]] bool write(const char *file, const std::string &text) const {
    const int fd = open((instance_ + "/" + file).c_str(), O_WRONLY);
    if (fd < 0) return false;
    const bool good = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
    close(fd);
    return good;
  }

  std::string instance_;
  bool made_ = false;
  bool available_ = false;
};

#endif
