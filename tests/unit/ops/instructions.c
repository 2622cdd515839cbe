/* SPDX-License-Identifier: MIT */
/* One function for each fast path whose instructions tests/ops_instructions.txt counts. */
#include <percpu/ops.h>

#define EXPORT __attribute__((visibility("default"), noinline))

EXPORT void add_one(uint64_t *p);
EXPORT void add_one(uint64_t *p) {
  percpu_add(p, 1);
}
EXPORT void add_value(uint64_t *p, uint64_t v);
EXPORT void add_value(uint64_t *p, uint64_t v) {
  percpu_add(p, v);
}
EXPORT void add_byte(uint8_t *p, uint8_t v);
EXPORT void add_byte(uint8_t *p, uint8_t v) {
  percpu_add(p, v);
}
EXPORT void add_double(double *p, double v);
EXPORT void add_double(double *p, double v) {
  percpu_add(p, v);
}
EXPORT uint64_t read_word(const uint64_t *p);
EXPORT uint64_t read_word(const uint64_t *p) {
  return percpu_read(p);
}
EXPORT void write_word(uint64_t *p, uint64_t v);
EXPORT void write_word(uint64_t *p, uint64_t v) {
  percpu_write(p, v);
}
EXPORT uint64_t add_return(uint64_t *p, uint64_t v);
EXPORT uint64_t add_return(uint64_t *p, uint64_t v) {
  return percpu_add_return(p, v);
}
EXPORT uint64_t exchange(uint64_t *p, uint64_t v);
EXPORT uint64_t exchange(uint64_t *p, uint64_t v) {
  return percpu_xchg(p, v);
}
EXPORT uint64_t compare_exchange(uint64_t *p, uint64_t old, uint64_t v);
EXPORT uint64_t compare_exchange(uint64_t *p, uint64_t old, uint64_t v) {
  return percpu_cmpxchg(p, old, v);
}
EXPORT void push(struct percpu_list *list, struct percpu_list_node *node);
EXPORT void push(struct percpu_list *list, struct percpu_list_node *node) {
  percpu_list_push(list, node);
}
EXPORT struct percpu_list_node *pop(struct percpu_list *list);
EXPORT struct percpu_list_node *pop(struct percpu_list *list) {
  return percpu_list_pop(list);
}
EXPORT uint64_t *this_copy(uint64_t *p);
EXPORT uint64_t *this_copy(uint64_t *p) {
  return percpu_this_ptr(p);
}
EXPORT void pool_add(struct percpu_pool *pool, uint64_t *p);
EXPORT void pool_add(struct percpu_pool *pool, uint64_t *p) {
  percpu_pool_add(pool, p, 1);
}
