/* SPDX-License-Identifier: MIT */
/*
 * Operations in a shared object that is opened, used and closed again (module_test.cc). module_steps() runs each
 * operation by each of its ways out, and calls back after each with what it was.
 */
#include "fixture.h"

typedef void (*after_step)(const char *what);

struct module_areas {
  uint64_t *word;
  double *real;
  struct percpu_pair *pair;
  struct percpu_list *list;
};

void module_steps(const struct module_areas *a, after_step after);

__attribute__((visibility("default"))) void module_steps(const struct module_areas *a, after_step after) {
  struct percpu_list_node node;
  struct percpu_pair seen = {1, 1}, pair = {7, 8};
  uint64_t expected = 12345;
  percpu_write(a->word, 1);
  after("write");
  percpu_add(a->word, 1);
  after("add");
  (void)percpu_read(a->word);
  after("read");
  (void)percpu_add_return(a->word, 1);
  after("add_return");
  (void)percpu_xchg(a->word, 3);
  after("xchg");
  percpu_or(a->word, 4);
  after("or");
  percpu_and(a->word, 4);
  after("and");
  (void)percpu_cmpxchg(a->word, expected, 1);
  after("cmpxchg that fails");
  if (!percpu_try_cmpxchg(a->word, &expected, 5)) {
    after("try_cmpxchg that fails");
    (void)percpu_try_cmpxchg(a->word, &expected, 5);
    after("try_cmpxchg that succeeds");
  }
  percpu_add(a->real, 0.5);
  after("add to a double");
  if (!percpu_cmpxchg16(a->pair, &seen, pair)) {
    after("cmpxchg16 that fails");
    (void)percpu_cmpxchg16(a->pair, &seen, pair);
    after("cmpxchg16 that succeeds");
  }
  (void)percpu_read16(a->pair);
  after("read16");
  (void)percpu_list_pop(a->list);
  after("pop of an empty list");
  percpu_list_push(a->list, &node);
  after("push");
  (void)percpu_list_pop(a->list);
  after("pop");
  percpu_this_ptr(a->list)->stop = 1;
  percpu_list_push(a->list, &node);
  after("push to a stopped list");
  (void)percpu_list_pop(a->list);
  after("pop of a stopped list");
  percpu_this_ptr(a->list)->stop = 0;
}
