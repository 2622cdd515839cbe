// SPDX-License-Identifier: MIT
//
// Under the preload, without threads: what becomes free at once, or in place, goes back as what is freed bit by bit.
//
//   resized shrunk       by realloc: all but 256 MiB
//   resized at_once      the same with decay:0: all
//   resized freed        at a stroke, when much was used: all but 256 MiB
//   resized forked       the same in a child of a program that had threads, which has none
//   resized grown        a block that grows in place makes the heap look at the memory limit
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "../as_told.h"

namespace {

constexpr size_t kMiB = size_t{1} << 20;

// None of the blocks is written to: only the heap counts their pages as backed.
int expect_free(size_t least, size_t most) {
  const size_t found = mallinfo2().keepcost;
  if (found >= least && found <= most) return 0;
  fprintf(stderr, "resized: expected %zu to %zu KiB free and backed, found %zu\n", least >> 10, most >> 10, found >> 10);
  return 1;
}

int shrunk(size_t most) {
  void* const block = malloc(2048 * kMiB);
  void* const same = realloc(block, 65536);
  if (block == nullptr || same != block) return 2;
  return expect_free(0, most);
}

// The heap of the parent goes by the balance thread, which has just ticked.
int forked() {
  void* blocks[64];
  std::thread([] {}).join();
  for (void*& block : blocks) {
    block = malloc(16 * kMiB);
    if (block == nullptr) return 2;
  }
  free(malloc(100000));
  usleep(300000);
  free(malloc(100000));
  const pid_t child = fork();
  if (child < 0) return 2;
  if (child == 0) {
    for (void* block : blocks) free(block);
    _exit(expect_free(0, 256 * kMiB));
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 2;
  return WEXITSTATUS(status);
}

int freed() {
  void* blocks[64];
  for (void*& block : blocks) {
    block = malloc(128 * kMiB);
    if (block == nullptr || malloc(40000) == nullptr) return 2;  // between two that are free
  }
  for (void* block : blocks) free(block);
  return expect_free(0, 256 * kMiB);
}

// Without a file descriptor the heap cannot see the limit: it counts as near, and all that is free goes back. So that tells
// whether it looked.
int grown(const char* self, bool last_try) {
  const rlimit few = {64, 64};
  if (setrlimit(RLIMIT_NOFILE, &few) != 0) return 2;
  while (open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) continue;
  // Opens as much around it, for the block that grows: nothing of that is backed, so the heap does not look yet, which it does
  // from 4 MiB on.
  void* const fence = aligned_alloc(1024 * kMiB, 40000);
  void* const other = malloc(600000);
  void* const block = malloc(5 * kMiB / 2);
  free(other);
  if (fence == nullptr || expect_free(600000, kMiB) != 0) return 2;
  if (realloc(block, 9 * kMiB / 2) == block) return expect_free(0, 0);
  // One time in some hundred the block lay where less is free, as addresses are random.
  if (!last_try) execl(self, self, "grown", "again", nullptr);
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  expect_preload_as_told();
  if (argc < 2) return 2;
  const char* const which = argv[1];
  int result = 2;
  if (strcmp(which, "shrunk") == 0) result = shrunk(256 * kMiB);
  if (strcmp(which, "at_once") == 0) result = shrunk(0);
  if (strcmp(which, "freed") == 0) result = freed();
  if (strcmp(which, "forked") == 0) result = forked();
  if (strcmp(which, "grown") == 0) result = grown(argv[0], argc > 2);
  if (result == 2) fprintf(stderr, "resized: %s could not be set up\n", which);
  if (result == 0) puts("resized: as promised");
  return result;
}
