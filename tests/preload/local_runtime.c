/* SPDX-License-Identifier: MIT
 *
 * A program in C with a plug-in in C++, as python3 and its modules: the C++ runtime comes with that, by dlopen() with
 * RTLD_LOCAL, and is in no scope but the plug-in's. Where there is no memory, operator new must throw there, and ask the
 * new-handler.
 *
 *   local_runtime PLUGIN
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>

#include "../as_told.h"

int main(int argc, char **argv) {
  expect_preload_as_told();
  if (argc != 2) return 2;
  if (dlsym(RTLD_DEFAULT, "_ZSt15get_new_handlerv") != NULL) {
    fprintf(stderr, "local_runtime: expected no C++ runtime in the global scope, found one\n");
    return 2;
  }
  void *const plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (plugin == NULL) {
    fprintf(stderr, "local_runtime: %s\n", dlerror());
    return 2;
  }
  int (*const try_all)(unsigned long) = (int (*)(unsigned long))(uintptr_t)dlsym(plugin, "try_all");
  const int wrong = try_all == NULL ? -1 : try_all(PTRDIFF_MAX - 255ul);
  if (wrong != 0) fprintf(stderr, "local_runtime: step %d of the plug-in\n", wrong);
  return wrong != 0 ? 1 : 0;
}
