/* SPDX-License-Identifier: MIT
 *
 * What the programs of the tests need from the runtimes of sanitizers; nothing in other builds.
 */
#if defined(__clang__) && __clang_major__ == 14
#if __has_feature(address_sanitizer)

/* Makes fork() safe under the address sanitizer of clang 14. libc takes the locks of its own malloc around a fork; this
 * runtime's malloc does not, and so the child of a process with threads waits for ever where one of them was inside it. Here
 * the runtime's locks are taken around a fork: last before it and first after it, since these handlers are the first that
 * are installed. (Not those of its million buckets of stack traces, which would cost tens of milliseconds a fork, and matter
 * only to a child that adds the very stack that another thread was adding.)
 */
#include <pthread.h>

/* Internal to the runtime, which is linked into the program. */
void lock_threads(void) __asm__("_ZN6__lsan18LockThreadRegistryEv");
void unlock_threads(void) __asm__("_ZN6__lsan20UnlockThreadRegistryEv");
void lock_allocator(void) __asm__("_ZN6__lsan13LockAllocatorEv");
void unlock_allocator(void) __asm__("_ZN6__lsan15UnlockAllocatorEv");

static void lock_runtime(void) {
  lock_threads();
  lock_allocator();
}

static void unlock_runtime(void) {
  unlock_allocator();
  unlock_threads();
}

static void install(void) { pthread_atfork(lock_runtime, unlock_runtime, unlock_runtime); }

/* Before the constructors of all shared libraries. */
__attribute__((section(".preinit_array"), used)) static void (*install_first)(void) = install;

#endif
#endif

#if defined(__clang__)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#endif

/* Some tests start threads in the child of a fork, where the threads of its parent count as leaked. libstdc++, liburcu and
 * libnuma are not instrumented.
 */
#ifdef UNDER_TSAN
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
  return "die_after_fork=0:report_thread_leaks=0:ignore_noninstrumented_modules=1";
}
#endif
