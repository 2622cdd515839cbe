/* SPDX-License-Identifier: MIT */
/*
 * percpu/static.h - static per-CPU variables
 *
 *   in a source file:   PERCPU_DEFINE(long, requests) = 5;       5 on every CPU
 *                       PERCPU_DEFINE_STATIC(struct stats, io);  known in this file only
 *   in a header:        PERCPU_DECLARE(long, requests);
 *   in any function:    percpu_inc(percpu_static(requests));     percpu_static() gives the handle, a `long *`
 *
 * The type must have a name and at least one byte, must not be const nor aligned to more than 4096 bytes, and may be an array
 * (PERCPU_DEFINE(int[8], table); in C of a length that is written out); the initialiser must be a constant. In C++ the type must
 * be trivially copyable and destructible, since copies are made of bytes, without constructors and destructors; and
 * percpu_static() takes the plain name of a variable of a namespace, so it stands where that is known:
 * percpu_static(io::requests) does not compile.
 *
 * They work in programs, in shared libraries that are linked, and in ones that are opened with dlopen() and closed again; the
 * variables of a module that dlclose() removes end with it, and begin anew when it is opened again.
 *
 * How it works. The macro defines two objects:
 *   the image   the variable itself, in the section percpu_image: only the initial value, never changed. &requests is
 *               the image, not the handle, and is known inside its module only (hidden visibility), so no copy relocation
 *               can move it
 *   the cell    percpu_cell_requests: {handle or NULL, address of the image}. Other modules refer to the cell; whichever
 *               module's copy of it the dynamic linker picks, all use the same one
 * and an ELF note that says where the module's images are. percpu_static() reads the handle from the cell; the first use
 * finds it NULL and asks the library, which finds the module by its notes (as the dynamic linker lists it: no constructor need
 * have run), gives its images room (in the first chunk's static part for modules that are there when the default pool is
 * made; for others in the reserved part, or in ordinary memory when that is full), and copies them to every CPU.
 *
 * percpu_static(): thread-safe; signal-safe once that variable has been used before; fork-safe. It stops the program with
 * one line where memory for a module's variables cannot be had: there is no handle to return.
 */
#ifndef PERCPU_STATIC_H
#define PERCPU_STATIC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C++" {
#include <type_traits>
}
extern "C" {
#endif

/* Slow path of percpu_static(): finds room for the module whose image is cell[1], stores the handle in cell[0]. */
void *percpu_static_resolve_(void **cell);

/*
 * The destructor of each variable: the module whose image is cell[1] is being closed, and what its variables occupy is given
 * back. The first of a module's calls does it. At exit of the process nothing is given back: other destructors may still count.
 */
void percpu_static_close_(void **cell);

typedef void *percpu_cell_word_ __attribute__((__may_alias__));

static inline void *percpu_static_handle_(void **cell) {
  void *handle = __atomic_load_n((percpu_cell_word_ *)cell, __ATOMIC_ACQUIRE);
  return __builtin_expect(handle != NULL, 1) ? handle : percpu_static_resolve_(cell);
}

#ifdef __cplusplus
}
#endif

#if defined(__aarch64__) || defined(__arm__)
#define PERCPU_NOTE_TYPE_ "%note"
#else
#define PERCPU_NOTE_TYPE_ "@note"
#endif

/*
 * One note a source file; all notes of a module say the same. Name "percpu", type 1; the descriptor is two signed 32-bit
 * numbers: the distance from the first to the first image, and from the second to the end of the last (docs/static.md).
 */
#define PERCPU_NOTE_                                       \
  __asm__(".ifndef percpu_note_written_\n\t"              \
          ".set percpu_note_written_, 1\n\t"              \
          ".hidden __start_percpu_image\n\t"              \
          ".hidden __stop_percpu_image\n\t"               \
          ".pushsection .note.percpu, \"a\", " PERCPU_NOTE_TYPE_ "\n\t" \
          ".balign 4\n\t"                                 \
          ".long 7, 8, 1\n\t"                             \
          ".asciz \"percpu\"\n\t"                         \
          ".balign 4\n\t"                                 \
          ".long __start_percpu_image - .\n\t"            \
          ".long __stop_percpu_image - .\n\t"             \
          ".popsection\n\t"                               \
          ".endif")

/* What the type must be. Where pages are larger, so may alignments be; but nobody knows when compiling. (C++ takes int[], too, which
 * sizeof does not.) */
#ifdef __cplusplus
#define PERCPU_NEEDS_IMAGE_(type)                                                                                    \
  static_assert(sizeof(std::conditional_t<std::is_same_v<type, std::remove_extent_t<type>[]>, char, type>) > 0,      \
                "a static per-CPU variable has at least one byte");                                                  \
  static_assert(alignof(type) <= 4096, "a static per-CPU variable is aligned to 4096 bytes at most");                \
  static_assert(!std::is_const_v<std::remove_all_extents_t<type>>, "a static per-CPU variable is not const");        \
  static_assert(std::is_trivially_copyable_v<std::remove_cv_t<std::remove_all_extents_t<type>>> &&                   \
                    std::is_trivially_destructible_v<std::remove_all_extents_t<type>>,                               \
                "a static per-CPU variable is trivially copyable and destructible: its copies are made of bytes")
#else
#define PERCPU_NEEDS_IMAGE_(type)                                                                            \
  _Static_assert(sizeof(type) > 0, "a static per-CPU variable has at least one byte");                      \
  _Static_assert(_Alignof(type) <= 4096, "a static per-CPU variable is aligned to 4096 bytes at most");     \
  _Static_assert(!__builtin_types_compatible_p(__typeof__(type) *, const __typeof__(type) *),               \
                 "a static per-CPU variable is not const")
#endif

/*
 * The images may be copied before constructors have run: an initialiser that the compiler cannot compute is refused, in C anyway, in C++ by
 * g++ from 10 on. (clang++, asked the same, refuses structures without an initialiser, too.)
 */
#if defined(__cplusplus) && !defined(__clang__) && __GNUC__ >= 10
#define PERCPU_CONSTANT_ __constinit
#else
#define PERCPU_CONSTANT_
#endif

#define PERCPU_IMAGE_ PERCPU_CONSTANT_ __attribute__((__section__("percpu_image"), __used__))

/*
 * Runs after the module's other destructors, which may still count: in the section of what a destructor of priority 100 would be, which
 * compilers keep to themselves, since of those of 101, the last that a program may ask for, the linker's order would decide. It names
 * the image, which is the module's own; the cell may be that of another module with a variable of the same name.
 */
#define PERCPU_CLOSE_(name, image)                                                                                    \
  static void percpu_close_##name(void) {                                                                             \
    void *percpu_own_[2] = {NULL, (void *)(uintptr_t)&(image)};                                                       \
    percpu_static_close_(percpu_own_);                                                                                \
  }                                                                                                                   \
  __attribute__((__section__(".fini_array.00100"), __used__)) static void (*percpu_close_at_##name)(void) = percpu_close_##name;

/* Declares a variable that another file or module defines. In a header. */
#define PERCPU_DECLARE(type, name) extern __typeof__(type) *percpu_cell_##name[2]

/* The same before the definition, where a header may have said it already: for warnings about the one, and none about the other. */
#define PERCPU_DECLARE_AGAIN_(type, name)                                                              \
  _Pragma("GCC diagnostic push") _Pragma("GCC diagnostic ignored \"-Wredundant-decls\"")               \
  PERCPU_DECLARE(type, name);                                                                          \
  _Pragma("GCC diagnostic pop")

/*
 * Defines a variable; may be followed by = and a constant initialiser. At file scope. The cell is a variable like others:
 * a library that is compiled with -fvisibility=hidden and means to share it gives it default visibility by a pragma.
 */
#define PERCPU_DEFINE(type, name)                                                 \
  PERCPU_NOTE_;                                                                   \
  PERCPU_NEEDS_IMAGE_(type);                                                      \
  extern __typeof__(type) name __attribute__((__visibility__("hidden")));         \
  PERCPU_DECLARE_AGAIN_(type, name)                                               \
  __typeof__(type) *percpu_cell_##name[2] = {0, &name};                           \
  PERCPU_CLOSE_(name, name)                                                       \
  PERCPU_IMAGE_ __typeof__(type) name

/* As PERCPU_DEFINE, for a variable that only this file knows. (In C++ a member, since nothing else is declared before it is defined and
 * the file's own. g++ takes no definition of one inside of extern "C" { }: there it goes into an extern "C++" { }.) */
#ifdef __cplusplus
#define PERCPU_DEFINE_STATIC(type, name)                                          \
  PERCPU_NOTE_;                                                                   \
  PERCPU_NEEDS_IMAGE_(type);                                                      \
  namespace {                                                                     \
  struct percpu_image_##name {                                                    \
    static __typeof__(type) image;                                                \
  };                                                                              \
  }                                                                               \
  static __typeof__(type) *percpu_cell_##name[2] = {0, &percpu_image_##name::image}; \
  PERCPU_CLOSE_(name, percpu_image_##name::image)                                 \
  PERCPU_IMAGE_ __typeof__(type) percpu_image_##name::image
#else
#define PERCPU_DEFINE_STATIC(type, name)                                          \
  PERCPU_NOTE_;                                                                   \
  PERCPU_NEEDS_IMAGE_(type);                                                      \
  static __typeof__(type) name;                                                   \
  static __typeof__(type) *percpu_cell_##name[2] = {0, &name};                    \
  PERCPU_CLOSE_(name, name)                                                       \
  PERCPU_IMAGE_ static __typeof__(type) name
#endif

/* The handle of a static variable: a `type *`, for every operation that takes a handle. */
#define percpu_static(name) ((__typeof__(percpu_cell_##name[0]))percpu_static_handle_((void **)percpu_cell_##name))

#endif /* PERCPU_STATIC_H */
