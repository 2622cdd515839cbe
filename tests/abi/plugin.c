/* SPDX-License-Identifier: MIT */
#include "plugin.h"

#include <percpu.h>

PERCPU_DEFINE(uint64_t, plugin_count);
PERCPU_DEFINE(int[PLUGIN_WORDS], plugin_table) = {1, 2, 3};
PERCPU_DEFINE_STATIC(long, fives) = 5;

/* Before other constructors, and after other destructors: the variables are there. */
__attribute__((constructor(101))) static void opened(void) { percpu_inc(percpu_static(plugin_count)); }
__attribute__((destructor(102))) static void closing(void) { percpu_inc(percpu_static(plugin_count)); }

static uint64_t *count(void) { return percpu_static(plugin_count); }
static int *table(void) { return &(*percpu_static(plugin_table))[0]; }
static void work(unsigned times) {
  for (unsigned i = 0; i < times; i++) percpu_inc(percpu_static(plugin_count));
}
static long sum_of_fives(void) { return (long)percpu_sum(percpu_static(fives)); }

#ifdef __cplusplus
extern "C"
#endif
__attribute__((visibility("default"))) const struct plugin_calls *plugin_face(void);

const struct plugin_calls *plugin_face(void) {
  static const struct plugin_calls face = {count, table, PLUGIN_WORDS, work, sum_of_fives};
  return &face;
}
