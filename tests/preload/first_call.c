/* SPDX-License-Identifier: MIT
 *
 * Until main() begins no call of the preload's malloc and its kin allocates anew, or asks libc for anything that may: the first call may
 * come before any constructor has run. Two in one: with -DIN_FRONT a library that stands in front of the preload, where every call of
 * malloc, and everything that the preload itself asks of others, comes by; else the program, whose first allocation comes before all
 * constructors.
 */
#undef _FILE_OFFSET_BITS /* else open() is another name of open64(): both are defined here */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef IN_FRONT

#define VISIBLE __attribute__((visibility("default")))

/* The preload's, by its second names: libc's are behind it. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
int __posix_memalign(void **, size_t, size_t);
void __libc_free(void *);

VISIBLE void first_call_main_begins(int *calls);

static int main_has_begun;
static int inside; /* a call of the heap: there is one thread so far */
static int nr_calls;

static void forbid(const char *what) {
  if (main_has_begun || !inside) return;
  const char *const text[] = {"first_call: expected that no call of the heap before main() asks for anything, found ", what, "\n"};
  for (size_t i = 0; i < sizeof text / sizeof text[0]; i++) (void)!write(STDERR_FILENO, text[i], strlen(text[i]));
  _exit(1);
}

#define AROUND(name, call) \
  do {                     \
    forbid(name);          \
    inside = 1;            \
    nr_calls++;            \
    call;                  \
    inside = 0;            \
  } while (0)

#define HEAP_CALL(name, parameters, call)   \
  VISIBLE void *name parameters {           \
    void *block;                            \
    AROUND(#name, block = call);            \
    return block;                           \
  }
HEAP_CALL(malloc, (size_t size), __libc_malloc(size))
HEAP_CALL(calloc, (size_t count, size_t size), __libc_calloc(count, size))
HEAP_CALL(realloc, (void *old, size_t size), __libc_realloc(old, size))
HEAP_CALL(memalign, (size_t align, size_t size), __libc_memalign(align, size))
HEAP_CALL(aligned_alloc, (size_t align, size_t size), __libc_memalign(align, size))
VISIBLE int posix_memalign(void **out, size_t align, size_t size) {
  int result;
  AROUND("posix_memalign", result = __posix_memalign(out, align, size));
  return result;
}
VISIBLE void free(void *block) { AROUND("free", __libc_free(block)); }

VISIBLE void first_call_main_begins(int *calls) {
  *calls = nr_calls;
  main_has_begun = 1;
}

/* A jump, so that RTLD_NEXT means what is behind the caller, not behind this library: compiled with optimization. */
typedef void *(*find)(void *, const char *);
static find next_dlsym(void) {
  static find found;
  if (found == NULL) *(void **)&found = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
  return found;
}
VISIBLE void *dlsym(void *handle, const char *name) {
  forbid("dlsym");
  return next_dlsym()(handle, name);
}

#define FORBIDDEN(result, name, parameters, arguments)                              \
  VISIBLE result name parameters {                                                  \
    static result(*next) parameters;                                                \
    forbid(#name);                                                                  \
    if (next == NULL) *(void **)&next = next_dlsym()(RTLD_NEXT, #name);              \
    return next arguments;                                                          \
  }
FORBIDDEN(char *, getenv, (const char *name), (name))
FORBIDDEN(char *, secure_getenv, (const char *name), (name))
FORBIDDEN(FILE *, fopen, (const char *path, const char *mode), (path, mode))
FORBIDDEN(FILE *, fopen64, (const char *path, const char *mode), (path, mode))
FORBIDDEN(ssize_t, read, (int file, void *buffer, size_t bytes), (file, buffer, bytes))
FORBIDDEN(void *, dlopen, (const char *path, int how), (path, how))
FORBIDDEN(long, sysconf, (int name), (name))
FORBIDDEN(void *, mmap, (void *at, size_t bytes, int access, int flags, int file, off_t offset), (at, bytes, access, flags, file, offset))
FORBIDDEN(void *, mmap64, (void *at, size_t bytes, int access, int flags, int file, off64_t offset),
          (at, bytes, access, flags, file, offset))
FORBIDDEN(int, mprotect, (void *at, size_t bytes, int access), (at, bytes, access))
FORBIDDEN(int, madvise, (void *at, size_t bytes, int advice), (at, bytes, advice))

#define FORBIDDEN_OPEN(name)                                                     \
  VISIBLE int name(const char *path, int how, ...) {                             \
    static int (*next)(const char *, int, mode_t);                               \
    va_list rest;                                                                \
    va_start(rest, how);                                                         \
    const mode_t mode = (how & O_CREAT) != 0 || (how & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                                \
    forbid(#name);                                                               \
    if (next == NULL) *(void **)&next = next_dlsym()(RTLD_NEXT, #name);          \
    return next(path, how, mode);                                                \
  }
FORBIDDEN_OPEN(open)
FORBIDDEN_OPEN(open64)

#else

void first_call_main_begins(int *calls) __attribute__((weak));

static void *earliest;
static char expected[1000];

/* Before the constructors of all shared libraries. */
static void allocate(void) {
  earliest = malloc(sizeof expected);
  if (earliest == NULL) abort();
  memset(earliest, 7, sizeof expected);
}
__attribute__((section(".preinit_array"), used)) static void (*allocate_first)(void) = allocate;

int main(void) {
  if (first_call_main_begins == NULL) return 2;
  int calls = 0;
  first_call_main_begins(&calls);
  if (calls < 1) {
    fprintf(stderr, "first_call: expected calls of the heap before main(), found %d\n", calls);
    return 1;
  }
  memset(expected, 7, sizeof expected);
  if (memcmp(earliest, expected, sizeof expected) != 0) return 1;
  free(earliest);
  printf("first_call: nothing was asked for in %d calls\n", calls);
  return 0;
}

#endif
