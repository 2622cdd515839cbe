/* SPDX-License-Identifier: MIT */
/* A library whose notes lie in nothing that is loaded: the dynamic linker opens it, and whoever reads its notes is not to look there. */
#define _GNU_SOURCE
#include <percpu.h>

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

enum { kMostBytes = 8 << 20 };
static char content[kMostBytes];

int main(int argc, char **argv) {
  CHECK(argc == 2);
  int file = open(argv[1], O_RDONLY);
  CHECK(file >= 0);
  size_t length = 0;
  for (ssize_t bytes; (bytes = read(file, content + length, sizeof content - length)) > 0;) length += (size_t)bytes;
  CHECK(length > sizeof(ElfW(Ehdr)) && length < sizeof content);
  close(file);

  ElfW(Ehdr) header;
  memcpy(&header, content, sizeof header);
  int nr_moved = 0;
  for (unsigned i = 0; i < header.e_phnum; i++) {
    ElfW(Phdr) segment;
    char *at = content + header.e_phoff + i * sizeof segment;
    memcpy(&segment, at, sizeof segment);
    if (segment.p_type != PT_NOTE) continue;
    segment.p_vaddr = 0x10000000;
    memcpy(at, &segment, sizeof segment);
    nr_moved++;
  }
  CHECK(nr_moved > 0);

  char name[] = "/tmp/percpu-odd-note-XXXXXX";
  file = mkstemp(name);
  CHECK(file >= 0 && write(file, content, length) == (ssize_t)length);
  close(file);
  void *opened = dlopen(name, RTLD_NOW);
  if (opened == NULL) fprintf(stderr, "%s\n", dlerror());
  unlink(name);
  CHECK(opened != NULL);
  CHECK(percpu_pool_default() != NULL);
  return 0;
}
