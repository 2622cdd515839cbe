// SPDX-License-Identifier: MIT
//
// Thread placement alone, to be preloaded: what the preload does with it, without the heap.
#include <pthread.h>

#include "os/env.h"
#include "os/system.h"
#include "pin.h"

namespace {

__attribute__((constructor)) void start() {
  char conf[4096];
  static_cast<void>(percpu::read_conf(conf, sizeof conf));
  percpu::heap::pin_start(percpu::parse_config(conf, percpu::page_size_bytes(), nullptr, nullptr));
  pthread_atfork(nullptr, nullptr, percpu::heap::pin_fork_child);
}

}  // namespace
