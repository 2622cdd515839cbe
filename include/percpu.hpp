// SPDX-License-Identifier: MIT
//
// percpu.hpp - percpu.h for C++17 and later: handles that cannot be dereferenced, owners, counters
//
//   percpu::owner<std::uint64_t> hits = percpu::make<std::uint64_t>();   // zero on every CPU; throws std::bad_alloc
//   hits->add(1);                                                       // this CPU's copy
//   std::uint64_t total = hits->sum();                                  // over all copies
//   std::uint64_t on3 = *hits->on(3);                                   // CPU 3's copy
//                                                                       // freed at the end of the scope
//   percpu::counter requests;
//   ++requests;  requests += 3;  std::int64_t n = requests.value();  requests.reset();
//
// A percpu::ptr<T> is as large as a pointer, trivially copyable, and made of a handle of the default pool. Each function of it
// is the operation of percpu/ops.h of that name, with its results and promises: thread-, signal- and fork-safe. So is all that
// frees (~owner, reset()), as percpu_free() is; but reset_after_grace(), as percpu_free_rcu(), is not signal-safe.
//
// A T begins as zero bytes: no constructor runs, and default member initialisers (struct stats { long limit = 7; }) do nothing.
//
// Elements of arrays: an owner has no [], its ptr has:
//   percpu::owner<long[8]> table = percpu::make<long[8]>();
//   table.get()[3].add(1);
//
// An owner moves and does not copy. A counter does neither: it can be a member or in a std::array or std::deque, but not in a
// std::vector that grows (std::vector<std::unique_ptr<percpu::counter>> does).
//
// Other pools and accounting domains have no C++ face: their functions in percpu.h take p.handle().
#ifndef PERCPU_HPP
#define PERCPU_HPP

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

#include <percpu.h>

namespace percpu {

// What a copy can be: its zero bytes are its initial value, and nobody runs a constructor or destructor on it.
template <class T>
inline constexpr bool is_copyable_by_bytes =
    std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T> && alignof(T) <= 4096;  // a page at least

// A handle: names one T on each CPU. An array has no operations, its elements have: table[3].add(1) for a ptr<long[8]> table.
template <class T>
class ptr {
  struct no_value {};  // what the operations of an array would take: there are none
  using value = std::conditional_t<std::is_array_v<T>, no_value, std::remove_cv_t<T>>;
  static_assert(is_copyable_by_bytes<std::remove_cv_t<T>>,
                "a per-CPU type is trivially copyable and destructible, and aligned to 4096 bytes at most");

 public:
  using element_type = T;

  constexpr ptr() noexcept = default;
  constexpr ptr(std::nullptr_t) noexcept {}
  // From what percpu_alloc() or percpu_static() returned.
  explicit ptr(T* handle) noexcept : handle_(handle) {}
  // To a pointer to const.
  template <class U, class = std::enable_if_t<std::is_same_v<T, const U>>>
  ptr(ptr<U> other) noexcept : handle_(other.handle()) {}

  // For the functions and macros of percpu.h. Not an address.
  T* handle() const noexcept { return handle_; }
  explicit operator bool() const noexcept { return handle_ != nullptr; }
  friend bool operator==(ptr a, ptr b) noexcept { return a.handle_ == b.handle_; }
  friend bool operator!=(ptr a, ptr b) noexcept { return a.handle_ != b.handle_; }

  // The copy of a CPU; null where there is no such CPU. Others may change it while it is read.
  T* on(unsigned cpu) const noexcept { return percpu_ptr(handle_, cpu); }
  // The copy that the calling thread would change now; it may be another CPU's a moment later.
  T* here() const noexcept { return percpu_this_ptr(handle_); }
  // The handle of a member, of a base too: hits.member(&stats::bytes). It is const or volatile where T is.
  template <class M, class C,
            class = std::enable_if_t<std::is_same_v<C, std::remove_cv_t<T>> || std::is_base_of_v<C, std::remove_cv_t<T>>>>
  auto member(M C::*m) const noexcept {
    auto* at = &(handle_->*m);
    return ptr<std::remove_pointer_t<decltype(at)>>(at);
  }
  // The handle of an array's element.
  template <class U = T, class = std::enable_if_t<std::is_array_v<U>>>
  ptr<std::remove_extent_t<U>> operator[](std::size_t i) const noexcept {
    return ptr<std::remove_extent_t<U>>(&(*handle_)[i]);
  }

  value read() const noexcept { return percpu_read(handle_); }
  void write(value v) const noexcept { percpu_write(handle_, v); }
  void add(value v) const noexcept { percpu_add(handle_, v); }
  void sub(value v) const noexcept { percpu_sub(handle_, v); }
  void inc() const noexcept { percpu_inc(handle_); }
  void dec() const noexcept { percpu_dec(handle_); }
  void and_with(value v) const noexcept { percpu_and(handle_, v); }
  void or_with(value v) const noexcept { percpu_or(handle_, v); }
  value add_return(value v) const noexcept { return percpu_add_return(handle_, v); }
  value xchg(value v) const noexcept { return percpu_xchg(handle_, v); }
  value cmpxchg(value expected, value v) const noexcept { return percpu_cmpxchg(handle_, expected, v); }
  bool try_cmpxchg(value& expected, value v) const noexcept { return percpu_try_cmpxchg(handle_, &expected, v); }

  // Over all copies, those of threads without rseq included.
  auto sum() const noexcept { return percpu_sum(handle_); }
  // Calls f(T &copy) for each copy.
  template <class F>
  void for_each_copy(F f) const {
    T* copy;
    percpu_for_each_copy(copy, handle_) f(*copy);
  }

  // There is nothing to dereference: on(), here() or an operation says which copy.
  T& operator*() const = delete;

 private:
  T* handle_ = nullptr;
};

// Owns an area: frees it at the end of its life. Moves, does not copy. As a pointer is, it is one thread's at a time; the
// area is everybody's.
template <class T>
class owner {
 public:
  owner() noexcept = default;
  explicit owner(ptr<T> area) noexcept : area_(area) {}
  owner(owner&& other) noexcept : area_(other.release()) {}
  owner& operator=(owner&& other) noexcept {
    reset(other.release());
    return *this;
  }
  ~owner() { percpu_free(unqualified(area_)); }

  ptr<T> get() const noexcept { return area_; }
  // The operations, not the copy: hits->add(1).
  const ptr<T>* operator->() const noexcept { return &area_; }
  explicit operator bool() const noexcept { return static_cast<bool>(area_); }
  [[nodiscard]] ptr<T> release() noexcept { return std::exchange(area_, ptr<T>()); }
  void reset(ptr<T> area = {}) noexcept { percpu_free(unqualified(std::exchange(area_, area))); }
  // Frees it once no reader inside rcu_read_lock() (liburcu's bp flavour) can hold it any more. Not signal-safe.
  void reset_after_grace() noexcept { percpu_free_rcu(unqualified(release())); }

 private:
  static void* unqualified(ptr<T> area) noexcept {
    return const_cast<void*>(static_cast<const volatile void*>(area.handle()));
  }

  ptr<T> area_;
};

// A T on each CPU, zero; flags as for percpu_alloc_flags(). Null where memory or a limit does not allow it (errno says which).
// Thread- and fork-safe; signal-safe with PERCPU_ATOMIC.
template <class T>
[[nodiscard]] owner<T> make(std::nothrow_t, unsigned flags = 0) noexcept {
  return owner<T>(ptr<T>(static_cast<T*>(percpu_alloc_flags(sizeof(T), alignof(T), flags))));
}
// The same; throws std::bad_alloc instead. (Compiled without exceptions it stops the program, as operator new does there.)
template <class T>
[[nodiscard]] owner<T> make(unsigned flags = 0) {
  owner<T> made = make<T>(std::nothrow, flags);
  if (!made) {
#ifdef __cpp_exceptions
    throw std::bad_alloc();
#else
    std::abort();
#endif
  }
  return made;
}

// A counter that threads change without meeting each other.
//
// value() adds the copies up: events that are counted meanwhile are in it or not. reset() makes value() begin at zero and
// loses no event and counts none twice, also while others count: it remembers what the sum was. Making one throws
// std::bad_alloc; all else is thread-, signal- and fork-safe. Neither moves nor copies.
class counter {
 public:
  counter() : cells_(make<std::int64_t>()) {}

  counter& operator++() noexcept { return cells_->inc(), *this; }
  counter& operator--() noexcept { return cells_->dec(), *this; }
  counter& operator+=(std::int64_t n) noexcept { return cells_->add(n), *this; }
  counter& operator-=(std::int64_t n) noexcept { return cells_->sub(n), *this; }

  // Below zero only where more was taken off than added: the sum is read after the base, and holds what the base holds.
  std::int64_t value() const noexcept {
    const std::int64_t base = base_.load(std::memory_order_acquire);
    return cells_->sum() - base;
  }
  // Returns the value that ended. Of several threads that reset at once, each event is in the result of one: whoever was
  // overtaken reads the sum again.
  std::int64_t reset() noexcept {
    std::int64_t base = base_.load(std::memory_order_acquire);
    std::int64_t now = cells_->sum();
    while (!base_.compare_exchange_weak(base, now, std::memory_order_acq_rel, std::memory_order_acquire)) {
      now = cells_->sum();
    }
    return now - base;
  }

 private:
  owner<std::int64_t> cells_;
  std::atomic<std::int64_t> base_{0};
};

}  // namespace percpu

#endif  // PERCPU_HPP
