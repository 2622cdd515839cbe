// SPDX-License-Identifier: MIT
#include "runtime/balancer.h"

#include <cerrno>
#include <ctime>

#include "base/check.h"
#include "os/cancel.h"
#include "runtime/pool.h"

namespace percpu {
namespace {

constexpr char kThreadName[] = "percpu-balance";

// While the job that is no pool's wants it, the thread looks after it this often.
constexpr uint32_t kJobMs = 200;

// How often it looks whether it is the last thread, once the main thread has ended.
constexpr uint32_t kLastMs = 100;

constexpr timespec milliseconds(uint32_t ms) { return {ms / 1000, long{ms % 1000} * 1000 * 1000}; }

// How often to try where no thread can be made, and how long to wait each time, before that is told.
constexpr int kStartTries = 10;
constexpr timespec kStartPatience = {0, 20 * 1000 * 1000};

}  // namespace

// ---- the list ------------------------------------------------------------------------------------------------------

void Balancer::add(Pool& pool) {
  SleepMutexGuard guard(rounds_lock_);
  pool.next.store(pools_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  pools_.store(&pool, std::memory_order_release);
}

bool Balancer::has(const Pool* pool) {
  SleepMutexGuard guard(rounds_lock_);
  for (const Pool& each : pools()) {
    if (&each == pool) return true;
  }
  return false;
}

bool Balancer::remove(Pool& pool) {
  {
    SleepMutexGuard guard(rounds_lock_);
    std::atomic<Pool*>* link = &pools_;
    while (link->load(std::memory_order_relaxed) != &pool) link = &link->load(std::memory_order_relaxed)->next;
    link->store(pool.next.load(std::memory_order_relaxed), std::memory_order_release);
  }
  // Readers who found the pool before it left the list go on reading it.
  (void)readers_.shut();
  (void)readers_.wait_empty();
  readers_.open();
  return grace_->wait();
}

// ---- waking and starting ---------------------------------------------------------------------------------------------

// The bell remembers what is rung while there is nobody to hear it, so a thread that is just starting misses nothing.
void Balancer::wake() {
  bell_.ring(*system_);
  if (!running()) start_wanted_.store(true, std::memory_order_relaxed);
}

// Starts the thread, or finds that somebody else does. The first failure is told; every later call tries again.
void Balancer::start() {
  // The process ends: nothing needs balancing any more.
  if (stopping_.load(std::memory_order_relaxed)) return;
  if (retired_.load(std::memory_order_relaxed)) {
    // Somebody may have counted on the thread while it retired.
    if (start_wanted_.exchange(false, std::memory_order_relaxed)) serve_no_more();
    return;
  }
  start_wanted_.store(false, std::memory_order_relaxed);
  uint32_t expected = kNone;
  if (!state_.compare_exchange_strong(expected, kStarting, std::memory_order_acquire)) return;
  note_process();  // the child of a raw system call has not been told of its fork
  int result = system_->start_thread(&thread_, thread_main, this);
  for (int tries = 1; tries < kStartTries && result == -EAGAIN && !said_unstartable_; tries++) {
    if (stopping_.load(std::memory_order_relaxed)) break;
    // The kernel makes no thread while another one is in exec(): soon this process is another program, or that thread has failed.
    const NotCancelled not_cancelled;
    (void)nanosleep(&kStartPatience, nullptr);
    result = system_->start_thread(&thread_, thread_main, this);
  }
  if (result == 0) {
    // The thread itself may have said so already.
    expected = kStarting;
    state_.compare_exchange_strong(expected, kRunning, std::memory_order_release);
    return;
  }
  if (!said_unstartable_) {
    said_unstartable_ = true;
    report("the balance thread cannot be started (error %d); its work is done by the threads that allocate", -result);
  }
  serve_no_more();
  start_wanted_.store(true, std::memory_order_relaxed);
}

// Until a thread runs, who finds work due does it: and what was left to it already is done here.
void Balancer::serve_no_more() {
  state_.store(kNone, std::memory_order_seq_cst);
  SleepMutexGuard guard(rounds_lock_);
  for (Pool& pool : pools()) pool.take_over();
}

void Balancer::fork_child(bool exits) {
  stopping_.store(exits, std::memory_order_relaxed);
  main_thread_.store(MainThread::kRuns, std::memory_order_relaxed);
  note_process();
  retired_.store(false, std::memory_order_relaxed);
  state_.store(kNone, std::memory_order_relaxed);
  in_grace_.store(false, std::memory_order_relaxed);
  bell_.reset_after_fork_in_child();
  grace_lock_.reset_after_fork_in_child();
  readers_.reset();
  bool any_due = false;
  for (Pool& pool : pools()) any_due = any_due || pool.due();
  if (any_due) bell_.ring(*system_);
  start_wanted_.store(any_due, std::memory_order_relaxed);
  rounds_lock_.unlock();
}

// ---- the thread ------------------------------------------------------------------------------------------------------

void* Balancer::thread_main(void* self) {
  (void)pthread_setname_np(pthread_self(), kThreadName);  // here: for whoever made it, it may have ended already
  static_cast<Balancer*>(self)->run();
  return nullptr;
}

void Balancer::run() {
  uint32_t expected = kStarting;
  state_.compare_exchange_strong(expected, kRunning, std::memory_order_release);
  uint32_t front_caches_ms = 0;  // how long to sleep on behalf of each; 0: until somebody rings
  uint32_t job_ms = 0;
  while (!stopping_.load(std::memory_order_seq_cst)) {
    uint32_t wait_ms = front_caches_ms == 0 || (job_ms != 0 && job_ms < front_caches_ms) ? job_ms : front_caches_ms;
    const MainThread main_thread = main_thread_.load(std::memory_order_acquire);
    if (main_thread != MainThread::kRuns) {
      const Last last_thread = is_last_thread();
      if (last_thread == Last::kUnknown) return retire();
      if (last_thread == Last::kYes) {
        state_.store(kEnded, std::memory_order_release);  // what runs at exit is not to wait for us
        if (main_thread == MainThread::kLeaves) return;
        pthread_t last;
        if (pthread_create(&last, nullptr, end_process, this) != 0) (void)end_process(this);
        return;
      }
      if (wait_ms == 0 || wait_ms > kLastMs) wait_ms = kLastMs;
    }
    const timespec timeout = milliseconds(wait_ms);
    const bool rung = bell_.wait(*system_, wait_ms != 0 ? &timeout : nullptr);
    front_caches_ms = look_after_front_caches();
    if (rung || (job_ms != 0 && job_ms <= wait_ms)) {
      job_ms = do_job() ? kJobMs : 0;
    } else if (job_ms != 0) {
      job_ms -= wait_ms;
    }
    run_rounds();
    while (any_grace_waiting() && !stopping_.load(std::memory_order_seq_cst)) {
      in_grace_.store(true, std::memory_order_relaxed);
      free_after_grace();
      in_grace_.store(false, std::memory_order_relaxed);
      run_rounds();
    }
  }
  state_.store(kEnded, std::memory_order_release);
  futex_wake(state_, 1);
}

// True while there is more to do.
bool Balancer::do_job() {
  const Job job = job_.load(std::memory_order_acquire);
  return job != nullptr && job(job_context_) != 0;
}

// In how many milliseconds the first pool wants another look; 0: none does.
uint32_t Balancer::look_after_front_caches() {
  SleepMutexGuard guard(rounds_lock_);
  uint32_t soonest_ms = 0;
  for (Pool& pool : pools()) {
    const uint32_t ms = pool.look_after_front_caches();
    if (ms != 0 && (soonest_ms == 0 || ms < soonest_ms)) soonest_ms = ms;
  }
  return soonest_ms;
}

void Balancer::run_rounds() {
  SleepMutexGuard guard(rounds_lock_);
  for (Pool& pool : pools()) {
    if (pool.take_due() && !stopping_.load(std::memory_order_relaxed)) pool.make_round();
  }
}

bool Balancer::any_grace_waiting() {
  SleepMutexGuard guard(rounds_lock_);
  for (Pool& pool : pools()) {
    if (pool.grace_waiting() && !grace_->lost()) return true;
  }
  return false;
}

void Balancer::free_after_grace() {
  SleepMutexGuard one_at_a_time(grace_lock_);
  bool any = false;
  {
    SleepMutexGuard guard(rounds_lock_);
    for (Pool& pool : pools()) any = pool.begin_grace_batch() || any;
  }
  if (!any || !grace_->wait()) return;
  SleepMutexGuard guard(rounds_lock_);
  for (Pool& pool : pools()) pool.free_grace_batch();
}

}  // namespace percpu
