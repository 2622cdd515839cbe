/* SPDX-License-Identifier: MIT
 *
 * What glibc's build gives each of its files, as far as its tests of malloc and its support library need it outside of that build.
 * The headers that define it there are empty here (glibc.py, EMPTY).
 */
#ifndef PERCPU_TESTS_OTHERS_PRELUDE_H
#define PERCPU_TESTS_OTHERS_PRELUDE_H

#include <limits.h>

/* Marks of visibility, which mean nothing outside of libc.so. */
#define attribute_hidden
#define libc_hidden_def(name)
#define libc_hidden_proto(name)
#define strong_alias(name, alias) extern __typeof__(name) alias __attribute__((alias(#name)));
#define weak_alias(name, alias) extern __typeof__(name) alias __attribute__((weak, alias(#name)));

/* Symbols that libc.so keeps for old programs. The oldest version of x86-64 is 2.2.5. */
#define PERCPU_VERSION_GLIBC_2_0 "GLIBC_2.2.5"
#define compat_symbol_reference(lib, local, symbol, version) \
  __asm__(".symver " #local ", " #symbol "@" PERCPU_VERSION_##version);

/* x86-64. */
#define SIZE_SZ (sizeof(size_t))
#define MALLOC_ALIGNMENT (2 * SIZE_SZ)
#define MALLOC_ALIGN_MASK (MALLOC_ALIGNMENT - 1)
#define _STACK_GROWS_DOWN 1
#define DEFAULT_STACK_PERMS (PF_R | PF_W)

/* malloc's own options stay as they are. */
#define TEST_NO_MALLOPT 1

/* Where the build is and what it would install: no test of malloc asks. */
#define BINDIR_PATH "/"
#define COMPLOCALEDIR_PATH "/"
#define INSTDIR_PATH "/"
#define LIBDIR_PATH "/"
#define OBJDIR_ELF_LDSO_PATH "/"
#define OBJDIR_PATH "/"
#define ROOTSBINDIR_PATH "/"
#define SBINDIR_PATH "/"
#define SLIBDIR_PATH "/"
#define SRCDIR_PATH "/"
#define SYSCONFDIR_PATH "/"

/* What glibc's own sources set errno by. */
#include <errno.h>
#undef __set_errno
#define __set_errno(value) (errno = (value))

#endif
