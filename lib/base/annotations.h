// SPDX-License-Identifier: MIT
//
// Names for clang's thread-safety analysis: which lock guards which field, and what a function does to locks. They are
// written next to the field or the function, are checked by clang (-Wthread-safety), and are empty for other compilers.
//
//   class PERCPU_CAPABILITY("mutex") MapLock { void lock() PERCPU_ACQUIRE(); ... };
//   int live_ PERCPU_GUARDED_BY(lock_);
//   void move() PERCPU_REQUIRES(lock_);      // the caller holds it
//   void insert() PERCPU_EXCLUDES(lock_);    // takes it by itself: the caller must not hold it
#ifndef PERCPU_BASE_ANNOTATIONS_H
#define PERCPU_BASE_ANNOTATIONS_H

#if defined(__clang__)
#define PERCPU_THREAD_ATTRIBUTE_(x) __attribute__((x))
#else
#define PERCPU_THREAD_ATTRIBUTE_(x)
#endif

// Of a class: its objects are locks; `name` is what the diagnostics call them.
#define PERCPU_CAPABILITY(name) PERCPU_THREAD_ATTRIBUTE_(capability(name))
// Of a class: takes a lock when constructed, releases it when destroyed.
#define PERCPU_SCOPED_CAPABILITY PERCPU_THREAD_ATTRIBUTE_(scoped_lockable)

// Of a field: guarded by that lock; PT_: what the pointer points to is.
#define PERCPU_GUARDED_BY(lock) PERCPU_THREAD_ATTRIBUTE_(guarded_by(lock))
#define PERCPU_PT_GUARDED_BY(lock) PERCPU_THREAD_ATTRIBUTE_(pt_guarded_by(lock))
// Of a lock: its place in the lock order.
#define PERCPU_ACQUIRED_BEFORE(...) PERCPU_THREAD_ATTRIBUTE_(acquired_before(__VA_ARGS__))

// Of a function.
#define PERCPU_REQUIRES(...) PERCPU_THREAD_ATTRIBUTE_(requires_capability(__VA_ARGS__))
#define PERCPU_ACQUIRE(...) PERCPU_THREAD_ATTRIBUTE_(acquire_capability(__VA_ARGS__))
#define PERCPU_RELEASE(...) PERCPU_THREAD_ATTRIBUTE_(release_capability(__VA_ARGS__))
// The first argument is the result that means "taken".
#define PERCPU_TRY_ACQUIRE(...) PERCPU_THREAD_ATTRIBUTE_(try_acquire_capability(__VA_ARGS__))
#define PERCPU_EXCLUDES(...) PERCPU_THREAD_ATTRIBUTE_(locks_excluded(__VA_ARGS__))
#define PERCPU_RETURNS_LOCK(lock) PERCPU_THREAD_ATTRIBUTE_(lock_returned(lock))
// For the few functions whose locking is not a matter of scopes (fork handlers); say why at each use.
#define PERCPU_NO_THREAD_SAFETY_ANALYSIS PERCPU_THREAD_ATTRIBUTE_(no_thread_safety_analysis)

#endif  // PERCPU_BASE_ANNOTATIONS_H
