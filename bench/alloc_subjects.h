// SPDX-License-Identifier: MIT
//
// What bench_alloc and bench_memory compare: allocators that give out `units` copies of some bytes, all zero.
//
//   percpu    a pool laid out for at least so many CPUs
//   librseq   rseq_mempool_percpu_zmalloc() (where pkg-config found it when this was built)
//   jemalloc  its aligned_alloc() of units * (bytes rounded up to a cache line), zeroed (where the machine has the library)
//   calloc    the same bytes from libc, which aligns them to 16: where more is asked for it is not here
//
// The last two are what programs do without per-CPU memory: one array, an element a CPU, padded to a line, or to the alignment that is
// asked for. calloc's array begins anywhere in a line.
#ifndef PERCPU_BENCH_ALLOC_SUBJECTS_H
#define PERCPU_BENCH_ALLOC_SUBJECTS_H

#include <dlfcn.h>
#include <unistd.h>

#include <percpu.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#ifdef PERCPU_BENCH_LIBRSEQ
#include <rseq/mempool.h>
#endif

// What is measured takes and gives; `make` and the copies are not. A failure ends the program: nothing is measured without.
//
// Where nanoseconds are measured the subject's own class is known (with()), and its functions are inlined: two calls by way of a
// table of functions take some 6 ns themselves, half as long as what is to be measured.
class Subject {
 public:
  struct Shape {
    size_t bytes = 8;
    size_t align = 8;
    unsigned units = 2;
  };

  virtual ~Subject() = default;
  virtual void* take() = 0;
  virtual void give(void* item) = 0;
  // The address of one unit's bytes.
  virtual char* copy(void* item, unsigned unit) = 0;
  // Bytes of its own state; negative where it does not say.
  virtual double metadata_bytes() { return -1; }

  static std::shared_ptr<Subject> make(const std::string& name, const Shape& shape);
  // Calls use() with a shared pointer to a subject of its own class, and returns what that returns; a Result() where the machine,
  // or this build, does not have it.
  template <class Result, class Use>
  static Result with(const std::string& name, const Shape& shape, const Use& use);

 protected:
  static void* taken(void* item) {
    if (item != nullptr) return item;
    std::perror("allocation");
    std::exit(1);
  }
};

class PercpuSubject final : public Subject {
 public:
  explicit PercpuSubject(const Shape& shape, percpu_balance_mode balance = PERCPU_BALANCE_THREAD) : shape_(shape) {
    percpu_pool_attr attr{};
    attr.struct_bytes = sizeof attr;
    attr.nr_cpus = shape.units;
    attr.balance = balance;
    pool_ = static_cast<percpu_pool_t*>(taken(percpu_pool_create(&attr)));
  }
  ~PercpuSubject() override { percpu_pool_destroy(pool_); }
  void* take() override { return taken(percpu_pool_alloc(pool_, shape_.bytes, shape_.align, 0)); }
  void give(void* item) override { percpu_pool_free(pool_, item); }
  char* copy(void* item, unsigned unit) override { return percpu_pool_ptr(pool_, static_cast<char*>(item), unit); }
  double metadata_bytes() override {
    percpu_stats stats;
    percpu_pool_stats_read(pool_, &stats, sizeof stats);
    return static_cast<double>(stats.metadata_bytes);
  }
  percpu_pool_t* pool() const { return pool_; }

 private:
  Shape shape_;
  percpu_pool_t* pool_;
};

#ifdef PERCPU_BENCH_LIBRSEQ
// A pool grows by ranges of a stride, 64 KiB a CPU: as many as any row needs.
class LibrseqSubject final : public Subject {
 public:
  explicit LibrseqSubject(const Shape& shape) {
    rseq_mempool_attr* attr = static_cast<rseq_mempool_attr*>(taken(rseq_mempool_attr_create()));
    rseq_mempool_attr_set_percpu(attr, RSEQ_MEMPOOL_STRIDE, static_cast<int>(shape.units));
    rseq_mempool_attr_set_max_nr_ranges(attr, 0);
    const size_t item_bytes = shape.bytes > shape.align ? shape.bytes : shape.align;
    pool_ = static_cast<rseq_mempool*>(taken(rseq_mempool_create("bench", item_bytes, attr)));
    rseq_mempool_attr_destroy(attr);
  }
  ~LibrseqSubject() override { rseq_mempool_destroy(pool_); }
  void* take() override { return taken(rseq_mempool_percpu_zmalloc(pool_)); }
  void give(void* item) override { rseq_mempool_percpu_free(item); }
  char* copy(void* item, unsigned unit) override { return rseq_percpu_ptr(static_cast<char*>(item), static_cast<int>(unit)); }

 private:
  rseq_mempool* pool_;
};
#endif

class ArraySubject final : public Subject {
 public:
  ArraySubject(const Shape& shape, bool jemalloc) : line_(shape.align > 64 ? shape.align : 64) {
    padded_ = (shape.bytes + line_ - 1) / line_ * line_;
    bytes_ = padded_ * shape.units;
    if (!jemalloc) return;
    // DEEPBIND: it is not to find libc's functions of the names of its own.
    void* library = dlopen("libjemalloc.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (library == nullptr) return;
    aligned_ = reinterpret_cast<void* (*)(size_t, size_t)>(dlsym(library, "aligned_alloc"));
    free_ = reinterpret_cast<void (*)(void*)>(dlsym(library, "free"));
  }
  bool works(bool jemalloc, const Shape& shape) const {
    return jemalloc ? aligned_ != nullptr && free_ != nullptr : shape.align <= alignof(std::max_align_t);
  }
  void* take() override {
    if (aligned_ == nullptr) return taken(std::calloc(1, bytes_));
    return std::memset(taken(aligned_(line_, bytes_)), 0, bytes_);
  }
  void give(void* item) override { free_ != nullptr ? free_(item) : std::free(item); }
  char* copy(void* item, unsigned unit) override { return static_cast<char*>(item) + unit * padded_; }

 private:
  size_t line_;
  size_t padded_;
  size_t bytes_;
  void* (*aligned_)(size_t, size_t) = nullptr;
  void (*free_)(void*) = nullptr;
};

template <class Result, class Use>
Result Subject::with(const std::string& name, const Shape& shape, const Use& use) {
  if (name == "percpu") return use(std::make_shared<PercpuSubject>(shape));
#ifdef PERCPU_BENCH_LIBRSEQ
  if (name == "librseq") return use(std::make_shared<LibrseqSubject>(shape));
#endif
  const bool jemalloc = name == "jemalloc";
  if (!jemalloc && name != "calloc") return Result();
  auto made = std::make_shared<ArraySubject>(shape, jemalloc);
  return made->works(jemalloc, shape) ? use(std::move(made)) : Result();
}

// Null where the machine, or this build, does not have it.
inline std::shared_ptr<Subject> Subject::make(const std::string& name, const Shape& shape) {
  return with<std::shared_ptr<Subject>>(name, shape, [](auto subject) { return subject; });
}

// jemalloc takes more static TLS than glibc leaves for what dlopen() brings. Where that is so the program starts anew, once,
// with as much as it takes.
inline void make_room_for_jemalloc(char** argv) {
  if (dlopen("libjemalloc.so.2", RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) != nullptr) return;
  constexpr const char* kVariable = "GLIBC_TUNABLES";
  constexpr const char* kRoom = "glibc.rtld.optional_static_tls=16384";
  const char* given = std::getenv(kVariable);
  if (given != nullptr && std::strstr(given, kRoom) != nullptr) return;
  setenv(kVariable, given != nullptr ? (std::string(given) + ":" + kRoom).c_str() : kRoom, 1);
  execv("/proc/self/exe", argv);
}

inline constexpr const char* kSubjects[] = {"percpu", "librseq", "jemalloc", "calloc"};

#endif  // PERCPU_BENCH_ALLOC_SUBJECTS_H
