// SPDX-License-Identifier: MIT
//
// The heap, around fork: all of its locks are held meanwhile, and all CPUs are closed.
#include "preload/heap/heap.h"

namespace percpu::heap {

// The locks of all lists, then of all page heaps, of the nodes that are there: each that is written to is copied by the child.
template <class Each>
void Heap::for_each_node_lock(Each each) {
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) {
    for (CentralList& list : lists_[node]) each(list.lock());
  }
  for (uint32_t node = 0; node < window_.nr_nodes(); ++node) each(pages_[node].lock());
}

void Heap::fork_prepare() {
  (void)prepare();
  decay_lock_.lock();
  cache_.fork_prepare();
  for_each_node_lock([](HeapLock& lock) PERCPU_NO_THREAD_SAFETY_ANALYSIS { lock.lock(); });
  window_.spans_lock().lock();
  checker_.lock().lock();
  forking_thread.store(this_thread(), std::memory_order_relaxed);
}

void Heap::fork_parent() {
  forking_thread.store(0, std::memory_order_relaxed);
  checker_.lock().unlock();
  window_.spans_lock().unlock();
  for_each_node_lock([](HeapLock& lock) PERCPU_NO_THREAD_SAFETY_ANALYSIS { lock.unlock(); });
  cache_.fork_parent();
  decay_lock_.unlock();
}

void Heap::fork_child() {
  forking_thread.store(0, std::memory_order_relaxed);
  store_relaxed(&threads_begun_, false);
  store_relaxed(&thread_ticks_, false);
  store_relaxed(&rests_, false);
  store_relaxed(&most_purgeable_pages_, uint64_t{0});  // unknown: nobody ticks here so far
  checker_.lock().reset_after_fork_in_child();
  window_.spans_lock().reset_after_fork_in_child();
  for_each_node_lock([](HeapLock& lock) { lock.reset_after_fork_in_child(); });
  cache_.fork_child();
  decay_lock_.reset_after_fork_in_child();
  prepared_.reset_after_fork_in_child();
}

}  // namespace percpu::heap
