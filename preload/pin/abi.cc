// SPDX-License-Identifier: MIT
//
// The functions of libc that thread placement takes the place of. Each forwards inward; what it promises is libc's.
//
// exec's forms with a variable number of arguments count them, and copy them to the stack, as libc's do.
#include <stdarg.h>
#include <unistd.h>

#include "preload/abi/export.h"
#include "preload/heap/heap.h"
#include "preload/pin/pin.h"

using percpu::heap::OffPlace;
using percpu::heap::OffPlaceForExec;
using percpu::heap::pin_next;

// ---- threads -----------------------------------------------------------------------------------------------------------

PRELOAD_EXPORT int pthread_create(pthread_t* thread, const pthread_attr_t* attr, void* (*start)(void*),
                                  void* argument) noexcept {
  const int result = percpu::heap::pin_pthread_create(thread, attr, start, argument);
  if (result == 0) percpu::heap::heap.begin_threads();
  return result;
}

PRELOAD_EXPORT int thrd_create(thrd_t* thread, thrd_start_t start, void* argument) {
  const int result = percpu::heap::pin_thrd_create(thread, start, argument);
  if (result == thrd_success) percpu::heap::heap.begin_threads();
  return result;
}

PRELOAD_EXPORT int pthread_setattr_default_np(const pthread_attr_t* attr) noexcept {
  return percpu::heap::pin_pthread_setattr_default(attr);
}

PRELOAD_EXPORT int pthread_setname_np(pthread_t thread, const char* name) noexcept {
  return percpu::heap::pin_pthread_setname(thread, name);
}

// ---- affinity ----------------------------------------------------------------------------------------------------------

PRELOAD_EXPORT int sched_setaffinity(pid_t tid, size_t size_bytes, const cpu_set_t* mask) noexcept {
  return percpu::heap::pin_sched_setaffinity(tid, size_bytes, mask);
}

PRELOAD_EXPORT int sched_getaffinity(pid_t tid, size_t size_bytes, cpu_set_t* mask) noexcept {
  return percpu::heap::pin_sched_getaffinity(tid, size_bytes, mask);
}

PRELOAD_EXPORT int pthread_setaffinity_np(pthread_t thread, size_t size_bytes, const cpu_set_t* mask) noexcept {
  return percpu::heap::pin_pthread_setaffinity(thread, size_bytes, mask);
}

PRELOAD_EXPORT int pthread_getaffinity_np(pthread_t thread, size_t size_bytes, cpu_set_t* mask) noexcept {
  return percpu::heap::pin_pthread_getaffinity(thread, size_bytes, mask);
}

PRELOAD_EXPORT int pthread_getattr_np(pthread_t thread, pthread_attr_t* attr) noexcept {
  return percpu::heap::pin_pthread_getattr(thread, attr);
}

// ---- children ----------------------------------------------------------------------------------------------------------

PRELOAD_EXPORT int system(const char* command) {
  OffPlace off;
  return pin_next().system(command);
}

PRELOAD_EXPORT FILE* popen(const char* command, const char* mode) {
  OffPlace off;
  return pin_next().popen(command, mode);
}
// libc's second name.
PRELOAD_EXPORT FILE* _IO_popen(const char*, const char*) __attribute__((alias("popen")));

PRELOAD_EXPORT int posix_spawn(pid_t* child, const char* path, const posix_spawn_file_actions_t* actions,
                               const posix_spawnattr_t* attr, char* const argv[], char* const envp[]) {
  OffPlace off;
  return pin_next().posix_spawn(child, path, actions, attr, argv, envp);
}

PRELOAD_EXPORT int posix_spawnp(pid_t* child, const char* file, const posix_spawn_file_actions_t* actions,
                                const posix_spawnattr_t* attr, char* const argv[], char* const envp[]) {
  OffPlace off;
  return pin_next().posix_spawnp(child, file, actions, attr, argv, envp);
}

// ---- exec --------------------------------------------------------------------------------------------------------------

PRELOAD_EXPORT int execve(const char* path, char* const argv[], char* const envp[]) noexcept {
  OffPlaceForExec off;
  return pin_next().execve(path, argv, envp);
}

PRELOAD_EXPORT int execv(const char* path, char* const argv[]) noexcept {
  OffPlaceForExec off;
  return pin_next().execve(path, argv, environ);
}

PRELOAD_EXPORT int execvpe(const char* file, char* const argv[], char* const envp[]) noexcept {
  OffPlaceForExec off;
  return pin_next().execvpe(file, argv, envp);
}

PRELOAD_EXPORT int execvp(const char* file, char* const argv[]) noexcept {
  OffPlaceForExec off;
  return pin_next().execvp(file, argv);
}

PRELOAD_EXPORT int fexecve(int file, char* const argv[], char* const envp[]) noexcept {
  OffPlaceForExec off;
  return pin_next().fexecve(file, argv, envp);
}

PRELOAD_EXPORT int execveat(int directory, const char* path, char* const argv[], char* const envp[], int flags) noexcept {
  OffPlaceForExec off;
  return pin_next().execveat(directory, path, argv, envp, flags);
}

namespace {

// How many arguments there are, the null pointer included.
size_t count_arguments(va_list args) {
  size_t count = 1;
  while (va_arg(args, char*) != nullptr) ++count;
  return count;
}

// argv from `first` and the rest, null pointer included; *args is behind that then. (On arm64 a va_list that is handed on is a copy.)
void copy_arguments(const char* first, va_list* args, char** argv) {
  argv[0] = const_cast<char*>(first);
  for (size_t i = 0; argv[i] != nullptr;) argv[++i] = va_arg(*args, char*);
}

}  // namespace

// Leaves `args` behind the null pointer, and defines `argv`. `first` is not null, as in libc.
#define PERCPU_TAKE_ARGUMENTS_(first, args)                                                                    \
  va_list args;                                                                                                \
  va_start(args, first);                                                                                       \
  const size_t argc = count_arguments(args);                                                                   \
  va_end(args);                                                                                                \
  char** argv = static_cast<char**>(__builtin_alloca((argc + 1) * sizeof(char*)));                             \
  va_start(args, first);                                                                                       \
  copy_arguments(first, &args, argv)

PRELOAD_EXPORT int execl(const char* path, const char* first, ...) noexcept {
  PERCPU_TAKE_ARGUMENTS_(first, args);
  va_end(args);
  OffPlaceForExec off;
  return pin_next().execve(path, argv, environ);
}

PRELOAD_EXPORT int execle(const char* path, const char* first, ...) noexcept {
  PERCPU_TAKE_ARGUMENTS_(first, args);
  char* const* envp = va_arg(args, char* const*);
  va_end(args);
  OffPlaceForExec off;
  return pin_next().execve(path, argv, envp);
}

PRELOAD_EXPORT int execlp(const char* file, const char* first, ...) noexcept {
  PERCPU_TAKE_ARGUMENTS_(first, args);
  va_end(args);
  OffPlaceForExec off;
  return pin_next().execvp(file, argv);
}
