// SPDX-License-Identifier: MIT
//
// The balance thread where the process ends: exit(), and a main thread that ends before others.
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <ctime>

#include "os/file.h"
#include "runtime/balancer.h"

namespace percpu {
namespace {

// How long the end of the process waits for a round in progress.
constexpr timespec kStopPatience = {0, 100 * 1000 * 1000};
constexpr int kStopTries = 10;

}  // namespace

void Balancer::main_thread_ends() { note_main_thread(MainThread::kEnds); }

bool Balancer::is_of_another_process() const {
  const pid_t process = process_.load(std::memory_order_relaxed);
  return process != 0 && process != getpid();
}

bool Balancer::main_thread_leaves() {
  if (is_of_another_process()) return false;
  if (running() && threads().count == 2) return true;
  note_main_thread(MainThread::kLeaves);
  return false;
}

void Balancer::note_main_thread(MainThread how) {
  (void)pthread_sigmask(SIG_SETMASK, nullptr, &mask_of_main_);
  main_thread_.store(how, std::memory_order_release);
  if (system_ != nullptr) bell_.ring(*system_);  // a thread that is just starting hears of it, too
}

void Balancer::stop() {
  if (stopping_.exchange(true, std::memory_order_seq_cst) || !running()) return;
  bell_.ring(*system_);
  for (int i = 0; i < kStopTries && running() && !in_grace_.load(std::memory_order_relaxed); i++) {
    (void)futex_wait(state_, kRunning, &kStopPatience);
  }
  if (state_.load(std::memory_order_acquire) == kEnded) (void)system_->join_thread(thread_);  // else outlive() does
}

void* Balancer::end_process(void* self) {
  (void)pthread_sigmask(SIG_SETMASK, &static_cast<Balancer*>(self)->mask_of_main_, nullptr);
  exit(0);
}

// A process ends in the last of its threads: not in this one, which has a small stack and all signals blocked, but in one
// behind it.
void* Balancer::outlive(void* self) {
  auto& balancer = *static_cast<Balancer*>(self);
  (void)pthread_sigmask(SIG_SETMASK, &balancer.mask_of_main_, nullptr);
  (void)pthread_detach(pthread_self());
  (void)pthread_join(balancer.self_, nullptr);
  return nullptr;
}

// Ends the thread for good.
void Balancer::retire() {
  retired_.store(true, std::memory_order_relaxed);
  serve_no_more();
  self_ = pthread_self();
  pthread_t behind;
  (void)pthread_create(&behind, nullptr, outlive, this);
}

// The kernel says of the process how its main thread is, and how many threads there are, that one included until all have ended.
Balancer::Threads Balancer::threads() const {
  char text[512];
  if (read_beginning(*system_, "/proc/self/stat", text, sizeof text) <= 0) return {0, false};
  const char* at = strrchr(text, ')');  // behind the program's name, which may hold anything
  if (at == nullptr || at[1] != ' ') return {0, false};
  at += 2;
  const bool main_ended = *at == 'Z';
  constexpr int kFromStateToThreads = 17;
  for (int field = 0; field < kFromStateToThreads && at != nullptr; field++) at = strchr(at + 1, ' ');
  return {at != nullptr ? strtoul(at, nullptr, 10) : 0, main_ended};
}

Balancer::Last Balancer::is_last_thread() const {
  const Threads now = threads();
  if (now.count == 0) return Last::kUnknown;
  return now.main_ended && now.count == 2 ? Last::kYes : Last::kNo;
}

}  // namespace percpu
